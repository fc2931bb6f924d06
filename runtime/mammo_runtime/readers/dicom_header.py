"""Header values read without trust: absent, empty or malformed elements become None or "", never an exception."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

from pydicom.dataset import Dataset

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.readers.options import checked_pixel_count


@dataclass(frozen=True)
class PixelFormat:
    """The Image Pixel module, validated. Depths in bits, sizes in pixels."""

    rows: int
    columns: int
    samples_per_pixel: int
    bits_allocated: int
    bits_stored: int
    high_bit: int
    pixel_representation: int
    """0 unsigned, 1 two's complement."""
    photometric_interpretation: str
    planar_configuration: int = 0

    @property
    def native_bytes(self) -> int:
        """Length of one uncompressed frame in bytes."""
        samples = self.rows * self.columns * self.samples_per_pixel * self.bits_allocated // 8
        return samples * 2 // 3 if self.photometric_interpretation == "YBR_FULL_422" else samples


def text(ds: Dataset, keyword: str) -> str:
    """Return a code string in capitals, the first of several values; "" when absent or unreadable."""
    try:
        value = ds.get(keyword)
    except Exception:
        return ""
    if value is None:
        return ""
    if not isinstance(value, str) and hasattr(value, "__iter__"):
        value = next(iter(value), "")
    return str(value).strip(" \0").upper()


def numbers(ds: Dataset, keyword: str) -> list[float] | None:
    """Return finite numbers; None when the element is absent or empty, [] when it is not numeric."""
    try:
        value = ds.get(keyword)
        if value is None or value == "" or value == b"":
            return None
        listed = value if hasattr(value, "__iter__") and not isinstance(value, str) else [value]
        converted = [float(v) for v in listed]
    except Exception:
        return []
    if not converted:
        return None
    return converted if all(math.isfinite(v) for v in converted) else []


def integers(ds: Dataset, keyword: str, little_endian: bool, signed: bool) -> list[int] | None:
    """Return 16-bit integers of an element whose VR may be US, SS, OW or unknown; None when absent or malformed."""
    try:
        value = ds.get(keyword)
        if isinstance(value, (bytes, bytearray)):
            letter = "h" if signed else "H"
            count = len(value) // 2
            return list(struct.unpack(f"{'<' if little_endian else '>'}{count}{letter}", value[: 2 * count])) or None
    except Exception:
        return None
    found = numbers(ds, keyword)
    return [int(v) for v in found] if found else None


def items(ds: Dataset, keyword: str) -> list[Dataset]:
    """Return the items of a sequence; [] when absent, empty or malformed."""
    try:
        return [item for item in ds.get(keyword) or [] if isinstance(item, Dataset)]
    except RecursionError:
        raise
    except Exception:
        return []


def frame_count(ds: Dataset) -> int:
    """Return Number of Frames, 1 when absent. Raises UnreadableImage when it is no positive number."""
    found = numbers(ds, "NumberOfFrames")
    if found is None:
        return 1
    if not found or found[0] < 1:
        raise UnreadableImage("the DICOM header is damaged: the number of frames is not a number")
    return int(found[0])


def pixel_format(ds: Dataset, max_pixels: int) -> PixelFormat:
    """Return the validated Image Pixel module. Raises UnreadableImage for what is missing, impossible or too large."""
    rows, columns = _required(ds, "Rows"), _required(ds, "Columns")
    size_fault = checked_pixel_count(rows, columns, max_pixels)
    if size_fault:
        raise UnreadableImage(f"the DICOM header {size_fault}")
    allocated, stored = _required(ds, "BitsAllocated"), _required(ds, "BitsStored")
    representation = _required(ds, "PixelRepresentation")
    high_bit = _optional(ds, "HighBit", stored - 1)
    if allocated not in (8, 16):
        raise UnreadableImage(f"{allocated} bits per pixel are not read: a radiograph has 8 or 16")
    if not (1 <= stored <= allocated and stored - 1 <= high_bit < allocated) or representation not in (0, 1):
        raise UnreadableImage("the DICOM header contradicts itself about the bits in use (Bits Stored, High Bit)")
    photometric = text(ds, "PhotometricInterpretation")
    if not photometric:
        raise UnreadableImage("the DICOM header does not say whether low values are black or white")
    return PixelFormat(
        rows=rows,
        columns=columns,
        samples_per_pixel=_optional(ds, "SamplesPerPixel", 1),
        bits_allocated=allocated,
        bits_stored=stored,
        high_bit=high_bit,
        pixel_representation=representation,
        photometric_interpretation=photometric,
        planar_configuration=_optional(ds, "PlanarConfiguration", 0),
    )


def _required(ds: Dataset, keyword: str) -> int:
    found = numbers(ds, keyword)
    if not found:
        state = "missing" if found is None else "not a number"
        raise UnreadableImage(f"the DICOM header is incomplete or damaged: {keyword} is {state}")
    return int(found[0])


def _optional(ds: Dataset, keyword: str, default: int) -> int:
    found = numbers(ds, keyword)
    return int(found[0]) if found else default
