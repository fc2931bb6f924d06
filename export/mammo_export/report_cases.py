"""Worst cases as pictures: where a precision draws another outline than FP32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

TRUTH, REFERENCE, CANDIDATE = (43, 212, 107), (86, 180, 233), (240, 150, 20)
"""RGB of the outlines: the true one dotted, FP32's solid, the candidate's dashed, so that none hides another."""
HEIGHT_PX = 420
WIDEST_PX = 460
"""Of either panel."""
GAP_PX = 10
ROUND = 0.35
"""Of the marked area's longer side: what is shown round it."""
LEAST_SIDE_PX = 48
WHOLE = 0.6
"""Of the picture's longer side: where the detail covers this much, the whole picture beside it would tell nothing."""
DASHES: Mapping[str, tuple[float, float]] = {"solid": (1.0, 0.0), "dashed": (9.0, 7.0), "dotted": (2.0, 5.0)}
"""Pixels drawn and left out, in turns."""
SCALE = 8
"""OpenCV draws at fractions of a pixel of 2^-3."""

Window = tuple[slice, slice]


def case_picture(
    image: np.ndarray, truth: np.ndarray | None, reference: np.ndarray, candidate: np.ndarray
) -> np.ndarray:
    """Return uint8 RGB of one case: the whole picture with a frame, and beside it what is marked, enlarged.

    `image` uint8 [rows, columns] or RGB, windowed; masks bool [rows, columns], `truth` None where there is none. Raises
    ValueError when shapes differ.
    """
    masks = [mask for mask in (truth, reference, candidate) if mask is not None]
    if image.dtype != np.uint8 or any(mask.shape != image.shape[:2] for mask in masks):
        raise ValueError(f"a case needs a uint8 picture and masks of its size, got {image.dtype} {image.shape}")
    colour = image if image.ndim == 3 else np.repeat(image[:, :, None], 3, axis=2)
    window = _window(masks)
    outlines = ((reference, REFERENCE, "solid"), (truth, TRUTH, "dotted"), (candidate, CANDIDATE, "dashed"))
    detail = _panel(colour, window, outlines)
    if _side(window) >= WHOLE * max(image.shape[:2]):
        return detail
    rows, columns = image.shape[:2]
    frame = np.zeros((rows, columns), bool)
    frame[window] = True
    whole = _panel(colour, (slice(0, rows), slice(0, columns)), ((frame, (255, 255, 255), "solid"),))
    gap = np.full((HEIGHT_PX, GAP_PX, 3), 255, np.uint8)
    return np.concatenate([_boxed(whole), gap, _boxed(detail)], axis=1)


def case_words(case: Mapping[str, Any]) -> str:
    """Return what differs, for those who cannot see the picture."""
    reference, candidate = (np.asarray(case[name], bool) for name in ("reference", "candidate"))
    if not reference.any() and not candidate.any():
        return "neither marks anything"
    if not candidate.any():
        return "only FP32 marks something"
    if not reference.any():
        return "only the lower precision marks something"
    differing = int((reference != candidate).sum())
    return f"the two masks differ in {differing:,} pixels; FP32 marks {int(reference.sum()):,}"


def _window(masks: list[np.ndarray]) -> Window:
    """Return what is shown enlarged: a square round everything that any mask marks, as far as the picture goes."""
    rows, columns = masks[0].shape
    marked = np.any(masks, axis=0)
    if not marked.any():
        return slice(0, rows), slice(0, columns)
    ends = [(int(hit[0]), int(hit[-1]) + 1) for hit in (np.flatnonzero(marked.any(axis=axis)) for axis in (1, 0))]
    longest = max(high - low for low, high in ends)
    side = max(LEAST_SIDE_PX, round(longest * (1 + 2 * ROUND)))
    return tuple(_stretch(low, high, side, size) for (low, high), size in zip(ends, (rows, columns)))  # type: ignore[return-value]


def _stretch(low: int, high: int, side: int, size: int) -> slice:
    side = min(side, size)
    start = min(max(0, (low + high - side) // 2), size - side)
    return slice(start, start + side)


def _side(window: Window) -> int:
    return int(max(part.stop - part.start for part in window))


def _panel(
    colour: np.ndarray, window: Window, outlines: tuple[tuple[np.ndarray | None, tuple[int, int, int], str], ...]
) -> np.ndarray:
    part = colour[window]
    factor = min(HEIGHT_PX / part.shape[0], WIDEST_PX / part.shape[1])
    size = (max(1, round(part.shape[1] * factor)), max(1, round(part.shape[0] * factor)))
    how = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    canvas = np.ascontiguousarray(cv2.resize(np.ascontiguousarray(part), size, interpolation=how))
    for mask, rgb, style in outlines:
        if mask is not None:
            # A blank edge round the mask lets cut outlines close along the border of the panel.
            own = cv2.copyMakeBorder(mask[window].astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
            for outline in cv2.findContours(own, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)[0]:
                _trace(canvas, (outline.reshape(-1, 2) - 0.5) * factor, rgb, DASHES[style])
    return canvas


def _trace(canvas: np.ndarray, points: np.ndarray, rgb: tuple[int, int, int], dash: tuple[float, float]) -> None:
    """Draw a closed line, in pixels of the canvas, in dashes along its length."""
    closed = np.concatenate([points, points[:1]])
    steps = np.linalg.norm(np.diff(closed, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(steps)])
    if along[-1] == 0:
        cv2.circle(canvas, tuple(int(v) for v in points[0]), 2, rgb, -1, cv2.LINE_AA)
        return
    on, off = dash
    # Points at every pixel of the line, so that dashes are as long wherever the mask's own corners lie.
    places = np.arange(0.0, along[-1] + 1.0)
    fine = np.stack([np.interp(places, along, closed[:, axis]) for axis in (0, 1)], axis=1)
    drawn = (places % (on + off)) < on if off else np.ones(len(places), bool)
    for start, stop in zip(fine[:-1][drawn[:-1]], fine[1:][drawn[:-1]]):
        ends = [tuple(int(v) for v in np.rint(end * SCALE)) for end in (start, stop)]
        cv2.line(canvas, ends[0], ends[1], rgb, 2, cv2.LINE_AA, 3)


def _boxed(panel: np.ndarray) -> np.ndarray:
    """Return the panel centred on white of the full height."""
    spare = HEIGHT_PX - panel.shape[0]
    top = spare // 2
    return cv2.copyMakeBorder(panel, top, spare - top, 0, 0, cv2.BORDER_CONSTANT, value=(255, 255, 255))
