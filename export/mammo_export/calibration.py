"""Which real images INT8's ranges are measured on: training folds only, masses first, as the network sees them."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_runtime.hashing import file_sha256
from mammo_runtime.mammogram import Box
from mammo_runtime.preprocess import preprocess
from mammo_runtime.spec import InputMode, ModelSpec, Task
from mammo_train.dataset import read_labelled, read_picture
from mammo_train.evaluate_masks import jittered
from mammo_train.index import IndexRow

WANTED = 256
ENOUGH = 100
"""Inputs below which the manifest says why there are no more (NVIDIA's and the seed systems' advice: 100 to 500)."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """Inputs to measure ranges on, read again for each pass: never all in memory, never random."""

    rows: tuple[IndexRow, ...]
    boxes: tuple[tuple[Box, ...], ...]
    """Of each row: the windows of a model that looks at windows, else empty."""
    spec: ModelSpec
    digests: tuple[str, ...]
    """sha256 of each row's picture."""
    offered: int
    """Rows that there were to choose from."""

    @property
    def count(self) -> int:
        """Inputs that `batches` yields."""
        return sum(len(boxes) for boxes in self.boxes) if self._windows else len(self.rows)

    @property
    def _windows(self) -> bool:
        return self.spec.input.mode is InputMode.ROI

    def batches(self) -> Iterator[np.ndarray]:
        """Yield the network's inputs float32 [1, C, H, W] in a fixed order, through the runtime's own preprocessing.

        Raises UsageError naming a picture that became unreadable.
        """
        for row, boxes in zip(self.rows, self.boxes, strict=True):
            image = read_picture(row, self.spec.modality)
            for box in boxes if self._windows else (None,):
                yield preprocess(image, self.spec.input, box)[0]

    def manifest(self) -> dict[str, Any]:
        """Return what was calibrated with, JSON-ready: no names, patients as hashes."""
        return {
            "inputs": self.count,
            "images": len(self.rows),
            "kinds": dict(sorted(Counter(row.kind for row in self.rows).items())),
            "folds": sorted({row.fold for row in self.rows}),
            "groups_sha256": sorted({_sha256(row.group) for row in self.rows}),
            "images_sha256": list(self.digests),
            "crop": self._crop(),
            "order": "pictures with masses first, each kind spread evenly over its folds; nothing random",
            "fewer_than_100": None if self.count >= ENOUGH else self._why_fewer(),
        }

    def _crop(self) -> str:
        spec = self.spec.input
        if self._windows:
            return f"windows round lesions as the runtime cuts them, margin {spec.roi_margin:g}, tight and moved boxes"
        if spec.breast_crop_margin is not None:
            return f"breast crops as the runtime cuts them, margin {spec.breast_crop_margin:g}"
        return "whole pictures: what this model sees"

    def _why_fewer(self) -> str:
        each = "; each lesion gives two windows" if self._windows else ""
        return f"the training folds offer {self.offered} usable pictures{each}"


def choose_calibration(
    rows: Sequence[IndexRow], protected: Sequence[IndexRow], spec: ModelSpec, wanted: int = WANTED
) -> Calibration:
    """Choose up to `wanted` inputs from rows of training folds: masses first, then other masks, then the rest.

    `protected` are the validation and test rows. A model that looks at windows gets two of each lesion, the tight box
    and the moved one of evaluation. Raises UsageError for a leak (`check_no_leak`), or when nothing can be used.
    """
    windows = spec.input.mode is InputMode.ROI
    offered = [row for row in rows if row.mask is not None] if windows else list(rows)
    chosen: list[IndexRow] = []
    boxes: list[tuple[Box, ...]] = []
    count = 0
    for row in _ordered(offered, spec, wanted):
        own = _windows(row, spec) if windows else ()
        if windows and not own:
            continue
        own = own[: wanted - count] if windows else own
        chosen.append(row)
        boxes.append(own)
        count += len(own) if windows else 1
        if count >= wanted:
            break
    if not chosen:
        raise UsageError(
            "there is no image of a training fold to calibrate INT8 with; give --index with training folds"
        )
    digests = check_no_leak(chosen, protected)
    return Calibration(tuple(chosen), tuple(boxes), spec, digests, len(offered))


def check_no_leak(calibration_rows: Sequence[IndexRow], protected: Sequence[IndexRow]) -> tuple[str, ...]:
    """Return the sha256 of each calibration picture. Raises UsageError when a protected row shares patient or bytes."""
    groups = {row.group for row in protected}
    for row in calibration_rows:
        if row.group in groups:
            raise UsageError(
                f"leak: {row.image.name} shares its {row.grouped_by} with the validation or test images; INT8 would be "
                "calibrated on what it is judged by. Calibrate on other folds"
            )
    contents = {_digest(row): row.image.name for row in protected}
    digests = tuple(_digest(row) for row in calibration_rows)
    for row, digest in zip(calibration_rows, digests, strict=True):
        if digest in contents:
            raise UsageError(
                f"leak: {row.image.name} is the same picture as {contents[digest]} of the validation or test images; "
                "INT8 would be calibrated on what it is judged by. Calibrate on other folds"
            )
    return digests


def _ordered(rows: Sequence[IndexRow], spec: ModelSpec, wanted: int) -> list[IndexRow]:
    """Return the rows, most telling first; what exceeds `wanted` is thinned out evenly."""
    telling = (lambda row: 0) if spec.task is Task.CLASSIFICATION else _rank
    parts = [[row for row in rows if telling(row) == rank] for rank in range(3)]
    order: list[IndexRow] = []
    for part in parts:
        take = min(len(part), max(0, wanted - len(order)))
        picked = [k * len(part) // take for k in range(take)] if take else []
        rest = sorted(set(range(len(part))) - set(picked))
        order += [part[k] for k in (*picked, *rest)]
    return order


def _rank(row: IndexRow) -> int:
    if row.mask is None:
        return 2
    return 0 if row.kind in ("mass", "benign", "malignant", "tissue") else 1


def _windows(row: IndexRow, spec: ModelSpec) -> tuple[Box, ...]:
    tight = read_labelled(row, spec.modality).boxes
    return tuple(box for k, own in enumerate(tight, 1) for box in (own, jittered(own, f"{row.name} {k}")))


def _digest(row: IndexRow) -> str:
    try:
        return file_sha256(row.image)
    except OSError as error:
        raise UsageError(f"cannot read {row.image}: {error.strerror}") from error


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
