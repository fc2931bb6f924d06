"""Index rows → training samples, through the runtime's own reader and preprocessing."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import Dataset

from mammo_runtime.errors import ImageError, UsageError
from mammo_runtime.findings import components
from mammo_runtime.mammogram import Box, Mammogram, Modality
from mammo_runtime.placement import Placement
from mammo_runtime.preprocess import Prepared, normalise, prepare
from mammo_runtime.readers import ReadOptions, read_image
from mammo_runtime.spec import Fit, InputMode, ModelSpec, Task
from mammo_train.augment import augment_planes, jitter_box
from mammo_train.config import AugmentConfig
from mammo_train.index import IndexRow
from mammo_train.losses import IGNORE

MIN_LESION_PX = 20
"""Smaller specks of a mask are drawing slips, not lesions with a box of their own."""
KEPT_BYTES = 4_000_000_000
"""Pictures and grids are kept in memory up to this much of each; the rest is read again for every use."""

Sample = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
"""Image float32 [C, H, W]; target: mask float32 [1, H, W], pixel classes int64 [H, W] with `IGNORE`, or picture class
int64 []; valid bool [1, H, W]: what a loss may count."""


@dataclass(frozen=True, eq=False)
class LabelledImage:
    """An image with its truth and the boxes of its lesions."""

    row: IndexRow
    image: Mammogram
    mask: np.ndarray
    """bool [rows, columns]."""
    boxes: tuple[Box, ...]


def read_labelled(row: IndexRow, modality: Modality = Modality.MAMMOGRAPHY) -> LabelledImage:
    """Read image and mask of an index row. Raises UsageError naming the file when one is unreadable or sizes differ."""
    image = read_picture(row, modality)
    if row.mask is None:
        mask = np.zeros((image.rows, image.columns), bool)
    else:
        stored = cv2.imread(str(row.mask), cv2.IMREAD_GRAYSCALE)
        if stored is None or stored.shape != (image.rows, image.columns):
            raise UsageError(f"the mask {row.mask} is unreadable or differs in size from its image {row.image}")
        mask = stored > 127
        if not mask.any() and stored.any():
            raise UsageError(
                f"the mask {row.mask} holds values up to {int(stored.max())} and would read as empty: "
                "a mask is white (255) on a lesion and black (0) elsewhere"
            )
    return LabelledImage(row, image, mask, lesion_boxes(mask))


def read_picture(row: IndexRow, modality: Modality) -> Mammogram:
    """Read the image of an index row. Raises UsageError naming the file when it is unreadable."""
    try:
        return read_image(row.image, ReadOptions(pixel_spacing_mm=row.spacing_mm, modality=modality))
    except ImageError as error:
        raise UsageError(f"{row.image}: {error}") from error


def read_codes(row: IndexRow, image: Mammogram, ignore_codes: Sequence[int]) -> np.ndarray:
    """Return each pixel's class, uint8 [rows, columns]: a mask file's code less 1, `IGNORE` for the codes to ignore.

    Raises UsageError naming the file when it is no 8-bit grey picture of the image's size.
    """
    codes = None if row.mask is None else cv2.imread(str(row.mask), cv2.IMREAD_UNCHANGED)
    if codes is None or codes.shape != (image.rows, image.columns) or codes.dtype != np.uint8:
        raise UsageError(f"the mask {row.mask} is no 8-bit grey picture of the size of its image {row.image}")
    labels = codes - np.uint8(1)  # code 0 becomes 255
    labels[np.isin(codes, ignore_codes)] = IGNORE
    return labels


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


@dataclass(frozen=True, eq=False)
class _Labelled:
    """A picture with what its task learns from."""

    image: Mammogram
    truth: np.ndarray
    """bool or uint8 [rows, columns]; of classifiers the class, uint8 []."""
    boxes: tuple[Box, ...]

    @property
    def nbytes(self) -> int:
        return int(self.image.pixels.nbytes + self.truth.nbytes)


@dataclass(frozen=True, eq=False)
class _Grid:
    """A picture on the network's grid with its truth."""

    prepared: Prepared
    truth: np.ndarray
    """bool or uint8 [H, W]; of classifiers uint8 []."""

    @property
    def nbytes(self) -> int:
        return int(self.prepared.grid.nbytes + self.truth.nbytes)


class _Kept:
    """Values by number, kept until they fill `KEPT_BYTES`; what does not fit is made again for every use."""

    def __init__(self) -> None:
        self._values: dict[int, Any] = {}
        self._bytes = 0

    def get(self, number: int, make: Callable[[], Any]) -> Any:
        """Return the value of a number, made if it is not kept."""
        if number in self._values:
            return self._values[number]
        value = make()
        if self._bytes + value.nbytes <= KEPT_BYTES:
            self._values[number], self._bytes = value, self._bytes + value.nbytes
        return value


class SampleSet(Dataset[Sample]):
    """Samples of one epoch after another.

    Item i of epoch e depends only on (seed, e, i): neither workers nor an interruption change it.
    FULL mode: one item per image. ROI mode: one item per lesion, with a jittered box when augmenting.
    """

    def __init__(
        self,
        rows: Sequence[IndexRow],
        spec: ModelSpec,
        augmentation: AugmentConfig | None,
        seed: int,
        repeats: int = 1,
        ignore_codes: Sequence[int] = (0,),
    ) -> None:
        """List the samples; every file is read once. Raises UsageError when no item remains or a file is unusable."""
        self._rows, self._spec, self._augmentation = list(rows), spec, augmentation
        self._seed, self._repeats, self._ignore = seed, repeats, tuple(ignore_codes)
        self._images, self._grids = _Kept(), _Kept()
        boxes = [self._labelled(k).boxes for k in range(len(rows))]
        if spec.input.mode is InputMode.FULL:
            self._items: list[tuple[int, int | None]] = [(k, None) for k in range(len(rows))]
        else:
            self._items = [(k, b) for k, own in enumerate(boxes) for b in range(len(own))]
        if not self._items:
            raise UsageError("no training sample: the chosen folds and kinds hold no image (or no lesion, in ROI mode)")
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._items) * self._repeats

    def row(self, item: int) -> IndexRow:
        """Return the index row an item comes from."""
        return self._rows[self._items[item % len(self._items)][0]]

    def __getitem__(self, item: int) -> Sample:
        rng = np.random.default_rng((self._seed, self.epoch, item))
        placed = self._grid(item % len(self._items), rng)
        grid, truth, valid = placed.prepared.grid, placed.truth, placed.prepared.valid
        inside = placed.prepared.placement.inside
        if self._augmentation is not None:
            planes = ((truth, IGNORE if truth.dtype == np.uint8 else 0),) if truth.ndim else ()
            grid, moved = augment_planes(grid, (*planes, (valid, 0), (inside, 0)), self._augmentation, rng)
            *changed, valid, inside = moved
            truth = changed[0] if changed else truth
        zeroed = inside if self._spec.input.fit is Fit.CORNER else None
        image = torch.from_numpy(normalise(grid, self._spec.input, zeroed)[0])
        return image, _target(truth), torch.from_numpy(np.ascontiguousarray(valid[None]))

    def _labelled(self, number: int) -> _Labelled:
        read, row = _TRUTHS[self._spec.task], self._rows[number]
        found: _Labelled = self._images.get(number, lambda: read(row, self._spec, self._ignore))
        return found

    def _grid(self, item: int, rng: np.random.Generator) -> _Grid:
        """Return the picture and its truth on the network's grid, not augmented but for the jitter of a box."""
        image_number, box_number = self._items[item]
        if box_number is None or self._augmentation is None:
            laid: _Grid = self._grids.get(item, lambda: self._laid(image_number, box_number, None))
            return laid
        return self._laid(image_number, box_number, rng)

    def _laid(self, image_number: int, box_number: int | None, rng: np.random.Generator | None) -> _Grid:
        labelled = self._labelled(image_number)
        box = None if box_number is None else labelled.boxes[box_number]
        if box is not None and rng is not None and self._augmentation is not None:
            box = jitter_box(box, self._augmentation, rng)
        prepared = prepare(labelled.image, self._spec.input, box)
        truth = labelled.truth
        if truth.ndim:
            masks = truth.dtype == bool
            truth = prepared.placement.to_grid(truth) if masks else labels_on_grid(truth, prepared.placement)
        return _Grid(prepared, truth)


def labels_on_grid(labels: np.ndarray, placement: Placement) -> np.ndarray:
    """Map classes uint8 [rows, columns] of whole pictures to the grid by nearest neighbour; `IGNORE` in the padding."""
    inner, crop = placement.inner, placement.crop
    y = (crop.top + (np.arange(inner.rows) + 0.5) * crop.rows / inner.rows) * placement.image_rows
    x = (crop.left + (np.arange(inner.columns) + 0.5) * crop.columns / inner.columns) * placement.image_columns
    rows = np.minimum((y / placement.working_rows).astype(int), placement.image_rows - 1)
    columns = np.minimum((x / placement.working_columns).astype(int), placement.image_columns - 1)
    grid = np.full((placement.grid_rows, placement.grid_columns), IGNORE, np.uint8)
    grid[inner.slices] = labels[np.ix_(rows, columns)]
    return grid


def _mask_truth(row: IndexRow, spec: ModelSpec, ignore_codes: Sequence[int]) -> _Labelled:
    labelled = read_labelled(row, spec.modality)
    return _Labelled(labelled.image, labelled.mask, labelled.boxes)


def _code_truth(row: IndexRow, spec: ModelSpec, ignore_codes: Sequence[int]) -> _Labelled:
    image = read_picture(row, spec.modality)
    labels = read_codes(row, image, ignore_codes)
    beyond = np.unique(labels[(labels >= len(spec.classes)) & (labels != IGNORE)])
    if beyond.size:
        raise UsageError(f"the mask {row.mask} holds code {beyond[0] + 1}; the model has {len(spec.classes)} classes")
    return _Labelled(image, labels, ())


def _class_truth(row: IndexRow, spec: ModelSpec, ignore_codes: Sequence[int]) -> _Labelled:
    """Return a picture and its kind. Its mask is left out on purpose.

    Study 002 also trained on pictures with the true masks drawn into them: an empty mask says "normal", so the label
    leaks. That is not offered.
    """
    if row.kind not in spec.classes:
        raise UsageError(f"{row.image.name} is of kind {row.kind!r}; the model's classes are {', '.join(spec.classes)}")
    return _Labelled(read_picture(row, spec.modality), np.asarray(spec.classes.index(row.kind), np.uint8), ())


_TRUTHS: Mapping[Task, Callable[[IndexRow, ModelSpec, Sequence[int]], _Labelled]] = {
    Task.SEGMENTATION: _mask_truth,
    Task.MULTICLASS: _code_truth,
    Task.CLASSIFICATION: _class_truth,
}
"""Prompted models have samples of their own (`prompt_samples`)."""


def _target(truth: np.ndarray) -> torch.Tensor:
    if truth.dtype == bool:
        return torch.from_numpy(truth[None].astype(np.float32))
    return torch.from_numpy(truth.astype(np.int64))
