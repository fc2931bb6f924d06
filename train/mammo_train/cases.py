"""The pictures that go with results: worst and best cases, confusion matrix and reliability, by what was measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mammo_runtime.spec import InputMode
from mammo_runtime.writers.palette import PALETTE
from mammo_train.evaluate_masks import lesion_mask, lesion_window
from mammo_train.index import IndexRow
from mammo_train.judge import Model

if TYPE_CHECKING:
    from mammo_train.pictures import Case
    from mammo_train.pictures_classes import LabelCase

CASES = 6
"""Worst and best cases drawn."""

Items = list[dict[str, Any]]


def draw(run: Path, name: str, model: Model, rows: Sequence[IndexRow], block: Mapping[str, Any]) -> list[Path]:
    """Draw the pictures of one block of results into a run's folder; returns them.

    `name` is the fold's in `metrics.json`. Answers are inferred again, so that none had to be kept.
    """
    return _DRAWERS[str(block["measures"])](run, name, model, rows, block)


def worst_and_best(items: Items, key: Callable[[dict[str, Any]], float]) -> tuple[Items, Items]:
    """Return up to `CASES` items with the smallest and the largest keys; none is in both."""
    order = sorted(items, key=key)
    half = min(CASES, (len(order) + 1) // 2)
    return order[:half], list(reversed(order[half:]))[:CASES]


def _row_of(rows: Sequence[IndexRow], item: Mapping[str, Any]) -> IndexRow:
    return next(row for row in rows if (row.name, row.group) == (item["image"], item["group"]))


def _draw_overlap(run: Path, name: str, model: Model, rows: Sequence[IndexRow], block: Mapping[str, Any]) -> list[Path]:
    from mammo_train.pictures import cases_png

    worst, best = worst_and_best(block["items"], lambda item: item["dice"])
    path = run / f"cases_{name}.png"
    cases_png([_overlap_case(model, rows, i) for i in worst], [_overlap_case(model, rows, i) for i in best], path)
    return [path]


def _overlap_case(model: Model, rows: Sequence[IndexRow], item: dict[str, Any]) -> Case:
    from mammo_train.pictures import Case

    labelled = model.read(_row_of(rows, item))
    title, caption = item["image"], f"Dice {item['dice']:.3f}"
    pixels, truth = labelled.image.pixels, labelled.mask
    if not model.spec.takes_boxes:
        return Case(title, caption, windowed(pixels), truth, model.judge(labelled.image).mask)
    title, box = f"{title} #{item['lesion']}", labelled.boxes[item["lesion"] - 1]
    found = model.judge(labelled.image, [box])
    if model.spec.input.mode is InputMode.ROI:
        part = lesion_window(labelled, box, model.spec.input.roi_margin)
        return Case(title, caption, windowed(pixels[part]), truth[part], found.mask[part])
    caption += f", predicted IoU {item['predicted_iou']:.2f}" if "predicted_iou" in item else ""
    return Case(title, caption, windowed(pixels), lesion_mask(truth, box), found.mask, box)


def _draw_labels(run: Path, name: str, model: Model, rows: Sequence[IndexRow], block: Mapping[str, Any]) -> list[Path]:
    from mammo_train.pictures_classes import confusion_png, label_cases_png

    classes = model.spec.classes
    matrix = run / f"confusion_{name}.png"
    confusion_png(block["confusion"], classes, matrix)
    items = [item for item in block["items"] if item["accuracy"] is not None]
    if not items:
        return [matrix]
    worst, best = worst_and_best(items, lambda item: item["accuracy"])
    sheet = run / f"cases_{name}.png"
    bad, good = ([_label_case(model, rows, item) for item in part] for part in (worst, best))
    label_cases_png(bad, good, classes, np.array(PALETTE[: len(classes)], np.uint8), sheet)
    return [matrix, sheet]


def _label_case(model: Model, rows: Sequence[IndexRow], item: dict[str, Any]) -> LabelCase:
    from mammo_train.pictures_classes import LabelCase

    image, truth = model.read_labels(_row_of(rows, item))
    labels = model.judge(image).labels
    assert labels is not None, "the runtime answers labels to every multi-class model"
    return LabelCase(item["image"], f"accuracy {item['accuracy']:.3f}", windowed(image.pixels), truth, labels)


def confidence(item: Mapping[str, Any]) -> float:
    """Return how good a classifier's answer is: -1 surely wrong … 0 undecided … 1 surely right."""
    sure = max(item["probabilities"])
    return float(sure if item["predicted"] == item["kind"] else -sure)


def _draw_classes(run: Path, name: str, model: Model, rows: Sequence[IndexRow], block: Mapping[str, Any]) -> list[Path]:
    from mammo_train.pictures import Case, cases_png
    from mammo_train.pictures_classes import confusion_png, reliability_png

    classes = model.spec.classes
    matrix, diagram, sheet = (run / f"{what}_{name}.png" for what in ("confusion", "reliability", "cases"))
    confusion_png(block["confusion"], classes, matrix, "pictures")
    reliability_png(block["calibration"], diagram)

    def case(item: dict[str, Any]) -> Case:
        row = next(r for r in rows if (r.name, r.group, r.kind) == (item["image"], item["group"], item["kind"]))
        likely = sorted(zip(item["probabilities"], classes), reverse=True)[:3]
        said = "\n".join(f"{label} {p:.2f}" for p, label in likely)
        return Case(item["image"], f"truth: {item['kind']}\n{said}", windowed(model.read_image(row).pixels))

    worst, best = worst_and_best(block["items"], confidence)
    cases_png([case(item) for item in worst], [case(item) for item in best], sheet)
    return [matrix, diagram, sheet]


def _draw_nothing(*_: Any) -> list[Path]:
    return []


_DRAWERS: Mapping[str, Callable[..., list[Path]]] = {
    "overlap": _draw_overlap,
    "findings": _draw_nothing,
    "labels": _draw_labels,
    "classes": _draw_classes,
}


def windowed(pixels: np.ndarray) -> np.ndarray:
    """Return uint8 for looking at: the tissue's values from 0.5 to 99.8 % spread over the whole range.

    Colour pictures [rows, columns, 3] of 8 bit stay as they are.
    """
    if pixels.ndim == 3 and pixels.dtype == np.uint8:
        return pixels
    tissue = pixels[pixels > 0]
    if not tissue.size:
        return np.zeros(pixels.shape, np.uint8)
    low, high = (float(v) for v in np.percentile(tissue, (0.5, 99.8)))
    spread = (pixels.astype(np.float32) - low) * (255 / max(high - low, 1))
    return np.asarray(np.clip(np.rint(spread), 0, 255), np.uint8)
