"""The parity proof: a trained network and its graph see the same real images through the runtime's own `segment`."""

from __future__ import annotations

from collections.abc import Sequence

from mammo_export.compare import COMPARE, at_the_end
from mammo_export.gates import Parity
from mammo_export.tally import Graphs, Recorder, Seen, Side, Tally
from mammo_runtime.errors import GateMissed, InferenceFailed, UsageError
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec
from mammo_train.dataset import read_labelled, read_picture
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
    tally, trained_pair, graph_pair = Tally(), (reference, reference.decoder), (graphs.model, graphs.decoder)
    for row in rows:
        image, boxes = _read(row, spec)
        if boxes is None or boxes:
            tally.images += 1
            tally.windows += 1 if boxes is None else len(boxes)
            trained = _side(tally, f"{row.name} (trained network)", image, boxes, trained_pair, reference.spec)
            graph = _side(tally, f"{row.name} (graph)", image, boxes, graph_pair, spec)
            COMPARE[spec.task](tally, Seen(row.name, spec, trained, graph, reference, graphs))
    if not tally.images:
        wanted = "an image with a lesion of its own" if spec.takes_boxes else "any image"
        raise UsageError(f"the chosen index rows do not hold {wanted}, so nothing can be proved; choose another --fold")
    return tally.to_parity(reference.backend, graphs.model.backend, **at_the_end(tally, graphs, spec))


def _contract(spec: ModelSpec) -> tuple[object, ...]:
    return spec.task, spec.modality, spec.input, spec.classes, spec.prompt


def _read(row: IndexRow, spec: ModelSpec) -> tuple[Mammogram, Sequence[Box] | None]:
    """Return a picture, and the boxes of its lesions where the model takes boxes."""
    if not spec.takes_boxes:
        return read_picture(row, spec.modality), None
    labelled = read_labelled(row, spec.modality)
    return labelled.image, labelled.boxes


def _side(
    tally: Tally,
    name: str,
    image: Mammogram,
    boxes: Sequence[Box] | None,
    sessions: tuple[Session, Session | None],
    spec: ModelSpec,
) -> Side:
    model, decoder = sessions
    first, second = Recorder(model), None if decoder is None else Recorder(decoder)
    try:
        answer = segment(image, first, spec, boxes=boxes, decoder=second)
    except InferenceFailed:
        tally.faults["unusable"].append(name)
        answer = None
    return Side(first, second, answer)
