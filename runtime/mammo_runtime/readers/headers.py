"""What the headers of PNG, JPEG, TIFF, BMP and PNM say, read before any pixel is decoded.

OpenCV returns a half-grey picture for many cut-off files, so completeness is checked here too.
Every parser takes the whole file and survives arbitrary bytes: it returns a header or raises UnreadableImage.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.readers.raster_header import RasterHeader
from mammo_runtime.readers.tiff_header import tiff_header

_PNG_LAYOUT = {0: (1, "grey"), 2: (3, "rgb"), 3: (1, "palette"), 4: (2, "grey"), 6: (4, "rgb")}
"""PNG colour type -> samples per pixel, colour model."""
_JPEG_VARIANT = {0xC3: "JPEG lossless", 0xC9: "arithmetic JPEG", 0xCA: "arithmetic JPEG", 0xCB: "JPEG lossless"}
_START_OF_FRAME = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_BARE_MARKERS = frozenset((0x01, *range(0xD0, 0xD8)))
_END_OF_IMAGE = b"\xff\xd9"
_PNM_NUMBER = re.compile(rb"(?:\s|#[^\r\n]*[\r\n])*(\d{1,9})")


def read_header(file_format: str, content: bytes) -> RasterHeader:
    """Return the header of a whole file of `file_format`. Raises UnreadableImage when it is damaged or cut off."""
    try:
        return _PARSERS[file_format](content)
    except (struct.error, KeyError, IndexError, ValueError, OverflowError):
        failure = UnreadableImage(f"the {file_format} header is damaged or cut off")
    raise failure


def png_header(content: bytes) -> RasterHeader:
    """Walk all PNG chunks; the checksums of header and picture data must hold and the end chunk must be there."""
    length, kind = struct.unpack_from(">I4s", content, 8)
    columns, rows, bits, colour_type = struct.unpack_from(">IIBB", content, 16)
    if kind != b"IHDR" or length != 13:
        raise UnreadableImage("the PNG header is damaged or cut off")
    samples, colour_model = _PNG_LAYOUT[colour_type]
    significant: int | None = None
    transparent = False
    offset, ended = 8, False
    while not ended:
        if offset + 12 > len(content):
            raise UnreadableImage("the PNG is cut off: its end is missing")
        length, kind = struct.unpack_from(">I4s", content, offset)
        end = offset + 8 + length
        if end + 4 > len(content):
            raise UnreadableImage("the PNG is cut off: its end is missing")
        if kind in (b"IHDR", b"IDAT", b"PLTE"):
            checksum = zlib.crc32(memoryview(content)[offset + 4 : end])
            if checksum != struct.unpack_from(">I", content, end)[0]:
                raise UnreadableImage("the PNG is damaged: a checksum of its picture data is wrong")
        elif kind == b"sBIT" and length and colour_type != 3:
            significant = max(content[offset + 8 : offset + 8 + min(length, 3)])
        elif kind == b"tRNS":
            transparent = True
        ended = kind == b"IEND"
        offset = end + 4
    return RasterHeader(
        rows=rows,
        columns=columns,
        bits=8 if colour_type == 3 else bits,
        samples=samples,
        colour_model=colour_model,
        alpha=transparent or colour_type in (4, 6),
        stated_white=2**significant - 1 if significant and significant < bits else None,
    )


def jpeg_header(content: bytes) -> RasterHeader:
    """Walk the JPEG segments up to the first scan; an end marker must follow it."""
    offset, orientation = 2, 1
    frame: tuple[int, int, int, int, int] | None = None
    while True:
        while content[offset] == 0xFF and content[offset + 1] == 0xFF:
            offset += 1
        if content[offset] != 0xFF:
            raise UnreadableImage("the JPEG header is damaged")
        marker = content[offset + 1]
        if marker in _BARE_MARKERS:
            offset += 2
            continue
        (length,) = struct.unpack_from(">H", content, offset + 2)
        if marker in _START_OF_FRAME:
            frame = (marker, *struct.unpack_from(">BHHB", content, offset + 4))
        elif marker == 0xE1 and content[offset + 4 : offset + 10] == b"Exif\0\0":
            orientation = _exif_orientation(content[offset + 10 : offset + 2 + length])
        if marker == 0xDA:
            break
        offset += 2 + max(length, 2)
    if frame is None:
        raise UnreadableImage("the JPEG header states no picture size")
    # FF D9 cannot occur inside entropy-coded data (FF is followed by a stuffed 00 there), and thumbnails
    # lie before the first scan; bytes after the end marker are tolerated, cameras and archives append some.
    if content.rfind(_END_OF_IMAGE, offset) < 0:
        raise UnreadableImage("the JPEG is cut off: its end is missing")
    marker, bits, rows, columns, samples = frame
    return RasterHeader(
        rows=rows,
        columns=columns,
        bits=bits,
        samples=samples,
        colour_model={1: "grey", 3: "rgb", 4: "cmyk"}.get(samples, "unknown"),
        orientation=orientation,
        variant=_JPEG_VARIANT.get(marker, "" if marker <= 0xC2 else "hierarchical JPEG"),
    )


def _exif_orientation(exif: bytes) -> int:
    """Return the orientation that an EXIF block states, 1 when it states none or is damaged."""
    try:
        order = {b"II": "<", b"MM": ">"}[exif[:2]]
        (directory,) = struct.unpack_from(order + "I", exif, 4)
        (count,) = struct.unpack_from(order + "H", exif, directory)
        for position in range(directory + 2, directory + 2 + 12 * count, 12):
            tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, position)
            if tag == 274 and kind == 3:
                return int(value)
    except (KeyError, struct.error):
        pass
    return 1


def bmp_header(content: bytes) -> RasterHeader:
    """Parse the BMP file and information headers; an uncompressed picture must be there in full."""
    (picture_offset, header_bytes) = struct.unpack_from("<II", content, 10)
    if header_bytes == 12:
        columns, signed_rows, _, bits = struct.unpack_from("<HhHH", content, 18)
        compression = 0
    else:
        columns, signed_rows, _, bits, compression = struct.unpack_from("<iiHHI", content, 18)
    rows = abs(signed_rows)
    if compression not in (0, 3):
        raise UnreadableImage("compressed BMP pictures are not read: save it as PNG or TIFF")
    needed = (columns * bits + 31) // 32 * 4 * rows
    if picture_offset + needed > len(content):
        present = max(len(content) - picture_offset, 0)
        raise UnreadableImage(f"the BMP is cut off: {present} of {needed} bytes are there")
    palette = bits <= 8
    return RasterHeader(
        rows=rows,
        columns=columns,
        bits=8 if bits >= 24 or bits == 8 else bits,
        samples=1 if palette else max(bits // 8, 3),
        colour_model="palette" if palette else "rgb",
        alpha=bits == 32,
    )


def pnm_header(content: bytes) -> RasterHeader:
    """Parse a PNM header (P2, P3, P5, P6); a binary picture must be there in full."""
    kind = content[1:2]
    if kind in b"14":
        raise UnreadableImage("the PNM picture has 1 bit per pixel and so no grey scale")
    numbers, offset = [], 2
    for _ in range(3):
        match = _PNM_NUMBER.match(content, offset)
        if match is None:
            raise UnreadableImage("the PNM header is damaged or cut off")
        numbers.append(int(match.group(1)))
        offset = match.end()
    columns, rows, maximum = numbers
    if not 0 < maximum < 65536:
        raise UnreadableImage("the PNM header states an impossible maximum")
    bits, samples = 8 if maximum < 256 else 16, 3 if kind in b"36" else 1
    # An ASCII sample takes at least a digit and a separator.
    needed = rows * columns * samples * (bits // 8 if kind in b"56" else 2) - (kind in b"23")
    present = len(content) - offset - 1
    if present < needed:
        raise UnreadableImage(f"the PNM is cut off: {max(present, 0)} of {needed} bytes are there")
    if kind in b"56" and present == needed + 1 and content[offset : offset + 2] == b"\r\n":
        raise UnreadableImage("the PNM header has Windows line ends, which shift every pixel; save the file again")
    return RasterHeader(
        rows=rows,
        columns=columns,
        bits=bits,
        samples=samples,
        colour_model="rgb" if samples == 3 else "grey",
        stated_white=maximum if maximum not in (255, 65535) else None,
    )


_PARSERS: dict[str, Callable[[bytes], RasterHeader]] = {
    "PNG": png_header,
    "JPEG": jpeg_header,
    "TIFF": tiff_header,
    "BMP": bmp_header,
    "PNM": pnm_header,
}
