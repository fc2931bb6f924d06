"""Masks judged against masks: whole pictures, and lesions that the model was pointed at with a box."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import cv2
import numpy as np

from mammo_runtime.findings import components
from mammo_runtime.mammogram import Box
from mammo_runtime.overlap import dice
from mammo_runtime.preprocess import roi_window
from mammo_runtime.spec import Task
from mammo_train.dataset import MIN_LESION_PX, LabelledImage
from mammo_train.index import IndexRow
from mammo_train.judge import Model, breast_region, looks_for_breast
from mammo_train.metrics import Counts, Draws, count, measure, ratio_interval, summarise

JITTER = 0.1
"""Of the box's longer side: how far the jittered boxes are moved, and by how much they grow or shrink."""
SIZES = ("<10 mm", "10-20 mm", ">20 mm", "unknown spacing")
TRUTH_BOXES = "boxes drawn round the truth: an upper bound of what a person's or a detector's boxes give"

Report = Callable[[str], None]


def mask_blocks(
    model: Model, rows: Sequence[IndexRow], kinds: Sequence[str], together: Sequence[str], report: Report | None
) -> dict[str, Any]:
    """Judge each kind of pictures by itself, and those in `together` once more as one ("benign+malignant").

    Models that need boxes: one item per lesion, with its tight box and with boxes moved by `JITTER`; pictures without
    lesions are no items. Others: one item per picture; kinds without any mask get the rate of false findings.
    """
    judged: dict[str, list[Any]] = {}
    for kind in kinds:
        own = [row for row in rows if row.kind == kind]
        if report is not None and own:
            report(f"{kind}: {len(own)} pictures")
        judged[kind] = (
            [pair for row in own if row.mask is not None for pair in _score_lesions(model, row)]
            if model.spec.takes_boxes
            else [_score_picture(model, row) for row in own]
        )
    masked = {row.kind for row in rows if row.mask is not None}
    blocks = {kind: _block(model, found, kind in masked) for kind, found in judged.items() if found}
    united = [kind for kind in dict.fromkeys(together) if kind in blocks and kind in masked]
    if len(united) > 1:
        blocks["+".join(united)] = _block(model, [one for kind in united for one in judged[kind]], True)
    return blocks


def _block(model: Model, found: list[Any], masked: bool) -> dict[str, Any]:
    if not model.spec.takes_boxes:
        return _picture_block(found, looks_for_breast(model.spec)) if masked else _normal_block(found)
    tight, moved = ([pair[k] for pair in found] for k in (0, 1))
    block = {**_overlap_block(tight, "lesion"), "boxes": TRUTH_BOXES}
    block["jittered_boxes"] = _overlap_block(moved, "lesion")
    if model.spec.task is Task.PROMPTED:
        block["predicted_iou"] = _predicted_iou(tight)
    return block


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


def lesion_mask(mask: np.ndarray, box: Box) -> np.ndarray:
    """Return the largest lesion whose tight box this is, as a mask of the whole picture."""
    number, labels, stats = components(mask)
    own = [k for k in range(1, number + 1) if tuple(stats[k][:4]) == (box.x, box.y, box.width, box.height)]
    return np.asarray(labels == max(own, key=lambda k: int(stats[k][cv2.CC_STAT_AREA])))


def picture_item(labelled: LabelledImage, mask: np.ndarray) -> dict[str, Any]:
    """Compare a mask bool [rows, columns] of a whole picture with its truth."""
    lesions = _lesions(labelled, mask)
    number, labels, _ = components(mask)
    true_positives = len(set(np.unique(labels[labelled.mask]).tolist()) - {0})
    return {
        **_overlap_row(labelled.row, count(mask, labelled.mask)),
        "findings": number,
        "false_findings": number - true_positives,
        "lesions": lesions,
        "diameter_mm": max((x["diameter_mm"] for x in lesions if x["diameter_mm"]), default=None),
    }


def _score_picture(model: Model, row: IndexRow) -> dict[str, Any]:
    """Judge a whole picture."""
    labelled = model.read(row)
    found = model.judge(labelled.image)
    breast = breast_region(labelled.image, model.spec)
    part = np.s_[...] if breast is None else breast
    in_breast = {"found": breast is not None, "counts": asdict(count(found.mask[part], labelled.mask[part]))}
    return {**picture_item(labelled, found.mask), "breast": in_breast}


def lesion_item(model: Model, labelled: LabelledImage, number: int, box: Box) -> dict[str, Any]:
    """Judge lesion `number` (from 1) of a picture, pointed at with a box.

    Windows are judged as a whole, with all that is in them; a prompted model, which sees the whole picture, by the
    lesion that it was pointed at.
    """
    own = lesion_mask(labelled.mask, labelled.boxes[number - 1])
    prompted = model.spec.task is Task.PROMPTED
    found = model.judge(labelled.image, [box])
    part = np.s_[:, :] if prompted else lesion_window(labelled, box, model.spec.input.roi_margin)
    truth = own if prompted else labelled.mask
    values = _overlap_row(labelled.row, count(found.mask[part], truth[part]))
    values["box_dice"] = dice(_filled(box, truth.shape)[part], truth[part])
    if found.box_predicted_iou is not None:
        values["predicted_iou"] = found.box_predicted_iou[0]
    diameter = _diameter_mm(int(own.sum()), labelled)
    return {**values, "lesion": number, "findings": len(found.findings), "diameter_mm": diameter}


def _score_lesions(model: Model, row: IndexRow) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Judge each lesion of a picture: with its tight box, and with the moved one."""
    labelled = model.read(row)
    for number, tight in enumerate(labelled.boxes, start=1):
        moved = jittered(tight, f"{row.name} {number}")
        yield lesion_item(model, labelled, number, tight), lesion_item(model, labelled, number, moved)


def _filled(box: Box, shape: tuple[int, ...]) -> np.ndarray:
    """Return the box as a mask bool [rows, columns]: what needs no model."""
    mask = np.zeros(shape, bool)
    left, top = max(0, round(box.x)), max(0, round(box.y))
    mask[top : round(box.y + box.height), left : round(box.x + box.width)] = True
    return mask


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
    block = summarise([Counts(**row["counts"]) for row in rows], [row["group"] for row in rows])
    by_size = {}
    for size in SIZES:
        own = [row for row in rows if size_class(row["diameter_mm"]) == size]
        if own:
            groups = [row["group"] for row in own]
            values = {m: ratio_interval([r[m] for r in own], [1] * len(own), groups) for m in ("dice", "iou")}
            by_size[size] = {"n": len(own), "n_patients": len(set(groups)), **values}
    n_images = len({row["image"] for row in rows})
    items = [{k: v for k, v in row.items() if k not in ("counts", "breast", "box_dice")} for row in rows]
    return {
        "measures": "overlap",
        "item": item,
        "n_images": n_images,
        **block,
        **_baselines(rows),
        "by_size": by_size,
        "items": items,
    }


def _baselines(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return the mean Dice of what needs no model: every pixel (of picture or window) marked, and each box filled."""
    everything = [2 * row["truth_px"] / (row["truth_px"] + sum(row["counts"].values())) for row in rows]
    found = {"baseline_dice_everything": round(float(np.mean(everything)), 4)}
    if all("box_dice" in row for row in rows):
        found["baseline_dice_box"] = round(float(np.mean([row["box_dice"] for row in rows])), 4)
    return found


def _picture_block(rows: list[dict[str, Any]], in_breast: bool) -> dict[str, Any]:
    """Sum up whole pictures with masks; adds how many lesions were found and how much else was marked."""
    block = _overlap_block(rows, "image")
    lesions = [(row["group"], lesion) for row in rows for lesion in row["lesions"]]
    block["lesion_sensitivity"] = _lesion_sensitivity(lesions)
    block["false_findings_per_image"] = _mean([r["false_findings"] for r in rows], [r["group"] for r in rows])
    for size, values in block["by_size"].items():
        own = [(group, lesion) for group, lesion in lesions if size_class(lesion["diameter_mm"]) == size]
        values["lesion_sensitivity"] = _lesion_sensitivity(own)
    if in_breast:
        block["breast_area"] = _breast_area(rows)
    return block


def _breast_area(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up breast pixels alone, as study 003 does; where no breast was found, the whole picture counts."""
    counts = [Counts(**row["breast"]["counts"]) for row in rows]
    return {
        "pixels": "inside the breast as the model's own cleaning finds it",
        "n_without_breast": sum(not row["breast"]["found"] for row in rows),
        "truth_px_outside": sum(row["truth_px"] - c.tp - c.fn for row, c in zip(rows, counts)),
        "pooled": summarise(counts, [row["group"] for row in rows])["pooled"],
    }


def _predicted_iou(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Compare what the model expects of its masks with what they are: mean error, bias, Pearson correlation."""
    draws = Draws([row["group"] for row in rows])
    said, real = (np.array([row[name] for row in rows], np.float64) for name in ("predicted_iou", "iou"))
    ones = np.ones(len(rows))
    sums = np.stack([ones, said, real, said * said, real * real, said * real], axis=1)
    return {
        "n": len(rows),
        "mean_predicted": draws.ratio(said, ones),
        "mean_real": draws.ratio(real, ones),
        "mean_absolute_error": draws.ratio(np.abs(said - real), ones),
        "bias": draws.ratio(said - real, ones),
        "correlation": draws.estimate(float(_correlation(sums.sum(axis=0))), _correlation(draws.sums(sums))),
    }


def _correlation(sums: np.ndarray) -> np.ndarray:
    """Return Pearson's correlation from sums [..., 6] of 1, x, y, xx, yy, xy; NaN where one of them is constant."""
    n, x, y, xx, yy, xy = np.moveaxis(sums, -1, 0)
    across, spread = n * xy - x * y, np.maximum(n * xx - x * x, 0) * np.maximum(n * yy - y * y, 0)
    flat = spread <= 1e-20 * np.maximum(n, 1) ** 4
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(flat, np.nan, np.clip(across / np.sqrt(spread), -1, 1))


def _lesion_sensitivity(lesions: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    if not lesions:
        return {"value": None, "low": None, "high": None, "n": 0}
    hits = [float(lesion["hit"]) for _, lesion in lesions]
    return {**_mean(hits, [group for group, _ in lesions]), "n": len(lesions)}


def _normal_block(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up pictures without any mass: every finding is false."""
    groups = [row["group"] for row in rows]
    return {
        "measures": "findings",
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
