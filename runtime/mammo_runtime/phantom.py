"""Synthetic mammograms with known truth, for demonstrations and tests.

A phantom looks roughly like a film-screen mammogram: black background, a breast against one image side with a
soft skin line, glandular texture from noise smoothed at several scales, and elliptical masses with soft margins.
It imitates no person and no vendor's device.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mammo_runtime.mammogram import Box, Laterality

WHITE = 4095
"""Phantoms are 12 bit, like most detectors."""
_FAT, _GLAND, _MASS = 900.0, 1500.0, 900.0
"""Brightness of fat, added by gland, added by a mass, in grey levels of 0..4095."""


@dataclass(frozen=True)
class Lesion:
    """An elliptical mass: centre and half axes in pixels, `angle_deg` from the column axis, clockwise."""

    row: float
    column: float
    half_height_px: float
    half_width_px: float
    angle_deg: float = 0.0

    @property
    def area_px(self) -> float:
        """Area of the ideal ellipse in pixels."""
        return float(np.pi * self.half_height_px * self.half_width_px)


@dataclass(frozen=True, eq=False)
class Phantom:
    """A synthetic mammogram with its truth."""

    pixels: np.ndarray
    """uint16 [rows, columns], MONOCHROME2, 0..4095; exactly 0 outside the breast."""
    mask: np.ndarray
    """bool [rows, columns]: inside any lesion."""
    boxes: tuple[Box, ...]
    """One per lesion, the smallest rectangle of whole pixels round it."""
    lesions: tuple[Lesion, ...]
    breast: np.ndarray
    """bool [rows, columns]: inside the breast."""


def make_phantom(
    seed: int = 0,
    rows: int = 640,
    columns: int = 480,
    laterality: Laterality = Laterality.LEFT,
    lesions: int | Sequence[Lesion] = 1,
) -> Phantom:
    """Return a phantom; the same arguments give the same pixels.

    `lesions` is how many masses to place at random inside the breast, or the masses themselves. A left breast lies
    against the left image side, a right one against the right. Raises ValueError for pictures below 32 pixels.
    """
    if min(rows, columns) < 32:
        raise ValueError(f"a phantom needs at least 32 x 32 pixels, got {rows} x {columns}")
    generator = np.random.default_rng(seed)
    depth = _breast_depth(rows, columns, generator)
    placed = _random_lesions(lesions, depth, generator) if isinstance(lesions, int) else tuple(lesions)
    if not isinstance(lesions, int) and laterality is Laterality.RIGHT:
        # Given in image coordinates; the drawing below is of a left breast, mirrored at the end.
        placed = tuple(_mirrored(lesion, columns) for lesion in placed)
    tissue = _FAT * np.clip(depth * 6, 0, 1) + _GLAND * _gland(rows, columns, generator) * np.clip(depth * 2, 0, 1)
    mask = np.zeros((rows, columns), bool)
    for lesion in placed:
        inside = _ellipse_distance(lesion, rows, columns)
        mask |= inside <= 1
        tissue += _MASS * np.clip((1.25 - inside) / 0.5, 0, 1)
    tissue += generator.normal(0, 25, (rows, columns))
    breast = depth > 0
    pixels = np.where(breast, np.clip(tissue, 1, WHITE), 0).astype(np.uint16)
    if laterality is Laterality.RIGHT:
        pixels, mask, breast = (np.ascontiguousarray(image[:, ::-1]) for image in (pixels, mask, breast))
        placed = tuple(_mirrored(lesion, columns) for lesion in placed)
    boxes = tuple(_box(lesion, rows, columns) for lesion in placed)
    return Phantom(pixels, mask & breast, boxes, placed, breast)


def _breast_depth(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Return float64 [rows, columns]: 1 at the chest wall falling to 0 at the skin, negative outside; left breast."""
    row, column = np.mgrid[0:rows, 0:columns].astype(np.float64)
    vertical = (row / rows - generator.uniform(0.47, 0.53)) / generator.uniform(0.40, 0.45)
    horizontal = column / columns / generator.uniform(0.62, 0.78)
    return np.asarray(1 - np.sqrt(vertical**2 + horizontal**2))


def _gland(rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Return float64 [rows, columns] in 0..1: noise smoothed at four scales, coarse to fine."""
    total = np.zeros((rows, columns))
    for octave in range(4):
        coarse = generator.random((max(rows >> (6 - octave), 3), max(columns >> (6 - octave), 3)))
        total += cv2.resize(coarse, (columns, rows), interpolation=cv2.INTER_CUBIC) / 2**octave
    low, high = np.percentile(total, (5, 95))
    return np.asarray(np.clip((total - low) / (high - low), 0, 1) ** 1.5)


def _random_lesions(count: int, depth: np.ndarray, generator: np.random.Generator) -> tuple[Lesion, ...]:
    """Return masses well inside the breast that do not overlap each other."""
    rows, columns = depth.shape
    candidates = np.argwhere((depth > 0.3) & (depth < 0.85))
    unit = min(rows, columns)
    placed: list[Lesion] = []
    for _ in range(1000 * count):
        if len(placed) == count:
            break
        row, column = candidates[generator.integers(len(candidates))]
        half_height, half_width = generator.uniform(0.03, 0.07, 2) * unit
        reach = max(half_height, half_width)
        clear = all(np.hypot(row - p.row, column - p.column) > reach + 0.15 * unit for p in placed)
        if clear and reach < row < rows - reach and reach < column < columns - reach:
            angle = float(generator.uniform(0, 180))
            placed.append(Lesion(float(row), float(column), float(half_height), float(half_width), angle))
    return tuple(placed)


def _ellipse_distance(lesion: Lesion, rows: int, columns: int) -> np.ndarray:
    """Return float64 [rows, columns]: 0 at the lesion's centre, 1 on its margin."""
    row, column = np.mgrid[0:rows, 0:columns].astype(np.float64)
    angle = np.deg2rad(lesion.angle_deg)
    down, right = row - lesion.row, column - lesion.column
    along = (right * np.cos(angle) + down * np.sin(angle)) / lesion.half_width_px
    across = (down * np.cos(angle) - right * np.sin(angle)) / lesion.half_height_px
    return np.asarray(np.hypot(along, across))


def _mirrored(lesion: Lesion, columns: int) -> Lesion:
    return Lesion(
        lesion.row, columns - 1 - lesion.column, lesion.half_height_px, lesion.half_width_px, -lesion.angle_deg
    )


def _box(lesion: Lesion, rows: int, columns: int) -> Box:
    inside_row, inside_column = np.nonzero(_ellipse_distance(lesion, rows, columns) <= 1)
    if not len(inside_row):
        raise ValueError("a lesion lies outside the picture or is smaller than a pixel")
    top, left = int(inside_row.min()), int(inside_column.min())
    return Box(left, top, int(inside_column.max()) + 1 - left, int(inside_row.max()) + 1 - top)


def write_demo_folder(folder: Path) -> tuple[Path, ...]:
    """Write one 8-bit PNG, one 12-in-16-bit TIFF and one DICOM mammogram; return their paths.

    The folder is made when absent. Raises OSError when it cannot be written.
    """
    from mammo_runtime.phantom_dicom import write_dicom_mg

    folder.mkdir(parents=True, exist_ok=True)
    paths = (folder / "phantom-1.png", folder / "phantom-2.tif", folder / "phantom-3.dcm")
    eight_bit = (make_phantom(1).pixels >> 4).astype(np.uint8)
    _write_encoded(paths[0], ".png", eight_bit)
    _write_encoded(paths[1], ".tif", make_phantom(2, laterality=Laterality.RIGHT, lesions=2).pixels)
    write_dicom_mg(paths[2], make_phantom(3).pixels, spacing_mm=0.2)
    return paths


def _write_encoded(path: Path, suffix: str, pixels: np.ndarray) -> None:
    """Encode in memory and write by Python: OpenCV's own writer fails on Windows paths outside its code page."""
    # Deflate, since a reader can check it for damage; OpenCV would take LZW.
    options = [cv2.IMWRITE_TIFF_COMPRESSION, 8] if suffix == ".tif" else []
    path.write_bytes(cv2.imencode(suffix, pixels, options)[1].tobytes())
