"""Pictures, their truth and their place on the network's grid, read once for all models that judge them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

from mammo_runtime.errors import ModelRefused
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.preprocess import Prepared
from mammo_runtime.segmenter import prepare_all
from mammo_runtime.spec import ModelSpec
from mammo_train.dataset import LabelledImage, read_labelled, read_picture
from mammo_train.index import IndexRow

KEPT_BYTES = 1_000_000_000
"""Of pictures, masks and grids together; the rest is read again for every model."""
Made = TypeVar("Made")


class Desk:
    """What every model of one input asks for again: some sixty candidates are judged on the same pictures."""

    def __init__(self, spec: ModelSpec, most_bytes: int = KEPT_BYTES) -> None:
        """Keep up to `most_bytes` for models with this spec's input, task and modality."""
        self._spec, self._room = spec, most_bytes
        self._kept: dict[Hashable, Any] = {}

    def serving(self, spec: ModelSpec) -> Desk:
        """Return this desk. Raises ModelRefused for a model that sees pictures otherwise than those kept here."""
        asked, here = ((s.input, s.task, s.modality) for s in (spec, self._spec))
        if asked != here:
            raise ModelRefused(f"{spec.name} sees pictures otherwise than {self._spec.name}: they cannot be compared")
        return self

    def labelled(self, row: IndexRow) -> LabelledImage:
        """Return a picture with its mask. Raises UsageError."""
        return self._get(
            ("labelled", row),
            lambda: read_labelled(row, self._spec.modality),
            lambda made: int(made.image.pixels.nbytes + made.mask.nbytes),
        )

    def picture(self, row: IndexRow) -> Mammogram:
        """Return a picture alone. Raises UsageError."""
        return self._get(
            ("picture", row), lambda: read_picture(row, self._spec.modality), lambda made: int(made.pixels.nbytes)
        )

    def prepared(self, image: Mammogram, boxes: Sequence[Box] | None) -> Sequence[Prepared]:
        """Return what the network looks at of a picture. Raises as `prepare_all` does."""
        key = ("prepared", image.file_sha256, image.pixels.shape, None if boxes is None else tuple(boxes))
        return self._get(key, lambda: prepare_all(image, self._spec, boxes), _bytes_of)

    def _get(self, key: Hashable, make: Callable[[], Made], size: Callable[[Made], int]) -> Made:
        if key in self._kept:
            found: Made = self._kept[key]
            return found
        made = make()
        needed = size(made)
        if needed <= self._room:
            self._kept[key], self._room = made, self._room - needed
        return made


def _bytes_of(prepared: Sequence[Prepared]) -> int:
    return sum(int(p.grid.nbytes + (0 if p.breast is None else p.breast.nbytes)) for p in prepared)
