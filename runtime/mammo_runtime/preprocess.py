"""From a mammogram to the network's input, and back: `preprocess` and `Placement` with its exact inverse.

Four moves lead from original pixels to the network's grid: cut the window out, shrink it to the working copy, cut
the breast out of that, scale it into the grid. Each is an integer rectangle or a resize with pixel centres
at (index + 0.5), so the way back is the same four moves reversed and nothing drifts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature

import cv2
import numpy as np

from mammo_runtime.cleaning import LIMITS, STEPS, CleaningState
from mammo_runtime.errors import ModelRefused, UnsuitableImage, UnusableBox
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.spec import InputMode, InputSpec


@dataclass(frozen=True)
class Rectangle:
    """Whole pixels of some picture. A window of ROI mode may reach beyond it (black there)."""

    top: int
    left: int
    rows: int
    columns: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index of the rectangle in an array [rows, columns]."""
        return slice(self.top, self.top + self.rows), slice(self.left, self.left + self.columns)


@dataclass(frozen=True)
class Placement:
    """Where a part of the original picture lies on the network's grid, and the way back."""

    image_rows: int
    image_columns: int
    window: Rectangle
    """Cut from the original picture."""
    working_rows: int
    working_columns: int
    crop: Rectangle
    """Cut from the working copy, which is `window` scaled to `working_rows` x `working_columns`."""
    inner: Rectangle
    """The part of the grid that `crop` fills; the rest is padding."""
    grid_rows: int
    grid_columns: int

    @property
    def scale_x(self) -> float:
        """Grid columns per original column."""
        return self.working_columns / self.window.columns * self.inner.columns / self.crop.columns

    @property
    def scale_y(self) -> float:
        """Grid rows per original row."""
        return self.working_rows / self.window.rows * self.inner.rows / self.crop.rows

    @property
    def cell_area_px(self) -> float:
        """Original pixels covered by one cell of the grid."""
        return 1.0 / (self.scale_x * self.scale_y)

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """Map a mask bool [image rows, image columns] to the fraction of each cell it covers.

        float32 [grid rows, grid columns], 0..1. `restore` brings it back with its centroid in place, to well below
        a pixel; once it is cut at one half (`to_grid`), that holds to a fraction of a cell only.
        """
        working = _resize(_cut(mask, self.window).astype(np.float32), self.working_rows, self.working_columns)
        grid = np.zeros((self.grid_rows, self.grid_columns), np.float32)
        grid[self.inner.slices] = _resize(working[self.crop.slices], self.inner.rows, self.inner.columns)
        return grid

    def to_grid(self, mask: np.ndarray) -> np.ndarray:
        """Map a mask bool [image rows, image columns] to bool [grid rows, grid columns]; half coverage counts."""
        return np.asarray(self.coverage(mask) >= 0.5)

    def restore(self, grid: np.ndarray) -> np.ndarray:
        """Map float32 [grid rows, grid columns] to float32 [image rows, image columns]; 0 outside the window."""
        part, values = self.restore_part(grid)
        if values.shape == (self.image_rows, self.image_columns):
            return values
        image = np.zeros((self.image_rows, self.image_columns), np.float32)
        image[part.slices] = values
        return image

    def restore_part(self, grid: np.ndarray) -> tuple[Rectangle, np.ndarray]:
        """Map float32 [grid rows, grid columns] back, but only where the window lies on the picture.

        Returns that rectangle of the picture and its float32 values.
        """
        working = np.zeros((self.working_rows, self.working_columns), np.float32)
        inner = np.ascontiguousarray(grid[self.inner.slices], dtype=np.float32)
        working[self.crop.slices] = _resize(inner, self.crop.rows, self.crop.columns)
        inside = _inside(self.window, self.image_rows, self.image_columns)
        top, left = inside.top - self.window.top, inside.left - self.window.left
        if inside == self.window:
            return inside, _resize(working, self.window.rows, self.window.columns)
        # One axis after the other: a window far larger than the picture never lies in memory as a whole.
        tall = _resize(working, self.window.rows, self.working_columns)[top : top + inside.rows]
        return inside, _resize(tall, inside.rows, self.window.columns)[:, left : left + inside.columns]


def preprocess(
    image: Mammogram, spec: InputSpec, box: Box | None = None
) -> tuple[np.ndarray, Placement, tuple[str, ...]]:
    """Return the network's input float32 [1, channels, height, width], how to undo it, and notes.

    FULL mode uses the whole picture (cropped to the breast if the spec says so) and takes no box; ROI mode needs
    one. The picture keeps its aspect ratio and is centred; padding is black. Raises UnusableBox when the box does not
    fit the picture, ModelRefused when mode and box do not fit or a cleaning step is unknown.
    """
    if (box is not None) != (spec.mode is InputMode.ROI):
        need = "needs a box for each lesion (--boxes)" if spec.mode is InputMode.ROI else "takes whole images, no boxes"
        raise ModelRefused(f"this model {need}")
    whole = Rectangle(0, 0, image.rows, image.columns)
    window = whole if box is None else roi_window(box, spec.roi_margin, image.rows, image.columns)
    check_cleaning(spec)
    state = CleaningState(_working_copy(image, window, spec.working_side_px))
    for step in spec.cleaning:
        state = STEPS[step.name](state, **step.parameters)
    working_rows, working_columns = state.pixels.shape
    crop = Rectangle(0, 0, working_rows, working_columns)
    if spec.breast_crop_margin is not None and state.breast is not None:
        crop = _breast_crop(state.breast, spec.breast_crop_margin)
    inner = _fit(crop, spec.height, spec.width)
    grid = np.zeros((spec.height, spec.width), np.float32)
    grid[inner.slices] = _resize(state.pixels[crop.slices], inner.rows, inner.columns)
    placement = Placement(
        image.rows, image.columns, window, working_rows, working_columns, crop, inner, spec.height, spec.width
    )
    return normalise(grid, spec), placement, state.notes


def check_cleaning(spec: InputSpec) -> None:
    """Raise ModelRefused when the spec names a cleaning step or a parameter that this runtime does not know."""
    for step in spec.cleaning:
        if step.name not in STEPS:
            raise ModelRefused(f"unknown cleaning step {step.name!r}; this runtime knows {', '.join(STEPS)}")
        known = list(signature(STEPS[step.name]).parameters)[1:]
        unknown = sorted(set(step.parameters) - set(known))
        if unknown:
            takes = ", ".join(known)
            raise ModelRefused(f"the cleaning step {step.name!r} has no {', '.join(unknown)}; it takes {takes}")
        for name, value in step.parameters.items():
            low, high = LIMITS[name]
            if not low <= value <= high:
                raise ModelRefused(
                    f"the cleaning step {step.name!r} has {name} = {value:g}, not from {low:g} to {high:g}"
                )


def normalise(grid: np.ndarray, spec: InputSpec) -> np.ndarray:
    """Turn float32 [height, width] in 0..1 into the input tensor float32 [1, channels, height, width]."""
    mean = np.asarray(spec.mean, np.float32)[:, None, None]
    std = np.asarray(spec.std, np.float32)[:, None, None]
    return np.ascontiguousarray(((grid[None] - mean) / std)[None], dtype=np.float32)


def roi_window(box: Box, margin: float, image_rows: int, image_columns: int) -> Rectangle:
    """Return the square window round a box: side (1 + 2·margin) times its longer side, at least 8 pixels.

    It may reach beyond the picture. Raises UnusableBox when the box does not touch the picture, or is so much
    larger that it must have been drawn on another one (twice its longer side: memory stays bounded, too).
    """
    size = f"the picture of {image_columns} x {image_rows} pixels"
    if max(box.width, box.height) > 2 * max(image_columns, image_rows):
        drawn = f"the box of {box.width:g} x {box.height:g}"
        raise UnusableBox(f"{drawn} is far larger than {size}: was it drawn on this file?")
    if box.x >= image_columns or box.y >= image_rows or box.x + box.width <= 0 or box.y + box.height <= 0:
        raise UnusableBox(f"{box} lies outside {size}")
    side = max(8, round((1 + 2 * margin) * max(box.width, box.height)))
    top, left = round(box.y + (box.height - side) / 2), round(box.x + (box.width - side) / 2)
    return Rectangle(top, left, side, side)


def check_content(image: Mammogram, boxes: Sequence[Box] | None) -> None:
    """Refuse what shows nothing. Raises UnsuitableImage for a picture of one grey value, UnusableBox for such a box."""
    if int(image.pixels.min()) == int(image.pixels.max()):
        raise UnsuitableImage("every pixel has the same grey value: there is no picture to judge")
    for box in boxes or ():
        part = _inside(roi_window(box, 0.0, image.rows, image.columns), image.rows, image.columns)
        pixels = image.pixels[part.slices]
        if int(pixels.min()) == int(pixels.max()) == 0:
            raise UnusableBox(f"{box} shows nothing but black: was it drawn on this file?")


def _working_copy(image: Mammogram, window: Rectangle, side_px: int) -> np.ndarray:
    """Cut the window out and shrink it to at most `side_px` by area averaging; float32 0..1, black outside."""
    pixels = _cut(image.pixels, window)
    if pixels.ndim == 3:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    factor = side_px / max(window.rows, window.columns)
    if factor < 1:
        pixels = _resize(pixels, max(1, round(window.rows * factor)), max(1, round(window.columns * factor)))
    return np.asarray(np.clip(pixels.astype(np.float32) * np.float32(1 / image.white), 0, 1))


def _breast_crop(breast: np.ndarray, margin: float) -> Rectangle:
    """Return the bounding box of bool [rows, columns], widened by `margin` of its size within the array."""
    rows, columns = np.flatnonzero(breast.any(axis=1)), np.flatnonzero(breast.any(axis=0))
    pad_y, pad_x = round(margin * (rows[-1] - rows[0] + 1)), round(margin * (columns[-1] - columns[0] + 1))
    top, left = max(0, int(rows[0]) - pad_y), max(0, int(columns[0]) - pad_x)
    bottom = min(breast.shape[0], int(rows[-1]) + 1 + pad_y)
    right = min(breast.shape[1], int(columns[-1]) + 1 + pad_x)
    return Rectangle(top, left, bottom - top, right - left)


def _fit(crop: Rectangle, grid_rows: int, grid_columns: int) -> Rectangle:
    """Return where the crop lies on the grid: as large as fits with its aspect ratio, centred."""
    factor = min(grid_rows / crop.rows, grid_columns / crop.columns)
    rows = min(grid_rows, max(1, round(crop.rows * factor)))
    columns = min(grid_columns, max(1, round(crop.columns * factor)))
    return Rectangle((grid_rows - rows) // 2, (grid_columns - columns) // 2, rows, columns)


def _resize(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resize [rows, columns]: area averaging when shrinking (no aliasing), bilinear when growing."""
    if pixels.shape[:2] == (rows, columns):
        return pixels
    shrinks = rows <= pixels.shape[0] and columns <= pixels.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(pixels), (columns, rows), interpolation=method)


def _inside(window: Rectangle, image_rows: int, image_columns: int) -> Rectangle:
    """Return the part of the window that lies on the picture."""
    top, left = max(0, window.top), max(0, window.left)
    bottom = min(image_rows, window.top + window.rows)
    right = min(image_columns, window.left + window.columns)
    return Rectangle(top, left, max(0, bottom - top), max(0, right - left))


def _cut(pixels: np.ndarray, window: Rectangle) -> np.ndarray:
    """Return the window's pixels; a view when it lies on the picture, else a copy padded with black."""
    inside = _inside(window, pixels.shape[0], pixels.shape[1])
    if inside == window:
        return pixels[window.slices]
    padded = np.zeros((window.rows, window.columns, *pixels.shape[2:]), pixels.dtype)
    top, left = inside.top - window.top, inside.left - window.left
    padded[top : top + inside.rows, left : left + inside.columns] = pixels[inside.slices]
    return padded
