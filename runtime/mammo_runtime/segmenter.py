"""One image through one model: preprocess → session → probability map → mask → findings."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from mammo_runtime.errors import InferenceFailed, ModelRefused, UnsuitableImage, UsageError
from mammo_runtime.findings import Finding, find_findings, keep_touching, ranked, remove_small, shifted
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.preprocess import Placement, preprocess
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec, Task

MAX_BATCH = 4
"""Windows of one image that go through the model together: a CPU gains nothing from more, and each needs 70 MB."""


@dataclass(frozen=True)
class OperatingPoint:
    """The user's overrides of the spec; None keeps the model's own value."""

    threshold: float | None = None
    """Probability at and above which a pixel belongs to the mask, 0..1."""
    min_area_px: float | None = None
    """Components with fewer original pixels are dropped."""

    def __post_init__(self) -> None:
        # NaN would mark nothing, which reads as "no mass".
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"the threshold must be a probability from 0 to 1, got {self.threshold}")
        if self.min_area_px is not None and not 0 <= self.min_area_px < float("inf"):
            raise UsageError(f"the minimum area must be a number of pixels of at least 0, got {self.min_area_px}")


@dataclass(frozen=True, eq=False)
class Segmentation:
    """What the model says about one image."""

    probability: np.ndarray
    """float32 [rows, columns] of the original image, 0..1; 0 where the model did not look."""
    mask: np.ndarray
    """bool [rows, columns]."""
    findings: tuple[Finding, ...]
    threshold: float
    min_area_px: float
    timings_ms: Mapping[str, float]
    notes: tuple[str, ...]


def segment(
    image: Mammogram,
    session: Session,
    spec: ModelSpec,
    point: OperatingPoint | None = None,
    boxes: Sequence[Box] | None = None,
) -> Segmentation:
    """Segment one image; `boxes` (original pixels) are needed in ROI mode and refused in FULL mode.

    Raises UnsuitableImage (no box), UnusableBox (see `roi_window`), InferenceFailed (NaN or infinite output, or
    outside 0..1), ModelRefused (a task this runtime has no post-processing for).
    """
    if spec.task not in _POSTPROCESSING:
        known = ", ".join(task.value for task in _POSTPROCESSING)
        raise ModelRefused(f"this runtime has no post-processing for the task {spec.task.value!r}; it knows {known}")
    if boxes is not None and not boxes:
        raise UnsuitableImage("no box is given for this image in the boxes file")
    started = time.perf_counter()
    wanted: Sequence[Box | None] = [None] if boxes is None else boxes
    prepared = [preprocess(image, spec.input, box) for box in wanted]
    preprocessed = time.perf_counter()
    grids = _infer(session, np.concatenate([tensor for tensor, _, _ in prepared]), spec)
    inferred = time.perf_counter()
    placements = [placement for _, placement, _ in prepared]
    found = _POSTPROCESSING[spec.task](image, spec, point or OperatingPoint(), boxes, placements, grids)
    timings = {
        "preprocess": 1e3 * (preprocessed - started),
        "infer": 1e3 * (inferred - preprocessed),
        "postprocess": 1e3 * (time.perf_counter() - inferred),
    }
    notes = tuple(dict.fromkeys(note for _, _, step_notes in prepared for note in step_notes))
    return replace(found, timings_ms=timings, notes=notes)


def _infer(session: Session, batch: np.ndarray, spec: ModelSpec) -> np.ndarray:
    """Run float32 [N, C, H, W] in parts of `MAX_BATCH`; returns [N, classes, H, W], proved to be probabilities."""
    outputs = np.concatenate([session.run(batch[k : k + MAX_BATCH]) for k in range(0, len(batch), MAX_BATCH)])
    expected = (len(batch), len(spec.classes), spec.input.height, spec.input.width)
    if outputs.shape != expected:
        raise InferenceFailed(f"the model returned {list(outputs.shape)} instead of {list(expected)}")
    # Written so that NaN fails too.
    if not (float(outputs.min()) >= -1e-6 and float(outputs.max()) <= 1 + 1e-6):
        raise InferenceFailed(
            "the model returned values that are no probabilities (NaN, infinite or outside 0..1); "
            "the image was not judged. Check the model with mammo-export verify, or use another precision"
        )
    return np.clip(outputs, 0, 1, out=outputs)


def _segmentation(
    image: Mammogram,
    spec: ModelSpec,
    point: OperatingPoint,
    boxes: Sequence[Box] | None,
    placements: Sequence[Placement],
    grids: np.ndarray,
) -> Segmentation:
    """Binary segmentation: unite all windows; in ROI mode only components that touch their own box count."""
    threshold = spec.threshold if point.threshold is None else point.threshold
    probability, mask = np.empty((0, 0), np.float32), np.empty((0, 0), bool)
    if boxes is not None:
        probability, mask = (
            np.zeros((image.rows, image.columns), np.float32),
            np.zeros((image.rows, image.columns), bool),
        )
    findings: list[Finding] = []
    least = [0.0]
    for number, (placement, grid) in enumerate(zip(placements, grids)):
        part, values = placement.restore_part(grid[0])
        chosen = values >= threshold
        own = spec.min_area_cells * placement.cell_area_px
        least.append(own if point.min_area_px is None else point.min_area_px)
        chosen = remove_small(chosen, least[-1])
        if boxes is None:
            # The one window is the picture. No second copy: on a detector image each is 57 MB.
            probability, mask = values, chosen
            findings = list(find_findings(mask, probability, image.spacing_mm))
        else:
            box = boxes[number]
            chosen = keep_touching(chosen, replace(box, x=box.x - part.left, y=box.y - part.top))
            findings += shifted(find_findings(chosen, values, image.spacing_mm, number + 1), part.left, part.top)
            np.maximum(probability[part.slices], values, out=probability[part.slices])
            mask[part.slices] |= chosen
    return Segmentation(probability, mask, ranked(findings), threshold, max(least), {}, ())


_POSTPROCESSING: Mapping[Task, Callable[..., Segmentation]] = {Task.SEGMENTATION: _segmentation}
