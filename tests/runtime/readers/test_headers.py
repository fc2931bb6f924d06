"""Header parsers of the raster formats: facts, completeness, and arbitrary bytes."""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_runtime.errors import UnreadableImage
from mammo_runtime.readers.headers import pnm_header, read_header
from mammo_runtime.readers.options import checked_pixel_count

PIXELS = np.random.default_rng(0).integers(0, 4096, (40, 60)).astype(np.uint16)


def encoded(suffix: str, pixels: np.ndarray = PIXELS) -> bytes:
    return bytes(cv2.imencode(suffix, pixels)[1].tobytes())


def png_chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


SAMPLES = {
    "PNG": encoded(".png"),
    "JPEG": encoded(".jpg", (PIXELS >> 4).astype(np.uint8)),
    "TIFF": encoded(".tif"),
    "BMP": encoded(".bmp", (PIXELS >> 4).astype(np.uint8)),
    "PNM": encoded(".pgm"),
}


@pytest.mark.parametrize(("file_format", "bits"), [("PNG", 16), ("JPEG", 8), ("TIFF", 16), ("BMP", 8), ("PNM", 16)])
def test_header_states_size_and_depth(file_format: str, bits: int) -> None:
    header = read_header(file_format, SAMPLES[file_format])
    assert (header.rows, header.columns, header.bits, header.samples) == (40, 60, bits, 1)
    assert not header.alpha
    assert header.pages == 1


@pytest.mark.parametrize("file_format", SAMPLES)
def test_every_truncation_is_noticed(file_format: str) -> None:
    content = SAMPLES[file_format]
    # TIFF: OpenCV writes its directory last; the very last bytes are the "no further page" offset and padding.
    last = len(content) - (8 if file_format == "TIFF" else 1)
    for length in [*range(12, last, max(last // 60, 1)), last]:
        with pytest.raises(UnreadableImage, match=r"cut off|damaged"):
            read_header(file_format, content[:length])


def test_png_checksum_of_the_picture_data_is_verified() -> None:
    content = bytearray(SAMPLES["PNG"])
    content[content.index(b"IDAT") + 100] ^= 1
    with pytest.raises(UnreadableImage, match="checksum"):
        read_header("PNG", bytes(content))


def test_png_significant_bits() -> None:
    content = SAMPLES["PNG"]
    after_ihdr = 8 + 25
    with_sbit = content[:after_ihdr] + png_chunk(b"sBIT", bytes([12])) + content[after_ihdr:]
    assert read_header("PNG", with_sbit).stated_white == 4095


def test_jpeg_with_bytes_after_its_end_is_complete() -> None:
    assert read_header("JPEG", SAMPLES["JPEG"] + b"\0" * 500).rows == 40


def test_bigtiff_is_refused_by_name() -> None:
    with pytest.raises(UnreadableImage, match="BigTIFF"):
        read_header("TIFF", b"II+\0\x08\0\0\0" + b"\0" * 100)


def test_tiff_big_endian_and_second_page() -> None:
    entries = [(256, 3), (257, 2), (258, 16), (259, 1), (262, 1), (273, 8), (277, 1), (279, 12)]
    body = b"".join(struct.pack(">HHIHH", tag, 3, 1, value, 0) for tag, value in entries)
    content = b"MM\0*" + struct.pack(">I", 20) + bytes(12) + struct.pack(">H", len(entries)) + body
    header = read_header("TIFF", content + struct.pack(">I", 8))
    assert (header.columns, header.rows, header.bits, header.pages) == (3, 2, 16, 2)


def test_pnm_comments_and_maximum() -> None:
    header = read_header("PNM", b"P5 # made by\n# a scanner\n2 1\n4095\n" + bytes(4))
    assert (header.rows, header.columns, header.stated_white) == (1, 2, 4095)


def test_pnm_bitmap_is_refused() -> None:
    with pytest.raises(UnreadableImage, match="1 bit"):
        read_header("PNM", b"P4\n8 1\n\xff")


@pytest.mark.parametrize("file_format", SAMPLES)
@settings(max_examples=80, deadline=None)
@given(
    edits=st.lists(st.tuples(st.integers(0, 199), st.integers(0, 255)), min_size=1, max_size=8), cut=st.integers(1, 400)
)
def test_mutated_headers_give_a_header_or_a_sentence(file_format: str, edits: list[tuple[int, int]], cut: int) -> None:
    for content in (SAMPLES[file_format], SAMPLES[file_format][:cut]):
        mutated = bytearray(content)
        for position, value in edits:
            mutated[position % len(mutated)] = value
        with suppress(UnreadableImage):  # anything else fails the test
            assert isinstance(read_header(file_format, bytes(mutated)).rows, int)


@pytest.mark.parametrize("file_format", SAMPLES)
@settings(max_examples=40, deadline=None)
@given(garbage=st.binary(max_size=300))
def test_garbage_after_the_magic_bytes_survives(file_format: str, garbage: bytes) -> None:
    with suppress(UnreadableImage):  # anything else fails the test
        assert isinstance(read_header(file_format, SAMPLES[file_format][:8] + garbage).rows, int)


def test_windows_line_ends_in_a_pgm_are_refused() -> None:
    pixels = bytes(range(12))
    assert pnm_header(b"P5\n4 3\n255\n" + pixels).rows == 3
    with pytest.raises(UnreadableImage, match="Windows line ends"):
        pnm_header(b"P5\r\n4 3\r\n255\r\n" + pixels)


def test_no_side_is_longer_than_dicom_can_state() -> None:
    assert checked_pixel_count(65_535, 9, 10**9) is None
    assert "no side" in str(checked_pixel_count(9, 65_536, 10**9))
