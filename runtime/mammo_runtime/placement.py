"""Where a picture lies on the network's grid: `Placement` with its exact inverse.

Four moves lead from original pixels to the network's grid: cut the window out, shrink it to the working copy, cut
the breast out of that, scale it into the grid. Each is an integer rectangle or a resize with pixel centres
at (index + 0.5), so the way back is the same four moves reversed and nothing drifts.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from mammo_runtime.errors import UnusableBox
from mammo_runtime.mammogram import Box


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
    def inside(self) -> np.ndarray:
        """The cells that hold picture, bool [grid rows, grid columns]; the others are padding."""
        cells = np.zeros((self.grid_rows, self.grid_columns), bool)
        cells[self.inner.slices] = True
        return cells

    @property
    def cell_area_px(self) -> float:
        """Original pixels covered by one cell of the grid."""
        return 1.0 / (self.scale_x * self.scale_y)

    def coverage(self, mask: np.ndarray) -> np.ndarray:
        """Map a mask bool [image rows, image columns] to the fraction of each cell it covers.

        float32 [grid rows, grid columns], 0..1. `restore` brings it back with its centroid in place, to well below
        a pixel; once it is cut at one half (`to_grid`), that holds to a fraction of a cell only.
        """
        working = resize(cut(mask, self.window).astype(np.float32), self.working_rows, self.working_columns)
        grid = np.zeros((self.grid_rows, self.grid_columns), np.float32)
        grid[self.inner.slices] = resize(working[self.crop.slices], self.inner.rows, self.inner.columns)
        return grid

    def to_grid(self, mask: np.ndarray) -> np.ndarray:
        """Map a mask bool [image rows, image columns] to bool [grid rows, grid columns]; half coverage counts."""
        return np.asarray(self.coverage(mask) >= 0.5)

    def box_to_grid(self, box: Box) -> np.ndarray:
        """Map a box of original pixels to float32 [4] = x0, y0, x1, y1 in pixels of the grid, edges at whole numbers.

        What reaches beyond the picture is cut off. Raises UnusableBox when nothing of it is left.
        """
        left, right = (self._x_on_grid(np.array(x)) for x in (box.x, box.x + box.width))
        top, bottom = (self._y_on_grid(np.array(y)) for y in (box.y, box.y + box.height))
        inner = self.inner
        x0, x1 = np.clip((left, right), inner.left, inner.left + inner.columns)
        y0, y1 = np.clip((top, bottom), inner.top, inner.top + inner.rows)
        if not (x1 > x0 and y1 > y0):
            raise UnusableBox(f"{box} lies outside what the model sees of the {self.image_columns} x {self.image_rows}")
        return np.array((x0, y0, x1, y1), np.float32)

    def from_map(self, square: np.ndarray) -> np.ndarray:
        """Scale a map float32 [side, side] that covers the whole grid to float32 [grid rows, grid columns]."""
        return resize(np.ascontiguousarray(square, dtype=np.float32), self.grid_rows, self.grid_columns)

    def restore_labels(self, grid: np.ndarray) -> np.ndarray:
        """Map labels uint8 [grid rows, grid columns] to uint8 [image rows, image columns].

        Every pixel gets the label of the cell its centre falls into (the nearest one), so no new label can arise.
        """
        inner = self.inner
        rows = np.floor(self._y_on_grid(np.arange(self.image_rows) + 0.5)).astype(np.intp)
        columns = np.floor(self._x_on_grid(np.arange(self.image_columns) + 0.5)).astype(np.intp)
        rows = np.clip(rows, inner.top, inner.top + inner.rows - 1)
        columns = np.clip(columns, inner.left, inner.left + inner.columns - 1)
        return np.asarray(grid[rows][:, columns])

    def _x_on_grid(self, x: np.ndarray) -> np.ndarray:
        """Map original x, float64 with edges of pixels at whole numbers, to the grid's."""
        working = (x - self.window.left) * self.working_columns / self.window.columns
        return np.asarray((working - self.crop.left) * self.inner.columns / self.crop.columns + self.inner.left)

    def _y_on_grid(self, y: np.ndarray) -> np.ndarray:
        working = (y - self.window.top) * self.working_rows / self.window.rows
        return np.asarray((working - self.crop.top) * self.inner.rows / self.crop.rows + self.inner.top)

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
        working[self.crop.slices] = resize(inner, self.crop.rows, self.crop.columns)
        inside = part_inside(self.window, self.image_rows, self.image_columns)
        top, left = inside.top - self.window.top, inside.left - self.window.left
        if inside == self.window:
            return inside, resize(working, self.window.rows, self.window.columns)
        # One axis after the other: a window far larger than the picture never lies in memory as a whole.
        tall = resize(working, self.window.rows, self.working_columns)[top : top + inside.rows]
        return inside, resize(tall, inside.rows, self.window.columns)[:, left : left + inside.columns]


def resize(pixels: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Resize [rows, columns, …]: area averaging where it shrinks (no aliasing), bilinear where it grows."""
    if pixels.shape[:2] == (rows, columns):
        return pixels
    fewer = (min(rows, pixels.shape[0]), min(columns, pixels.shape[1]))
    if fewer not in ((rows, columns), pixels.shape[:2]):
        # One axis shrinks, the other grows (`Fit.STRETCH`): each in its own way.
        pixels = resize(pixels, *fewer)
    method = cv2.INTER_AREA if fewer == (rows, columns) else cv2.INTER_LINEAR
    return cv2.resize(np.ascontiguousarray(pixels), (columns, rows), interpolation=method)


def part_inside(window: Rectangle, image_rows: int, image_columns: int) -> Rectangle:
    """Return the part of the window that lies on the picture."""
    top, left = max(0, window.top), max(0, window.left)
    bottom = min(image_rows, window.top + window.rows)
    right = min(image_columns, window.left + window.columns)
    return Rectangle(top, left, max(0, bottom - top), max(0, right - left))


def cut(pixels: np.ndarray, window: Rectangle) -> np.ndarray:
    """Return the window's pixels; a view when it lies on the picture, else a copy padded with black."""
    inside = part_inside(window, pixels.shape[0], pixels.shape[1])
    if inside == window:
        return pixels[window.slices]
    padded = np.zeros((window.rows, window.columns, *pixels.shape[2:]), pixels.dtype)
    top, left = inside.top - window.top, inside.left - window.left
    padded[top : top + inside.rows, left : left + inside.columns] = pixels[inside.slices]
    return padded
