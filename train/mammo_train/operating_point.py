"""The operating point: threshold and smallest finding, chosen once on validation pictures and then frozen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_runtime.findings import keep_touching, remove_small
from mammo_runtime.mammogram import Box
from mammo_runtime.overlap import dice
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session
from mammo_runtime.spec import InputMode, ModelSpec
from mammo_train.dataset import read_labelled
from mammo_train.evaluate import lesion_window
from mammo_train.index import IndexRow
from mammo_train.thresholds import choose_threshold

AREA_TOLERANCE = 0.002
"""Mean Dice that may be given up for fewer specks."""
MIN_AREAS_CELLS = (0.0, 4.0, 9.0, 16.0, 25.0, 36.0)
"""Smallest findings tried, in cells of the network's grid."""


@dataclass(frozen=True)
class OperatingChoice:
    """What was chosen, and from what."""

    threshold: float
    min_area_cells: float
    record: dict[str, Any]
    """How it was chosen, JSON-ready: kind, n, scores of every candidate."""


@dataclass(frozen=True, eq=False)
class _Map:
    """One picture (or one lesion's window) after a single inference."""

    probability: np.ndarray
    """float16: half the memory, and rounding keeps the order, so at most pixels on the very threshold move."""
    truth: np.ndarray
    box: Box | None
    """In the window's own coordinates."""
    cell_area_px: float

    def clean(self, mask: np.ndarray, min_area_cells: float) -> np.ndarray:
        """Do what the runtime does after the threshold."""
        if min_area_cells > 0:
            mask = remove_small(mask, min_area_cells * self.cell_area_px)
        return mask if self.box is None else keep_touching(mask, self.box)


def choose_operating_point(
    session: Session, spec: ModelSpec, rows: Sequence[IndexRow], kind: str = "mass"
) -> OperatingChoice:
    """Choose on pictures of `kind` among `rows` (the validation fold), at original resolution.

    First the threshold with the best mean Dice, with all components kept (ties: closest to 0.5); then, at that
    threshold, the largest least area that costs at most `AREA_TOLERANCE` of mean Dice: specks cost
    trust. Every picture is inferred once. Raises UsageError when there is none.
    """
    maps = [one for row in rows if row.kind == kind for one in _maps(session, spec, row)]
    if not maps:
        raise UsageError(f"the validation fold holds no picture of kind {kind!r} to choose an operating point on")
    choice = choose_threshold(
        (m.probability for m in maps), (m.truth for m in maps), postprocess=lambda k, mask: maps[k].clean(mask, 0)
    )
    areas = {
        area: float(np.mean([dice(m.clean(m.probability >= choice.threshold, area), m.truth) for m in maps]))
        for area in MIN_AREAS_CELLS
    }
    best = max(area for area in areas if areas[area] >= max(areas.values()) - AREA_TOLERANCE)
    record = {
        "chosen_on": f"{kind} pictures of the validation fold",
        "score": "mean Dice per " + ("lesion" if spec.input.mode is InputMode.ROI else "picture"),
        "n": len(maps),
        "dice": round(areas[best], 4),
        "dice_by_threshold": {f"{t:.2f}": None if s is None else round(s, 4) for t, s in choice.scores.items()},
        "dice_by_min_area_cells": {f"{area:g}": round(score, 4) for area, score in areas.items()},
    }
    return OperatingChoice(choice.threshold, best, record)


def _maps(session: Session, spec: ModelSpec, row: IndexRow) -> Iterator[_Map]:
    """Infer a picture once; in ROI mode each of its lesions."""
    # With a least area of one cell, the runtime reports how many original pixels a cell covers.
    probe = replace(spec, min_area_cells=1.0)
    labelled = read_labelled(row)
    if spec.input.mode is InputMode.FULL:
        found = segment(labelled.image, session, probe)
        yield _Map(found.probability.astype(np.float16), labelled.mask, None, found.min_area_px)
        return
    for box in labelled.boxes:
        found = segment(labelled.image, session, probe, boxes=[box])
        part = lesion_window(labelled, box, spec.input.roi_margin)
        own = replace(box, x=box.x - part[1].start, y=box.y - part[0].start)
        yield _Map(found.probability[part].astype(np.float16), labelled.mask[part].copy(), own, found.min_area_px)
