"""Masks of every form → uint8 0/255 [rows, columns]."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mammo_runtime.atomic import whole_file
from mammo_runtime.errors import OutputError, UnreadableImage

BINARY_SHARE = 0.99
"""A lossy picture is a mask when this share of its values lies within `BINARY_MARGIN` levels of black or white."""
BINARY_MARGIN = 16


def read_stored(path: Path) -> np.ndarray:
    """Return a file's stored values: PNG, JPEG, TIFF … in OpenCV's channel order, or a DICOM file's pixels.

    Raises UnreadableImage; a DICOM mask is no picture for `read_image`, which would window it.
    """
    if path.suffix.lower() in (".dcm", ".dicom"):
        return _read_dicom(path)
    try:
        # Not imread: it fails on paths that are not ASCII on Windows.
        with _quiet_opencv():
            stored = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_UNCHANGED)
    except (OSError, cv2.error) as error:
        raise UnreadableImage(f"{path.name} cannot be read: {type(error).__name__}") from error
    if stored is None:
        raise UnreadableImage(f"{path.name} is no picture that can be decoded")
    return np.asarray(stored)


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's warnings about odd TIFF tags off the terminal: a collection has hundreds of the same."""
    module: Any = getattr(getattr(cv2, "utils", None), "logging", cv2)
    level = module.getLogLevel()
    module.setLogLevel(0)
    try:
        yield
    finally:
        module.setLogLevel(level)


def _read_dicom(path: Path) -> np.ndarray:
    import pydicom

    try:
        return np.asarray(pydicom.dcmread(path).pixel_array)
    except Exception as error:  # pydicom and its codecs raise anything on damaged files
        raise UnreadableImage(f"{path.name} is no readable DICOM file ({type(error).__name__})") from error


def is_binary(plane: np.ndarray, lossy: bool) -> bool:
    """Say whether values [rows, columns] are a mask's: at most two, or nearly so for lossy pictures."""
    if not lossy:
        return bool(((plane == plane.min()) | (plane == plane.max())).all())
    near = (plane <= BINARY_MARGIN) | (plane >= 255 - BINARY_MARGIN)
    return plane.dtype == np.uint8 and float(near.mean()) >= BINARY_SHARE


def mask_plane(stored: np.ndarray) -> np.ndarray:
    """Return the plane that holds the mask of a grey, RGB or RGBA picture: [rows, columns].

    The brightest colour; the alpha channel when only that varies.
    """
    if stored.ndim == 2:
        return stored
    colour = stored[..., :3].max(axis=2)
    alpha = stored[..., 3] if stored.shape[2] == 4 else None
    if alpha is not None and colour.min() == colour.max() and alpha.min() != alpha.max():
        return np.asarray(alpha)
    if alpha is not None:
        colour = np.where(alpha > 0, colour, 0).astype(colour.dtype)  # a colour that is not seen marks nothing
    return np.asarray(colour)


def mask_from_file(path: Path) -> np.ndarray:
    """Return a mask file as 0/255. Raises UnreadableImage when it is unreadable, or a picture rather than a mask."""
    stored = read_stored(path)
    plane = mask_plane(stored)
    lossy = path.suffix.lower() in (".jpg", ".jpeg")
    if not is_binary(plane, lossy):
        raise UnreadableImage(f"{path.name} is no mask: it holds grey levels, as a picture with a drawn contour does")
    return binary_mask(plane, lossy)


def binary_mask(plane: np.ndarray, lossy: bool) -> np.ndarray:
    """Return 0/255: a lossy mask is cut at 127; else everything above 0 counts, whatever the highest value (1, 255)."""
    return np.where(plane > (127 if lossy else 0), 255, 0).astype(np.uint8)


def clean_file(path: Path, shape: tuple[int, int]) -> bool:
    """Say whether a mask file can be used as it is: 8-bit grey, 0 and 255 alone, not empty, of the picture's size."""
    stored = read_stored(path)
    if stored.dtype != np.uint8 or stored.shape != shape:
        return False
    return bool(((stored == 0) | (stored == 255)).all() and stored.any())


def united(masks: Iterable[np.ndarray], shape: tuple[int, int] | None = None) -> np.ndarray:
    """Return the union of masks 0/255, all brought to `shape`, or the first one's, by nearest neighbour."""
    total: np.ndarray | None = None
    for mask in masks:
        shape = shape or (mask.shape[0], mask.shape[1])
        mask = to_size(mask, shape)
        total = mask if total is None else np.maximum(total, mask)
    if total is None:
        raise UnreadableImage("there is no mask")
    return total


def to_size(mask: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return a mask at (rows, columns) by nearest neighbour."""
    if mask.shape == shape:
        return mask
    return np.asarray(cv2.resize(mask, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST))


def filled_polygons(outlines: Iterable[Sequence[tuple[float, float]]], shape: tuple[int, int]) -> np.ndarray:
    """Return outlines of at least three (x, y) points in pixels, each filled, united: 0/255."""
    mask = np.zeros(shape, np.uint8)
    for outline in outlines:
        cv2.fillPoly(mask, [np.round(np.asarray(outline, np.float64)).astype(np.int32)], 255)
    return mask


def filled_circles(circles: Iterable[tuple[float, float, float]], shape: tuple[int, int]) -> np.ndarray:
    """Return circles (x, y from the top, radius) in pixels, filled and united: 0/255."""
    mask = np.zeros(shape, np.uint8)
    for x, y, radius in circles:
        cv2.circle(mask, (round(x), round(y)), round(radius), 255, -1)
    return mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write a mask as PNG, whole or not at all. Raises OutputError."""
    done, encoded = cv2.imencode(".png", mask)
    if not done:
        raise OutputError(f"cannot encode {path}")
    with whole_file(path) as temporary:
        encoded.tofile(temporary)
