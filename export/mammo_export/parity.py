"""The parity proof: a trained network and its graph see the same real images through the runtime's own `segment`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np

from mammo_export.gates import Parity
from mammo_runtime.errors import GateMissed, ImageError, InferenceFailed, UsageError
from mammo_runtime.mammogram import Box
from mammo_runtime.segmenter import MAX_BATCH, Segmentation, segment
from mammo_runtime.session import Session
from mammo_runtime.spec import InputMode, ModelSpec
from mammo_train.dataset import LabelledImage, read_labelled
from mammo_train.index import IndexRow
from mammo_train.torch_session import TorchSession


def prove_parity(reference: TorchSession, logits: Session, model: Session, rows: Sequence[IndexRow]) -> Parity:
    """Compare a trained network with its graph on the images of index rows, through the runtime's own `segment`.

    `logits` is the graph without, `model` the one with its activation and spec; thresholds come from each side's
    own spec, so that what is proved is what the file says. ROI mode takes the lesion boxes of the rows' masks.
    Images are read one at a time. Raises UsageError when no image (with a box, in ROI mode) can be read, GateMissed
    when the graph's spec asks for another input or answers with other classes.
    """
    spec = ModelSpec.from_metadata(model.metadata)
    if (spec.input, spec.classes) != (reference.spec.input, reference.spec.classes):
        raise GateMissed("the spec inside the graph names another input or other classes than the trained network's")
    tally = _Tally()
    for labelled in _read(rows):
        boxes = labelled.boxes if spec.input.mode is InputMode.ROI else None
        if boxes is None or boxes:
            _compare(tally, labelled, boxes, reference, logits, model, spec)
    if not tally.images:
        wanted = "an image with a lesion of its own" if spec.input.mode is InputMode.ROI else "any image"
        raise UsageError(f"the chosen index rows do not hold {wanted}, so nothing can be proved; choose another --fold")
    return tally.to_parity(reference.backend, model.backend, _batch_difference(model, tally.first_inputs))


@dataclass
class _Tally:
    """What is collected while images pass by."""

    images: int = 0
    windows: int = 0
    windows_with_mask: int = 0
    largest_logit: float = 0.0
    logit_difference: float = 0.0
    logit_image: str = ""
    probability_difference: float = 0.0
    probability_image: str = ""
    equal_pixels: float = 1.0
    equal_pixels_image: str = ""
    appeared: list[str] = field(default_factory=list)
    vanished: list[str] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    not_repeatable: list[str] = field(default_factory=list)
    first_inputs: list[np.ndarray] = field(default_factory=list)
    """At most `MAX_BATCH` - 1 inputs float32 [1, C, H, W]."""

    def to_parity(self, reference: str, measured: str, batch_difference: float) -> Parity:
        largest = self.largest_logit
        relative = self.logit_difference / largest if largest else float(self.logit_difference > 0)
        return Parity(
            reference=reference,
            measured=measured,
            images=self.images,
            windows=self.windows,
            windows_with_mask=self.windows_with_mask,
            logit_error=relative,
            logit_error_image=self.logit_image,
            probability_error=self.probability_difference,
            probability_error_image=self.probability_image,
            equal_pixels=self.equal_pixels,
            equal_pixels_image=self.equal_pixels_image,
            batch_difference=batch_difference,
            appeared=tuple(self.appeared),
            vanished=tuple(self.vanished),
            unusable=tuple(self.unusable),
            not_repeatable=tuple(self.not_repeatable),
        )


class _Recorder:
    """A session that remembers what went through it: the very tensors that `segment` made."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.inputs: list[np.ndarray] = []
        self.outputs: list[np.ndarray] = []

    @property
    def metadata(self) -> Mapping[str, str]:
        return self._session.metadata

    @property
    def backend(self) -> str:
        return self._session.backend

    def run(self, batch: np.ndarray) -> np.ndarray:
        self.inputs.append(batch)
        self.outputs.append(self._session.run(batch))
        return self.outputs[-1]

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(rows: Sequence[IndexRow]) -> Iterator[LabelledImage]:
    for row in rows:
        try:
            yield read_labelled(row)
        except ImageError as error:
            raise UsageError(f"the index names an image that cannot be used: {row.image}: {error}") from error


def _compare(
    tally: _Tally,
    labelled: LabelledImage,
    boxes: Sequence[Box] | None,
    reference: TorchSession,
    logits: Session,
    model: Session,
    spec: ModelSpec,
) -> None:
    """Add one image to the tally."""
    name = labelled.row.name
    tally.images += 1
    tally.windows += 1 if boxes is None else len(boxes)
    trained, graph = _Recorder(reference), _Recorder(model)
    expected = _segmentation(tally, f"{name} (trained network)", labelled, trained, reference.spec, boxes)
    measured = _segmentation(tally, f"{name} (graph)", labelled, graph, spec, boxes)
    room = MAX_BATCH - 1 - len(tally.first_inputs)
    tally.first_inputs += [batch[k : k + 1] for batch in graph.inputs for k in range(len(batch))][:room]
    for batch, wanted, output in zip(graph.inputs, trained.outputs, graph.outputs, strict=True):
        _compare_logits(tally, name, reference.logits(batch), logits.run(batch))
        if not np.array_equal(model.run(batch), output, equal_nan=True):
            tally.not_repeatable.append(name)
        if expected is not None and measured is not None:
            difference = float(np.abs(wanted - output).max())
            if difference >= tally.probability_difference:
                tally.probability_difference, tally.probability_image = difference, name
    if expected is not None and measured is not None:
        _compare_masks(tally, name, expected, measured)


def _segmentation(
    tally: _Tally, name: str, labelled: LabelledImage, session: Session, spec: ModelSpec, boxes: Sequence[Box] | None
) -> Segmentation | None:
    try:
        return segment(labelled.image, session, spec, boxes=boxes)
    except InferenceFailed:
        tally.unusable.append(name)
        return None


def _compare_logits(tally: _Tally, name: str, expected: np.ndarray, measured: np.ndarray) -> None:
    """Add logits float32 [N, classes, H, W] of both sides."""
    if expected.shape != measured.shape or not (np.isfinite(expected).all() and np.isfinite(measured).all()):
        tally.unusable.append(f"{name} (logits)")
        return
    tally.largest_logit = max(tally.largest_logit, float(np.abs(expected).max()))
    difference = float(np.abs(expected - measured).max())
    if difference >= tally.logit_difference:
        tally.logit_difference, tally.logit_image = difference, name


def _compare_masks(tally: _Tally, name: str, expected: Segmentation, measured: Segmentation) -> None:
    equal = float(np.mean(expected.mask == measured.mask))
    if equal < tally.equal_pixels or not tally.equal_pixels_image:
        tally.equal_pixels, tally.equal_pixels_image = equal, name
    # FULL mode: {None} when something was found. ROI mode: the numbers of the boxes in which something was found.
    before = {finding.prompt_box for finding in expected.findings}
    after = {finding.prompt_box for finding in measured.findings}
    tally.windows_with_mask += len(before)
    tally.vanished += [_place(name, box) for box in sorted(before - after, key=str)]
    tally.appeared += [_place(name, box) for box in sorted(after - before, key=str)]


def _batch_difference(model: Session, inputs: Sequence[np.ndarray]) -> float:
    """Return the largest difference between inputs run alone and run together with each other and a black one."""
    batch = np.concatenate([*inputs, np.zeros_like(inputs[0])])
    together = model.run(batch)
    alone = np.concatenate([model.run(batch[k : k + 1]) for k in range(len(batch))])
    # A NaN on both sides is no difference between them: `unusable` names it already.
    differences = np.abs(together - alone)[~(np.isnan(together) & np.isnan(alone))]
    return float(differences.max()) if differences.size else 0.0


def _place(name: str, box: int | None) -> str:
    return name if box is None else f"{name} box {box}"
