"""Raster pictures through `read_image`."""

from __future__ import annotations

import hashlib
import io
import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from mammo_runtime.errors import ImageError, UnreadableImage, UnsuitableImage
from mammo_runtime.mammogram import Modality
from mammo_runtime.readers import ReadOptions, read_image
from phantoms import make_phantom, write_jpeg, write_pgm, write_png, write_tiff

PHANTOM = make_phantom(3, 96, 80)
EIGHT_BIT = (PHANTOM.pixels >> 4).astype(np.uint8)
WRITERS = {".png": write_png, ".tif": write_tiff, ".pgm": write_pgm}


def colour(pixels: np.ndarray) -> np.ndarray:
    return np.dstack([pixels, pixels, pixels])


def pil_file(path: Path, image: Image.Image, kind: str, **options: object) -> Path:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    path.write_bytes(buffer.getvalue())
    return path


def tiff_file(path: Path, pixels: np.ndarray, photometric: int = 1, orientation: int = 1, kind: int = 1) -> Path:
    """Write an uncompressed little-endian TIFF with chosen tags."""
    content = pixels.tobytes()
    rows, columns = pixels.shape
    bits = 8 * pixels.dtype.itemsize
    entries = [(256, columns), (257, rows), (258, bits), (259, 1), (262, photometric), (273, 8), (274, orientation)]
    entries += [(277, 1), (278, rows), (279, len(content)), (339, kind)]
    directory = b"".join(struct.pack("<HHII", tag, 4 if tag == 279 else 3, 1, value) for tag, value in entries)
    head = b"II*\0" + struct.pack("<I", 8 + len(content))
    path.write_bytes(head + content + struct.pack("<H", len(entries)) + directory + bytes(4))
    return path


@pytest.mark.parametrize("suffix", WRITERS)
def test_12_in_16_bit_keeps_values_and_states_its_white(tmp_path: Path, suffix: str) -> None:
    pixels = PHANTOM.pixels.copy()
    pixels[10, 10] = 4095
    path = WRITERS[suffix](tmp_path / f"a{suffix}", pixels)
    image = read_image(path)
    assert np.array_equal(image.pixels, pixels)
    assert (image.white, image.intensity_rule) == (4095, "12 bits in use of 16 (maximum 4095)")
    assert image.file_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (image.spacing_mm, image.spacing_source) == (None, "none")


@pytest.mark.parametrize(("maximum", "white"), [(200, 255), (256, 1023), (1024, 4095), (4096, 16383), (16384, 65535)])
def test_white_is_the_smallest_depth_that_holds_the_maximum(tmp_path: Path, maximum: int, white: int) -> None:
    image = read_image(write_png(tmp_path / "a.png", np.array([[0, maximum]], np.uint16)))
    assert image.white == white
    assert ("16-bit file whose values fit in 8 bits" in image.notes) == (maximum <= 255)


def test_pgm_maximum_is_honoured(tmp_path: Path) -> None:
    assert read_image(write_pgm(tmp_path / "a.pgm", np.array([[0, 900]], np.uint16), 4095)).white == 4095


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp", ".jpg", ".pgm"])
def test_eight_bit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(cv2.imencode(suffix, EIGHT_BIT)[1].tobytes())
    image = read_image(path)
    assert (image.white, image.intensity_rule, image.pixels.dtype) == (255, "8 bit", np.uint8)
    assert int(np.abs(image.pixels.astype(int) - EIGHT_BIT).max()) <= (12 if suffix == ".jpg" else 0)


@pytest.mark.parametrize("kind", ["P2", "P3"])
def test_ascii_pnm(tmp_path: Path, kind: str) -> None:
    repeat = 3 if kind == "P3" else 1
    values = " ".join(str(v) for v in np.repeat([0, 100, 200, 255], repeat))
    (tmp_path / "a.pnm").write_text(f"{kind}\n2 2\n255\n{values}\n")
    assert read_image(tmp_path / "a.pnm").pixels.tolist() == [[0, 100], [200, 255]]


def test_user_spacing(tmp_path: Path) -> None:
    image = read_image(write_png(tmp_path / "a.png", EIGHT_BIT), ReadOptions(pixel_spacing_mm=0.05))
    assert (image.spacing_mm, image.spacing_source) == ((0.05, 0.05), "user")


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_user_spacing_is_refused(spacing: float) -> None:
    with pytest.raises(ValueError, match="pixel_spacing_mm"):
        ReadOptions(pixel_spacing_mm=spacing)


@pytest.mark.parametrize("writer", [write_png, write_tiff, write_jpeg])
def test_grey_stored_as_colour_is_grey(tmp_path: Path, writer: object) -> None:
    image = read_image(writer(tmp_path / "a", colour(EIGHT_BIT)))  # type: ignore[operator]
    assert image.pixels.ndim == 2
    assert "stored as colour with equal channels: read as grey" in image.notes


def test_true_colour(tmp_path: Path) -> None:
    blue = colour(EIGHT_BIT)
    blue[..., 0] = 255
    path = write_png(tmp_path / "a.png", blue)
    with pytest.raises(UnsuitableImage, match="a colour picture, not a 2D mammogram"):
        read_image(path)
    histology = read_image(path, ReadOptions(modality=Modality.HISTOPATHOLOGY))
    assert np.array_equal(histology.pixels, blue[..., ::-1])
    ultrasound = read_image(path, ReadOptions(modality=Modality.ULTRASOUND))
    assert ultrasound.pixels.ndim == 2
    assert "colour picture converted to grey" in ultrasound.notes


def test_slight_tint_of_a_png_is_colour(tmp_path: Path) -> None:
    tinted = colour(EIGHT_BIT)
    tinted[5, 5, 2] ^= 1
    with pytest.raises(UnsuitableImage):
        read_image(write_png(tmp_path / "a.png", tinted))


def test_alpha(tmp_path: Path) -> None:
    opaque = np.dstack([colour(EIGHT_BIT), np.full_like(EIGHT_BIT, 255)])
    assert "opaque alpha channel dropped" in read_image(write_png(tmp_path / "a.png", opaque)).notes
    opaque[0, 0, 3] = 254
    with pytest.raises(UnreadableImage, match="transparent"):
        read_image(write_png(tmp_path / "b.png", opaque))


def test_grey_alpha_tiff_is_refused_because_its_alpha_cannot_be_judged(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="transparency"):
        read_image(pil_file(tmp_path / "a.tif", Image.fromarray(EIGHT_BIT).convert("LA"), "TIFF"))


def test_palette_png(tmp_path: Path) -> None:
    image = read_image(pil_file(tmp_path / "a.png", Image.fromarray(EIGHT_BIT).convert("P"), "PNG"))
    assert np.array_equal(image.pixels, EIGHT_BIT)


@pytest.mark.parametrize(
    ("kind", "mode", "words"), [("JPEG", "CMYK", "CMYK"), ("TIFF", "CMYK", "CMYK"), ("PNG", "1", "1 bits")]
)
def test_kinds_that_are_not_read(tmp_path: Path, kind: str, mode: str, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        read_image(pil_file(tmp_path / "a", Image.fromarray(EIGHT_BIT).convert(mode), kind))


@pytest.mark.parametrize(("dtype", "kind", "words"), [("<f4", 3, "float"), ("<u4", 1, "32 bits"), ("<i2", 2, "signed")])
def test_tiff_numbers_that_are_not_read(tmp_path: Path, dtype: str, kind: int, words: str) -> None:
    with pytest.raises(UnreadableImage, match=words):
        read_image(tiff_file(tmp_path / "a.tif", np.arange(6).reshape(2, 3).astype(dtype), kind=kind))


def test_multi_page_tiff_gives_its_first_page(tmp_path: Path) -> None:
    first, second = Image.fromarray(EIGHT_BIT), Image.fromarray(255 - EIGHT_BIT)
    image = read_image(pil_file(tmp_path / "a.tif", first, "TIFF", save_all=True, append_images=[second]))
    assert np.array_equal(image.pixels, EIGHT_BIT)
    assert any("only the first" in note for note in image.notes)


def test_exif_rotation_is_not_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 6
    image = read_image(pil_file(tmp_path / "a.jpg", Image.fromarray(EIGHT_BIT), "JPEG", exif=exif))
    assert image.pixels.shape == EIGHT_BIT.shape
    assert any("not turned" in note for note in image.notes)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_tiff_rotation_is_not_applied(tmp_path: Path, dtype: type) -> None:
    pixels = np.arange(6, dtype=dtype).reshape(2, 3)
    image = read_image(tiff_file(tmp_path / "a.tif", pixels, orientation=3))
    assert np.array_equal(image.pixels, pixels)
    assert any("not turned" in note for note in image.notes)


@pytest.mark.parametrize(("dtype", "white"), [(np.uint8, 255), (np.uint16, 4095)])
def test_white_is_zero_is_inverted(tmp_path: Path, dtype: type, white: int) -> None:
    pixels = np.array([[0, 100], [200, white]], dtype)
    image = read_image(tiff_file(tmp_path / "a.tif", pixels, photometric=0))
    assert image.pixels.tolist() == [[white, white - 100], [white - 200, 0]]
    assert "WhiteIsZero: inverted on reading" in image.notes


def test_one_value_is_noted(tmp_path: Path) -> None:
    assert read_image(write_png(tmp_path / "a.png", np.full((9, 9), 7, np.uint8))).notes == (
        "every pixel has the same value (7)",
    )


def test_bombs_are_refused_from_the_header(tmp_path: Path) -> None:
    path = write_png(tmp_path / "a.png", EIGHT_BIT)
    with pytest.raises(UnreadableImage, match="more than the limit of 100 pixels"):
        read_image(path, ReadOptions(max_pixels=100))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".pgm"])
def test_half_a_file_is_an_error(tmp_path: Path, suffix: str) -> None:
    content = cv2.imencode(suffix, EIGHT_BIT)[1].tobytes()
    (tmp_path / f"a{suffix}").write_bytes(content[: len(content) // 2])
    with pytest.raises(UnreadableImage, match="cut off"):
        read_image(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif", ".bmp", ".pgm"])
def test_damaged_bytes_never_escape(tmp_path: Path, suffix: str, capfd: pytest.CaptureFixture[str]) -> None:
    content = cv2.imencode(suffix, EIGHT_BIT)[1].tobytes()
    generator = np.random.default_rng(1)
    path = tmp_path / "a"
    outcomes = []
    for _ in range(60):
        mutated = bytearray(content)
        for position in generator.integers(4, len(content), 4):
            mutated[position] = generator.integers(256)
        path.write_bytes(mutated)
        try:
            outcomes.append(read_image(path, ReadOptions(max_pixels=1_000_000)).rows)
        except ImageError as error:
            outcomes.append(str(error))
    assert len(outcomes) == 60
    assert "Traceback" not in capfd.readouterr().err


def test_real_16_bit_mammograms(shared_data: Path) -> None:
    whites = {read_image(path).white for path in sorted((shared_data / "ffdm_16bit").rglob("*.png"))}
    assert whites == {4095, 65535}


@pytest.mark.parametrize("damage", ["zeroed", "cut"])
def test_a_damaged_deflate_tiff_is_refused(tmp_path: Path, damage: str) -> None:
    """OpenCV returns a picture with garbage rows for such an 8-bit file."""
    rng = np.random.default_rng(3)
    pixels = rng.integers(0, 255, (64, 64), np.uint8)
    parameters = [cv2.IMWRITE_TIFF_COMPRESSION, 8]
    content = bytearray(cv2.imencode(".tif", pixels, parameters)[1].tobytes())
    sound = tmp_path / "sound.tif"
    sound.write_bytes(content)
    assert np.array_equal(read_image(sound).pixels, pixels)
    start = content.index(b"\x78")
    if damage == "zeroed":
        content[start + 200 : start + 400] = bytes(200)
    else:
        content[start : start + 40] = bytes(40)
    broken = tmp_path / "broken.tif"
    broken.write_bytes(content)
    with pytest.raises(UnreadableImage, match="compressed data is damaged"):
        read_image(broken)


def test_compression_without_checksum_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "lzw.tif"
    path.write_bytes(cv2.imencode(".tif", EIGHT_BIT, [cv2.IMWRITE_TIFF_COMPRESSION, 5])[1].tobytes())
    assert any("no checksum" in note for note in read_image(path).notes)
