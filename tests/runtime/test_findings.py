from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mammo_runtime.findings import components, find_findings, keep_touching, remove_small
from mammo_runtime.mammogram import Box

ROWS, COLUMNS = 200, 160


def ellipse(x: float, y: float, a: float, b: float, angle_deg: float = 0) -> np.ndarray:
    """Return the pixels whose centre lies within an ellipse with half axes a (along `angle_deg`) and b."""
    ys, xs = np.mgrid[:ROWS, :COLUMNS]
    angle = np.deg2rad(angle_deg)
    u = (xs - x) * np.cos(angle) + (ys - y) * np.sin(angle)
    v = (ys - y) * np.cos(angle) - (xs - x) * np.sin(angle)
    return (u / a) ** 2 + (v / b) ** 2 <= 1


def flat(mask: np.ndarray, value: float = 0.8) -> np.ndarray:
    return (mask * np.float32(value)).astype(np.float32)


@pytest.mark.parametrize("angle", [0, 30, 90, 135])
@pytest.mark.parametrize(("a", "b"), [(30, 30), (40, 20), (25, 12)])
def test_an_ellipse_is_measured(a: float, b: float, angle: float) -> None:
    mask = ellipse(80, 100, a, b, angle)
    (found,) = find_findings(mask, flat(mask), (0.1, 0.1))
    assert found.area_px == mask.sum()
    assert found.area_mm2 == pytest.approx(mask.sum() * 0.01)
    assert (found.centroid_x, found.centroid_y) == pytest.approx((80, 100), abs=1e-9)
    # The smallest rectangle round the pixels' full squares: up to a pixel and a half longer than the curve.
    assert found.long_axis_px == pytest.approx(2 * a, abs=2)
    assert found.short_axis_px == pytest.approx(2 * b, abs=2)
    assert found.long_axis_mm == pytest.approx(found.long_axis_px * 0.1)
    assert found.mean_probability == pytest.approx(0.8)
    assert found.mean_probability <= found.peak_probability


def test_unequal_spacing_is_measured_along_each_axis() -> None:
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[50:70, 40:50] = True
    (found,) = find_findings(mask, flat(mask), (0.1, 0.5))
    assert found.area_mm2 == pytest.approx(20 * 0.1 * 10 * 0.5)
    assert (found.long_axis_px, found.short_axis_px) == pytest.approx((20, 10))
    assert (found.long_axis_mm, found.short_axis_mm) == pytest.approx((5, 2)), "columns are the long side in mm"


def test_without_spacing_there_are_no_millimetres() -> None:
    mask = ellipse(80, 100, 20, 10)
    (found,) = find_findings(mask, flat(mask), None)
    assert found.area_mm2 is None
    assert found.long_axis_mm is None
    assert found.short_axis_mm is None


def test_one_pixel_is_one_pixel() -> None:
    mask = np.zeros((ROWS, COLUMNS), bool)
    mask[ROWS - 1, COLUMNS - 1] = True
    (found,) = find_findings(mask, flat(mask), (0.2, 0.2))
    assert (found.area_px, found.long_axis_px, found.short_axis_px) == pytest.approx((1, 1, 1))
    assert found.contour == ((COLUMNS - 1, ROWS - 1),)
    assert found.bounding_box == Box(COLUMNS - 1, ROWS - 1, 1, 1)


def test_the_surest_comes_first_and_the_larger_of_equals() -> None:
    small, large, sure = ellipse(30, 30, 8, 8), ellipse(110, 60, 20, 20), ellipse(60, 150, 10, 10)
    probability = flat(small | large, 0.6) + flat(sure, 0.9)
    found = find_findings(small | large | sure, probability, None)
    assert [f.number for f in found] == [1, 2, 3]
    assert [(round(f.centroid_x), round(f.centroid_y)) for f in found] == [(60, 150), (110, 60), (30, 30)]


def test_the_mean_is_of_the_component_alone() -> None:
    mask = np.zeros((20, 20), bool)
    mask[2:4, 2:4] = mask[3:8, 6] = True
    probability = np.full((20, 20), 0.4, np.float32)
    probability[2, 2] = 0.9
    found = find_findings(mask, probability, None)
    assert found[0].mean_probability == pytest.approx((0.9 + 3 * 0.4) / 4)
    assert found[0].peak_probability == pytest.approx(0.9)


def test_corners_connect() -> None:
    mask = np.eye(10, dtype=bool)
    assert components(mask)[0] == 1
    assert find_findings(mask, flat(mask), None)[0].area_px == 10


def test_a_ring_inside_a_ring_is_two_findings() -> None:
    mask = (ellipse(80, 100, 50, 50) & ~ellipse(80, 100, 40, 40)) | ellipse(80, 100, 20, 20)
    areas = sorted(f.area_px for f in find_findings(mask, flat(mask), None))
    assert areas == sorted((int(ellipse(80, 100, 20, 20).sum()), int(mask.sum()) - int(ellipse(80, 100, 20, 20).sum())))


@settings(max_examples=60, deadline=None)
@given(arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24))))
def test_any_mask_is_accounted_for(mask: np.ndarray) -> None:
    found = find_findings(mask, flat(mask), (0.3, 0.2))
    assert sum(f.area_px for f in found) == mask.sum()
    assert [f.number for f in found] == list(range(1, len(found) + 1))
    drawn = np.zeros(mask.shape, np.uint8)
    for f in found:
        corners = np.array(f.contour)
        assert (corners >= 0).all()
        assert (corners < mask.shape[::-1]).all()
        assert corners.min(axis=0).tolist() == [f.bounding_box.x, f.bounding_box.y]
        assert np.ptp(corners, axis=0).tolist() == [f.bounding_box.width - 1, f.bounding_box.height - 1]
        assert f.long_axis_px >= f.short_axis_px > 0
        cv2.drawContours(drawn, [corners.reshape(-1, 1, 2)], -1, 1, cv2.FILLED)
    assert drawn.astype(bool)[mask].all(), "the filled contours cover the mask"


def test_remove_small_keeps_exactly_the_limit() -> None:
    mask = np.zeros((20, 20), bool)
    mask[1, 1:5] = mask[5, 1:6] = True
    assert remove_small(mask, 5).sum() == 5
    assert remove_small(mask, 5.5).sum() == 0
    assert np.array_equal(remove_small(mask, 0), mask)
    assert remove_small(np.zeros((5, 5), bool), 0).sum() == 0


@pytest.mark.parametrize(
    ("box", "kept"),
    [
        (Box(0, 0, 3, 3), 4), (Box(2.5, 2.5, 0.2, 0.2), 4), (Box(4, 0, 3, 20), 0), (Box(0, 0, 20, 20), 13),
        (Box(-50, -50, 52, 52), 4), (Box(-50, -50, 20, 20), 0), (Box(100, 100, 5, 5), 0), (Box(9, 9, 1, 1), 9),
    ],
)  # fmt: skip
def test_only_what_shares_a_pixel_with_the_box_stays(box: Box, kept: int) -> None:
    mask = np.zeros((20, 20), bool)
    mask[1:3, 1:3] = mask[8:11, 8:11] = True
    assert keep_touching(mask, box).sum() == kept


def test_an_empty_mask_has_nothing_to_find() -> None:
    empty = np.zeros((30, 20), bool)
    assert find_findings(empty, flat(empty), None) == ()
    assert not remove_small(empty, 5).any()
    assert not keep_touching(empty, Box(0, 0, 5, 5)).any()
