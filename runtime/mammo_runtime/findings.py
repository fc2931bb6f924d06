"""From a probability map to findings: connected components with their measures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import cv2
import numpy as np

from mammo_runtime.mammogram import Box


@dataclass(frozen=True)
class Finding:
    """One connected component of the mask, in original pixels; (x, y) = (column, row) from the top-left corner."""

    number: int
    """1 for the finding with the highest peak probability of its image."""
    bounding_box: Box
    contour: tuple[tuple[int, int], ...]
    """Outer contour as (x, y) of its corner pixels."""
    centroid_x: float
    centroid_y: float
    area_px: int
    area_mm2: float | None
    """None when the pixel spacing is unknown; never guessed."""
    long_axis_mm: float | None
    short_axis_mm: float | None
    long_axis_px: float
    """Longer side of the smallest enclosing rotated rectangle."""
    short_axis_px: float
    mean_probability: float
    peak_probability: float
    prompt_box: int | None = None
    """With boxes: number of the box (from 1, in the order of the boxes file) this finding belongs to."""
    predicted_iou: float | None = None
    """Of prompted models: how well the model itself expects the mask in this box to overlap with the truth."""


def components(mask: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    """Label bool [rows, columns] by 8-connectivity: count, labels int32 (0 background), stats as OpenCV's."""
    count, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    return count - 1, labels, stats


def _occupied(mask: np.ndarray) -> tuple[slice, slice]:
    """Return the part of a mask that is not empty: labels of a whole detector image would take 57 MB.

    At least one pixel, since OpenCV crashes on an array without any.
    """
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return slice(0, 1), slice(0, 1)
    return slice(int(rows[0]), int(rows[-1]) + 1), slice(int(columns[0]), int(columns[-1]) + 1)


def _chosen(keep: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return keep[labels], by rows: NumPy turns all indices into 8 bytes each at once."""
    chosen = np.empty(labels.shape, bool)
    for row, of_row in zip(chosen, labels):
        row[:] = keep[of_row]
    return chosen


def remove_small(mask: np.ndarray, min_area_px: float) -> np.ndarray:
    """Return the mask without components of fewer than `min_area_px` pixels."""
    part = _occupied(mask)
    count, labels, stats = components(mask[part])
    keep = np.zeros(count + 1, bool)
    keep[1:] = stats[1:, cv2.CC_STAT_AREA] >= min_area_px
    kept = np.zeros(mask.shape, bool)
    kept[part] = _chosen(keep, labels)
    return kept


def keep_touching(mask: np.ndarray, box: Box) -> np.ndarray:
    """Return the mask's components that share a pixel with the box (ROI mode: the mass that was pointed at)."""
    count, labels, _ = components(mask)
    left, top = max(0, int(np.floor(box.x))), max(0, int(np.floor(box.y)))
    right, bottom = max(0, int(np.ceil(box.x + box.width))), max(0, int(np.ceil(box.y + box.height)))
    keep = np.zeros(count + 1, bool)
    keep[np.unique(labels[top:bottom, left:right])] = True
    keep[0] = False
    return _chosen(keep, labels)


def find_findings(
    mask: np.ndarray, probability: np.ndarray, spacing_mm: tuple[float, float] | None, prompt_box: int | None = None
) -> tuple[Finding, ...]:
    """Measure every component of `mask` (bool [rows, columns]) on `probability` (float32, same shape).

    `spacing_mm` is (rows, columns). Axes are measured in millimetres on scaled contours, so that
    unequal spacings are right. Ordered by peak probability, highest first.
    """
    part = _occupied(mask)
    count, labels, stats = components(mask[part])
    here = probability[part]
    found = [_measure(labels, stats[k], k, here, spacing_mm, prompt_box) for k in range(1, count + 1)]
    return ranked(shifted(found, part[1].start, part[0].start))


def ranked(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return the findings ordered and numbered from 1: highest peak probability first, then largest, then topmost."""
    order = sorted(found, key=lambda f: (-f.peak_probability, -f.area_px, f.centroid_y, f.centroid_x))
    return tuple(replace(f, number=k) for k, f in enumerate(order, start=1))


def shifted(found: Iterable[Finding], left: int, top: int) -> list[Finding]:
    """Move findings measured in a part of a picture to the whole picture's coordinates."""
    return [
        replace(
            f,
            bounding_box=replace(f.bounding_box, x=f.bounding_box.x + left, y=f.bounding_box.y + top),
            contour=tuple((x + left, y + top) for x, y in f.contour),
            centroid_x=f.centroid_x + left,
            centroid_y=f.centroid_y + top,
        )
        for f in found
    ]


def _measure(
    labels: np.ndarray,
    stats: np.ndarray,
    label: int,
    probability: np.ndarray,
    spacing_mm: tuple[float, float] | None,
    prompt_box: int | None,
) -> Finding:
    left, top, width, height, area = (int(v) for v in stats)
    part = np.s_[top : top + height, left : left + width]
    component = labels[part] == label
    values = probability[part]
    contours, _ = cv2.findContours(component.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    corners = max(contours, key=cv2.contourArea).reshape(-1, 2) + np.array((left, top))
    long_px, short_px = _axes(corners, 1.0, 1.0)
    long_mm = short_mm = area_mm2 = None
    if spacing_mm is not None:
        long_mm, short_mm = _axes(corners, spacing_mm[1], spacing_mm[0])
        area_mm2 = area * spacing_mm[0] * spacing_mm[1]
    return Finding(
        number=0,
        bounding_box=Box(left, top, width, height),
        contour=tuple((int(x), int(y)) for x, y in corners),
        centroid_x=left + float(component.sum(axis=0) @ np.arange(width)) / area,
        centroid_y=top + float(component.sum(axis=1) @ np.arange(height)) / area,
        area_px=area,
        area_mm2=area_mm2,
        long_axis_mm=long_mm,
        short_axis_mm=short_mm,
        long_axis_px=long_px,
        short_axis_px=short_px,
        # In double precision: a sum of float32 can end above the peak.
        mean_probability=float(np.mean(values, where=component, dtype=np.float64)),
        peak_probability=float(np.max(values, where=component, initial=0)),
        prompt_box=prompt_box,
    )


def _axes(corners: np.ndarray, x_scale: float, y_scale: float) -> tuple[float, float]:
    """Return the sides (long, short) of the smallest enclosing rectangle; a pixel counts with its full width."""
    shifts = np.array([(-0.5, -0.5), (0.5, -0.5), (-0.5, 0.5), (0.5, 0.5)])
    outline = (corners[:, None, :] + shifts[None]).reshape(-1, 2) * (x_scale, y_scale)
    sides = cv2.minAreaRect(outline.astype(np.float32))[1]
    return float(max(sides)), float(min(sides))
