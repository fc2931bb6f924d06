"""Stored values from pixel data: uncompressed here, compressed in the decoder process."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydicom.pixels.decoders.base import get_decoder
from pydicom.uid import UID, JPEGExtended12Bit

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.readers import isolation
from mammo_runtime.readers.dicom_header import PixelFormat
from mammo_runtime.readers.dicom_source import DicomSource, read_pixel_bytes

_OPENJPEG, _GDCM = ("pylibjpeg", "pylibjpeg-openjpeg"), ("gdcm", "python-gdcm")
_CHARLS, _PYDICOM = ("pyjpegls", "pyjpegls"), ("pydicom", "pydicom")
_JPEG = "1.2.840.10008.1.2.4."
DECODERS: dict[str, tuple[tuple[str, str], ...]] = {
    _JPEG + "50": (_GDCM,),
    _JPEG + "51": (_GDCM,),
    _JPEG + "57": (_GDCM,),
    _JPEG + "70": (_GDCM,),
    _JPEG + "80": (_CHARLS, _GDCM),
    _JPEG + "81": (_CHARLS, _GDCM),
    _JPEG + "90": (_OPENJPEG, _GDCM),
    _JPEG + "91": (_OPENJPEG, _GDCM),
    _JPEG + "201": (_OPENJPEG,),
    _JPEG + "202": (_OPENJPEG,),
    _JPEG + "203": (_OPENJPEG,),
    "1.2.840.10008.1.2.5": (_PYDICOM,),
}
"""Transfer syntax -> (pydicom's plug-in name, package), in the order they are tried.

Pinned, because decoders differ in what they do to damaged streams: CharLS refused all of 400, GDCM's JPEG 2000
aborted the process, pylibjpeg-rle panicked. pylibjpeg-libjpeg is never used: it is GPL.
"""
_FORMAT_NAME = {
    _JPEG + "50": "JPEG baseline",
    _JPEG + "51": "JPEG extended",
    _JPEG + "57": "JPEG lossless",
    _JPEG + "70": "JPEG lossless",
    _JPEG + "80": "JPEG-LS",
    _JPEG + "81": "JPEG-LS near-lossless",
    _JPEG + "90": "JPEG 2000 lossless",
    _JPEG + "91": "JPEG 2000",
    _JPEG + "201": "HTJ2K lossless",
    _JPEG + "202": "HTJ2K lossless",
    _JPEG + "203": "HTJ2K",
    "1.2.840.10008.1.2.5": "RLE",
    "1.2.840.10008.1.2.1.99": "deflated",
    "1.2.840.10008.1.2.2": "big endian",
}


def format_name(syntax: UID) -> str:
    """Return the file format in words, for example "DICOM" or "DICOM JPEG 2000"."""
    return f"DICOM {_FORMAT_NAME[syntax]}" if syntax in _FORMAT_NAME else "DICOM"


def require_decoder(syntax: UID, pixel: PixelFormat) -> None:
    """Raise UnreadableImage when nothing here decodes this transfer syntax."""
    if not syntax.is_encapsulated:
        return
    if syntax not in DECODERS:
        raise UnreadableImage(
            f"its compression ({syntax.name}) has no decoder here: export it uncompressed or as JPEG 2000"
        )
    if syntax == JPEGExtended12Bit and pixel.bits_stored != 8:
        raise UnreadableImage("12-bit lossy JPEG has no decoder here: export it uncompressed or as JPEG 2000")


def stored_values(source: DicomSource, pixel: PixelFormat, as_rgb: bool = False) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the values as they stand in their container, and notes.

    uint8/uint16/int8/int16 [rows, columns] (or uint8 [rows, columns, 3] RGB with `as_rgb`), bits beyond Bits Stored
    untouched. Raises UnreadableImage.
    """
    require_decoder(source.transfer_syntax, pixel)
    # No codec makes real pictures longer than their uncompressed form; twice is generous.
    data = read_pixel_bytes(source, pixel.native_bytes, 2 * pixel.native_bytes + 1_000_000)
    options: dict[str, Any] = {
        "rows": pixel.rows,
        "columns": pixel.columns,
        "samples_per_pixel": pixel.samples_per_pixel,
        "photometric_interpretation": pixel.photometric_interpretation,
        "planar_configuration": pixel.planar_configuration,
        "bits_allocated": pixel.bits_allocated,
        "bits_stored": pixel.bits_stored,
        "pixel_representation": pixel.pixel_representation,
        "number_of_frames": 1,
        "pixel_keyword": "PixelData",
        "pixel_vr": data.value_representation,
        # Bits beyond Bits Stored are dealt with in the grey-scale chain, which also knows High Bit.
        "correct_unused_bits": False,
    }
    if data.encapsulated:
        request = {
            "transfer_syntax": str(source.transfer_syntax),
            "plugins": DECODERS[source.transfer_syntax],
            "raw": not as_rgb,
            "options": options,
        }
        values = isolation.call(request, data.value)
    else:
        decoder = get_decoder(source.transfer_syntax)
        options["view_only"] = True  # no second copy of the picture
        values, _ = decoder.as_array(data.value, index=0, raw=not as_rgb, **options)
    expected = (pixel.rows, pixel.columns) if pixel.samples_per_pixel == 1 else (pixel.rows, pixel.columns, 3)
    if values.shape != expected or values.dtype.kind not in "ui" or values.dtype.itemsize > 2:
        raise UnreadableImage("the decoded picture is not what the DICOM header says")
    notes = (f"{data.surplus_bytes} surplus bytes after the pixel data ignored",) if data.surplus_bytes else ()
    return values, notes
