from __future__ import annotations

from dataclasses import replace
from inspect import signature

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from mammo_runtime.cleaning import LIMITS, STEPS
from mammo_runtime.errors import ModelRefused, UnsuitableImage, UnusableBox
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.placement import Placement, Rectangle, cut
from mammo_runtime.preprocess import check_content, normalise, preprocess, roi_window
from mammo_runtime.spec import CleaningStep, InputMode, InputSpec

PLAIN = InputSpec(mean=(0.0,) * 3, std=(1.0,) * 3)
HYPOTHESIS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def mammogram(pixels: np.ndarray, white: int = 255) -> Mammogram:
    return Mammogram(pixels, white, "test", "")


def centroid(weights: np.ndarray) -> np.ndarray:
    """Return (row, column) of the centre of mass."""
    total = weights.sum(dtype=np.float64)
    rows = weights.sum(axis=1, dtype=np.float64) @ np.arange(weights.shape[0])
    columns = weights.sum(axis=0, dtype=np.float64) @ np.arange(weights.shape[1])
    return np.array([rows, columns]) / total


@st.composite
def lesions(draw: st.DrawFn) -> tuple[np.ndarray, tuple[float, float]]:
    """Draw a picture's mask of one ellipse that lies inside, and its half axes in pixels."""
    side = st.one_of(st.integers(9, 60), st.integers(60, 3000))
    rows, columns = draw(side), min(2500, draw(side))
    share, place = st.floats(0.02, 1), st.floats(0, 1)
    half_y, half_x = (max(1.5, draw(share) * (n - 1) / 2) for n in (rows, columns))
    y, x = (half + draw(place) * (n - 1 - 2 * half) for half, n in ((half_y, rows), (half_x, columns)))
    ys, xs = np.ogrid[:rows, :columns]
    mask = ((ys - y) / half_y) ** 2 + ((xs - x) / half_x) ** 2 <= 1
    assume(mask.any())
    return mask, (half_y, half_x)


def placed(mask: np.ndarray, spec: InputSpec, box: Box | None = None) -> Placement:
    # A breast round the lesion, so that keep_breast finds something to crop to.
    pixels = cv2.dilate(mask.astype(np.uint8), np.ones((3, 3), np.uint8)) * np.uint8(120) + mask * np.uint8(100)
    return preprocess(mammogram(pixels), spec, box)[1]


def check_round_trip(mask: np.ndarray, placement: Placement, half_axes: tuple[float, float]) -> None:
    """Check what really holds of a mask's way to the grid and back.

    Covered fractions keep the centre of mass within half a pixel. A mask cut at one half, before or after, keeps it
    within half a pixel, or a fraction of a cell where a cell is larger than that, once it is a few cells wide.
    """
    cells = min(half_axes[0] * placement.scale_y, half_axes[1] * placement.scale_x)
    assume(cells >= 1)
    coarse = max(1.0, 1 / placement.scale_x, 1 / placement.scale_y)
    soft = placement.restore(placement.coverage(mask))
    assert soft.shape == mask.shape
    assert soft.dtype == np.float32
    assert np.abs(centroid(soft) - centroid(mask)).max() <= 0.5
    if cells >= 3:
        assert np.abs(centroid(soft >= 0.5) - centroid(mask)).max() <= max(0.5, 0.15 * coarse)
        hard = placement.restore(placement.to_grid(mask).astype(np.float32)) >= 0.5
        assert np.abs(centroid(hard) - centroid(mask)).max() <= max(0.5, 0.5 * coarse)


@HYPOTHESIS
@given(lesions(), st.sampled_from([(256, 256), (512, 320), (64, 128)]), st.sampled_from([None, 0.0, 0.1]))
def test_round_trip_of_whole_pictures(
    lesion: tuple[np.ndarray, tuple[float, float]], grid: tuple[int, int], margin: float | None
) -> None:
    mask, half_axes = lesion
    steps = (CleaningStep("keep_breast", {"opening_px": 1}),) if margin is not None else ()
    spec = replace(PLAIN, height=grid[0], width=grid[1], cleaning=steps, breast_crop_margin=margin)
    check_round_trip(mask, placed(mask, spec), half_axes)


@HYPOTHESIS
@given(lesions(), st.floats(-0.4, 0.4), st.floats(-0.4, 0.4), st.floats(0.25, 1.0))
def test_round_trip_of_boxes_also_partly_outside(
    lesion: tuple[np.ndarray, tuple[float, float]], move_y: float, move_x: float, margin: float
) -> None:
    mask, (half_y, half_x) = lesion
    y, x = centroid(mask)
    # Moved by up to 0.4 half axes; a margin of 0.25 on each side still holds the whole lesion.
    box = Box(x + half_x * (move_x - 1) - 1, y + half_y * (move_y - 1) - 1, 2 * half_x + 3, 2 * half_y + 3)
    placement = placed(mask, replace(PLAIN, mode=InputMode.ROI, roi_margin=margin), box)
    window = placement.window
    ys, xs = np.nonzero(mask)
    assert window.top <= ys.min()
    assert ys.max() < window.top + window.rows
    assert window.left <= xs.min()
    assert xs.max() < window.left + window.columns
    # Within a cell of the picture's edge, what the grid spreads beyond it is cut off.
    reach = 2 * max(1 / placement.scale_x, 1 / placement.scale_y)
    assume(min(ys.min(), xs.min(), mask.shape[0] - 1 - ys.max(), mask.shape[1] - 1 - xs.max()) >= reach)
    check_round_trip(mask, placement, (half_y, half_x))


@HYPOTHESIS
@given(lesions(), st.sampled_from([(256, 256), (512, 320)]))
@example((np.ones((9, 9), bool), (5, 5)), (256, 256))
@example((np.ones((3000, 9), bool), (1500, 5)), (256, 256))
def test_a_picture_and_its_mask_land_on_the_same_cells(
    lesion: tuple[np.ndarray, tuple[float, float]], grid: tuple[int, int]
) -> None:
    mask, _ = lesion
    spec = replace(PLAIN, height=grid[0], width=grid[1])
    tensor, placement, _ = preprocess(mammogram(mask * np.uint8(255)), spec)
    # A grey value is rounded to 1/255 on the way, twice.
    assert np.abs(tensor[0, 0] - placement.coverage(mask)).max() <= 2.5 / 255
    assert np.array_equal(placement.to_grid(mask), placement.coverage(mask) >= 0.5)


def test_the_breast_crop_takes_picture_and_mask_alike() -> None:
    pixels = np.zeros((600, 500), np.uint8)
    cv2.ellipse(pixels, (0, 300), (300, 200), 0, 0, 360, 100, -1)
    mask = np.zeros(pixels.shape, np.uint8)
    cv2.circle(mask, (150, 330), 40, 1, -1)
    pixels[mask > 0] = 250
    spec = replace(PLAIN, cleaning=(CleaningStep("keep_breast"),), breast_crop_margin=0.05)
    tensor, placement, _ = preprocess(mammogram(pixels), spec)
    assert placement.crop != Rectangle(0, 0, placement.working_rows, placement.working_columns)
    bright, grid = tensor[0, 0] > 175 / 255, placement.to_grid(mask.astype(bool))
    assert (bright ^ grid).sum() <= 0.02 * grid.sum()
    outside = placement.restore(np.ones((256, 256), np.float32)) == 0
    assert outside[:, 400:].all(), "the map is zero where the model did not look"


def test_coverage_never_drifts() -> None:
    """A systematic shift of a hundredth of a cell would show in the mean over many places."""
    shifts = []
    for k in range(25):
        mask = np.zeros((1000, 800), np.uint8)
        cv2.circle(mask, (300 + 7 * k, 420 + 5 * k), 60, 1, -1)
        placement = placed(mask.astype(bool), PLAIN)
        shifts.append(centroid(placement.restore(placement.coverage(mask.astype(bool)))) - centroid(mask))
    assert np.abs(np.mean(shifts, axis=0)).max() < 0.01


@pytest.mark.parametrize(
    ("dtype", "white"), [(np.uint8, 255), (np.uint16, 4095), (np.uint16, 65535), (np.uint16, 1023)]
)
def test_white_is_one_whatever_the_bit_depth(dtype: type, white: int) -> None:
    pixels = np.zeros((256, 256), dtype)
    pixels[:128] = white
    tensor, _, _ = preprocess(mammogram(pixels, white), PLAIN)
    assert tensor.dtype == np.float32
    assert tensor.shape == (1, 3, 256, 256)
    assert (tensor[:, :, :128] == 1).all()
    assert (tensor[:, :, 128:] == 0).all()


def test_normalisation_is_exact_and_per_channel() -> None:
    spec = replace(PLAIN, mean=(0.1, 0.2, 0.3), std=(0.5, 0.25, 2.0))
    grid = np.random.default_rng(0).random((256, 256), np.float32)
    tensor = normalise(grid, spec)
    for k, (mean, std) in enumerate(zip(spec.mean, spec.std)):
        assert np.array_equal(tensor[0, k], (grid - np.float32(mean)) / np.float32(std))
    assert tensor.flags.c_contiguous


def test_padding_is_black_before_normalisation() -> None:
    tensor, placement, _ = preprocess(mammogram(np.full((300, 100), 255, np.uint8)), InputSpec())
    padding = np.ones((256, 256), bool)
    padding[placement.inner.slices] = False
    assert (tensor[0, :, padding] == -1).all()
    assert (tensor[0, :, ~padding] == 1).all()
    assert placement.inner.columns == pytest.approx(85, abs=1)


def test_the_source_picture_stays_as_it_is() -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (300, 200)).astype(np.uint8)
    before = pixels.copy()
    spec = replace(PLAIN, cleaning=tuple(CleaningStep(n) for n in ("mask_border", "keep_breast", "gamma", "stretch")))
    preprocess(mammogram(pixels), spec)
    preprocess(mammogram(pixels), replace(spec, mode=InputMode.ROI), Box(10, 10, 50, 50))
    assert np.array_equal(pixels, before)


def test_cutting_inside_the_picture_copies_nothing() -> None:
    pixels = np.zeros((100, 80), np.uint16)
    assert np.shares_memory(cut(pixels, Rectangle(10, 20, 30, 40)), pixels)
    assert np.shares_memory(cut(pixels, Rectangle(0, 0, 100, 80)), pixels)


def test_a_window_beyond_the_picture_is_black_there() -> None:
    found = cut(np.full((10, 10), 9, np.uint8), Rectangle(-2, 5, 6, 8))
    assert found.shape == (6, 8)
    assert found[2:, :5].min() == 9
    assert found.sum() == 9 * 20


@pytest.mark.parametrize("box", [Box(100, 0, 5, 5), Box(0, 50, 5, 5), Box(-5, 0, 5, 5), Box(0, -9, 5, 9)])
def test_a_box_outside_the_picture_is_refused(box: Box) -> None:
    with pytest.raises(UnusableBox, match="outside"):
        roi_window(box, 0.5, 50, 100)


def test_a_box_of_another_picture_is_refused_before_memory_is_asked_for() -> None:
    with pytest.raises(UnusableBox, match="larger than the picture"):
        preprocess(mammogram(np.zeros((50, 100), np.uint8)), replace(PLAIN, mode=InputMode.ROI), Box(0, 0, 1e6, 1e6))


def test_a_window_far_larger_than_the_picture_restores_the_picture_only() -> None:
    spec = replace(PLAIN, mode=InputMode.ROI, working_side_px=128)
    placement = placed(np.ones((60, 50), bool), spec, Box(-20, -30, 100, 110))
    grid = np.random.default_rng(0).random((256, 256), np.float32)
    part, values = placement.restore_part(grid)
    assert (part, values.shape) == (Rectangle(0, 0, 60, 50), (60, 50))
    working = cv2.resize(grid, (128, 128), interpolation=cv2.INTER_AREA)
    window = cv2.resize(working, (220, 220), interpolation=cv2.INTER_LINEAR)
    top, left = -placement.window.top, -placement.window.left
    assert np.abs(values - window[top : top + 60, left : left + 50]).max() < 1e-5


def test_a_tiny_box_gets_eight_pixels() -> None:
    assert roi_window(Box(20, 20, 0.5, 0.5), 0.5, 100, 100) == Rectangle(16, 16, 8, 8)


@pytest.mark.parametrize("numbers", [(0, 0, 0, 5), (0, 0, 5, -1), (float("nan"), 0, 5, 5), (0, float("inf"), 5, 5)])
def test_a_box_needs_real_numbers(numbers: tuple[float, float, float, float]) -> None:
    with pytest.raises(ValueError, match="box"):
        Box(*numbers)


def test_mode_and_box_must_fit() -> None:
    picture = mammogram(np.zeros((50, 50), np.uint8))
    with pytest.raises(ModelRefused, match="no boxes"):
        preprocess(picture, PLAIN, Box(0, 0, 5, 5))
    with pytest.raises(ModelRefused, match="--boxes"):
        preprocess(picture, replace(PLAIN, mode=InputMode.ROI))


@pytest.mark.parametrize(
    "step", [CleaningStep("sharpen"), CleaningStep("gamma", {"power": 2}), CleaningStep("gamma", {"state": 1})]
)
def test_an_unknown_step_or_parameter_is_refused(step: CleaningStep) -> None:
    with pytest.raises(ModelRefused, match=step.name):
        preprocess(mammogram(np.zeros((50, 50), np.uint8)), replace(PLAIN, cleaning=(step,)))


def test_a_colour_picture_is_read_as_grey() -> None:
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[..., 1] = 255
    tensor, _, _ = preprocess(mammogram(pixels), PLAIN)
    assert tensor.mean() == pytest.approx(0.587, abs=0.003)


def test_what_shows_nothing_is_refused() -> None:
    pixels = np.zeros((60, 60), np.uint8)
    with pytest.raises(UnsuitableImage, match="same grey value"):
        check_content(Mammogram(pixels, 255, "", ""), None)
    pixels[10:20, 10:20] = 90
    image = Mammogram(pixels, 255, "", "")
    check_content(image, None)
    check_content(image, [Box(12, 12, 30, 30)])
    with pytest.raises(UnusableBox, match=r"the box 40,40,8,8 shows nothing but black"):
        check_content(image, [Box(12, 12, 4, 4), Box(40, 40, 8, 8)])


@pytest.mark.parametrize(
    "step",
    [CleaningStep("clahe", {"tiles": 0}), CleaningStep("keep_breast", {"opening_px": 2000}),
     CleaningStep("mask_border", {"width_px": 300})],
)  # fmt: skip
def test_parameters_that_crash_or_blind_are_refused(step: CleaningStep) -> None:
    with pytest.raises(ModelRefused, match="not from"):
        preprocess(mammogram(np.eye(64, dtype=np.uint8)), replace(PLAIN, cleaning=(step,)))


def test_every_parameter_of_every_step_has_limits() -> None:
    parameters = {name for step in STEPS.values() for name in list(signature(step).parameters)[1:]}
    assert parameters == set(LIMITS)


def test_boxes_in_fractions_of_the_picture_are_refused() -> None:
    pixels = np.arange(48 * 48, dtype=np.uint16).reshape(48, 48)
    with pytest.raises(UnusableBox, match="smaller than a pixel"):
        check_content(Mammogram(pixels, 4095, "", ""), [Box(0.3, 0.4, 0.2, 0.1)])
