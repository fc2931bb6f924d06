"""The six augmentations of study 004 on the network's grid, with numpy and OpenCV and a seeded generator.

Own code, since the maintained libraries are either abandoned (Albumentations), AGPL (its successor), or lack CLAHE.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from mammo_runtime.mammogram import Box
from mammo_train.config import AugmentConfig

Plane = tuple[np.ndarray, int]
"""A mask bool or labels uint8 [H, W] that follow the picture, and the value of what comes in from outside."""


def augment(
    grid: np.ndarray, mask: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a changed copy of a picture and its mask bool [H, W]; see `augment_planes`."""
    grid, (mask,) = augment_planes(grid, ((mask, 0),), config, rng)
    return grid, mask


def augment_planes(
    grid: np.ndarray, planes: Sequence[Plane], config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Return a changed copy of a picture float32 [H, W] or [H, W, 3] in 0..1, and of its planes.

    Shapes, types and range are kept; planes follow every geometric move (nearest neighbour).
    """
    moved = [plane for plane, _ in planes]
    if rng.random() < config.flip_probability:
        grid, moved = grid[:, ::-1], [plane[:, ::-1] for plane in moved]
    if grid.shape[0] == grid.shape[1] and rng.random() < config.rotate90_probability:
        turns = int(rng.integers(1, 4))
        grid, moved = np.rot90(grid, turns), [np.rot90(plane, turns) for plane in moved]
    if config.half_turn_probability and rng.random() < config.half_turn_probability:
        grid, moved = np.rot90(grid, 2), [np.rot90(plane, 2) for plane in moved]
    if rng.random() < config.affine_probability:
        grid, moved = _affine(grid, [(plane, fill) for plane, (_, fill) in zip(moved, planes)], config, rng)
    if rng.random() < config.clahe_probability:
        grid = _equalised(np.ascontiguousarray(grid), config.clahe_clip_limit)
    if rng.random() < config.brightness_probability:
        limit = config.brightness_contrast
        contrast = 1 + rng.uniform(-limit, limit)
        brightness = rng.uniform(-limit, limit) * config.brightness_share
        # Black padding and background stay black, as they do in a real exposure.
        grid = np.where(grid > 0, grid * np.float32(contrast) + np.float32(brightness), np.float32(0))
    if rng.random() < config.blur_probability:
        grid = cv2.GaussianBlur(np.ascontiguousarray(grid), (0, 0), rng.uniform(0.5, config.blur_sigma))
    if grid.ndim == 3 and rng.random() < config.colour_probability:
        grid = grid * (1 + rng.uniform(-config.colour_fraction, config.colour_fraction, 3)).astype(np.float32)
    grid = np.ascontiguousarray(np.clip(grid, 0, 1), np.float32)
    return grid, tuple(np.ascontiguousarray(plane) for plane in moved)


def _equalised(grid: np.ndarray, clip_limit: float) -> np.ndarray:
    """Equalise contrast locally: a grey picture, or the lightness of one in colour."""
    equalise = cv2.createCLAHE(clip_limit, (8, 8))
    eight_bit = np.rint(grid * 255).astype(np.uint8)
    if grid.ndim == 2:
        return np.asarray(equalise.apply(eight_bit) / np.float32(255))
    lab = cv2.cvtColor(eight_bit, cv2.COLOR_RGB2LAB)
    lab[..., 0] = equalise.apply(np.ascontiguousarray(lab[..., 0]))
    return np.asarray(cv2.cvtColor(lab, cv2.COLOR_LAB2RGB) / np.float32(255))


def jitter_box(box: Box, config: AugmentConfig, rng: np.random.Generator) -> Box:
    """Return the box moved and scaled at random, as a reader's hand-drawn box would differ from the tight one."""
    limit = config.box_scale_fraction
    side = max(box.width, box.height)
    width, height = box.width * (1 + rng.uniform(-limit, limit)), box.height * (1 + rng.uniform(-limit, limit))
    shift = rng.uniform(-config.box_shift_fraction, config.box_shift_fraction, 2) * side
    return Box(box.x + (box.width - width) / 2 + shift[0], box.y + (box.height - height) / 2 + shift[1], width, height)


def _affine(
    grid: np.ndarray, planes: Sequence[Plane], config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, list[np.ndarray]]:
    rows, columns = grid.shape[:2]
    angle = rng.uniform(-config.rotate_deg, config.rotate_deg)
    scale = 1 + rng.uniform(-config.scale_fraction, config.scale_fraction)
    matrix = np.asarray(cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), angle, scale), np.float64)
    matrix[:, 2] += rng.uniform(-config.shift_fraction, config.shift_fraction, 2) * (columns, rows)
    size = (columns, rows)
    moved = cv2.warpAffine(np.ascontiguousarray(grid), matrix, size, flags=cv2.INTER_LINEAR)
    moved_planes = [
        cv2.warpAffine(
            np.ascontiguousarray(plane, np.uint8), matrix, size, flags=cv2.INTER_NEAREST, borderValue=fill
        ).astype(plane.dtype)
        for plane, fill in planes
    ]
    return moved, moved_planes
