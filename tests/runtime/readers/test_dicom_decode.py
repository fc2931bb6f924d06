"""Transfer syntaxes, damaged streams and memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom.encaps import encapsulate

from mammo_runtime.errors import ImageError, UnreadableImage
from mammo_runtime.mammogram import Mammogram
from mammo_runtime.readers import dicom_decode, isolation, read_image
from phantoms import dicom_mg, make_phantom, write_dicom_mg

PIXELS = make_phantom(4, 128, 96).pixels
JPEG = "1.2.840.10008.1.2.4."
NATIVE = {"implicit": "1.2.840.10008.1.2", "big endian": "1.2.840.10008.1.2.2", "deflated": "1.2.840.10008.1.2.1.99"}
COMPRESSED = {"RLE": "1.2.840.10008.1.2.5", "JPEG-LS": JPEG + "80", "JPEG 2000 lossless": JPEG + "90"}


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    return read_image(write_dicom_mg(tmp_path_factory.mktemp("reference") / "a.dcm", PIXELS)).pixels


@pytest.mark.parametrize("name", {**NATIVE, **COMPRESSED})
def test_lossless_syntaxes_are_exact(tmp_path: Path, name: str, reference: np.ndarray) -> None:
    syntax = {**NATIVE, **COMPRESSED}[name]
    image = read_image(write_dicom_mg(tmp_path / "a.dcm", PIXELS, transfer_syntax=syntax))
    assert np.array_equal(image.pixels, reference)
    assert image.file_format == ("DICOM" if name == "implicit" else f"DICOM {name}")


@pytest.mark.parametrize("syntax", COMPRESSED.values())
def test_signed_and_compressed(tmp_path: Path, syntax: str) -> None:
    signed = (PIXELS.astype(np.int32) - 2048).astype(np.int16)
    native = read_image(write_dicom_mg(tmp_path / "a.dcm", signed, window=(0, 4096)))
    coded = read_image(write_dicom_mg(tmp_path / "b.dcm", signed, window=(0, 4096), transfer_syntax=syntax))
    assert np.array_equal(native.pixels, coded.pixels)


def test_jpeg_lossless_of_a_real_file(tmp_path: Path, shared_data: Path) -> None:
    """The same film in two syntaxes, relabelled as a breast so that it is admitted."""
    read = []
    for name in ("RG3_JPLL", "RG3_J2KR", "RG3_RLE"):
        ds = pydicom.dcmread(shared_data / "dicom/monochrome1" / f"{name}.dcm")
        ds.BodyPartExamined = "BREAST"
        ds.save_as(tmp_path / f"{name}.dcm")
        read.append(read_image(tmp_path / f"{name}.dcm").pixels)
    assert np.array_equal(read[0], read[1])
    assert np.array_equal(read[0], read[2])


def test_jpeg_baseline(tmp_path: Path) -> None:
    import cv2

    pixels = (PIXELS >> 4).astype(np.uint8)
    ds = dicom_mg(pixels, bits_stored=8, window=None)
    ds.file_meta.TransferSyntaxUID = JPEG + "50"
    ds.PixelData = encapsulate([cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes()])
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    image = read_image(tmp_path / "a.dcm")
    assert np.abs(image.pixels // 257 - pixels.astype(int)).max() <= 8


@pytest.mark.parametrize(
    ("syntax", "words"),
    [(JPEG + "51", "12-bit lossy JPEG"), (JPEG + "55", "has no decoder here"), (JPEG + "102", "has no decoder here")],
)
def test_syntaxes_without_decoder_are_named(tmp_path: Path, syntax: str, words: str) -> None:
    ds = dicom_mg(PIXELS)
    ds.file_meta.TransferSyntaxUID = syntax
    ds.PixelData = encapsulate([b"\xff\xd8\xff\xd9"])
    ds.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    with pytest.raises(UnreadableImage, match=words):
        read_image(tmp_path / "a.dcm")


def test_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", PIXELS, transfer_syntax=JPEG + "80")
    monkeypatch.setitem(dicom_decode.DECODERS, JPEG + "80", (("absent", "absent-package"),))
    with pytest.raises(UnreadableImage, match="pip install absent-package"):
        read_image(path)


def test_the_gpl_decoder_is_never_used() -> None:
    for syntax, plugins in dicom_decode.DECODERS.items():
        for plugin, package in plugins:
            assert package != "pylibjpeg-libjpeg"
            # pydicom's "pylibjpeg" plug-in means openjpeg for JPEG 2000, but the GPL package for older JPEG.
            assert plugin != "pylibjpeg" or package == "pylibjpeg-openjpeg"
            assert plugin != "pylibjpeg" or syntax.rpartition(".")[2] in ("90", "91", "201", "202", "203")


@pytest.mark.parametrize("syntax", COMPRESSED.values())
def test_cut_off_streams_are_errors(tmp_path: Path, syntax: str) -> None:
    content = write_dicom_mg(tmp_path / "a.dcm", PIXELS, transfer_syntax=syntax).read_bytes()
    for kept in (0.6, 0.9):
        (tmp_path / "a.dcm").write_bytes(content[: int(len(content) * kept)])
        with pytest.raises(UnreadableImage, match="cut off"):
            read_image(tmp_path / "a.dcm")
    (tmp_path / "a.dcm").write_bytes(content[:-9])
    with pytest.raises(UnreadableImage, match="cut off"):
        read_image(tmp_path / "a.dcm")


@pytest.mark.parametrize("syntax", COMPRESSED.values())
def test_damaged_streams_fail_cleanly_and_the_decoder_lives_on(
    tmp_path: Path, syntax: str, reference: np.ndarray, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_dicom_mg(tmp_path / "a.dcm", PIXELS, transfer_syntax=syntax)
    content = path.read_bytes()
    start = content.index(b"\xe0\x7f\x10\x00") + 40
    generator = np.random.default_rng(3)
    outcomes = set()
    for _ in range(40):
        mutated = bytearray(content)
        for position in generator.integers(start, len(content) - 10, 3):
            mutated[position] = generator.integers(256)
        (tmp_path / "b.dcm").write_bytes(mutated)
        try:
            outcomes.add(type(read_image(tmp_path / "b.dcm")))
        except ImageError as error:
            outcomes.add(type(error))
    assert UnreadableImage in outcomes
    assert outcomes <= {UnreadableImage, Mammogram}
    assert np.array_equal(read_image(path).pixels, reference)
    assert capfd.readouterr().err == ""


def test_codestream_of_another_size_than_the_header(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage):
        read_image(_with_rows(tmp_path / "a.dcm", 64))


def _with_rows(path: Path, rows: int) -> Path:
    """Write a JPEG 2000 object whose header states other rows than its codestream."""
    ds = dicom_mg(PIXELS)
    ds.compress(JPEG + "90", generate_instance_uid=False)
    ds.Rows = rows
    ds.save_as(path, enforce_file_format=True)
    return path


def test_uncompressed_files_start_no_decoder_process(tmp_path: Path) -> None:
    isolation.shut_down()
    read_image(write_dicom_mg(tmp_path / "a.dcm", PIXELS))
    assert isolation.child_pid() is None


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is read from /proc")
@pytest.mark.parametrize("syntax", ["1.2.840.10008.1.2.1", "1.2.840.10008.1.2.5"])
def test_memory_of_a_full_size_mammogram(tmp_path: Path, syntax: str) -> None:
    """28 MB stored and 28 MB of pixels, plus little: no floating-point or 8-byte copy of the picture."""
    big = np.tile(make_phantom(1, 583, 383).pixels, (8, 8))[:4664, :3064]
    path = write_dicom_mg(
        tmp_path / "big.dcm", big, transfer_syntax=syntax, window=None, overrides={"PresentationLUTShape": None}
    )
    small = write_dicom_mg(tmp_path / "small.dcm", PIXELS, transfer_syntax=syntax)
    code = (
        # Not ru_maxrss: across exec it keeps the peak of the process that forked, here pytest's.
        "from pathlib import Path; from mammo_runtime.readers import read_image\n"
        "peak = lambda: int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) // 1024\n"
        f"read_image(Path({str(small)!r})); before = peak(); read_image(Path({str(path)!r})); print(peak() - before)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    grown_mib = int(subprocess.check_output([sys.executable, "-c", code], text=True, env=environment))
    assert 40 <= grown_mib <= 85
