"""The pictures of each task: what its mask file holds, and what its overlay shows.

Segmentation has its marks (`pictures.overlay_picture`), a multi-class map its colours, a classifier its probabilities.
Legend and caption stand in a strip below the picture (and beside it, where it is too narrow for them), so that no pixel
is covered and pixel (x, y) of the overlay stays pixel (x, y) of the image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from typing import NamedTuple

import cv2
import numpy as np

from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.result import ClassArea, ClassScore, Result
from mammo_runtime.spec import Task
from mammo_runtime.writers.amounts import chance, share
from mammo_runtime.writers.palette import PALETTE
from mammo_runtime.writers.pictures import TINT_ALPHA, labels_png, mask_png, overlay_picture, rgb_from_mammogram

_STRIP_ROWS = 128
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PAPER_RGB, _INK_RGB = (16, 22, 27), (235, 238, 240)
_MOST_LINES = 40
"""Of a caption; a picture is no table."""


class _Line(NamedTuple):
    """One entry of a strip."""

    text: str
    colour: tuple[int, int, int] | None
    """Of the square before it; None for no square."""


def overlay(image: Mammogram, found: Result, boxes: Sequence[Box] | None = None) -> np.ndarray:
    """Return uint8 RGB [rows, columns, 3] of the image (white is 255) with what the model says, by the result's task.

    `boxes` are the prompts, in original pixels. With a legend or caption the picture is larger than the image.
    """
    return OVERLAYS[found.task](image, found, boxes)


def mask_content(found: Result) -> bytes:
    """Return the PNG file of a result's mask, by its task. Raises OutputError; KeyError for a task without masks."""
    return MASKS[found.task](found)


def _class_map(image: Mammogram, found: Result, boxes: Sequence[Box] | None) -> np.ndarray:
    """0.6 · picture + 0.4 · the class's colour, and a legend of the classes present, largest first."""
    labels = found.labels
    if labels is None or labels.shape != (image.rows, image.columns):
        raise ValueError("the result has no labels of the picture's size")
    areas = [(k, c) for k, c in enumerate(found.classes) if isinstance(c, ClassArea) and c.area_px]
    areas.sort(key=lambda one: -one[1].area_px)
    canvas = _with_strip(image, [_Line(f"{_ascii(c.name)} {share(c.fraction)}", PALETTE[k]) for k, c in areas])
    colours = np.array(PALETTE, np.uint8)
    picture = canvas[: image.rows, : image.columns]
    for top in range(0, image.rows, _STRIP_ROWS):
        part = picture[top : top + _STRIP_ROWS]
        tint = colours[labels[top : top + _STRIP_ROWS]]
        part[:] = cv2.addWeighted(np.ascontiguousarray(part), 1 - TINT_ALPHA, tint, TINT_ALPHA, 0)
    return canvas


def _caption(image: Mammogram, found: Result, boxes: Sequence[Box] | None) -> np.ndarray:
    """The picture as it is, and the probability of every class below it, highest first."""
    scores = [c for c in found.classes if isinstance(c, ClassScore)]
    scores.sort(key=lambda one: -one.probability)
    return _with_strip(image, [_Line(f"{_ascii(c.name)} {chance(c.probability)}", None) for c in scores])


def _ascii(text: str) -> str:
    """Return what OpenCV's fonts can write."""
    return "".join(c if c.isprintable() else "?" for c in text.encode("ascii", "replace").decode())


def _with_strip(image: Mammogram, lines: Sequence[_Line]) -> np.ndarray:
    """Return uint8 RGB [rows + strip, columns or more, 3]: the picture and, below it, the lines in columns."""
    if len(lines) > _MOST_LINES:
        lines = [*lines[: _MOST_LINES - 1], _Line(f"and {len(lines) - _MOST_LINES + 1} more", None)]
    height_px = max(10, round(max(image.rows, image.columns) / 50))
    scale = height_px / cv2.getTextSize("0", _FONT, 1.0, 1)[0][1]
    stroke, gap, step = max(1, round(height_px / 12)), height_px, 2 * height_px
    indent = gap + (2 * gap if any(line.colour for line in lines) else 0)
    widest = max((cv2.getTextSize(line.text, _FONT, scale, stroke)[0][0] for line in lines), default=0)
    entry = indent + widest + gap
    width = max(image.columns, entry)
    side_by_side = max(1, width // entry)
    deep = ceil(len(lines) / side_by_side)
    canvas = np.empty((image.rows + deep * step + gap, width, 3), np.uint8)
    canvas[: image.rows, : image.columns] = rgb_from_mammogram(image)
    canvas[image.rows :] = canvas[:, image.columns :] = _PAPER_RGB
    for number, line in enumerate(lines):
        left = (number // deep) * entry + gap
        base = image.rows + (number % deep + 1) * step
        if line.colour is not None:
            cv2.rectangle(canvas, (left, base - height_px), (left + round(1.5 * gap), base), line.colour, -1)
            left += 2 * gap
        cv2.putText(canvas, line.text, (left, base), _FONT, scale, _INK_RGB, stroke, cv2.LINE_AA)
    return canvas


def _labels(found: Result) -> bytes:
    if found.labels is None:
        raise ValueError("the result has no labels")
    return labels_png(found.labels)


OVERLAYS: Mapping[Task, Callable[[Mammogram, Result, Sequence[Box] | None], np.ndarray]] = {
    Task.SEGMENTATION: overlay_picture,
    Task.MULTICLASS: _class_map,
    Task.CLASSIFICATION: _caption,
    Task.PROMPTED: overlay_picture,
}
MASKS: Mapping[Task, Callable[[Result], bytes]] = {
    Task.SEGMENTATION: lambda found: mask_png(found.mask),
    Task.MULTICLASS: _labels,
    Task.PROMPTED: lambda found: mask_png(found.mask),
}
