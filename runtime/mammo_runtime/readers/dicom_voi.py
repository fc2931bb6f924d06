"""Validated pieces of DICOM's grey-scale chain: lookup tables and windows, applied through pydicom.

pydicom's functions are only given freshly built data sets that hold one checked LUT or window: on what files
really contain they raise, wrap around or saturate (a window width of 0, an 8-bit LUT with more than 256 entries,
a negative first value on unsigned pixels).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.readers.dicom_header import integers, items, numbers, text

_LUT_DEPTHS = range(8, 17)
_VOI_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")


class Unusable(Exception):
    """A LUT or window that cannot be applied; the message is a clause without values."""


@dataclass(frozen=True, eq=False)
class Lut:
    """A validated lookup table: `entries` uint16, the stored value of the first, and its depth in bits."""

    entries: np.ndarray
    first: int
    depth: int


@dataclass(frozen=True)
class Window:
    """A validated window, in units of the modality's output."""

    center: float
    width: float
    function: str


def lut_from_item(item: Dataset, little_endian: bool, signed: bool) -> Lut:
    """Return the LUT of a Modality or VOI LUT Sequence item. Raises Unusable."""
    descriptor = integers(item, "LUTDescriptor", little_endian, signed=False)
    if descriptor is None or len(descriptor) != 3:
        raise Unusable("LUT descriptor missing or malformed")
    count, first, depth = descriptor[0] % 65536 or 65536, descriptor[1], descriptor[2]
    if signed and first > 32767:
        first -= 65536
    if depth not in _LUT_DEPTHS:
        raise Unusable("LUT depth not 8 to 16 bits")
    entries = _lut_entries(item, little_endian, count)
    if len(entries) != count:
        raise Unusable("LUT length differs from its descriptor")
    if int(entries.max()) >= 2**depth:
        raise Unusable("LUT values exceed its depth")
    return Lut(entries, first, depth)


def _lut_entries(item: Dataset, little_endian: bool, count: int) -> np.ndarray:
    """Return LUT Data as uint16, whether it came as words, packed bytes or a list."""
    try:
        value = item["LUTData"].value
        if isinstance(value, (bytes, bytearray)):
            if len(value) != 2 * count and len(value) in (count, count + 1):
                return np.frombuffer(bytes(value), np.uint8)[:count].astype(np.uint16)
            return np.frombuffer(bytes(value), "<u2" if little_endian else ">u2").astype(np.uint16)
        entries = np.atleast_1d(np.asarray(value, np.int64))
    except Exception:
        raise Unusable("LUT data missing or malformed") from None
    if entries.ndim != 1 or not len(entries) or int(entries.min()) < -32768 or int(entries.max()) > 65535:
        raise Unusable("LUT data missing or malformed")
    return entries.astype(np.uint16)


def apply_lut(values: np.ndarray, lut: Lut, modality: bool) -> np.ndarray:
    """Return int32 of the same shape: `values` (int32) mapped through `lut` by pydicom."""
    item = Dataset()
    # Depth 16 always: pydicom keeps 8-bit indices for 8-bit LUTs, which wrap beyond 256 entries.
    item.add_new("LUTDescriptor", "SL", [len(lut.entries) % 65536, lut.first, 16])
    item.add_new("LUTData", "OW", lut.entries.astype("<u2").tobytes())
    ds = Dataset()
    ds.set_original_encoding(False, True)
    sequence = Sequence([item])
    clipped = np.clip(values, lut.first, lut.first + len(lut.entries) - 1).astype(np.int32)
    if modality:
        ds.ModalityLUTSequence = sequence
        return np.asarray(apply_modality_lut(clipped, ds)).astype(np.int32)
    ds.VOILUTSequence = sequence
    return np.asarray(apply_voi_lut(clipped, ds)).astype(np.int32)


def scale_depth(lut: Lut) -> tuple[int, bool]:
    """Return the depth whose full range is white, and whether it differs from the stated one.

    Some units state 16 bits for tables that end at 4095; taken literally the picture would never reach mid-grey.
    """
    needed = next(depth for depth in (8, 10, 12, 14, 16) if int(lut.entries.max()) < 2**depth)
    return (needed, True) if needed <= lut.depth - 2 else (lut.depth, False)


def window_at(header: Dataset, index: int) -> tuple[Window, str] | None:
    """Return window number `index` and a remark ("" when all is well); None when the header has no window.

    Raises Unusable for one that cannot be applied, UnreadableImage when there are fewer windows.
    """
    centers, widths = numbers(header, "WindowCenter"), numbers(header, "WindowWidth")
    if centers is None and widths is None:
        return None
    if not centers or not widths:
        raise Unusable("not a pair of numbers")
    count = min(len(centers), len(widths))
    if index >= count:
        raise UnreadableImage(
            f"window number {index} was asked for, but the file holds {count}: choose 0 to {count - 1}"
        )
    stated = text(header, "VOILUTFunction")
    function = stated if stated in _VOI_FUNCTIONS else "LINEAR"
    remark = "" if function == stated or not stated else "unknown VOI LUT Function: taken for LINEAR"
    width = widths[index]
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise Unusable(f"width {width:g}")
    return Window(centers[index], width, function), remark


def apply_window(values: np.ndarray, window: Window) -> np.ndarray:
    """Return float64 0..1 of the same shape: `values` through `window` by pydicom, on its nominal output range."""
    ds = Dataset()
    ds.PhotometricInterpretation = "MONOCHROME2"
    ds.BitsStored, ds.PixelRepresentation = 16, 0
    ds.VOILUTFunction = window.function
    ds.add_new("WindowCenter", "FD", window.center)
    ds.add_new("WindowWidth", "FD", window.width)
    # 16 bits unsigned and no rescale: pydicom's output then runs from 0 to 65535 for every window function.
    return np.asarray(apply_voi_lut(values.astype(np.float64), ds), np.float64) / 65535


def modality_lut(header: Dataset, little_endian: bool, signed: bool) -> Lut | None:
    """Return the Modality LUT, None when there is none. Raises UnreadableImage: without it values mean nothing."""
    sequence = items(header, "ModalityLUTSequence")
    if not sequence:
        return None
    try:
        return lut_from_item(sequence[0], little_endian, signed)
    except Unusable as fault:
        failure = UnreadableImage(f"the DICOM header's Modality LUT cannot be applied ({fault})")
    raise failure
