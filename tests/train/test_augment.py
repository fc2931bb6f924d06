"""Augmentations: shape, range, and a mask that stays on its lesion."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_runtime.mammogram import Box
from mammo_train.augment import augment, augment_planes, jitter_box
from mammo_train.config import AUGMENTATIONS, AugmentConfig

PROBABILITIES = [f.name for f in fields(AugmentConfig) if f.name.endswith("_probability")]
NEVER = replace(AugmentConfig(), **dict.fromkeys(PROBABILITIES, 0.0))
ALWAYS = replace(AugmentConfig(), **dict.fromkeys(PROBABILITIES, 1.0))
GEOMETRY = replace(NEVER, affine_probability=1.0, flip_probability=0.5, rotate90_probability=0.5)


def marked(rows: int = 96, columns: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """Return grey tissue with one white lesion off the centre, and its mask."""
    mask = np.zeros((rows, columns), np.uint8)
    cv2.ellipse(mask, (columns // 3, rows // 2 - 6), (14, 9), 20, 0, 360, 1, -1)
    return np.where(mask, np.float32(1.0), np.float32(0.4)), mask.astype(bool)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), square=st.booleans(), config=st.sampled_from([AugmentConfig(), ALWAYS]))
def test_shape_type_and_range_are_kept(seed: int, square: bool, config: AugmentConfig) -> None:
    grid, mask = marked(96, 96 if square else 64)
    new_grid, new_mask = augment(grid, mask, config, np.random.default_rng(seed))
    assert new_grid.shape == new_mask.shape == grid.shape
    assert (new_grid.dtype, new_mask.dtype) == (np.float32, np.bool_)
    assert new_grid.min() >= 0
    assert new_grid.max() <= 1


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_mask_follows_every_move(seed: int) -> None:
    grid, mask = augment(*marked(), GEOMETRY, np.random.default_rng(seed))
    kernel = np.ones((3, 3), np.uint8)
    inside = cv2.erode(mask.astype(np.uint8), kernel).astype(bool)
    outside = ~cv2.dilate(mask.astype(np.uint8), kernel).astype(bool)
    assert inside.sum() > 100
    assert grid[inside].min() > 0.95
    assert grid[outside].max() < 0.45


def test_same_generator_same_result_other_generator_another() -> None:
    first, again, other = (augment(*marked(), AugmentConfig(), np.random.default_rng(s)) for s in (5, 5, 6))
    assert np.array_equal(first[0], again[0])
    assert np.array_equal(first[1], again[1])
    assert not np.array_equal(first[0], other[0])


def test_the_input_is_not_changed() -> None:
    grid, mask = marked()
    before = grid.copy(), mask.copy()
    augment(grid, mask, ALWAYS, np.random.default_rng(0))
    assert np.array_equal(grid, before[0])
    assert np.array_equal(mask, before[1])


def test_a_flip_is_exact_and_nothing_else_moves() -> None:
    grid, mask = marked()
    flipped = augment(grid, mask, replace(NEVER, flip_probability=1.0), np.random.default_rng(0))
    assert np.array_equal(flipped[0], grid[:, ::-1])
    assert np.array_equal(flipped[1], mask[:, ::-1])


def test_only_square_grids_are_turned() -> None:
    turn = replace(NEVER, rotate90_probability=1.0)
    grid, mask = marked(96, 64)
    assert np.array_equal(augment(grid, mask, turn, np.random.default_rng(0))[0], grid)
    square = marked()[0]
    assert not np.array_equal(augment(square, marked()[1], turn, np.random.default_rng(0))[0], square)


def test_study_003_shows_every_position_about_as_often() -> None:
    for columns, positions in ((6, 8), (4, 4)):
        grid = np.arange(6 * columns, dtype=np.float32).reshape(6, columns) / (6 * columns)
        rng, seen = np.random.default_rng(0), Counter[bytes]()
        for _ in range(400):
            moved, mask = augment(grid, grid > 0.5, AUGMENTATIONS["seed_003"], rng)
            assert np.array_equal(moved > 0.5, mask)
            seen[moved.tobytes()] += 1
        assert len(seen) == positions
        assert min(seen.values()) > 0.5 * 400 / positions


def test_none_changes_nothing() -> None:
    grid, mask = marked()
    same = augment(grid, mask, AUGMENTATIONS["none"], np.random.default_rng(0))
    assert np.array_equal(same[0], grid)
    assert np.array_equal(same[1], mask)
    box = Box(40, 50, 20, 10)
    assert jitter_box(box, AUGMENTATIONS["none"], np.random.default_rng(0)) == box


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_colour_pictures_keep_shape_and_range(name: str) -> None:
    grid, mask = marked()
    colour = np.stack([grid, 0.7 * grid, 0.4 * grid], axis=-1)
    changed = False
    for seed in range(8):
        moved, (same,) = augment_planes(colour, ((mask, 0),), AUGMENTATIONS[name], np.random.default_rng(seed))
        assert (moved.shape, moved.dtype, same.shape) == (colour.shape, np.float32, mask.shape)
        assert 0 <= moved.min() <= moved.max() <= 1
        changed = changed or not np.array_equal(moved, colour)
    assert changed is (name != "none")


def test_colour_jitter_changes_hues_and_leaves_places() -> None:
    grid, mask = marked()
    colour = np.stack([grid, 0.7 * grid, 0.4 * grid], axis=-1)
    jitter = replace(NEVER, colour_probability=1.0, colour_fraction=0.1)
    moved, (same,) = augment_planes(colour, ((mask, 0),), jitter, np.random.default_rng(0))
    assert np.array_equal(same, mask)
    factors = (moved / colour).reshape(-1, 3)
    assert np.allclose(factors[1:], factors[:-1], atol=1e-5) or moved.max() == 1
    assert len(np.unique(factors[0].round(3))) > 1
    grey, _ = augment(grid, mask, jitter, np.random.default_rng(0))
    assert np.array_equal(grey, grid)


def test_planes_get_their_own_values_from_outside() -> None:
    grid, _ = marked()
    labels = np.full(grid.shape, 3, np.uint8)
    shift = replace(NEVER, affine_probability=1.0, shift_fraction=0.3, rotate_deg=0, scale_fraction=0)
    planes = ((labels, 255), (np.ones(grid.shape, bool), 0))
    _, (moved, valid) = augment_planes(grid, planes, shift, np.random.default_rng(2))
    assert (moved.dtype, valid.dtype) == (np.uint8, np.bool_)
    assert set(np.unique(moved)) == {3, 255}
    assert np.array_equal(moved == 255, ~valid)


def test_brightness_leaves_black_background_black() -> None:
    grid, mask = marked()
    grid[:, :20] = 0
    changed, _ = augment(grid, mask, replace(NEVER, brightness_probability=1.0), np.random.default_rng(1))
    assert (changed[:, :20] == 0).all()
    assert not np.array_equal(changed[:, 20:], grid[:, 20:])


@pytest.mark.parametrize("name", ["blur_probability", "clahe_probability"])
def test_grey_changes_leave_the_mask(name: str) -> None:
    grid, mask = marked()
    grid = grid * np.linspace(0.3, 1, 96, dtype=np.float32)
    changed, same = augment(grid, mask, replace(NEVER, **{name: 1.0}), np.random.default_rng(1))
    assert np.array_equal(same, mask)
    assert not np.array_equal(changed, grid)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_jittered_box_stays_near_its_lesion(seed: int) -> None:
    box, config = Box(40, 50, 20, 10), AugmentConfig()
    moved = jitter_box(box, config, np.random.default_rng(seed))
    side = 20
    assert abs(moved.x + moved.width / 2 - 50) <= config.box_shift_fraction * side + 1e-9
    assert abs(moved.y + moved.height / 2 - 55) <= config.box_shift_fraction * side + 1e-9
    assert 1 - config.box_scale_fraction <= moved.width / box.width <= 1 + config.box_scale_fraction
    assert 1 - config.box_scale_fraction <= moved.height / box.height <= 1 + config.box_scale_fraction
