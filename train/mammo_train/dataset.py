"""Index rows → training samples, through the runtime's own reader and preprocessing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from mammo_runtime.errors import ImageError, UsageError
from mammo_runtime.findings import components
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.preprocess import normalise, preprocess
from mammo_runtime.readers import ReadOptions, read_image
from mammo_runtime.spec import InputMode, InputSpec
from mammo_train.augment import augment, jitter_box
from mammo_train.config import AugmentConfig
from mammo_train.index import IndexRow

MIN_LESION_PX = 20
"""Smaller specks of a mask are drawing slips, not lesions with a box of their own."""


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image with its truth and the boxes of its lesions."""

    row: IndexRow
    image: Mammogram
    mask: np.ndarray
    """bool [rows, columns]."""
    boxes: tuple[Box, ...]


def read_labelled(row: IndexRow) -> LabelledImage:
    """Read image and mask of an index row. Raises UsageError naming the file when one is unreadable or sizes differ."""
    try:
        image = read_image(row.image, ReadOptions(pixel_spacing_mm=row.spacing_mm))
    except ImageError as error:
        raise UsageError(f"{row.image}: {error}") from error
    if row.mask is None:
        mask = np.zeros((image.rows, image.columns), bool)
    else:
        stored = cv2.imread(str(row.mask), cv2.IMREAD_GRAYSCALE)
        if stored is None or stored.shape != (image.rows, image.columns):
            raise UsageError(f"the mask {row.mask} is unreadable or differs in size from its image {row.image}")
        mask = stored > 127
    return LabelledImage(row, image, mask, lesion_boxes(mask))


def usable_rows(
    rows: Sequence[IndexRow], mode: InputMode, folds: Sequence[int], kinds: Sequence[str]
) -> list[IndexRow]:
    """Return the rows of some folds and kinds that give samples: in ROI mode only pictures with a mask."""
    chosen = [row for row in rows if row.fold in folds and row.kind in kinds]
    return chosen if mode is InputMode.FULL else [row for row in chosen if row.mask is not None]


def lesion_boxes(mask: np.ndarray) -> tuple[Box, ...]:
    """Return the bounding boxes of a mask's components of at least `MIN_LESION_PX` pixels, largest first."""
    count, _, stats = components(mask)
    found = [stats[k] for k in range(1, count + 1) if stats[k][cv2.CC_STAT_AREA] >= MIN_LESION_PX]
    found.sort(key=lambda s: -int(s[cv2.CC_STAT_AREA]))
    return tuple(Box(*(float(v) for v in s[:4])) for s in found)


class SampleSet(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Samples (input float32 [C, H, W], mask float32 [1, H, W]) of one epoch after another.

    Item i of epoch e depends only on (seed, e, i): neither workers nor an interruption change it.
    FULL mode: one item per image. ROI mode: one item per lesion, with a jittered box when augmenting.
    """

    def __init__(
        self, rows: Sequence[IndexRow], spec: InputSpec, augmentation: AugmentConfig | None, seed: int, repeats: int = 1
    ) -> None:
        """Read all images into memory (8 or 16 bit). Raises UsageError when no item remains."""
        self._spec, self._augmentation, self._seed, self._repeats = spec, augmentation, seed, repeats
        # Statistics are applied after augmentation, so the cached grid is the 0..1 picture itself.
        self._plain = replace(spec, mean=(0.0,) * spec.channels, std=(1.0,) * spec.channels)
        self._images = [read_labelled(row) for row in rows]
        if spec.mode is InputMode.FULL:
            self._items: list[tuple[int, int | None]] = [(k, None) for k in range(len(self._images))]
        else:
            self._items = [(k, b) for k, image in enumerate(self._images) for b in range(len(image.boxes))]
        if not self._items:
            raise UsageError("no training sample: the chosen folds and kinds hold no image (or no lesion, in ROI mode)")
        self._cache: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._items) * self._repeats

    def row(self, item: int) -> IndexRow:
        """Return the index row an item comes from."""
        return self._images[self._items[item % len(self._items)][0]].row

    def __getitem__(self, item: int) -> tuple[torch.Tensor, torch.Tensor]:
        rng = np.random.default_rng((self._seed, self.epoch, item))
        grid, mask = self._grid(item % len(self._items), rng)
        if self._augmentation is not None:
            grid, mask = augment(grid, mask, self._augmentation, rng)
        return torch.from_numpy(normalise(grid, self._spec)[0]), torch.from_numpy(mask[None].astype(np.float32))

    def _grid(self, item: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Return the picture float32 [H, W] in 0..1 and its mask bool [H, W]."""
        jitters = self._augmentation is not None and self._spec.mode is InputMode.ROI
        if not jitters and item in self._cache:
            return self._cache[item]
        image_number, box_number = self._items[item]
        labelled = self._images[image_number]
        box = None if box_number is None else labelled.boxes[box_number]
        if box is not None and jitters and self._augmentation is not None:
            box = jitter_box(box, self._augmentation, rng)
        tensor, placement, _ = preprocess(labelled.image, self._plain, box)
        grid = np.ascontiguousarray(tensor[0, 0]), placement.to_grid(labelled.mask)
        if not jitters:
            self._cache[item] = grid
        return grid
