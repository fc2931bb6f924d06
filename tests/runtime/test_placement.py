"""The three fits: where pictures, masks, boxes and labels land on the grid, and the way back."""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from mammo_runtime.errors import UnusableBox
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.placement import Rectangle
from mammo_runtime.preprocess import normalise, prepare, preprocess
from mammo_runtime.spec import CleaningStep, Fit, InputSpec, Scaling

PLAIN = InputSpec(height=64, width=96, mean=(0.0,) * 3, std=(1.0,) * 3)
SIDES = st.one_of(st.integers(9, 90), st.integers(90, 1500))
HYPOTHESIS = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


def mammogram(pixels: np.ndarray, white: int = 255) -> Mammogram:
    return Mammogram(pixels, white, "test", "")


def ramps(rows: int, columns: int) -> np.ndarray:
    """Return uint16 [rows, columns] that grows along both axes, so that every place has a value of its own."""
    y, x = np.mgrid[:rows, :columns]
    return np.asarray(1000 + 20000 * (y + 0.5) / rows + 40000 * (x + 0.5) / columns).astype(np.uint16)


@HYPOTHESIS
@given(SIDES, SIDES, st.sampled_from(list(Fit)), st.data())
def test_a_box_lands_where_its_pixels_land(rows: int, columns: int, fit: Fit, data: st.DataObject) -> None:
    spec = replace(PLAIN, fit=fit)
    top, left = data.draw(st.integers(0, rows - 2)), data.draw(st.integers(0, columns - 2))
    bottom, right = data.draw(st.integers(top + 1, rows)), data.draw(st.integers(left + 1, columns))
    mask = np.zeros((rows, columns), bool)
    mask[top:bottom, left:right] = True
    _, placement, _ = preprocess(mammogram(mask * np.uint8(255)), spec)
    x0, y0, x1, y1 = placement.box_to_grid(Box(left, top, right - left, bottom - top)).tolist()
    coverage = placement.coverage(mask)
    assume(coverage.sum() >= 4)
    area = (x1 - x0) * (y1 - y0)
    assert coverage.sum() == pytest.approx(area, rel=0.05, abs=0.5 * (x1 - x0 + y1 - y0) + 1)
    # A box at the picture's very edge: where a pixel grows to many cells, the outer half of the last one has no slope.
    slack_y = 0.5 + 0.25 * placement.inner.rows / placement.working_rows
    slack_x = 0.5 + 0.25 * placement.inner.columns / placement.working_columns
    ys, xs = np.mgrid[: coverage.shape[0], : coverage.shape[1]] + 0.5
    assert (coverage * xs).sum() / coverage.sum() == pytest.approx((x0 + x1) / 2, abs=slack_x)
    assert (coverage * ys).sum() / coverage.sum() == pytest.approx((y0 + y1) / 2, abs=slack_y)


@HYPOTHESIS
@given(SIDES, SIDES, st.sampled_from(list(Fit)))
def test_a_picture_comes_back_to_its_own_pixels(rows: int, columns: int, fit: Fit) -> None:
    pixels = ramps(rows, columns)
    tensor, placement, _ = preprocess(mammogram(pixels, 65535), replace(PLAIN, fit=fit))
    assume(min(placement.inner.rows, placement.inner.columns) >= 4)
    back = placement.restore(tensor[0, 0])
    assert back.shape == pixels.shape
    away = np.abs(back - pixels / np.float32(65535))
    # How much the ramps change from one pixel, or one cell where those are larger, to the next.
    step = (20000 / min(rows, placement.inner.rows) + 40000 / min(columns, placement.inner.columns)) / 65535
    edge_y, edge_x = (int(np.ceil(1 / scale)) + 1 for scale in (placement.scale_y, placement.scale_x))
    inside = away[edge_y:-edge_y, edge_x:-edge_x]
    assert inside.size == 0 or inside.max() < 0.15 * step + 0.002
    # A cell at the edge has nothing beyond it to interpolate with.
    assert away.max() < 0.7 * step + 0.004


@HYPOTHESIS
@given(SIDES, SIDES, st.sampled_from(list(Fit)))
def test_labels_come_back_to_the_nearest_cell(rows: int, columns: int, fit: Fit) -> None:
    spec = replace(PLAIN, fit=fit, working_side_px=100)
    _, placement, _ = preprocess(mammogram(ramps(rows, columns), 65535), spec)
    inner = placement.inner
    grid = np.full((64, 96), 250, np.uint8)
    grid[inner.slices] = np.add.outer(np.arange(inner.rows) * 3, np.arange(inner.columns)).astype(np.uint8) % 250
    back = placement.restore_labels(grid)
    assert (back.dtype, back.shape) == (np.uint8, (rows, columns))
    assert not (back == 250).any(), "padding never reaches the picture"
    row = ((np.arange(rows) + 0.5) * inner.rows / rows).astype(int)
    column = ((np.arange(columns) + 0.5) * inner.columns / columns).astype(int)
    same = back == grid[inner.slices][np.ix_(row, column)]
    # Where a pixel's centre falls on the border of two cells, rounding decides.
    on_border = (np.isclose((np.arange(rows) + 0.5) * inner.rows / rows % 1, [[0], [1]]).any(axis=0))[:, None] | (
        np.isclose((np.arange(columns) + 0.5) * inner.columns / columns % 1, [[0], [1]]).any(axis=0)
    )[None]
    assert (same | on_border).all()


def test_where_each_fit_lays_a_picture() -> None:
    pixels = np.full((100, 100), 200, np.uint8)
    inner = {fit: preprocess(mammogram(pixels), replace(PLAIN, fit=fit))[1].inner for fit in Fit}
    assert inner == {
        Fit.CENTRE: Rectangle(0, 16, 64, 64), Fit.CORNER: Rectangle(0, 0, 64, 64), Fit.STRETCH: Rectangle(0, 0, 64, 96),
    }  # fmt: skip
    _, stretched, _ = preprocess(mammogram(pixels), replace(PLAIN, fit=Fit.STRETCH))
    assert (stretched.scale_x, stretched.scale_y) == (0.96, 0.64)
    assert stretched.box_to_grid(Box(10, 20, 50, 25)).tolist() == pytest.approx([9.6, 12.8, 57.6, 28.8])
    assert stretched.box_to_grid(Box(0, 0, 1, 1)).dtype == np.float32


def test_corner_padding_is_zero_after_the_statistics_for_trainers_too() -> None:
    spec = replace(PLAIN, fit=Fit.CORNER, mean=(0.4, 0.5, 0.6), std=(0.5, 0.25, 2.0))
    prepared = prepare(mammogram(np.full((100, 100), 255, np.uint8)), spec)
    tensor = prepared.tensor(spec)
    assert (tensor[:, :, :, 64:] == 0).all()
    assert tensor[0, 1, :, :64] == pytest.approx(2, abs=1e-5)
    assert np.array_equal(normalise(prepared.grid, spec, prepared.placement.inside), tensor)
    assert np.array_equal(prepared.valid, prepared.placement.inside)
    assert (normalise(prepared.grid, spec)[0, 1, :, 64:] == -2).all()


def test_min_max_is_of_the_picture_without_its_padding() -> None:
    pixels = np.full((100, 100), 90, np.uint8)
    pixels[20:60, 20:60], pixels[70:90, 10:60] = 40, 140
    tensor, placement, _ = preprocess(mammogram(pixels), replace(PLAIN, scaling=Scaling.MIN_MAX))
    inner = tensor[0, 0][placement.inner.slices]
    assert (inner.min(), inner.max()) == (0, 1)
    assert inner[2, 2] == pytest.approx(0.5, abs=0.01)
    flat, _, _ = preprocess(mammogram(pixels[:10, :10]), replace(PLAIN, scaling=Scaling.MIN_MAX))
    assert (flat == 0).all()


def test_colour_stays_colour_and_grey_fills_three_channels() -> None:
    spec = replace(PLAIN, colour=True, mean=(0.1, 0.2, 0.3))
    pixels = np.zeros((300, 200, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = 51, 102, 255
    prepared = prepare(mammogram(pixels), spec)
    assert prepared.grid.shape == (64, 96, 3)
    tensor = prepared.tensor(spec)
    assert tensor.flags.c_contiguous
    for channel, value in enumerate((0.2, 0.4, 1.0)):
        part = tensor[0, channel][prepared.placement.inner.slices]
        assert part == pytest.approx(np.full(part.shape, value - spec.mean[channel]), abs=1e-6)
    grey = prepare(mammogram(np.full((300, 200), 7000, np.uint16), 65535), spec)
    assert grey.grid.shape == (64, 96, 3)
    assert np.ptp(grey.grid, axis=2).max() == 0


def test_a_stretch_that_shrinks_one_axis_averages_along_it() -> None:
    """Lines thinner than a cell must not vanish or take its place, whatever the other axis does."""
    pixels = np.zeros((640, 20), np.uint8)
    pixels[::10] = 250
    tensor, _, _ = preprocess(mammogram(pixels), replace(PLAIN, fit=Fit.STRETCH))
    assert tensor[0, 0] == pytest.approx(np.full((64, 96), 0.1 * 250 / 255), abs=0.003)


def test_one_channel_models_get_one_channel() -> None:
    spec = replace(PLAIN, channels=1, mean=(0.5,), std=(0.5,))
    assert preprocess(mammogram(np.full((80, 70), 200, np.uint8)), spec)[0].shape == (1, 1, 64, 96)


def test_trainers_get_the_breast_on_the_grid() -> None:
    pixels = np.zeros((300, 200), np.uint8)
    cv2.ellipse(pixels, (0, 150), (120, 110), 0, 0, 360, 120, -1)
    spec = replace(PLAIN, cleaning=(CleaningStep("keep_breast"),), breast_crop_margin=0.1)
    prepared = prepare(mammogram(pixels), spec)
    assert prepared.breast is not None
    tissue = prepared.placement.to_grid(pixels > 0)
    assert (prepared.breast ^ tissue).sum() <= 0.03 * tissue.sum()
    assert np.array_equal(prepared.valid, prepared.breast)
    assert prepare(mammogram(pixels), PLAIN).breast is None


def test_a_box_beyond_the_crop_is_refused_and_one_across_its_edge_is_cut() -> None:
    pixels = np.zeros((300, 300), np.uint8)
    cv2.ellipse(pixels, (0, 150), (120, 110), 0, 0, 360, 120, -1)
    spec = replace(PLAIN, cleaning=(CleaningStep("keep_breast"),), breast_crop_margin=0.0)
    placement = prepare(mammogram(pixels), spec).placement
    with pytest.raises(UnusableBox, match="outside what the model sees"):
        placement.box_to_grid(Box(200, 100, 30, 30))
    cut = placement.box_to_grid(Box(100, 100, 150, 30))
    assert cut[2] == placement.inner.left + placement.inner.columns
