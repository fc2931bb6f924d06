"""DICOM files: admission from the header, then grey scale, millimetres, side and view."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.mammogram import Mammogram
from mammo_runtime.readers.dicom_admission import admit
from mammo_runtime.readers.dicom_decode import format_name, require_decoder, stored_values
from mammo_runtime.readers.dicom_geometry import laterality_from_header, spacing_from_header, view_from_header
from mammo_runtime.readers.dicom_header import PixelFormat, pixel_format
from mammo_runtime.readers.dicom_intensity import GreyScale, grey_scale_from_stored
from mammo_runtime.readers.dicom_source import DicomSource, open_source
from mammo_runtime.readers.options import ReadOptions

_CHUNK_BYTES = 1 << 20
_LUMA = (299, 587, 114)
"""Rec. 601 weights of red, green and blue in thousandths, the ones DICOM's YBR uses."""


def read_dicom(path: Path, options: ReadOptions) -> Mammogram:
    """Read one DICOM file; pixels come out as uint16 with white 65535.

    Raises UnreadableImage, UnsuitableImage, OSError; what else pydicom throws is mapped by `read_image`.
    """
    with path.open("rb") as stream:
        source = open_source(path, stream)
        header = source.header
        notes = admit(header, source.sop_class, options)
        pixel = pixel_format(header, options.max_pixels)
        require_decoder(source.transfer_syntax, pixel)
        grey, decode_notes = _grey_scale(source, pixel, options)
        stream.seek(0)
        digest = hashlib.sha256()
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    spacing, spacing_source, spacing_notes = spacing_from_header(header, options.pixel_spacing_mm)
    return Mammogram(
        pixels=grey.pixels,
        white=grey.white,
        intensity_rule=grey.rule,
        file_sha256=digest.hexdigest(),
        spacing_mm=spacing,
        spacing_source=spacing_source,
        laterality=laterality_from_header(header),
        view=view_from_header(header),
        file_format=format_name(source.transfer_syntax),
        notes=(*notes, *decode_notes, *grey.notes, *spacing_notes),
    )


def _grey_scale(source: DicomSource, pixel: PixelFormat, options: ReadOptions) -> tuple[GreyScale, tuple[str, ...]]:
    monochrome = pixel.photometric_interpretation in ("MONOCHROME1", "MONOCHROME2")
    if monochrome != (pixel.samples_per_pixel == 1) or pixel.samples_per_pixel not in (1, 3):
        raise UnreadableImage("the DICOM header contradicts itself about colour (Samples per Pixel)")
    if not monochrome:
        if pixel.bits_allocated != 8:
            raise UnreadableImage("colour with more than 8 bits per sample is not read")
        rgb, notes = stored_values(source, pixel, as_rgb=True)
        grey = GreyScale(_luma(rgb), 255, "8 bit colour -> grey (Rec. 601)", ("colour picture converted to grey",))
        return grey, notes
    stored, notes = stored_values(source, pixel)
    return grey_scale_from_stored(source, pixel, stored, options.voi_index), notes


def _luma(rgb: np.ndarray) -> np.ndarray:
    """Return uint8 [rows, columns] from uint8 RGB [rows, columns, 3]."""
    weighted = sum(rgb[..., i].astype(np.uint32) * weight for i, weight in enumerate(_LUMA))
    return np.asarray((weighted + 500) // 1000).astype(np.uint8)
