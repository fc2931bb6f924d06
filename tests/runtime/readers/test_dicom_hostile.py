"""Broken and hostile DICOM files: each ends in a sentence, without patient data."""

from __future__ import annotations

import logging
import struct
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest

from mammo_runtime.errors import ImageError, UnreadableImage, UnsuitableImage
from mammo_runtime.mammogram import Mammogram
from mammo_runtime.readers import dicom_source, read_image
from phantoms import make_phantom, write_dicom_mg

PIXELS = make_phantom(1, 64, 48).pixels


def read_mg(path: Path, **choices: Any) -> Mammogram:
    return read_image(write_dicom_mg(path / "a.dcm", PIXELS, **choices))


@pytest.mark.parametrize(
    ("overrides", "phrase"),
    [
        ({"Rows": None}, "Rows is missing"),
        ({"BitsStored": 17}, "contradicts itself"),
        ({"BitsAllocated": 32}, "32 bits"),
        ({"PixelData": None}, "ends before the picture"),
        ({"SamplesPerPixel": 3}, "contradicts itself about colour"),
    ],
)
def test_broken_headers(tmp_path: Path, overrides: dict[str, Any], phrase: str) -> None:
    with pytest.raises(UnreadableImage, match=phrase):
        read_mg(tmp_path, overrides=overrides)


def test_header_that_claims_a_giant_picture(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="65535 x 65535 pixels, more than the limit"):
        read_mg(tmp_path, overrides={"Rows": 65535, "Columns": 65535})
    with pytest.raises(UnsuitableImage, match="100000 frames"):
        read_mg(tmp_path, overrides={"NumberOfFrames": 100_000})


def test_pixel_data_cut_in_half(tmp_path: Path) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", PIXELS)
    content = path.read_bytes()
    path.write_bytes(content[: -PIXELS.nbytes // 2])
    with pytest.raises(UnreadableImage, match=f"cut off: {PIXELS.nbytes // 2} of {PIXELS.nbytes} bytes"):
        read_image(path)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    content = write_dicom_mg(tmp_path / "a.dcm", PIXELS).read_bytes()
    path = tmp_path / "cut.dcm"
    for length in range(140, len(content) - 2, 61):
        path.write_bytes(content[:length])
        with pytest.raises(ImageError):
            read_image(path)


def test_header_cut_in_the_middle_says_cut_off(tmp_path: Path) -> None:
    content = write_dicom_mg(tmp_path / "a.dcm", PIXELS).read_bytes()
    (tmp_path / "a.dcm").write_bytes(content[: content.index(b"\xe0\x7f\x10\x00")])
    with pytest.raises(UnreadableImage, match="cut off"):
        read_image(tmp_path / "a.dcm")


def test_surplus_pixel_bytes_are_noted(tmp_path: Path) -> None:
    image = read_mg(tmp_path, overrides={"PixelData": PIXELS.tobytes() + bytes(10)})
    assert "10 surplus bytes after the pixel data ignored" in image.notes
    assert np.array_equal(image.pixels, read_mg(tmp_path).pixels)


def test_no_preamble(tmp_path: Path) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", PIXELS)
    path.write_bytes(path.read_bytes()[132:])
    with pytest.raises(UnreadableImage, match="no preamble"):
        read_image(path)


def with_element(content: bytes, element: bytes) -> bytes:
    """Insert an element just before the pixel data."""
    at = content.index(b"\xe0\x7f\x10\x00")
    return content[:at] + element + content[at:]


def test_element_that_claims_4_gigabytes(tmp_path: Path) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", PIXELS)
    path.write_bytes(with_element(path.read_bytes(), b"\x01\x70\x10\x00OB\0\0\xfe\xff\xff\xff"))
    with pytest.raises(UnreadableImage, match="cut off"):
        read_image(path)


def test_nested_sequence_bomb(tmp_path: Path) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", PIXELS)
    nest = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff" * 20_000
    path.write_bytes(with_element(path.read_bytes(), nest))
    with pytest.raises(UnreadableImage):
        read_image(path)


def deflated(path: Path, body: bytes) -> Path:
    """Write a deflated file: the file meta information of a real one, then `body` deflated."""
    content = write_dicom_mg(path, PIXELS, transfer_syntax="1.2.840.10008.1.2.1.99").read_bytes()
    (group_length,) = struct.unpack_from("<I", content, 140)
    engine = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    path.write_bytes(content[: 144 + group_length] + engine.compress(body) + engine.flush())
    return path


def test_deflated(tmp_path: Path) -> None:
    image = read_mg(tmp_path, transfer_syntax="1.2.840.10008.1.2.1.99")
    assert image.file_format == "DICOM deflated"
    assert np.array_equal(image.pixels, read_mg(tmp_path).pixels)


def test_deflated_bomb_is_refused_at_the_cap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_source, "INFLATED_BYTES_LIMIT", 1 << 20)
    with pytest.raises(UnreadableImage, match="grows beyond 1 MiB"):
        read_image(deflated(tmp_path / "a.dcm", bytes(20 << 20)))


def test_deflated_and_cut_off(tmp_path: Path) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", PIXELS, transfer_syntax="1.2.840.10008.1.2.1.99")
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(UnreadableImage, match="cut off"):
        read_image(path)


def test_header_larger_than_the_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicom_source, "HEADER_BYTES_LIMIT", 500)
    with pytest.raises(UnreadableImage, match="header is larger than"):
        read_mg(tmp_path)


def with_name_in_the_wrong_place(folder: Path) -> Path:
    """Write a file whose character set is a patient's name: pydicom quotes it in a warning on reading."""
    path = write_dicom_mg(folder / "a.dcm", PIXELS, overrides={"SpecificCharacterSet": "ISO_IR 100"})
    path.write_bytes(path.read_bytes().replace(b"ISO_IR 100", b"DOE^JANE19"))
    return path


def test_patient_data_never_reaches_messages_or_warnings(
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = with_name_in_the_wrong_place(tmp_path)
    with pytest.warns(UserWarning, match="DOE"):  # what pydicom says when nobody stops it
        pydicom.dcmread(path)
    caplog.clear()
    recwarn.clear()
    image = read_image(path)
    assert "DOE" not in repr(image.notes)
    assert not recwarn.list
    assert not caplog.records
    captured = capfd.readouterr()
    assert "DOE" not in captured.out + captured.err


def test_mutated_headers_never_escape(tmp_path: Path) -> None:
    content = write_dicom_mg(tmp_path / "a.dcm", PIXELS).read_bytes()
    header = content.index(b"\xe0\x7f\x10\x00") + 12
    generator = np.random.default_rng(7)
    path = tmp_path / "mutated.dcm"
    outcomes = set()
    for _ in range(300):
        mutated = bytearray(content)
        for position in generator.integers(132, header, generator.integers(1, 6)):
            mutated[position] = generator.integers(256)
        path.write_bytes(mutated)
        try:
            outcomes.add(type(read_image(path)))
        except ImageError as error:
            outcomes.add(type(error))
    assert outcomes == {Mammogram, UnreadableImage, UnsuitableImage}


def test_reading_in_threads_is_silent_and_restores_the_warning_filters(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    path = with_name_in_the_wrong_place(tmp_path)
    before, level = list(warnings.filters), logging.getLogger("pydicom").level
    with ThreadPoolExecutor(4) as pool:
        images = list(pool.map(read_image, [path] * 12))
    assert all(np.array_equal(image.pixels, images[0].pixels) for image in images)
    assert not recwarn.list
    assert not caplog.records
    assert list(warnings.filters) == before
    assert logging.getLogger("pydicom").level == level
