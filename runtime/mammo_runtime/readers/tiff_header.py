"""The first directory of a TIFF file: sizes, sample layout, and whether every strip lies inside the file."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.readers.raster_header import RasterHeader

# Tag numbers by their names in the TIFF 6.0 specification.
_IMAGE_WIDTH, _IMAGE_LENGTH, _BITS_PER_SAMPLE, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_STRIP_OFFSETS, _ORIENTATION, _SAMPLES_PER_PIXEL, _STRIP_BYTE_COUNTS = 273, 274, 277, 279
_TILE_OFFSETS, _TILE_BYTE_COUNTS, _EXTRA_SAMPLES, _SAMPLE_FORMAT = 324, 325, 338, 339
_TYPE_FORMAT = {1: "B", 3: "H", 4: "I"}
_COLOUR_MODEL = {0: "grey", 1: "grey", 2: "rgb", 3: "palette", 5: "cmyk", 6: "rgb", 8: "lab"}
_NUMBER_KIND = {1: "unsigned", 2: "signed", 3: "float", 4: "unsigned"}
_UNCOMPRESSED, _DEFLATE = 1, (8, 32946)
_CUT_OFF = "the TIFF is cut off: the header names picture data beyond the end of the file"


@dataclass(frozen=True)
class _Entry:
    kind: int
    count: int
    value_offset: int
    """Where in the file the first value stands."""


def tiff_header(content: bytes) -> RasterHeader:
    """Parse the first directory. Raises UnreadableImage, struct.error or KeyError on damaged content."""
    order = {b"II": "<", b"MM": ">"}[content[:2]]
    if struct.unpack_from(order + "H", content, 2)[0] == 43:
        raise UnreadableImage("BigTIFF is not read: save it as an ordinary TIFF or PNG")
    entries, next_directory = _directory(content, order, struct.unpack_from(order + "I", content, 4)[0])
    if _IMAGE_WIDTH not in entries or _IMAGE_LENGTH not in entries:
        raise UnreadableImage("the TIFF header states no picture size")

    def first(tag: int, default: int) -> int:
        return _values(content, order, entries[tag])[0] if tag in entries else default

    bits = set(_values(content, order, entries[_BITS_PER_SAMPLE])) if _BITS_PER_SAMPLE in entries else {1}
    samples, photometric = first(_SAMPLES_PER_PIXEL, 1), first(_PHOTOMETRIC, 1)
    colour_model = _COLOUR_MODEL.get(photometric, "unknown")
    header = RasterHeader(
        rows=first(_IMAGE_LENGTH, 0),
        columns=first(_IMAGE_WIDTH, 0),
        bits=bits.pop() if len(bits) == 1 else 0,
        samples=samples,
        colour_model=colour_model,
        alpha=_EXTRA_SAMPLES in entries or samples == {"grey": 2, "rgb": 4}.get(colour_model),
        number_kind=_NUMBER_KIND.get(first(_SAMPLE_FORMAT, 1), "unknown"),
        white_is_zero=photometric == 0,
        orientation=first(_ORIENTATION, 1),
        orientation_offset=entries[_ORIENTATION].value_offset if _ORIENTATION in entries else None,
        pages=2 if next_directory else 1,
        unchecked=first(_COMPRESSION, _UNCOMPRESSED) not in (_UNCOMPRESSED, *_DEFLATE),
    )
    _require_complete(content, order, entries, header, first(_COMPRESSION, _UNCOMPRESSED))
    return header


def _directory(content: bytes, order: str, offset: int) -> tuple[dict[int, _Entry], int]:
    """Return the entries by tag, and the offset of the next directory (0: none)."""
    if offset < 8 or offset + 2 > len(content):
        raise UnreadableImage("the TIFF is cut off: its directory lies beyond the end of the file")
    (count,) = struct.unpack_from(order + "H", content, offset)
    if offset + 2 + 12 * count > len(content):
        raise UnreadableImage("the TIFF is cut off in the middle of its directory")
    entries: dict[int, _Entry] = {}
    for position in range(offset + 2, offset + 2 + 12 * count, 12):
        tag, kind, number = struct.unpack_from(order + "HHI", content, position)
        if kind not in _TYPE_FORMAT:
            continue
        inline = struct.calcsize(_TYPE_FORMAT[kind]) * number <= 4
        value_offset = position + 8 if inline else struct.unpack_from(order + "I", content, position + 8)[0]
        entries.setdefault(tag, _Entry(kind, number, value_offset))
    end = offset + 2 + 12 * count
    return entries, struct.unpack_from(order + "I", content, end)[0] if end + 4 <= len(content) else 0


def _values(content: bytes, order: str, entry: _Entry) -> tuple[int, ...]:
    """Return an entry's numbers (at least one)."""
    letter = _TYPE_FORMAT[entry.kind]
    if entry.count < 1 or entry.value_offset + entry.count * struct.calcsize(letter) > len(content):
        raise UnreadableImage(_CUT_OFF)
    return struct.unpack_from(f"{order}{entry.count}{letter}", content, entry.value_offset)


def _require_complete(
    content: bytes, order: str, entries: dict[int, _Entry], header: RasterHeader, compression: int
) -> None:
    """Raise UnreadableImage unless all strips or tiles lie within the file."""
    tiled = _TILE_OFFSETS in entries
    offsets_tag, counts_tag = (_TILE_OFFSETS, _TILE_BYTE_COUNTS) if tiled else (_STRIP_OFFSETS, _STRIP_BYTE_COUNTS)
    if offsets_tag not in entries:
        raise UnreadableImage("the TIFF header names no picture data")
    offsets = _values(content, order, entries[offsets_tag])
    needed = (header.columns * header.samples * header.bits + 7) // 8 * header.rows
    if counts_tag not in entries:
        if compression != _UNCOMPRESSED or len(offsets) != 1:
            raise UnreadableImage("the TIFF header does not say how long its picture data is")
        counts: tuple[int, ...] = (needed,)
    else:
        counts = _values(content, order, entries[counts_tag])
    if len(counts) != len(offsets) or any(o + c > len(content) for o, c in zip(offsets, counts)):
        raise UnreadableImage(_CUT_OFF)
    if compression == _UNCOMPRESSED and sum(counts) < needed:
        raise UnreadableImage(f"the TIFF is cut off: {sum(counts)} of {needed} bytes are there")
    if compression in _DEFLATE:
        inflated = sum(_inflated_bytes(content[o : o + c]) for o, c in zip(offsets, counts))
        if inflated < needed:
            raise UnreadableImage(f"the TIFF's compressed data is damaged: it holds {inflated} of {needed} bytes")


def _inflated_bytes(strip: bytes) -> int:
    """Return how long a Deflate strip is, its checksum verified: OpenCV goes on after errors in 8-bit files.

    Works through 1 MiB at a time, so a bomb costs time, not memory. Raises UnreadableImage.
    """
    inflater, total, waiting = zlib.decompressobj(), 0, strip
    with suppress(zlib.error):
        while waiting and not inflater.eof:
            total += len(inflater.decompress(waiting, 1 << 20))
            waiting = inflater.unconsumed_tail
    if not inflater.eof:
        raise UnreadableImage("the TIFF's compressed data is damaged")
    return total
