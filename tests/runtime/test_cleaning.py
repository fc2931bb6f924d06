from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from mammo_runtime.cleaning import (
    MAX_PAINTED_FRACTION,
    STEPS,
    CleaningState,
    clahe,
    gamma,
    keep_breast,
    mask_border,
    remove_vertical_lines,
    stretch,
)

ROWS, COLUMNS = 400, 300


def breast_mask() -> np.ndarray:
    drawn = np.zeros((ROWS, COLUMNS), np.uint8)
    cv2.ellipse(drawn, (0, ROWS // 2), (170, 150), 0, 0, 360, 1, -1)
    return drawn.astype(bool)


def film(background: float = 0.0, label: bool = False) -> np.ndarray:
    """Return a film with a breast at the left edge, with a dark hole in it and, if wanted, a label at the top right."""
    rng = np.random.default_rng(1)
    pixels = np.full((ROWS, COLUMNS), background, np.float32)
    pixels[breast_mask()] = 0.5
    cv2.circle(pixels, (60, 200), 20, 0.02, -1)
    pixels += rng.normal(0, 0.004, pixels.shape).astype(np.float32)
    if label:
        pixels[20:60, 230:280] = 0.95
    return np.clip(pixels, 0, 1)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
def test_a_step_neither_changes_its_input_nor_depends_on_the_call(step: Callable[..., CleaningState]) -> None:
    pixels = film(label=True)
    pixels[:, 290:292] = 1
    before = pixels.copy()
    first, second = step(CleaningState(pixels)), step(CleaningState(pixels))
    assert np.array_equal(pixels, before)
    assert np.array_equal(first.pixels, second.pixels)
    assert first.pixels.dtype == np.float32
    assert first.pixels.shape == pixels.shape
    assert 0 <= first.pixels.min() <= first.pixels.max() <= 1


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS.keys())
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (1024, 1), (9, 9)])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_step_survives_degenerate_pictures(
    step: Callable[..., CleaningState], shape: tuple[int, int], value: float
) -> None:
    found = step(CleaningState(np.full(shape, value, np.float32)))
    assert found.pixels.shape == shape
    assert np.isfinite(found.pixels).all()


@pytest.mark.parametrize("width", [0, 1, 7, 5000])
def test_mask_border_blackens_exactly_the_frame(width: int) -> None:
    cleaned = mask_border(CleaningState(np.ones((40, 30), np.float32)), width_px=width).pixels
    inner = max(0, 40 - 2 * width) * max(0, 30 - 2 * width)
    assert cleaned.sum() == inner
    assert inner == 0 or cleaned[width : 40 - width, width : 30 - width].all()


@pytest.mark.parametrize("background", [0.0, 0.04, 0.1])
def test_keep_breast_fills_the_contour_and_drops_the_label(background: float) -> None:
    state = keep_breast(CleaningState(film(background, label=True)))
    assert state.breast is not None
    assert overlap(state.breast, breast_mask()) > 0.97
    assert state.breast[200, 60], "the dark hole inside the breast belongs to it"
    assert not state.breast[20:60, 230:280].any(), "the film label is not breast"
    assert not state.pixels[~state.breast].any()
    assert np.array_equal(state.pixels[state.breast], film(background, label=True)[state.breast])


def test_keep_breast_opening_frees_a_label_that_touches() -> None:
    pixels = film()
    pixels[100:104, 100:230] = 0.9
    pixels[80:120, 230:280] = 0.95
    opened = keep_breast(CleaningState(pixels), opening_px=15).breast
    closed = keep_breast(CleaningState(pixels), opening_px=1).breast
    assert opened is not None
    assert closed is not None
    assert not opened[80:120, 230:280].any()
    assert closed[80:120, 230:280].any()


def test_keep_breast_threshold_and_blacken() -> None:
    pixels = film(label=True)
    kept = keep_breast(CleaningState(pixels), blacken=0)
    assert kept.breast is not None
    assert np.array_equal(kept.pixels, pixels)
    label_only = keep_breast(CleaningState(pixels), threshold=0.8, opening_px=3).breast
    assert label_only is None or not label_only[breast_mask()].any()


@pytest.mark.parametrize("fill", [0.0, 0.7])
def test_keep_breast_does_not_believe_everything_or_nothing(fill: float) -> None:
    pixels = np.full((200, 200), fill, np.float32)
    state = keep_breast(CleaningState(pixels), threshold=0.3)
    assert state.breast is None
    assert np.array_equal(state.pixels, pixels)
    assert "no breast outline" in state.notes[0]


def wide(picture: np.ndarray) -> np.ndarray:
    """Return a picture with empty film at its right: one line, painted some 8 px wide, stays below the limit of 1 %."""
    return cv2.copyMakeBorder(picture, 0, 0, 0, 1200, cv2.BORDER_CONSTANT, value=0)


def wide_breast() -> np.ndarray:
    return wide(breast_mask().astype(np.uint8)).astype(bool)


def lined(column: int, tilt_px: int = 0) -> np.ndarray:
    pixels = wide(film())
    cv2.line(pixels, (column, 0), (column + tilt_px, ROWS - 1), 0.9, 2)
    return pixels


def test_lines_outside_the_breast_are_painted() -> None:
    state = remove_vertical_lines(CleaningState(lined(250), breast=wide_breast()))
    assert state.pixels[:, 249:252].max() < 0.1
    assert "painted" in state.notes[0]


@pytest.mark.parametrize("column", [20, 80, 150])
def test_lines_are_never_painted_inside_the_breast(column: int) -> None:
    pixels = lined(column)
    state = remove_vertical_lines(CleaningState(pixels, breast=wide_breast()))
    assert "painted" in state.notes[0]
    assert np.array_equal(state.pixels[wide_breast()], pixels[wide_breast()])
    assert not np.array_equal(state.pixels, pixels), "the line's ends above and below the breast go"


def test_without_breast_only_the_edges_are_painted() -> None:
    edge, middle = lined(1485), lined(750)
    assert remove_vertical_lines(CleaningState(edge)).pixels[:, 1485].max() < 0.1
    assert np.array_equal(remove_vertical_lines(CleaningState(middle)).pixels, middle)
    assert np.array_equal(remove_vertical_lines(CleaningState(edge), border_px=0).pixels, edge)


def test_a_tilted_line_stays() -> None:
    pixels = lined(750, tilt_px=60)
    state = remove_vertical_lines(CleaningState(pixels, breast=wide_breast()))
    assert np.array_equal(state.pixels, pixels)
    assert "painted 0.00 %" in state.notes[0]
    steeper = remove_vertical_lines(CleaningState(pixels, breast=wide_breast()), max_tilt_deg=12)
    assert "0.00 %" not in steeper.notes[0], "the line is seen once its tilt is allowed"


def test_too_many_lines_are_refused() -> None:
    pixels = lined(250)
    pixels[:, 300:1400:60] = 0.9
    state = remove_vertical_lines(CleaningState(pixels, breast=wide_breast()))
    assert np.array_equal(state.pixels, pixels)
    assert "not done" in state.notes[0]


@pytest.mark.parametrize("seed", range(6))
def test_line_removal_keeps_its_limit_on_any_picture(seed: int) -> None:
    rng = np.random.default_rng(seed)
    pixels = np.clip(film() + rng.normal(0, 0.05 * seed, (ROWS, COLUMNS)).astype(np.float32), 0, 1)
    for column in rng.integers(0, COLUMNS, seed):
        pixels[:, column] = 1
    state = remove_vertical_lines(CleaningState(pixels, breast=breast_mask()))
    changed = state.pixels != pixels
    assert changed.mean() <= MAX_PAINTED_FRACTION
    assert not changed[breast_mask()].any()


def test_gamma_is_a_power() -> None:
    pixels = np.array([[0, 0.25, 1]], np.float32)
    assert gamma(CleaningState(pixels)).pixels == pytest.approx(np.array([[0, 0.5, 1]]))
    assert gamma(CleaningState(pixels), exponent=2).pixels == pytest.approx(np.array([[0, 0.0625, 1]]))


def test_clahe_raises_local_contrast_up_to_its_limit() -> None:
    rng = np.random.default_rng(2)
    pixels = np.clip(0.5 + rng.normal(0, 0.01, (256, 256)), 0, 1).astype(np.float32)
    gentle, strong = (clahe(CleaningState(pixels), clip_limit=limit).pixels.std() for limit in (1, 8))
    assert pixels.std() < gentle < strong


def test_stretch_maps_the_percentiles_of_the_tissue() -> None:
    pixels = np.zeros((100, 100), np.float32)
    breast = np.zeros((100, 100), bool)
    breast[:, :50] = True
    pixels[:, :50] = np.linspace(0.2, 0.6, 5000, dtype=np.float32).reshape(100, 50)
    found = stretch(CleaningState(pixels, breast=breast), low_percent=10, high_percent=90).pixels
    low, high = np.percentile(pixels[breast], (10, 90))
    assert found == pytest.approx(np.clip((pixels - low) / (high - low), 0, 1), abs=1e-6)
    assert np.mean(found[breast] == 0) == pytest.approx(0.1, abs=0.01)
    assert np.mean(found[breast] == 1) == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("exposure", [0.3, 0.55, 1.8])
def test_stretch_does_not_see_the_exposure(exposure: float) -> None:
    pixels = film()
    scaled = (pixels * np.float32(exposure)).astype(np.float32)
    plain = stretch(CleaningState(pixels, breast=breast_mask())).pixels
    assert stretch(CleaningState(scaled, breast=breast_mask())).pixels == pytest.approx(plain, abs=1e-4)
    both = [keep_breast(CleaningState(p)) for p in (pixels, scaled)]
    assert both[0].breast is not None
    assert both[1].breast is not None
    assert overlap(both[0].breast, both[1].breast) > 0.98


@pytest.mark.parametrize("pixels", [np.zeros((20, 20), np.float32), np.full((20, 20), 0.4, np.float32)])
def test_stretch_of_one_grey_value_is_left_alone(pixels: np.ndarray) -> None:
    state = stretch(CleaningState(pixels))
    assert np.array_equal(state.pixels, pixels)
    assert "not done" in state.notes[0]
