"""The operating point: threshold and smallest finding, chosen once on validation pictures and then frozen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_runtime.findings import keep_touching, remove_small
from mammo_runtime.mammogram import Box
from mammo_runtime.overlap import dice
from mammo_runtime.spec import InputMode, Task
from mammo_train.evaluate_masks import TRUTH_BOXES, lesion_mask, lesion_window
from mammo_train.index import IndexRow
from mammo_train.judge import Model, breast_region, looks_for_breast
from mammo_train.metrics import count
from mammo_train.thresholds import (
    FINE_THRESHOLDS,
    ThresholdChoice,
    best_threshold,
    choose_threshold,
    counts_at,
)

AREA_TOLERANCE = 0.002
"""Mean Dice that may be given up for fewer specks."""
MIN_AREAS_CELLS = (0.0, 4.0, 9.0, 16.0, 25.0, 36.0)
"""Smallest findings tried, in cells of the network's grid."""
NO_THRESHOLD: Mapping[Task, str] = {
    Task.MULTICLASS: "none: every pixel gets its likeliest class",
    Task.CLASSIFICATION: "none: every picture gets its likeliest class",
}
"""Tasks without an operating point, and what their record says."""
_WORDS = {"dice": "mean Dice", "iou": "pooled IoU", "gmean": "pooled G-mean"}


@dataclass(frozen=True)
class OperatingChoice:
    """What was chosen, and from what."""

    threshold: float
    min_area_cells: float
    record: dict[str, Any]
    """How it was chosen, JSON-ready: kinds, n, scores of every candidate."""


@dataclass(frozen=True, eq=False)
class _Map:
    """One picture (or one lesion) after a single inference."""

    probability: np.ndarray
    """float16: half the memory, and rounding keeps the order, so at most pixels on the very threshold move."""
    truth: np.ndarray
    box: Box | None
    """In the map's own coordinates."""
    cell_area_px: float

    def clean(self, mask: np.ndarray, min_area_cells: float) -> np.ndarray:
        """Do what the runtime does after the threshold."""
        if min_area_cells > 0:
            mask = remove_small(mask, min_area_cells * self.cell_area_px)
        return mask if self.box is None else keep_touching(mask, self.box)


def choose_operating_point(
    model: Model, rows: Sequence[IndexRow], kinds: Sequence[str] = ("mass",), metric: str = "dice"
) -> OperatingChoice:
    """Choose on pictures of `kinds` among `rows` (the validation fold), at original resolution, by `metric`.

    "dice": the threshold with the best mean Dice, with all components kept (ties: closest to 0.5); then, at that
    threshold, the largest least area that costs at most `AREA_TOLERANCE` of mean Dice: specks cost trust.
    "iou", "gmean": the threshold with the best pooled IoU or G-mean, over breast pixels where the model looks for the
    breast, as study 003 chose; all components are kept, since the choice counts pixels and not findings.
    Tasks that give everything its likeliest class have none; their record says so.
    Every picture is inferred once. Raises UsageError when there is none, or for an unknown metric.
    """
    spec = model.spec
    if spec.task in NO_THRESHOLD:
        return OperatingChoice(spec.threshold, spec.min_area_cells, {"score": NO_THRESHOLD[spec.task], "n": 0})
    own = [row for row in rows if row.kind in kinds]
    found = _by_dice(model, own) if metric == "dice" else _by_pooled(model, own, metric)
    if found is None:
        names = ", ".join(repr(kind) for kind in kinds)
        raise UsageError(f"the validation fold holds no picture of kind {names} to choose an operating point on")
    record = {"chosen_on": f"{' and '.join(kinds)} pictures of the validation fold", **found.record}
    if spec.takes_boxes:
        record["boxes"] = TRUTH_BOXES
    return replace(found, record=record)


def _by_dice(model: Model, rows: Sequence[IndexRow]) -> OperatingChoice | None:
    maps = [one for row in rows for one in _maps(model, row)]
    if not maps:
        return None
    choice = choose_threshold(
        (m.probability for m in maps), (m.truth for m in maps), postprocess=lambda k, mask: maps[k].clean(mask, 0)
    )
    areas = {
        area: float(np.mean([dice(m.clean(m.probability >= choice.threshold, area), m.truth) for m in maps]))
        for area in MIN_AREAS_CELLS
    }
    best = max(area for area in areas if areas[area] >= max(areas.values()) - AREA_TOLERANCE)
    record = {
        "score": "mean Dice per " + ("lesion" if model.spec.takes_boxes else "picture"),
        "n": len(maps),
        "value": round(areas[best], 4),
        "dice": round(areas[best], 4),
        "dice_by_threshold": _rounded(choice),
        "dice_by_min_area_cells": {f"{area:g}": round(score, 4) for area, score in areas.items()},
    }
    return OperatingChoice(choice.threshold, best, record)


def _by_pooled(model: Model, rows: Sequence[IndexRow], metric: str) -> OperatingChoice | None:
    """Keep counts only: one picture at a time is in memory."""
    tables = []
    for row in rows:
        if model.spec.takes_boxes:
            tables += [_counts_of_clean(one) for one in _maps(model, row)]
            continue
        labelled = model.read(row)
        probability = model.judge(labelled.image).probability
        breast = breast_region(labelled.image, model.spec)
        part = np.s_[...] if breast is None else breast
        tables.append(counts_at(probability[part], labelled.mask[part], FINE_THRESHOLDS))
    if not tables:
        return None
    choice = best_threshold(tables, metric, FINE_THRESHOLDS)
    pixels = " over breast pixels" if looks_for_breast(model.spec) else ""
    record = {
        "score": _WORDS[metric] + pixels,
        "n": len(tables),
        "value": round(choice.score, 4),
        f"{metric}_by_threshold": _rounded(choice),
        "least_area": "not chosen: pooled scores count pixels, not findings",
    }
    return OperatingChoice(choice.threshold, 0.0, record)


def _counts_of_clean(one: _Map) -> np.ndarray:
    """Return TP, FP, FN, TN at each of `FINE_THRESHOLDS`, int64 [thresholds, 4], of components that touch the box."""
    found = [count(one.clean(one.probability >= threshold, 0), one.truth) for threshold in FINE_THRESHOLDS]
    return np.array([(c.tp, c.fp, c.fn, c.tn) for c in found], np.int64)


def _rounded(choice: ThresholdChoice) -> dict[str, float | None]:
    return {f"{t:.2f}": None if s is None else round(s, 4) for t, s in choice.scores.items()}


def _maps(model: Model, row: IndexRow) -> Iterator[_Map]:
    """Infer a picture once; where the model needs boxes, each of its lesions."""
    labelled = model.read(row)
    # With a least area of one cell, the runtime reports how many original pixels a cell covers.
    if not model.spec.takes_boxes:
        found = model.judge(labelled.image, min_area_cells=1.0)
        yield _Map(found.probability.astype(np.float16), labelled.mask, None, found.min_area_px or 0.0)
        return
    for box in labelled.boxes:
        found = model.judge(labelled.image, [box], min_area_cells=1.0)
        cell_px, half = found.min_area_px or 0.0, found.probability.astype(np.float16)
        if model.spec.input.mode is InputMode.FULL:
            yield _Map(half, lesion_mask(labelled.mask, box), box, cell_px)
            continue
        rows, columns = lesion_window(labelled, box, model.spec.input.roi_margin)
        own = replace(box, x=box.x - columns.start, y=box.y - rows.start)
        yield _Map(half[rows, columns].copy(), labelled.mask[rows, columns].copy(), own, cell_px)
