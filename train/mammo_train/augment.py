"""The six augmentations of study 004 on the network's grid, with numpy and OpenCV and a seeded generator.

Own code, since the maintained libraries are either abandoned (Albumentations), AGPL (its successor), or lack CLAHE.
"""

from __future__ import annotations

import cv2
import numpy as np

from mammo_runtime.mammogram import Box
from mammo_train.config import AugmentConfig


def augment(
    grid: np.ndarray, mask: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Return a changed copy of a picture float32 [H, W] in 0..1 and its mask bool [H, W].

    Shape and range are kept; the mask follows every geometric move (nearest neighbour).
    """
    if rng.random() < config.flip_probability:
        grid, mask = grid[:, ::-1], mask[:, ::-1]
    if grid.shape[0] == grid.shape[1] and rng.random() < config.rotate90_probability:
        turns = int(rng.integers(1, 4))
        grid, mask = np.rot90(grid, turns), np.rot90(mask, turns)
    if rng.random() < config.affine_probability:
        grid, mask = _affine(grid, mask, config, rng)
    if rng.random() < config.clahe_probability:
        equalise = cv2.createCLAHE(config.clahe_clip_limit, (8, 8))
        grid = equalise.apply(np.rint(np.ascontiguousarray(grid) * 255).astype(np.uint8)) / np.float32(255)
    if rng.random() < config.brightness_probability:
        limit = config.brightness_contrast
        contrast, brightness = 1 + rng.uniform(-limit, limit), rng.uniform(-limit, limit)
        # Black padding and background stay black, as they do in a real exposure.
        grid = np.where(grid > 0, grid * np.float32(contrast) + np.float32(brightness * 0.5), np.float32(0))
    if rng.random() < config.blur_probability:
        grid = cv2.GaussianBlur(np.ascontiguousarray(grid), (0, 0), rng.uniform(0.5, 2.0))
    return np.ascontiguousarray(np.clip(grid, 0, 1), np.float32), np.ascontiguousarray(mask)


def jitter_box(box: Box, config: AugmentConfig, rng: np.random.Generator) -> Box:
    """Return the box moved and scaled at random, as a reader's hand-drawn box would differ from the tight one."""
    limit = config.box_scale_fraction
    side = max(box.width, box.height)
    width, height = box.width * (1 + rng.uniform(-limit, limit)), box.height * (1 + rng.uniform(-limit, limit))
    shift = rng.uniform(-config.box_shift_fraction, config.box_shift_fraction, 2) * side
    return Box(box.x + (box.width - width) / 2 + shift[0], box.y + (box.height - height) / 2 + shift[1], width, height)


def _affine(
    grid: np.ndarray, mask: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = grid.shape
    angle = rng.uniform(-config.rotate_deg, config.rotate_deg)
    scale = 1 + rng.uniform(-config.scale_fraction, config.scale_fraction)
    matrix = np.asarray(cv2.getRotationMatrix2D(((columns - 1) / 2, (rows - 1) / 2), angle, scale), np.float64)
    matrix[:, 2] += rng.uniform(-config.shift_fraction, config.shift_fraction, 2) * (columns, rows)
    moved = cv2.warpAffine(np.ascontiguousarray(grid), matrix, (columns, rows), flags=cv2.INTER_LINEAR)
    moved_mask = cv2.warpAffine(np.ascontiguousarray(mask, np.uint8), matrix, (columns, rows), flags=cv2.INTER_NEAREST)
    return moved, moved_mask.astype(bool)
