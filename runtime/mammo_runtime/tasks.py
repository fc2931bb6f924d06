"""The few post-processings: a model's task picks how its sessions are run, checked, and turned into a `Result`.

Every output is proved before it is used. NaN would pass a comparison as "nothing found", so it fails the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mammo_runtime.embeddings import EmbeddingCache
from mammo_runtime.errors import InferenceFailed, ModelRefused, UsageError
from mammo_runtime.findings import Finding, find_findings, keep_touching, ranked, remove_small, shifted
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.placement import Rectangle
from mammo_runtime.preprocess import Prepared, roi_window
from mammo_runtime.result import ClassArea, ClassScore, OperatingPoint, Result
from mammo_runtime.session import Session
from mammo_runtime.spec import NOT_FINITE, ModelSpec, Task

MAX_BATCH = 4
"""Windows of one image that go through the model together: a CPU gains nothing from more, and each needs 70 MB."""
MAX_BOXES = 256
"""Of one image: more were not drawn by a person, and each needs a window or a map of its own in memory."""
MAX_PROMPTS = 8
"""Boxes of one image that go through the decoder of a prompted model together."""
SUM_TOLERANCE = 1e-3
"""How far the probabilities of a classifier may be from summing to 1."""
_NOT_JUDGED = "the image was not judged. Check the model with mammo-export verify, or use another precision"
_STRIP_ROWS = 256


@dataclass(frozen=True, eq=False)
class Work:
    """One image on its way through a model."""

    image: Mammogram
    spec: ModelSpec
    point: OperatingPoint
    boxes: Sequence[Box] | None
    prepared: Sequence[Prepared]
    """The whole picture, or in ROI mode one window for each box."""
    session: Session
    decoder: Session | None
    embeddings: EmbeddingCache

    @property
    def batch(self) -> np.ndarray:
        """The network's input float32 [N, C, H, W], one for each of `prepared`."""
        return np.concatenate([one.tensor(self.spec.input) for one in self.prepared])


@dataclass(frozen=True)
class Procedure:
    """What a task needs and gives."""

    windows: Callable[[Mammogram, Sequence[Box] | None], Sequence[Box | None]]
    """Which parts of the picture the network sees: boxes for windows round them, None for the whole."""
    infer: Callable[[Work], Any]
    """Run the sessions and prove their answer. Raises InferenceFailed, ModelRefused."""
    conclude: Callable[[Work, Any], Result]
    """Turn the proved answer into a result in original pixels."""
    pictures: tuple[str, ...]
    """Kinds of pictures that can be saved."""
    thresholded: bool
    """Whether there is a probability map that `OperatingPoint` decides on."""


def check_point(spec: ModelSpec, point: OperatingPoint) -> None:
    """Raise UsageError when threshold or minimum area are given for a model whose task has none."""
    if TASKS[spec.task].thresholded:
        return
    for name, value in (("--threshold", point.threshold), ("--min-area", point.min_area_px)):
        if value is not None:
            raise UsageError(
                f"{name} is for models that mark masses; {spec.name} ({spec.task.value}) gives every "
                f"{'pixel' if spec.task is Task.MULTICLASS else 'image'} its likeliest class. Leave it out"
            )


def _one_for_each(image: Mammogram, boxes: Sequence[Box] | None) -> Sequence[Box | None]:
    """The whole picture, or a window round each box; whether the model takes boxes is `prepare`'s to say."""
    return [None] if boxes is None else boxes


def _whole_for_all(image: Mammogram, boxes: Sequence[Box] | None) -> Sequence[Box | None]:
    """The whole picture once, whatever the number of boxes, which must all touch it."""
    if boxes is None:
        raise ModelRefused("this model needs a box for each lesion (--boxes)")
    for box in boxes:
        roi_window(box, 0.0, image.rows, image.columns)
    return [None]


def _in_parts(session: Session, batch: np.ndarray, shape: Sequence[int], dtype: type) -> np.ndarray:
    """Run float32 [N, C, H, W] in parts of `MAX_BATCH`; returns what must have `shape` behind N, and `dtype`."""
    answer = np.concatenate([session.run(batch[k : k + MAX_BATCH]) for k in range(0, len(batch), MAX_BATCH)])
    return _checked(answer, (len(batch), *shape), dtype)


def _checked(answer: np.ndarray, shape: Sequence[int], dtype: type) -> np.ndarray:
    if answer.shape != tuple(shape) or answer.dtype != dtype:
        expected = f"{np.dtype(dtype)} {list(shape)}"
        raise InferenceFailed(f"the model returned {answer.dtype} {list(answer.shape)} instead of {expected}")
    return answer


def _probabilities(values: np.ndarray) -> np.ndarray:
    """Return the values cut to 0..1. Raises InferenceFailed unless they are probabilities, up to rounding."""
    # Written so that NaN fails too.
    if not (float(values.min()) >= -1e-6 and float(values.max()) <= 1 + 1e-6):
        raise InferenceFailed(
            f"the model returned values that are no probabilities (NaN, infinite or outside 0..1); {_NOT_JUDGED}"
        )
    return np.asarray(np.clip(values, 0, 1))


def _infer_maps(work: Work) -> np.ndarray:
    """Return float32 [N, classes, H, W]."""
    shape = (len(work.spec.classes), work.spec.input.height, work.spec.input.width)
    return _probabilities(_in_parts(work.session, work.batch, shape, np.float32))


def _infer_labels(work: Work) -> np.ndarray:
    """Return uint8 [1, 1, H, W], every value the number of a class."""
    classes = len(work.spec.classes)
    labels = _in_parts(work.session, work.batch, (1, work.spec.input.height, work.spec.input.width), np.uint8)
    largest = int(labels.max())
    if largest == NOT_FINITE:
        raise InferenceFailed(f"the model's values were not finite (NaN or infinite) for some pixels; {_NOT_JUDGED}")
    if largest >= classes:
        raise InferenceFailed(f"the model returned class {largest}, but knows classes 0 to {classes - 1}")
    return labels


def _infer_scores(work: Work) -> np.ndarray:
    """Return float32 [1, classes], proved to sum to 1."""
    scores = _probabilities(_in_parts(work.session, work.batch, (len(work.spec.classes),), np.float32))
    total = float(scores.sum(dtype=np.float64))
    if abs(total - 1) > SUM_TOLERANCE:
        raise InferenceFailed(f"the probabilities of the classes sum to {total:.4g} instead of 1; {_NOT_JUDGED}")
    return scores


def _infer_prompted(work: Work) -> tuple[np.ndarray, np.ndarray]:
    """Return the maps float32 [boxes, side, side] and the predicted IoU float32 [boxes]."""
    prompt = work.spec.prompt
    if work.decoder is None or prompt is None or work.boxes is None:
        raise ModelRefused(f"{work.spec.name} needs its decoder (give the bundle's folder) and boxes (--boxes)")
    (prepared,) = work.prepared
    # Before the encoder: a box that cannot be judged shall not cost its seconds.
    boxes = np.stack([prepared.placement.box_to_grid(box) for box in work.boxes])[None]
    embedding = _embedding(work, prompt.embedding)
    maps, overlaps = [], []
    for first in range(0, len(work.boxes), MAX_PROMPTS):
        part = np.ascontiguousarray(boxes[:, first : first + MAX_PROMPTS])
        answers = work.decoder.run_all(embedding, part)
        if len(answers) != 2:
            raise InferenceFailed(f"the decoder returned {len(answers)} values instead of maps and predicted IoU")
        count = part.shape[1]
        shape = (1, count, 1, prompt.mask_side, prompt.mask_side)
        maps.append(_probabilities(_checked(answers[0], shape, np.float32))[0, :, 0])
        overlaps.append(_checked(answers[1], (1, count), np.float32)[0])
    predicted = np.concatenate(overlaps)
    if not np.isfinite(predicted).all():
        raise InferenceFailed(f"the model's predicted IoU is not finite (NaN or infinite); {_NOT_JUDGED}")
    return np.concatenate(maps), predicted


def _embedding(work: Work, shape: Sequence[int]) -> np.ndarray:
    """Return the image's embedding float32 [1, channels, rows, columns], computed once for the same picture."""
    batch = work.batch
    key = work.embeddings.key(batch)
    embedding = work.embeddings.find(key)
    if embedding is None:
        embedding = _checked(work.session.run(batch), (1, *shape), np.float32)
        if not np.isfinite(embedding).all():
            raise InferenceFailed(f"the image's embedding is not finite (NaN or infinite); {_NOT_JUDGED}")
        work.embeddings.keep(key, embedding)
    return embedding


def _conclude_maps(work: Work, grids: np.ndarray) -> Result:
    """Binary segmentation of the whole picture, or of a window for each box."""
    parts = (one.placement.restore_part(grid[0]) for one, grid in zip(work.prepared, grids))
    return _united(work, parts, [one.placement.cell_area_px for one in work.prepared], None)


def _conclude_prompted(work: Work, answer: tuple[np.ndarray, np.ndarray]) -> Result:
    """One map for each box, all over the whole picture."""
    maps, overlaps = answer
    placement = work.prepared[0].placement
    parts = (placement.restore_part(placement.from_map(one)) for one in maps)
    found = _united(work, parts, [placement.cell_area_px] * len(maps), [float(value) for value in overlaps])
    note = "the model needs a box for each mass and segments what it is pointed at: it does not search"
    return replace(found, box_predicted_iou=tuple(float(value) for value in overlaps), notes=(note,))


def _united(
    work: Work,
    parts: Iterable[tuple[Rectangle, np.ndarray]],
    cell_areas_px: Sequence[float],
    overlaps: Sequence[float] | None,
) -> Result:
    """Threshold and unite parts of the picture; with boxes, only components that touch the part's own box count."""
    image, spec, point, boxes = work.image, work.spec, work.point, work.boxes
    threshold = spec.threshold if point.threshold is None else point.threshold
    probability, mask = np.empty((0, 0), np.float32), np.empty((0, 0), bool)
    if boxes is not None:
        probability = np.zeros((image.rows, image.columns), np.float32)
        mask = np.zeros((image.rows, image.columns), bool)
    findings: list[Finding] = []
    least = [0.0]
    for number, (part, values) in enumerate(parts):
        own = spec.min_area_cells * cell_areas_px[number]
        least.append(own if point.min_area_px is None else point.min_area_px)
        chosen = remove_small(values >= threshold, least[-1])
        if boxes is None:
            # The one window is the picture. No second copy: on a detector image each is 57 MB.
            probability, mask = values, chosen
            findings = list(find_findings(mask, probability, image.spacing_mm))
        else:
            box = boxes[number]
            chosen = keep_touching(chosen, replace(box, x=box.x - part.left, y=box.y - part.top))
            found = shifted(find_findings(chosen, values, image.spacing_mm, number + 1), part.left, part.top)
            findings += found if overlaps is None else [replace(f, predicted_iou=overlaps[number]) for f in found]
            np.maximum(probability[part.slices], values, out=probability[part.slices])
            mask[part.slices] |= chosen
    return Result(
        spec.task,
        probability=probability,
        mask=mask,
        findings=ranked(findings),
        threshold=threshold,
        min_area_px=max(least),
    )


def _conclude_labels(work: Work, labels: np.ndarray) -> Result:
    """A class for every pixel of the picture."""
    whole = work.prepared[0].placement.restore_labels(labels[0, 0])
    counts = np.zeros(len(work.spec.classes), np.int64)
    # By strips: NumPy counts 64-bit copies, 115 MB of a detector image.
    for top in range(0, len(whole), _STRIP_ROWS):
        counts += np.bincount(whole[top : top + _STRIP_ROWS].ravel(), minlength=len(counts))
    spacing = work.image.spacing_mm
    areas = tuple(
        ClassArea(name, int(n), int(n) / whole.size, None if spacing is None else int(n) * spacing[0] * spacing[1])
        for name, n in zip(work.spec.classes, counts)
    )
    return Result(work.spec.task, labels=whole, classes=areas)


def _conclude_scores(work: Work, scores: np.ndarray) -> Result:
    """A class for the picture as a whole."""
    listed = tuple(ClassScore(name, float(p)) for name, p in zip(work.spec.classes, scores[0]))
    return Result(work.spec.task, classes=listed, predicted_class=work.spec.classes[int(scores[0].argmax())])


TASKS: Mapping[Task, Procedure] = {
    Task.SEGMENTATION: Procedure(_one_for_each, _infer_maps, _conclude_maps, ("mask", "overlay", "probability"), True),
    Task.MULTICLASS: Procedure(_one_for_each, _infer_labels, _conclude_labels, ("mask", "overlay"), False),
    Task.CLASSIFICATION: Procedure(_one_for_each, _infer_scores, _conclude_scores, ("overlay",), False),
    Task.PROMPTED: Procedure(
        _whole_for_all, _infer_prompted, _conclude_prompted, ("mask", "overlay", "probability"), True
    ),
}
