"""`read_image` itself: formats told by content, and every failure a sentence."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mammo_runtime.errors import ImageError, UnreadableImage, UnsuitableImage
from mammo_runtime.readers import read_image, sniff
from phantoms import make_phantom, write_png

EIGHT_BIT = (make_phantom(3, 96, 80).pixels >> 4).astype(np.uint8)


@pytest.mark.parametrize(
    ("name", "content", "error", "words"),
    [
        ("a.png", b"", UnreadableImage, "the file is empty"),
        ("a.dcm", b"just some text", UnreadableImage, "named .dcm but is not DICOM"),
        ("a.PNG", b"just some text", UnreadableImage, "named .png but is not an image"),
        ("a.txt", b"just some text", UnsuitableImage, "not an image file"),
        ("a.pdf", b"%PDF-1.7 whatever", UnsuitableImage, "not an image file"),
        ("a.zip", b"PK\x03\x04aaaaaaaaa", UnsuitableImage, "not an image file"),
        ("a.txt", b"BMW is a car maker, and this is text", UnsuitableImage, "not an image file"),
        ("a.gif", b"GIF89a" + bytes(40), UnreadableImage, "GIF pictures are not read"),
        ("a", b"\x08\x00\x05\x00CS\x0a\x00ISO_IR 100", UnreadableImage, "no preamble"),
    ],
)
def test_what_is_not_a_picture(tmp_path: Path, name: str, content: bytes, error: type[ImageError], words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=words):
        read_image(tmp_path / name)


def test_folder_and_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="folder"):
        read_image(tmp_path)
    with pytest.raises(UnreadableImage, match="No such file"):
        read_image(tmp_path / "gone.png")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in this file system")
def test_pipe_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(UnreadableImage, match="not a regular file"):
        read_image(tmp_path / "a.png")


def test_content_decides_not_the_name(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.dcm", EIGHT_BIT)
    assert sniff(path) == "PNG"
    assert read_image(path).file_format == "PNG 8 bit"


@pytest.mark.parametrize(
    ("error", "words"), [(MemoryError, "memory"), (RecursionError, "nested"), (BaseException, "damaged")]
)
def test_unexpected_failures_become_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], words: str
) -> None:
    def fail(*_: object) -> None:
        raise error("DOE^JANE 19500101")

    monkeypatch.setattr("mammo_runtime.readers.raster._decode", fail)
    with pytest.raises(UnreadableImage, match=words) as caught:
        read_image(write_png(tmp_path / "a.png", EIGHT_BIT))
    assert "DOE" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_interrupts_pass_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("mammo_runtime.readers.raster._decode", fail)
    with pytest.raises(error):
        read_image(write_png(tmp_path / "a.png", EIGHT_BIT))


def test_importing_the_readers_is_light() -> None:
    code = "import sys, mammo_runtime.readers; print(*sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded = set(subprocess.check_output([sys.executable, "-c", code], text=True, env=environment).split())
    assert not {"pydicom", "cv2", "onnxruntime", "torch"} & loaded
