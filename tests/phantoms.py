"""Synthetic mammograms for tests, and writers for every file form the readers take."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from mammo_runtime.phantom import Lesion, Phantom, make_phantom, write_demo_folder
from mammo_runtime.phantom_dicom import dicom_mg, write_dicom_mg

__all__ = [
    "Lesion",
    "Phantom",
    "dicom_mg",
    "make_phantom",
    "write_demo_folder",
    "write_dicom_mg",
    "write_jpeg",
    "write_pgm",
    "write_png",
    "write_tiff",
]


def write_png(path: Path, pixels: np.ndarray) -> Path:
    """Write grey or BGR(A) uint8/uint16 pixels as PNG."""
    return _write(path, ".png", pixels)


def write_tiff(path: Path, pixels: np.ndarray) -> Path:
    """Write grey or BGR uint8/uint16 pixels as LZW TIFF."""
    return _write(path, ".tif", pixels)


def write_jpeg(path: Path, pixels: np.ndarray, quality: int = 95) -> Path:
    """Write grey or BGR uint8 pixels as JPEG."""
    return _write(path, ".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, quality])


def write_pgm(path: Path, pixels: np.ndarray, maximum: int | None = None) -> Path:
    """Write grey pixels as binary PGM with the stated maximum (default: the type's)."""
    maximum = np.iinfo(pixels.dtype).max if maximum is None else maximum
    head = f"P5\n{pixels.shape[1]} {pixels.shape[0]}\n{maximum}\n".encode()
    path.write_bytes(head + pixels.astype(">u2" if maximum > 255 else np.uint8).tobytes())
    return path


def _write(path: Path, suffix: str, pixels: np.ndarray, parameters: list[int] | None = None) -> Path:
    done, encoded = cv2.imencode(suffix, pixels, parameters or [])
    assert done
    path.write_bytes(encoded.tobytes())
    return path
