"""Masks, probability maps, overlays and thumbnails: every pixel value that a reader may rely on."""

from __future__ import annotations

import tracemalloc
from dataclasses import replace

import cv2
import numpy as np
import pytest

from mammo_runtime.findings import find_findings
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.result import Result
from mammo_runtime.spec import Task
from mammo_runtime.writers.pictures import (
    BOX_RGB,
    CONTOUR_RGB,
    mask_png,
    overlay_picture,
    picture_png,
    probability_png,
    thumbnail_jpeg,
)


def mammogram(pixels: np.ndarray, white: int = 255) -> Mammogram:
    return Mammogram(pixels, white, "test", "0" * 64)


def segmentation(mask: np.ndarray, prompt_box: int | None = None) -> Result:
    probability = mask.astype(np.float32) * np.float32(0.9)
    found = find_findings(mask, probability, None, prompt_box)
    return Result(Task.SEGMENTATION, probability, mask, findings=found, threshold=0.5, min_area_px=0.0)


def rectangle(rows: int, columns: int, top: int, left: int, height: int, width: int) -> np.ndarray:
    mask = np.zeros((rows, columns), bool)
    mask[top : top + height, left : left + width] = True
    return mask


def decoded(content: bytes) -> np.ndarray:
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture is not None
    return np.asarray(picture)


def rgb(content: bytes) -> np.ndarray:
    return np.asarray(cv2.cvtColor(decoded(content), cv2.COLOR_BGR2RGB))


def has_colour(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return bool [rows, columns]; smoothed lines come near the colour without meeting it."""
    return np.asarray((np.abs(picture.astype(int) - colour) <= 40).all(axis=2))


def test_mask_png_is_8_bit_0_or_255() -> None:
    mask = rectangle(30, 50, 5, 7, 10, 20)
    picture = decoded(mask_png(mask))
    assert picture.dtype == np.uint8
    assert picture.shape == (30, 50)
    assert np.array_equal(picture, np.where(mask, 255, 0))


def test_mask_png_takes_views_and_refuses_other_types() -> None:
    mask = rectangle(40, 60, 0, 0, 20, 20)[::2, ::2]
    assert np.array_equal(decoded(mask_png(mask)) > 0, mask)
    with pytest.raises(TypeError, match="bool"):
        mask_png(mask.astype(np.uint8))


def test_probability_png_is_16_bit_where_65535_is_1() -> None:
    probability = np.linspace(0, 1, 300 * 7, dtype=np.float32).reshape(300, 7)
    picture = decoded(probability_png(probability))
    assert picture.dtype == np.uint16
    assert picture.shape == (300, 7)
    assert picture[0, 0] == 0
    assert picture[-1, -1] == 65535
    assert np.abs(picture / 65535.0 - probability).max() <= 0.5 / 65535 + 1e-7


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -0.1, 1.1])
def test_probability_png_refuses_what_is_no_probability(wrong: float) -> None:
    with pytest.raises(ValueError, match="finite and within"):
        probability_png(np.full((4, 4), wrong, np.float32))


@pytest.mark.parametrize(
    ("dtype", "white", "value", "grey"),
    [
        (np.uint8, 255, 100, 100),
        (np.uint16, 4095, 2048, 128),
        (np.uint16, 65535, 65535, 255),
        (np.uint8, 200, 100, 128),
    ],
)
def test_tint_is_sixty_per_cent_picture_and_forty_per_cent_red(dtype: type, white: int, value: int, grey: int) -> None:
    mask = rectangle(300, 400, 60, 80, 150, 200)
    picture = overlay_picture(mammogram(np.full((300, 400), value, dtype), white), segmentation(mask))
    assert picture.dtype == np.uint8
    assert picture.shape == (300, 400, 3)
    assert tuple(picture[130, 180]) == (round(0.6 * grey + 0.4 * 255), round(0.6 * grey), round(0.6 * grey))
    assert tuple(picture[290, 10]) == (grey, grey, grey)


def test_overlapping_windows_are_tinted_once() -> None:
    mask = rectangle(200, 200, 50, 50, 80, 80)
    whole = segmentation(mask)
    twice = replace(whole, findings=whole.findings * 2)
    assert tuple(overlay_picture(mammogram(np.full((200, 200), 100, np.uint8)), twice)[90, 90]) == (162, 60, 60)


def test_contour_runs_along_the_edge_and_leaves_the_inside_clear() -> None:
    mask = rectangle(400, 400, 100, 120, 150, 160)
    picture = overlay_picture(mammogram(np.full((400, 400), 90, np.uint8)), segmentation(mask))
    contour = has_colour(picture, CONTOUR_RGB)
    assert contour[100, 130:270].all()
    assert contour[110:240, 120].all()
    assert not contour[110:240, 130:270].any()


def test_contour_width_grows_with_the_picture() -> None:
    widths = []
    for side in (500, 4000):
        mask = rectangle(side, side, side // 4, side // 4, side // 2, side // 2)
        picture = overlay_picture(mammogram(np.zeros((side, side), np.uint8)), segmentation(mask))
        widths.append(int(has_colour(picture[: side // 2], CONTOUR_RGB)[:, side // 2].sum()))
    assert widths[0] in (1, 2)
    assert 5 <= widths[1] <= 9


@pytest.mark.parametrize("top", [0, 170])
@pytest.mark.parametrize("left", [0, 170])
def test_number_stays_inside_the_picture_with_a_dark_outline(top: int, left: int) -> None:
    mask = rectangle(200, 200, top, left, 30, 30)
    picture = overlay_picture(mammogram(np.full((200, 200), 255, np.uint8)), segmentation(mask))
    outside = np.ones((200, 200), bool)
    outside[max(0, top - 3) : top + 33, max(0, left - 3) : left + 33] = False
    assert (has_colour(picture, CONTOUR_RGB) & outside).sum() > 8
    assert (has_colour(picture, (0, 0, 0)) & outside).sum() > 8


def test_numbers_of_neighbours_do_not_cover_each_other() -> None:
    mask = rectangle(900, 900, 300, 300, 12, 12) | rectangle(900, 900, 316, 300, 12, 12)
    picture = overlay_picture(mammogram(np.full((900, 900), 255, np.uint8)), segmentation(mask))
    dark = cv2.dilate(has_colour(picture, (0, 0, 0)).astype(np.uint8), np.ones((3, 3), np.uint8))
    blocks = cv2.connectedComponentsWithStats(dark)[2][1:]
    assert (blocks[:, cv2.CC_STAT_HEIGHT] > 25).sum() == 2
    assert (blocks[:, cv2.CC_STAT_HEIGHT] < 60).all()


def test_prompt_boxes_are_dashed_and_cut_to_the_picture() -> None:
    boxes = [Box(50, 40, 100, 80), Box(-20, 150, 500, 400)]
    picture = overlay_picture(
        mammogram(np.zeros((200, 240), np.uint8)), segmentation(np.zeros((200, 240), bool)), boxes
    )
    edge = has_colour(picture, BOX_RGB)[40, 50:151]
    assert 0.3 < edge.mean() < 0.8
    assert not has_colour(picture, BOX_RGB)[60:110, 70:130].any()


def test_an_image_without_findings_is_the_plain_picture_and_the_input_stays_untouched() -> None:
    pixels = np.arange(60 * 70, dtype=np.uint16).reshape(60, 70)
    picture = overlay_picture(mammogram(pixels, 4200), segmentation(np.zeros((60, 70), bool)))
    assert np.array_equal(picture[..., 0], picture[..., 2])
    grey = np.full((60, 70), 50, np.uint8)
    overlay_picture(mammogram(grey), segmentation(rectangle(60, 70, 20, 20, 20, 20)))
    assert (grey == 50).all()


def test_colour_pictures_keep_their_colour() -> None:
    pixels = np.zeros((100, 100, 3), np.uint8)
    pixels[...] = (200, 120, 40)
    picture = overlay_picture(mammogram(pixels), segmentation(rectangle(100, 100, 30, 30, 40, 40)))
    assert tuple(picture[95, 5]) == (200, 120, 40)
    assert tuple(picture[50, 50]) == (222, 72, 24)


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (14, 9)])
def test_tiny_pictures_do_not_fail(shape: tuple[int, int]) -> None:
    mask = np.ones(shape, bool)
    assert overlay_picture(mammogram(np.zeros(shape, np.uint8)), segmentation(mask)).shape == (*shape, 3)


def test_a_mask_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="mask"):
        overlay_picture(mammogram(np.zeros((10, 10), np.uint8)), segmentation(np.zeros((10, 11), bool)))


def test_picture_png_holds_the_overlay_in_rgb_order() -> None:
    image, found = mammogram(np.full((90, 80), 60, np.uint8)), segmentation(rectangle(90, 80, 20, 20, 30, 30))
    picture = overlay_picture(image, found)
    before = picture.copy()
    assert np.array_equal(rgb(picture_png(picture)), before)
    assert np.array_equal(picture, before), "channels swapped in place are swapped back"


def test_thumbnail_is_a_small_jpeg_that_keeps_the_shape_and_the_red() -> None:
    mask = rectangle(1400, 700, 300, 200, 400, 300)
    picture = overlay_picture(mammogram(np.full((1400, 700), 100, np.uint8)), segmentation(mask))
    content = thumbnail_jpeg(picture)
    small = rgb(content)
    assert content[:2] == b"\xff\xd8"
    assert small.shape == (560, 280, 3)
    assert len(content) < 40_000
    assert np.abs(small[200, 140].astype(int) - (162, 60, 60)).max() <= 6
    assert rgb(thumbnail_jpeg(picture[:50, :40])).shape == (50, 40, 3)
    assert rgb(thumbnail_jpeg(np.zeros((1, 4000, 3), np.uint8))).shape == (1, 560, 3)


def test_a_detector_image_needs_no_float_copy() -> None:
    image = mammogram(np.full((4664, 3064), 900, np.uint16), 4095)
    found = segmentation(rectangle(4664, 3064, 2000, 1000, 300, 250))
    tracemalloc.start()
    picture = overlay_picture(image, found)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < picture.nbytes * 1.6
