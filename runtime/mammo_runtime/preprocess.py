"""From a mammogram to the network's input: window, working copy, cleaning, grid, normalisation.

Trainers and runtime share it. Where a picture lies on the grid, and the way back, is `placement.Placement`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature

import cv2
import numpy as np

from mammo_runtime.cleaning import LIMITS, STEPS, CleaningState
from mammo_runtime.errors import ModelRefused, UnsuitableImage, UnusableBox
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.placement import Placement, Rectangle, cut, part_inside, resize
from mammo_runtime.spec import Fit, InputMode, InputSpec, Scaling


@dataclass(frozen=True, eq=False)
class Prepared:
    """A picture (or window) on the network's grid."""

    grid: np.ndarray
    """float32 [height, width], or [height, width, 3] of a colour model: 0..1, padding 0, not yet normalised."""
    placement: Placement
    notes: tuple[str, ...]
    """Of the cleaning steps, in words."""
    breast: np.ndarray | None
    """bool [height, width], True on breast tissue, where a cleaning step found it."""

    @property
    def valid(self) -> np.ndarray:
        """What training may count, bool [height, width]: the breast where it was found, else all but the padding."""
        return self.placement.inside if self.breast is None else self.breast

    def tensor(self, spec: InputSpec) -> np.ndarray:
        """Return the network's input float32 [1, channels, height, width]."""
        return normalise(self.grid, spec, self.placement.inside if spec.fit is Fit.CORNER else None)


def preprocess(
    image: Mammogram, spec: InputSpec, box: Box | None = None
) -> tuple[np.ndarray, Placement, tuple[str, ...]]:
    """Return the network's input float32 [1, channels, height, width], how to undo it, and notes; see `prepare`."""
    prepared = prepare(image, spec, box)
    return prepared.tensor(spec), prepared.placement, prepared.notes


def prepare(image: Mammogram, spec: InputSpec, box: Box | None = None) -> Prepared:
    """Clean a picture or its window and lay it on the network's grid, up to and without normalisation.

    FULL mode uses the whole picture (cropped to the breast if the spec says so) and takes no box; ROI mode needs
    one. Where it lies on the grid, and what its padding is, follows `spec.fit`. Raises UnusableBox when the box does
    not fit the picture, ModelRefused when mode and box do not fit or a cleaning step is unknown.
    """
    if (box is not None) != (spec.mode is InputMode.ROI):
        need = "needs a box for each lesion (--boxes)" if spec.mode is InputMode.ROI else "takes whole images, no boxes"
        raise ModelRefused(f"this model {need}")
    whole = Rectangle(0, 0, image.rows, image.columns)
    window = whole if box is None else roi_window(box, spec.roi_margin, image.rows, image.columns)
    check_cleaning(spec)
    state = CleaningState(_working_copy(image, window, spec))
    for step in spec.cleaning:
        state = STEPS[step.name](state, **step.parameters)
    working_rows, working_columns = state.pixels.shape[:2]
    crop = Rectangle(0, 0, working_rows, working_columns)
    if spec.breast_crop_margin is not None and state.breast is not None:
        crop = _breast_crop(state.breast, spec.breast_crop_margin)
    inner = _FITS[spec.fit](crop, spec.height, spec.width)
    grid = np.zeros((spec.height, spec.width, *state.pixels.shape[2:]), np.float32)
    grid[inner.slices] = resize(state.pixels[crop.slices], inner.rows, inner.columns)
    if spec.scaling is Scaling.MIN_MAX:
        grid[inner.slices] = _stretched(grid[inner.slices])
    breast = None
    if state.breast is not None:
        breast = np.zeros((spec.height, spec.width), bool)
        part = state.breast[crop.slices].astype(np.float32)
        breast[inner.slices] = resize(part, inner.rows, inner.columns) >= 0.5
    placement = Placement(
        image.rows, image.columns, window, working_rows, working_columns, crop, inner, spec.height, spec.width
    )
    return Prepared(grid, placement, state.notes, breast)


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


def normalise(grid: np.ndarray, spec: InputSpec, inside: np.ndarray | None = None) -> np.ndarray:
    """Turn a grid in 0..1 into the input tensor float32 [1, channels, height, width].

    `grid` is float32 [height, width], repeated over the channels, or [height, width, 3]. Cells outside `inside`, bool
    [height, width], become 0 after the statistics are applied: the padding of `Fit.CORNER`.
    """
    mean = np.asarray(spec.mean, np.float32)[:, None, None]
    std = np.asarray(spec.std, np.float32)[:, None, None]
    planes = grid[None] if grid.ndim == 2 else grid.transpose(2, 0, 1)
    tensor = np.ascontiguousarray(((planes - mean) / std)[None], dtype=np.float32)
    if inside is not None:
        tensor[:, :, ~inside] = 0
    return tensor


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
    """Refuse what shows nothing. Raises UnsuitableImage for one grey value, UnusableBox for a black or tiny box."""
    if int(image.pixels.min()) == int(image.pixels.max()):
        raise UnsuitableImage("every pixel has the same grey value: there is no picture to judge")
    for box in boxes or ():
        if min(box.width, box.height) < 1:
            raise UnusableBox(f"{box} is smaller than a pixel: boxes are in pixels, not in fractions of the picture")
        part = part_inside(roi_window(box, 0.0, image.rows, image.columns), image.rows, image.columns)
        pixels = image.pixels[part.slices]
        if int(pixels.min()) == int(pixels.max()) == 0:
            raise UnusableBox(f"{box} shows nothing but black: was it drawn on this file?")


def _working_copy(image: Mammogram, window: Rectangle, spec: InputSpec) -> np.ndarray:
    """Cut the window out and shrink it to `working_side_px` by area averaging; 0..1, black outside.

    float32 [rows, columns], of a colour model [rows, columns, 3].
    """
    pixels = cut(image.pixels, window)
    if pixels.ndim == 3 and not spec.colour:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    elif pixels.ndim == 2 and spec.colour:
        pixels = cv2.cvtColor(pixels, cv2.COLOR_GRAY2RGB)
    factor = spec.working_side_px / max(window.rows, window.columns)
    if factor < 1:
        pixels = resize(pixels, max(1, round(window.rows * factor)), max(1, round(window.columns * factor)))
    return np.asarray(np.clip(pixels.astype(np.float32) * np.float32(1 / image.white), 0, 1))


def _stretched(pixels: np.ndarray) -> np.ndarray:
    """Return float32 0..1 with the smallest value at 0 and the largest at 1, over all channels; flat ones as zeros."""
    low, high = pixels.min(), pixels.max()
    return np.asarray((pixels - low) / max(high - low, np.float32(1e-8)))


def _breast_crop(breast: np.ndarray, margin: float) -> Rectangle:
    """Return the bounding box of bool [rows, columns], widened by `margin` of its size within the array."""
    rows, columns = np.flatnonzero(breast.any(axis=1)), np.flatnonzero(breast.any(axis=0))
    pad_y, pad_x = round(margin * (rows[-1] - rows[0] + 1)), round(margin * (columns[-1] - columns[0] + 1))
    top, left = max(0, int(rows[0]) - pad_y), max(0, int(columns[0]) - pad_x)
    bottom = min(breast.shape[0], int(rows[-1]) + 1 + pad_y)
    right = min(breast.shape[1], int(columns[-1]) + 1 + pad_x)
    return Rectangle(top, left, bottom - top, right - left)


def _fit_corner(crop: Rectangle, grid_rows: int, grid_columns: int) -> Rectangle:
    """Return where the crop lies on the grid: as large as fits with its aspect ratio, at the top left."""
    factor = min(grid_rows / crop.rows, grid_columns / crop.columns)
    rows = min(grid_rows, max(1, round(crop.rows * factor)))
    columns = min(grid_columns, max(1, round(crop.columns * factor)))
    return Rectangle(0, 0, rows, columns)


def _fit_centre(crop: Rectangle, grid_rows: int, grid_columns: int) -> Rectangle:
    """Return the same, centred."""
    fitted = _fit_corner(crop, grid_rows, grid_columns)
    return replace(fitted, top=(grid_rows - fitted.rows) // 2, left=(grid_columns - fitted.columns) // 2)


def _fit_stretch(crop: Rectangle, grid_rows: int, grid_columns: int) -> Rectangle:
    """Return the whole grid: each axis has its own scale."""
    return Rectangle(0, 0, grid_rows, grid_columns)


_FITS: Mapping[Fit, Callable[[Rectangle, int, int], Rectangle]] = {
    Fit.CENTRE: _fit_centre,
    Fit.CORNER: _fit_corner,
    Fit.STRETCH: _fit_stretch,
}
