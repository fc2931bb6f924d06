"""PNG, JPEG, TIFF, BMP and PNM pictures in 8 and 16 bit, decoded by OpenCV.

OpenCV is asked for the stored values (its default read divides 16-bit pictures by 256, which turns a
12-bit mammogram nearly black; Pillow clips them at 255, which turns it white).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mammo_runtime.errors import UnreadableImage, UnsuitableImage
from mammo_runtime.mammogram import Mammogram, Modality
from mammo_runtime.readers.headers import read_header
from mammo_runtime.readers.options import ReadOptions, checked_pixel_count
from mammo_runtime.readers.raster_header import RasterHeader

JPEG_GREY_TOLERANCE = 3
"""Largest difference of the channels, in levels, of a JPEG still taken for grey (its colour conversion rounds)."""
_BYTES_PER_PIXEL_LIMIT = 8
"""16-bit RGBA; files longer than this times `max_pixels` are refused before they are read into memory."""
_DEPTHS = (8, 10, 12, 14, 16)


def read_raster(path: Path, file_format: str, options: ReadOptions) -> Mammogram:
    """Read one picture of `file_format` ("PNG", "JPEG", "TIFF", "BMP", "PNM").

    Raises UnreadableImage, UnsuitableImage, OSError; other exceptions of the decoder are mapped by `read_image`.
    """
    if path.stat().st_size > _BYTES_PER_PIXEL_LIMIT * options.max_pixels + 1_000_000:
        raise UnreadableImage(f"the file is larger than any picture of {options.max_pixels} pixels can be")
    content = path.read_bytes()
    header = read_header(file_format, content)
    notes = _admit(header, file_format, options)
    stored = _decode(content, header, file_format)
    stored, colour_notes = _single_channel(stored, header, file_format, options.modality)
    pixels, white, rule, grey_notes = _grey_scale(stored, header)
    spacing = options.pixel_spacing_mm
    return Mammogram(
        pixels=pixels,
        white=white,
        intensity_rule=rule,
        file_sha256=hashlib.sha256(content).hexdigest(),
        spacing_mm=None if spacing is None else (spacing, spacing),
        spacing_source="none" if spacing is None else "user",
        file_format=f"{file_format} {8 * stored.dtype.itemsize} bit",
        notes=(*notes, *colour_notes, *grey_notes),
    )


def _admit(header: RasterHeader, file_format: str, options: ReadOptions) -> tuple[str, ...]:
    """Refuse from the header what must not be decoded; return notes on what is ignored."""
    size_fault = checked_pixel_count(header.rows, header.columns, options.max_pixels)
    if size_fault:
        raise UnreadableImage(f"the {file_format} header {size_fault}")
    if header.colour_model not in ("grey", "rgb", "palette"):
        raise UnreadableImage(f"{header.colour_model.upper()} colours are not read: save it as grey-scale PNG or TIFF")
    if header.variant:
        raise UnreadableImage(f"{header.variant} is not read: save it as PNG or TIFF")
    if header.number_kind != "unsigned":
        raise UnreadableImage(f"{header.number_kind} pixel values are not read: save it as 8 or 16 bit unsigned")
    if header.bits not in (8, 16):
        depth = f"{header.bits} bits" if header.bits else "an unequal number of bits"
        raise UnreadableImage(f"{depth} per sample are not read: save it as 8 or 16 bit grey-scale")
    notes = []
    if header.unchecked:
        notes.append("the compression has no checksum: damage inside the picture cannot be seen")
    if header.pages > 1:
        notes.append("the file has several pages: only the first is read")
    if header.orientation != 1:
        notes.append("the file asks viewers to turn the picture: read as stored, not turned")
    return tuple(notes)


def _decode(content: bytes, header: RasterHeader, file_format: str) -> np.ndarray:
    """Return the stored values, uint8 or uint16 [rows, columns] or [rows, columns, 3 or 4] in OpenCV's BGR order."""
    encoded = np.frombuffer(content, np.uint8)
    if file_format == "TIFF" and header.orientation != 1 and header.orientation_offset is not None:
        # OpenCV turns TIFF pictures whatever the flags say; value 1 (as stored) stops it.
        encoded = encoded.copy()
        little = content[:2] == b"II"
        encoded[header.orientation_offset : header.orientation_offset + 2] = (1, 0) if little else (0, 1)
    with _quiet_opencv():
        try:
            # IMREAD_UNCHANGED is -1, all bits set, and so includes IMREAD_IGNORE_ORIENTATION.
            stored = cv2.imdecode(encoded, cv2.IMREAD_UNCHANGED)
        except cv2.error:
            stored = None
    if stored is None:
        raise UnreadableImage(f"the {file_format} picture data is damaged, or of a kind that OpenCV does not decode")
    if stored.shape[:2] != (header.rows, header.columns) or stored.dtype not in (np.uint8, np.uint16):
        raise UnreadableImage(f"the {file_format} picture is not what its header says")
    return np.asarray(stored)


@contextmanager
def _quiet_opencv() -> Iterator[None]:
    """Keep OpenCV's warnings about damaged files off the terminal; 5.0 moved the switch, before 4.5.x there is none."""
    module: Any = getattr(getattr(cv2, "utils", None), "logging", cv2)
    if not hasattr(module, "setLogLevel"):
        yield
        return
    level = module.getLogLevel()
    module.setLogLevel(0)
    try:
        yield
    finally:
        module.setLogLevel(level)


def _single_channel(
    stored: np.ndarray, header: RasterHeader, file_format: str, modality: Modality
) -> tuple[np.ndarray, list[str]]:
    """Return grey [rows, columns], or RGB [rows, columns, 3] for histopathology, with notes."""
    notes = []
    if header.alpha and not (stored.ndim == 3 and stored.shape[2] == 4) and file_format != "BMP":
        raise UnreadableImage("the picture has transparency that cannot be judged: save it without transparency")
    if stored.ndim == 3 and stored.shape[2] == 4:
        if int(stored[..., 3].min()) != np.iinfo(stored.dtype).max:
            raise UnreadableImage("parts of the picture are transparent: save it without transparency")
        stored = stored[..., :3]
        notes.append("opaque alpha channel dropped")
    if stored.ndim == 2:
        if modality is Modality.HISTOPATHOLOGY:
            notes.append("a grey picture, where a colour picture is expected")
        return stored, notes
    if modality is Modality.HISTOPATHOLOGY:
        return np.ascontiguousarray(stored[..., ::-1]), notes
    tolerance = JPEG_GREY_TOLERANCE if file_format == "JPEG" else 0
    if _largest_channel_difference(stored) <= tolerance:
        notes.append("stored as colour with equal channels: read as grey")
        return np.ascontiguousarray(stored[..., 1]), notes
    if modality is Modality.ULTRASOUND:
        notes.append("colour picture converted to grey")
        return np.asarray(cv2.cvtColor(stored, cv2.COLOR_BGR2GRAY)), notes
    raise UnsuitableImage("a colour picture, not a 2D mammogram")


def _largest_channel_difference(stored: np.ndarray) -> int:
    """Return the largest difference between two channels of one pixel, in levels."""
    blue, green, red = stored[..., 0], stored[..., 1], stored[..., 2]
    return max(int(cv2.absdiff(green, other).max()) for other in (blue, red))


def _grey_scale(stored: np.ndarray, header: RasterHeader) -> tuple[np.ndarray, int, str, list[str]]:
    """Return pixels, their white value, the rule in words, and notes."""
    maximum, full = int(stored.max()), int(np.iinfo(stored.dtype).max)
    notes = [] if maximum != int(stored.min()) else [f"every pixel has the same value ({maximum})"]
    if header.stated_white is not None and maximum <= header.stated_white:
        white = header.stated_white
        rule = f"{white.bit_length()} bits in use of {full.bit_length()} (the file states a maximum of {white})"
    elif full == 255:
        white, rule = 255, "8 bit"
    else:
        depth = next(d for d in _DEPTHS if maximum < 2**d)
        white, rule = 2**depth - 1, f"{depth} bits in use of 16 (maximum {maximum})"
        if depth == 8:
            notes.append("16-bit file whose values fit in 8 bits")
    if header.white_is_zero:
        notes.append("WhiteIsZero: inverted on reading")
        if full != 255:  # OpenCV itself inverts the 8-bit ones
            stored = np.subtract(white, stored, dtype=np.uint16)
    return stored, white, rule, notes
