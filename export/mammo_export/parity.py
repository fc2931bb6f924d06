"""The parity proof: a trained network and its graph see the same real images through the runtime's own `segment`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from mammo_export.compare import COMPARE, at_the_end
from mammo_export.gates import Parity
from mammo_export.tally import Graphs, Recorder, Seen, Side, Tally
from mammo_runtime.errors import GateMissed, ImageError, InferenceFailed, UsageError
from mammo_runtime.mammogram import Box
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec
from mammo_train.dataset import LabelledImage, read_labelled
from mammo_train.index import IndexRow
from mammo_train.torch_session import TorchSession


def prove_parity(reference: TorchSession, graphs: Graphs, rows: Sequence[IndexRow]) -> Parity:
    """Compare a trained network with its graphs on the images of index rows, through the runtime's own `segment`.

    Thresholds come from each side's own spec, so that what is proved is what the file says. ROI mode and prompted
    models take the lesion boxes of the rows' masks. Images are read one at a time. Raises UsageError when no image
    (with a box, where boxes are needed) can be read, GateMissed when a graph's spec asks for another input, task or
    prompt or answers with other classes.
    """
    spec = ModelSpec.from_metadata(graphs.model.metadata)
    if graphs.decoder is not None and ModelSpec.from_metadata(graphs.decoder.metadata) != spec:
        raise GateMissed("encoder and decoder carry different specs, so they are not of one model; export it again")
    if _contract(spec) != _contract(reference.spec):
        raise GateMissed("the spec inside the graph names another input or other classes than the trained network's")
    tally = Tally()
    for labelled in _read(rows):
        boxes = labelled.boxes if spec.takes_boxes else None
        if boxes is None or boxes:
            tally.images += 1
            tally.windows += 1 if boxes is None else len(boxes)
            COMPARE[spec.task](tally, _seen(tally, labelled, boxes, reference, graphs, spec))
    if not tally.images:
        wanted = "an image with a lesion of its own" if spec.takes_boxes else "any image"
        raise UsageError(f"the chosen index rows do not hold {wanted}, so nothing can be proved; choose another --fold")
    return tally.to_parity(reference.backend, graphs.model.backend, **at_the_end(tally, graphs, spec))


def _contract(spec: ModelSpec) -> tuple[object, ...]:
    return spec.task, spec.input, spec.classes, spec.prompt


def _read(rows: Sequence[IndexRow]) -> Iterator[LabelledImage]:
    for row in rows:
        try:
            yield read_labelled(row)
        except ImageError as error:
            raise UsageError(f"the index names an image that cannot be used: {row.image}: {error}") from error


def _seen(
    tally: Tally,
    labelled: LabelledImage,
    boxes: Sequence[Box] | None,
    reference: TorchSession,
    graphs: Graphs,
    spec: ModelSpec,
) -> Seen:
    name = labelled.row.name
    trained = _side(tally, f"{name} (trained network)", labelled, boxes, reference, reference.decoder, reference.spec)
    graph = _side(tally, f"{name} (graph)", labelled, boxes, graphs.model, graphs.decoder, spec)
    return Seen(name, spec, trained, graph, reference, graphs)


def _side(
    tally: Tally,
    name: str,
    labelled: LabelledImage,
    boxes: Sequence[Box] | None,
    model: Session,
    decoder: Session | None,
    spec: ModelSpec,
) -> Side:
    first, second = Recorder(model), None if decoder is None else Recorder(decoder)
    try:
        answer = segment(labelled.image, first, spec, boxes=boxes, decoder=second)
    except InferenceFailed:
        tally.faults["unusable"].append(name)
        answer = None
    return Side(first, second, answer)
