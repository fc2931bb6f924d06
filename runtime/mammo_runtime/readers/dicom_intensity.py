"""Stored values to MONOCHROME2 on a fixed scale: modality, VOI and presentation steps of DICOM's grey-scale chain.

Stored values have at most 16 bits, so the chain runs once over the ramp of all possible values and the picture
is then looked up in the result: exact, and without a floating-point copy of the picture. The ends of the scale are
the VOI function's nominal output range, never one picture's own maximum, so that grey means the same in every picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from pydicom.dataset import Dataset

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.readers.dicom_admission import DX_FOR_PRESENTATION, MG_FOR_PRESENTATION
from mammo_runtime.readers.dicom_header import PixelFormat, integers, items, numbers, text
from mammo_runtime.readers.dicom_source import DicomSource
from mammo_runtime.readers.dicom_voi import (
    Unusable,
    apply_lut,
    apply_window,
    lut_from_item,
    modality_lut,
    scale_depth,
    window_at,
)

WHITE = 65535
PERCENTILES = (0.5, 99.5)
_ROWS_AT_A_TIME = 64
"""numpy widens indices to 8 bytes: looking up a whole picture at once would take 114 MB for 4664 x 3064."""


@dataclass(frozen=True, eq=False)
class GreyScale:
    """Pixels uint8 or uint16 [rows, columns], 0 black, `white` white; how they came about, and notes."""

    pixels: np.ndarray
    white: int
    rule: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class _Ramp:
    """All stored values in index order with what the modality step makes of them."""

    stored: np.ndarray
    """int32 [2**bits_stored]."""
    values: np.ndarray
    """int32 or float64, after the modality step."""
    nominal: tuple[float, float]
    """Smallest and largest value the modality step can give."""
    padding: np.ndarray
    """bool: this stored value is padding."""


def grey_scale_from_stored(source: DicomSource, pixel: PixelFormat, stored: np.ndarray, voi_index: int) -> GreyScale:
    """Return the picture as uint16 MONOCHROME2, 0..65535, from container values [rows, columns].

    VOI: the LUT where the file has one (pydicom's preference; the standard leaves the choice open), else the window,
    number `voi_index`. What cannot be applied falls back to the next, and the rule says so. Without any VOI:

    - the nominal range of the bits stored, when the values are meant for display as they are: up to 8 bits,
      or For Presentation with a Presentation LUT Shape (the output of the chain then *is* P-values);
    - else the 0.5 to 99.5 % range of the pixels that are not padding: raw or unmarked 10 to 16 bit data rarely
      fills its container, and taken nominally a 12-bit film in 16 bits would come out black.

    Presentation: Presentation LUT Shape decides where it is given, since it is the last step and pairs with the
    photometric interpretation (INVERSE with MONOCHROME1, PS3.3 C.8.11.3.1.2): both together invert once. Where they
    contradict each other the shape is followed, as highdicom, pydicom and dcm4che do, with a note.
    Padding is black after inversion. Raises UnreadableImage.
    """
    header, notes = source.header, list[str]()
    container = stored.view(np.dtype(f"u{stored.dtype.itemsize}").newbyteorder(stored.dtype.byteorder))
    bits = pixel.bits_stored
    # Codecs deliver right-aligned values; High Bit describes the uncompressed container only (RLE keeps it).
    aligned = source.transfer_syntax.is_encapsulated and source.transfer_syntax != "1.2.840.10008.1.2.5"
    shift = 0 if aligned else pixel.high_bit + 1 - bits
    index_of = (np.arange(2 ** (8 * container.dtype.itemsize)) >> shift) & (2**bits - 1)
    ramp, modality_rule = _modality_step(source, pixel, notes)

    def histogram() -> np.ndarray:
        return _histogram(container, index_of, 2**bits)

    scaled, voi_rule = _voi_step(source, pixel, ramp, histogram, voi_index, notes)
    output = np.rint(np.clip(scaled, 0.0, 1.0) * WHITE).astype(np.uint16)
    inverted = _is_inverted(header, notes)
    if inverted:
        output = (WHITE - output).astype(np.uint16)
    output[ramp.padding] = 0
    pixels = _look_up(output[index_of], container)
    if int(pixels.min()) == int(pixels.max()):
        notes.append("every pixel has the same grey value")
    steps = [modality_rule, voi_rule, "inverted" if inverted else ""]
    return GreyScale(pixels, WHITE, ", ".join(step for step in steps if step), tuple(notes))


def _modality_step(source: DicomSource, pixel: PixelFormat, notes: list[str]) -> tuple[_Ramp, str]:
    header, bits, signed = source.header, pixel.bits_stored, bool(pixel.pixel_representation)
    stored = np.arange(2**bits, dtype=np.int32)
    if signed:
        stored[2 ** (bits - 1) :] -= 2**bits
    padding = _padding(header, stored, source.little_endian, signed, notes)
    low, high = float(stored.min()), float(stored.max())
    lut = modality_lut(header, source.little_endian, signed)
    if lut is not None:
        values = apply_lut(stored, lut, modality=True)
        depth, differs = scale_depth(lut)
        if differs:
            notes.append(f"the modality LUT states {lut.depth} bits and uses {depth}: taken for {depth}")
        return _Ramp(stored, values, (0.0, float(2**depth - 1)), padding), "modality LUT"
    slope, intercept = numbers(header, "RescaleSlope"), numbers(header, "RescaleIntercept")
    if slope is None or intercept is None:
        if slope is not intercept:
            notes.append("rescale slope without intercept, or the reverse: ignored")
        return _Ramp(stored, stored, (low, high), padding), ""
    if len(slope) != 1 or len(intercept) != 1 or slope[0] == 0:
        raise UnreadableImage("the DICOM header's rescale slope and intercept cannot be applied")
    if (slope[0], intercept[0]) == (1.0, 0.0):
        return _Ramp(stored, stored, (low, high), padding), ""
    values = stored * slope[0] + intercept[0]
    ends = sorted((low * slope[0] + intercept[0], high * slope[0] + intercept[0]))
    return _Ramp(stored, values, (ends[0], ends[1]), padding), f"rescale {slope[0]:g}/{intercept[0]:g}"


def _padding(header: Dataset, stored: np.ndarray, little_endian: bool, signed: bool, notes: list[str]) -> np.ndarray:
    """Return bool [2**bits]: which stored values are Pixel Padding Value (to Pixel Padding Range Limit)."""
    first = integers(header, "PixelPaddingValue", little_endian, signed)
    limit = integers(header, "PixelPaddingRangeLimit", little_endian, signed) or first
    none = np.zeros(stored.shape, bool)
    if first is None or limit is None:
        return none
    ends = sorted(end - 65536 if signed and end > 32767 else end for end in (first[0], limit[0]))
    padding = np.asarray((stored >= ends[0]) & (stored <= ends[1]))
    if not padding.any() or padding.all():
        notes.append("pixel padding value lies outside the values in use: ignored")
        return none
    return padding


def _voi_step(
    source: DicomSource,
    pixel: PixelFormat,
    ramp: _Ramp,
    histogram: Callable[[], np.ndarray],
    voi_index: int,
    notes: list[str],
) -> tuple[np.ndarray, str]:
    """Return float64 [2**bits] on the fixed scale 0..1, and the rule in words."""
    header, faults = source.header, list[str]()
    sequence = items(header, "VOILUTSequence")
    if sequence:
        if voi_index >= len(sequence):
            raise UnreadableImage(
                f"VOI LUT number {voi_index} was asked for, but the file holds {len(sequence)}: "
                f"choose 0 to {len(sequence) - 1}"
            )
        try:
            return _through_voi_lut(sequence[voi_index], source.little_endian, ramp, notes), f"lut[{voi_index}]"
        except Unusable as fault:
            faults.append(f"lut[{voi_index}] unusable ({fault})")
            voi_index = 0
    try:
        found = window_at(header, voi_index)
        if found is not None:
            window, remark = found
            rule = f"window[{voi_index}] {window.center:g}/{window.width:g} {window.function}"
            faults.append(f"{rule} ({remark})" if remark else rule)
            return apply_window(ramp.values, window), "->".join(faults)
    except Unusable as fault:
        faults.append(f"window[{voi_index}] unusable ({fault})")
    if voi_index and not faults:
        raise UnreadableImage(f"window number {voi_index} was asked for, but the file holds none: choose 0")
    low, high, rule = _range_without_voi(header, source.sop_class, pixel, ramp, histogram)
    return np.asarray((ramp.values - low) / (high - low)), "->".join([*(faults or ["none"]), rule])


def _through_voi_lut(item: Dataset, little_endian: bool, ramp: _Ramp, notes: list[str]) -> np.ndarray:
    """Return float64 0..1: the ramp through one VOI LUT. Raises Unusable."""
    lut = lut_from_item(item, little_endian, signed=bool(ramp.nominal[0] < 0))
    depth, differs = scale_depth(lut)
    if differs:
        notes.append(f"the VOI LUT states {lut.depth} bits and uses {depth}: scaled to what it uses")
    mapped = apply_lut(np.rint(ramp.values).astype(np.int32), lut, modality=False)
    return np.asarray(mapped / (2**depth - 1))


def _range_without_voi(
    header: Dataset, sop_class: str, pixel: PixelFormat, ramp: _Ramp, histogram: Callable[[], np.ndarray]
) -> tuple[float, float, str]:
    """Return (low, high, rule) for an image without a usable VOI; see `grey_scale_from_stored`."""
    presentation = (
        (text(header, "SOPClassUID") or sop_class) in (MG_FOR_PRESENTATION, DX_FOR_PRESENTATION)
        or text(header, "PresentationIntentType") == "FOR PRESENTATION"
    ) and text(header, "PresentationLUTShape") in ("IDENTITY", "INVERSE")
    low, high = ramp.nominal
    if not presentation and pixel.bits_stored > 8:
        found = _percentile_range(histogram(), ramp)
        if found is not None:
            low, high = found
            return low, high, f"percentile {PERCENTILES[0]:g}..{PERCENTILES[1]:g} ({low:g}..{high:g})"
    return low, high, f"nominal {low:g}..{high:g}"


def _percentile_range(counts: np.ndarray, ramp: _Ramp) -> tuple[float, float] | None:
    """Return the values at `PERCENTILES` of the pixels that are not padding, None when they are all alike.

    Both ends are counted from their own side, so that a MONOCHROME1 twin gets exactly the mirrored range.
    """
    visible = np.where(ramp.padding, 0, counts)
    order = np.argsort(ramp.values, kind="stable")
    values, counts = ramp.values[order], visible[order]
    total = int(counts.sum())
    if total == 0:
        return None
    share = PERCENTILES[0] / 100 * total
    low = float(values[np.argmax(np.cumsum(counts) > share)])
    high = float(values[len(values) - 1 - np.argmax(np.cumsum(counts[::-1]) > share)])
    if low >= high:
        present = values[counts > 0]
        low, high = float(present[0]), float(present[-1])
    return (low, high) if low < high else None


def _is_inverted(header: Dataset, notes: list[str]) -> bool:
    """Say whether the chain's output must be complemented to be MONOCHROME2."""
    shape = text(header, "PresentationLUTShape")
    by_photometric = text(header, "PhotometricInterpretation") == "MONOCHROME1"
    if shape not in ("IDENTITY", "INVERSE"):
        return by_photometric
    if (shape == "INVERSE") != by_photometric:
        notes.append("Presentation LUT Shape contradicts the photometric interpretation: the shape is followed")
    return shape == "INVERSE"


def _histogram(container: np.ndarray, index_of: np.ndarray, length: int) -> np.ndarray:
    """Return how often each stored value occurs, int64 [length]."""
    counts = np.zeros(len(index_of), np.int64)
    for row in range(0, container.shape[0], _ROWS_AT_A_TIME):
        counts += np.bincount(container[row : row + _ROWS_AT_A_TIME].ravel(), minlength=len(index_of))
    return np.bincount(index_of, weights=counts, minlength=length).astype(np.int64)


def _look_up(table: np.ndarray, container: np.ndarray) -> np.ndarray:
    """Return uint16 `table[container]`, some rows at a time."""
    pixels = np.empty(container.shape, np.uint16)
    for row in range(0, container.shape[0], _ROWS_AT_A_TIME):
        np.take(table, container[row : row + _ROWS_AT_A_TIME], out=pixels[row : row + _ROWS_AT_A_TIME], mode="clip")
    return pixels
