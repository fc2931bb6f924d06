"""The outer shell of a DICOM file: file meta information, encoding, data set up to the pixel data, and the pixel bytes.

Nothing here trusts a length in the file: reads are clipped to what is there, the header is limited, and a
deflated data set is inflated with a cap (pydicom itself inflates without one: 1 MB became 2.1 GB).
"""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from pydicom.dataset import Dataset
from pydicom.filereader import read_dataset
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from mammo_runtime.errors import UnreadableImage

HEADER_BYTES_LIMIT = 64 * 1024 * 1024
"""Elements before the pixel data; real mammograms stay far below 1 MiB."""
INFLATED_BYTES_LIMIT = 256 * 1024 * 1024
"""Room for 100 million pixels of 16 bit and a header."""
_META_START = 132
_PIXEL_TAGS = (0x7FE00008, 0x7FE00009, 0x7FE00010)
_PIXEL_DATA = 0x7FE00010
_ITEM, _SEQUENCE_END = 0xFFFEE000, 0xFFFEE0DD
_UNDEFINED = 0xFFFFFFFF


class _ClippedStream(io.RawIOBase):
    """A file that never allocates for bytes it does not have (an element may claim 4 GB), and ends at `limit`."""

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream, self._limit = stream, limit

    def read(self, size: int = -1, /) -> bytes:
        left = max(self._limit - self._stream.tell(), 0)
        return self._stream.read(left if size is None or size < 0 else min(size, left))

    def seek(self, offset: int, whence: int = 0, /) -> int:
        return self._stream.seek(offset, whence)

    def tell(self) -> int:
        return self._stream.tell()

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True


@dataclass(frozen=True)
class PixelBytes:
    """The value of Pixel Data as it stands in the file."""

    value: bytes
    encapsulated: bool
    surplus_bytes: int = 0
    value_representation: str = "OW"


@dataclass(frozen=True, eq=False)
class DicomSource:
    """An opened DICOM file: `header` holds everything before the pixel data."""

    header: Dataset
    transfer_syntax: UID
    sop_class: str
    """Media Storage SOP Class UID of the file meta information, "" when absent."""
    stream: BinaryIO
    """Positioned data set stream: the file, or the inflated bytes."""
    stream_bytes: int
    pixel_offset: int | None
    """Where the Pixel Data element begins in `stream`; None when there is none."""
    implicit_vr: bool
    little_endian: bool


def open_source(path: Path, stream: BinaryIO) -> DicomSource:
    """Read the header of the DICOM file that `stream` is open on. Raises UnreadableImage."""
    file_bytes = path.stat().st_size
    stream.seek(_META_START)
    clipped = _ClippedStream(stream, min(file_bytes, HEADER_BYTES_LIMIT))
    meta = read_dataset(cast(BinaryIO, clipped), is_implicit_VR=False, is_little_endian=True, stop_when=_after_meta)
    syntax = UID(str(meta.get("TransferSyntaxUID", "") or ""))
    sop_class = str(meta.get("MediaStorageSOPClassUID", "") or "")
    if not syntax:
        raise UnreadableImage("the DICOM header names no transfer syntax, so the pixel encoding is unknown")
    if syntax.is_private or not syntax.is_transfer_syntax:
        raise UnreadableImage("the DICOM file uses a transfer syntax that is not in the standard")
    data_set: BinaryIO = stream
    if syntax == DeflatedExplicitVRLittleEndian:
        if file_bytes > INFLATED_BYTES_LIMIT:
            raise UnreadableImage("the deflated DICOM file is larger than any picture of the allowed size")
        data_set = io.BytesIO(_inflate(stream.read()))
        file_bytes = data_set.getbuffer().nbytes
    header, pixel_offset = _header(data_set, file_bytes, syntax)
    return DicomSource(
        header=header,
        transfer_syntax=syntax,
        sop_class=sop_class,
        stream=data_set,
        stream_bytes=file_bytes,
        pixel_offset=pixel_offset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
    )


def _after_meta(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag.group != 2


def _at_pixels(tag: BaseTag, vr: str | None, length: int) -> bool:
    return tag in _PIXEL_TAGS or tag.group > 0x7FE0


def _inflate(deflated: bytes) -> bytes:
    """Inflate a deflated data set, at most to the cap."""
    engine = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        inflated = engine.decompress(deflated, INFLATED_BYTES_LIMIT)
    except zlib.error:
        raise UnreadableImage("the deflated DICOM data set is damaged") from None
    if engine.unconsumed_tail:
        raise UnreadableImage(
            f"the deflated DICOM data set grows beyond {INFLATED_BYTES_LIMIT // 2**20} MiB: refused as a possible bomb"
        )
    if not engine.eof:
        raise UnreadableImage("the deflated DICOM data set is cut off")
    return inflated


def _header(stream: BinaryIO, stream_bytes: int, syntax: UID) -> tuple[Dataset, int | None]:
    """Parse elements up to the pixel data; return them and the offset of Pixel Data."""
    start = stream.tell()
    limit = min(stream_bytes, start + HEADER_BYTES_LIMIT)
    clipped = _ClippedStream(stream, limit)
    try:
        header = read_dataset(
            cast(BinaryIO, clipped), syntax.is_implicit_VR, syntax.is_little_endian, stop_when=_at_pixels
        )
    except (struct.error, ValueError, EOFError, NotImplementedError, KeyError, TypeError):
        raise UnreadableImage("the DICOM header is damaged: its elements cannot be told apart") from None
    header = Dataset(header)
    header.set_original_encoding(syntax.is_implicit_VR, syntax.is_little_endian)
    offset = stream.tell()
    tag_bytes = stream.read(4)
    if offset >= limit and limit < stream_bytes:
        raise UnreadableImage(f"the DICOM header is larger than {HEADER_BYTES_LIMIT // 2**20} MiB: refused")
    if len(tag_bytes) < 4:
        return header, None
    group, element = struct.unpack("<HH" if syntax.is_little_endian else ">HH", tag_bytes)
    return header, offset if (group << 16) + element == _PIXEL_DATA else None


def read_pixel_bytes(source: DicomSource, native_bytes: int, byte_limit: int) -> PixelBytes:
    """Return the pixel data: `native_bytes` of it for an uncompressed syntax, else the whole encapsulated value.

    Raises UnreadableImage when the file holds fewer bytes than it promises, or more than `byte_limit`.
    """
    if source.pixel_offset is None:
        raise UnreadableImage("the file ends before the picture: it is cut off, or was stored without pixels")
    order = "<" if source.little_endian else ">"
    source.stream.seek(source.pixel_offset)
    head = source.stream.read(12)
    vr = head[4:6].decode("ascii", "replace")
    explicit = vr in ("OB", "OW", "UN")
    if len(head) < (12 if explicit else 8):
        raise UnreadableImage("the pixel data is cut off: 0 bytes are there")
    (length,) = struct.unpack_from(order + "I", head, 8 if explicit else 4)
    offset = source.pixel_offset + (12 if explicit else 8)
    present = source.stream_bytes - offset
    source.stream.seek(offset)
    if source.transfer_syntax.is_encapsulated:
        if length != _UNDEFINED:
            raise UnreadableImage("the pixel data is not wrapped as its transfer syntax demands")
        if present > byte_limit:
            raise UnreadableImage("the compressed pixel data is larger than any picture of the allowed size")
        value = source.stream.read(present)
        return PixelBytes(value[: _encapsulated_length(value)], True, 0, "OB")
    available = present if length == _UNDEFINED else min(present, length)
    if available < native_bytes:
        raise UnreadableImage(f"the pixel data is cut off: {max(available, 0)} of {native_bytes} bytes are there")
    padding = native_bytes % 2
    return PixelBytes(
        source.stream.read(min(native_bytes + padding, available)),
        False,
        max(available - native_bytes - padding, 0) if length != _UNDEFINED else 0,
        vr if explicit else "OW",
    )


def _encapsulated_length(value: bytes) -> int:
    """Return the length up to the sequence delimiter; raises UnreadableImage when a fragment is cut off."""
    offset = 0
    while offset + 8 <= len(value):
        group, element, length = struct.unpack_from("<HHI", value, offset)
        tag = (group << 16) + element
        if tag == _SEQUENCE_END:
            return offset + 8
        if tag != _ITEM or length == _UNDEFINED:
            raise UnreadableImage("the compressed pixel data is damaged: its parts cannot be told apart")
        offset += 8 + length
    raise UnreadableImage("the compressed pixel data is cut off: its end is missing")
