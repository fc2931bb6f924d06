"""A model judged as a site would meet it: the runtime's own `segment` on original pictures, against their masks."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np

from mammo_runtime import __version__
from mammo_runtime.errors import UsageError
from mammo_runtime.findings import components
from mammo_runtime.machine import machine_record
from mammo_runtime.mammogram import Box
from mammo_runtime.preprocess import roi_window
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session
from mammo_runtime.spec import InputMode, ModelSpec
from mammo_train.dataset import MIN_LESION_PX, LabelledImage, read_labelled
from mammo_train.index import IndexRow
from mammo_train.metrics import Counts, count, measure, ratio_interval, summarise

KINDS = ("mass", "findings", "normal")
JITTER = 0.1
"""Of the box's longer side: how far the jittered boxes are moved, and by how much they grow or shrink."""
SIZES = ("<10 mm", "10-20 mm", ">20 mm", "unknown spacing")


def evaluate(
    session: Session,
    spec: ModelSpec,
    rows: Sequence[IndexRow],
    kinds: Sequence[str] = KINDS,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Judge `rows` (one fold) and return a JSON-ready result; each kind has a block of its own, never mixed.

    FULL mode: one item per picture; kinds without any mask get the rate of false findings instead of Dice.
    ROI mode: one item per lesion, judged within the model's window; once with the tight box of its mask and
    once with boxes moved by `JITTER`; pictures without lesions are no items. Raises UsageError when nothing is left.
    """
    blocks: dict[str, Any] = {}
    for kind in kinds:
        own = [row for row in rows if row.kind == kind]
        if report is not None and own:
            report(f"{kind}: {len(own)} pictures")
        masked = any(row.mask is not None for row in own)
        if spec.input.mode is InputMode.ROI:
            items = [item for row in own if row.mask is not None for item in _score_lesions(session, spec, row)]
            if items:
                blocks[kind] = _overlap_block([tight for tight, _ in items], "lesion")
                blocks[kind]["jittered_boxes"] = _overlap_block([moved for _, moved in items], "lesion")
        elif masked:
            blocks[kind] = _picture_block([_score_picture(session, spec, row) for row in own])
        elif own:
            blocks[kind] = _normal_block([_score_picture(session, spec, row) for row in own])
    if not blocks:
        raise UsageError(f"no picture of the kinds {', '.join(kinds)} to evaluate in this fold")
    return {
        "mode": spec.input.mode.value,
        "threshold": spec.threshold,
        "min_area_cells": spec.min_area_cells,
        "kinds": blocks,
        "backend": session.backend,
        "machine": machine_record(),
        "mammo_edge": __version__,
    }


def jittered(box: Box, name: str) -> Box:
    """Return the box moved by `JITTER` of its longer side, scaled by 1 ± `JITTER`; the signs depend on `name` only."""
    bits = zlib.crc32(name.encode())
    signs = [1 if bits >> k & 1 else -1 for k in range(3)]
    side, scale = max(box.width, box.height), 1 + JITTER * signs[2]
    width, height = box.width * scale, box.height * scale
    return Box(
        box.x + (box.width - width) / 2 + signs[0] * JITTER * side,
        box.y + (box.height - height) / 2 + signs[1] * JITTER * side,
        width,
        height,
    )


def lesion_window(labelled: LabelledImage, box: Box, roi_margin: float) -> tuple[slice, slice]:
    """Return the part of the picture that the model sees round a box."""
    rows, columns = labelled.mask.shape
    window = roi_window(box, roi_margin, rows, columns)
    return (
        slice(max(0, window.top), min(rows, window.top + window.rows)),
        slice(max(0, window.left), min(columns, window.left + window.columns)),
    )


def _score_picture(session: Session, spec: ModelSpec, row: IndexRow) -> dict[str, Any]:
    """Judge a whole picture."""
    labelled = read_labelled(row)
    found = segment(labelled.image, session, spec)
    lesions = _lesions(labelled, found.mask)
    number, labels, _ = components(found.mask)
    true_positives = len(set(np.unique(labels[labelled.mask]).tolist()) - {0})
    return {
        **_overlap_row(row, count(found.mask, labelled.mask)),
        "findings": number,
        "false_findings": number - true_positives,
        "lesions": lesions,
        "diameter_mm": max((x["diameter_mm"] for x in lesions if x["diameter_mm"]), default=None),
    }


def _score_lesions(session: Session, spec: ModelSpec, row: IndexRow) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Judge each lesion of a picture in its window: with its tight box, and with the moved one."""
    labelled = read_labelled(row)
    for number, tight in enumerate(labelled.boxes, start=1):
        results = []
        for box in (tight, jittered(tight, f"{row.name} {number}")):
            found = segment(labelled.image, session, spec, boxes=[box])
            part = lesion_window(labelled, box, spec.input.roi_margin)
            values = _overlap_row(row, count(found.mask[part], labelled.mask[part]))
            diameter = _diameter_mm(_area_in(labelled.mask, tight), labelled)
            results.append({**values, "lesion": number, "findings": len(found.findings), "diameter_mm": diameter})
        yield results[0], results[1]


def _overlap_row(row: IndexRow, counts: Counts) -> dict[str, Any]:
    values = measure(np.array([counts.tp, counts.fp, counts.fn, counts.tn]))
    return {
        "image": row.name,
        "group": row.group,
        "dice": float(values["dice"]),
        "iou": float(values["iou"]),
        "truth_px": counts.tp + counts.fn,
        "mask_px": counts.tp + counts.fp,
        "counts": asdict(counts),
    }


def _lesions(labelled: LabelledImage, mask: np.ndarray) -> list[dict[str, Any]]:
    """Return size and "hit" of each true lesion of at least `MIN_LESION_PX` pixels."""
    number, labels, stats = components(labelled.mask)
    touched = set(np.unique(labels[mask]).tolist())
    areas = {k: int(stats[k][cv2.CC_STAT_AREA]) for k in range(1, number + 1)}
    kept = [k for k in areas if areas[k] >= MIN_LESION_PX]
    return [{"diameter_mm": _diameter_mm(areas[k], labelled), "hit": k in touched} for k in kept]


def _area_in(mask: np.ndarray, box: Box) -> int:
    """Return the pixels of the largest lesion whose tight box this is."""
    part = mask[int(box.y) : int(box.y + box.height), int(box.x) : int(box.x + box.width)]
    return int(components(part)[2][1:, cv2.CC_STAT_AREA].max())


def _diameter_mm(area_px: int, labelled: LabelledImage) -> float | None:
    """Return the diameter of the circle of the same area in mm, None without a spacing."""
    spacing = labelled.image.spacing_mm
    return None if spacing is None else round(2 * float(np.sqrt(area_px * spacing[0] * spacing[1] / np.pi)), 2)


def size_class(diameter_mm: float | None) -> str:
    """Return which of `SIZES` a lesion belongs to."""
    if diameter_mm is None:
        return SIZES[3]
    return SIZES[0] if diameter_mm < 10 else SIZES[1] if diameter_mm <= 20 else SIZES[2]


def _overlap_block(rows: list[dict[str, Any]], item: str) -> dict[str, Any]:
    """Sum up items ("image" or "lesion") with Dice, whole and by lesion size."""
    block = summarise([Counts(**row.pop("counts")) for row in rows], [row["group"] for row in rows])
    by_size = {}
    for size in SIZES:
        own = [row for row in rows if size_class(row["diameter_mm"]) == size]
        if own:
            groups = [row["group"] for row in own]
            values = {m: ratio_interval([r[m] for r in own], [1] * len(own), groups) for m in ("dice", "iou")}
            by_size[size] = {"n": len(own), "n_patients": len(set(groups)), **values}
    n_images = len({row["image"] for row in rows})
    return {"item": item, "n_images": n_images, **block, "by_size": by_size, "items": rows}


def _picture_block(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up whole pictures with masks; adds how many lesions were found and how much else was marked."""
    block = _overlap_block(rows, "image")
    lesions = [(row["group"], lesion) for row in rows for lesion in row["lesions"]]
    block["lesion_sensitivity"] = _lesion_sensitivity(lesions)
    block["false_findings_per_image"] = _mean([r["false_findings"] for r in rows], [r["group"] for r in rows])
    for size, values in block["by_size"].items():
        own = [(group, lesion) for group, lesion in lesions if size_class(lesion["diameter_mm"]) == size]
        values["lesion_sensitivity"] = _lesion_sensitivity(own)
    return block


def _lesion_sensitivity(lesions: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    if not lesions:
        return {"value": None, "low": None, "high": None, "n": 0}
    hits = [float(lesion["hit"]) for _, lesion in lesions]
    return {**_mean(hits, [group for group, _ in lesions]), "n": len(lesions)}


def _normal_block(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up pictures without any mass: every finding is false."""
    groups = [row["group"] for row in rows]
    return {
        "item": "image",
        "n": len(rows),
        "n_images": len(rows),
        "n_patients": len(set(groups)),
        "images_with_finding": _mean([float(row["findings"] > 0) for row in rows], groups),
        "findings_per_image": _mean([row["findings"] for row in rows], groups),
        "items": [{k: row[k] for k in ("image", "group", "findings", "mask_px")} for row in rows],
    }


def _mean(values: Sequence[float], groups: Sequence[str]) -> dict[str, float | None]:
    return ratio_interval(values, [1.0] * len(values), groups)
