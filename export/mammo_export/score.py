"""What one model says of pictures with known truth, item by item, through the trainer's own evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from mammo_export.desk import Desk
from mammo_export.difference import HIT, LOST, Difference, Item, difference
from mammo_runtime.errors import InferenceFailed
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.result import Result
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec, Task
from mammo_train.confusion import macro
from mammo_train.dataset import LabelledImage
from mammo_train.evaluate_classes import class_scores, label_matrix
from mammo_train.evaluate_masks import lesion_item, picture_item, size_class
from mammo_train.index import IndexRow
from mammo_train.judge import Model

__all__ = ["Difference", "Item", "difference", "scored"]


@dataclass(frozen=True, eq=False)
class _AtDesk(Model):
    """A model whose pictures are read and laid on the grid once for all models."""

    desk: Desk = field(kw_only=True)

    def judge(self, image: Mammogram, boxes: Sequence[Box] | None = None, **changes: Any) -> Result:
        """Return what the runtime answers; `changes` replace fields of the spec (but not its input)."""
        spec = replace(self.spec, **changes) if changes else self.spec
        prepared = self.desk.prepared(image, boxes)
        return segment(image, self.session, spec, None, boxes, self.decoder, self.embeddings, prepared)

    def read(self, row: IndexRow) -> LabelledImage:
        """Return a picture with its mask."""
        return self.desk.labelled(row)

    def read_image(self, row: IndexRow) -> Mammogram:
        """Return a picture alone."""
        return self.desk.picture(row)


def scored(
    spec: ModelSpec,
    session: Session,
    decoder: Session | None,
    rows: Sequence[IndexRow],
    threshold: float | None = None,
    desk: Desk | None = None,
    ignore_codes: Sequence[int] = (0,),
) -> tuple[Item, ...]:
    """Judge pictures as a site would, and score the answers with the trainer's own evaluation.

    Whole-picture models: one item for each row. Models that take boxes: one for each lesion, pointed at with its tight
    box; rows without a lesion give none. `threshold`: another than the spec's frozen one. `desk`: keeps pictures and
    network inputs for the next model of the same input. `ignore_codes`: codes of multi-class masks that do not count.

    An answer that cannot be used (NaN, a wrong shape) becomes an item with a `fault`, never a score. Raises UsageError
    for unreadable pictures, ModelRefused when spec and sessions do not fit.
    """
    spec = spec if threshold is None else replace(spec, threshold=threshold)
    model = _AtDesk(session, spec, decoder, tuple(ignore_codes), desk=(desk or Desk(spec)).serving(spec))
    return tuple(item for row in rows for item in _ITEMS[spec.task](model, row))


def _guarded(blank: Item, make: Callable[[], Item]) -> Item:
    """Return the item, or the blank one with the reason why there is no usable answer."""
    try:
        item = make()
    except InferenceFailed as error:
        return replace(blank, fault=str(error))
    if item.score is not None and not math.isfinite(item.score):
        return replace(blank, fault=f"the score is {item.score}")
    return item


def _mask_items(model: Model, row: IndexRow) -> Iterator[Item]:
    """One item for a whole picture, or one for each of its lesions."""
    blank = Item(row.name, row.group, row.kind)
    if not model.spec.takes_boxes:
        yield _guarded(blank, lambda: _whole(blank, model, row))
    elif row.mask is not None:
        labelled = model.read(row)
        for number, box in enumerate(labelled.boxes, start=1):
            numbered = replace(blank, part=number)
            yield _guarded(numbered, partial(_lesion, numbered, model, labelled, box))


def _whole(blank: Item, model: Model, row: IndexRow) -> Item:
    labelled = model.read(row)
    values = picture_item(labelled, model.judge(labelled.image).mask)
    hits = "".join(HIT if lesion["hit"] else LOST for lesion in values["lesions"])
    score = values["dice"] if values["truth_px"] else None
    size = size_class(values["diameter_mm"]) if hits else None
    return replace(blank, score=score, size=size, found=values["findings"] > 0, hits=hits)


def _lesion(blank: Item, model: Model, labelled: LabelledImage, box: Box) -> Item:
    values = lesion_item(model, labelled, blank.part, box)
    return replace(blank, score=values["dice"], size=size_class(values["diameter_mm"]), found=values["findings"] > 0)


def _label_items(model: Model, row: IndexRow) -> Iterator[Item]:
    """One item for a picture; without a mask, or without a pixel that counts, it has no score."""
    blank = Item(row.name, row.group, row.kind)

    def judged() -> Item:
        if row.mask is None:
            model.judge(model.read_image(row))
            return blank
        matrix, _ = label_matrix(model, row)
        return replace(blank, score=float(macro(matrix)["dice"])) if matrix.any() else blank

    yield _guarded(blank, judged)


def _class_items(model: Model, row: IndexRow) -> Iterator[Item]:
    """One item for a picture; of a kind that is no class of the model, it has a predicted class but no score."""
    blank = Item(row.name, row.group, row.kind)

    def judged() -> Item:
        said = model.spec.classes[int(class_scores(model, row).argmax())]
        return replace(blank, said=said, score=float(said == row.kind) if row.kind in model.spec.classes else None)

    yield _guarded(blank, judged)


_ITEMS: Mapping[Task, Callable[[Model, IndexRow], Iterator[Item]]] = {
    Task.SEGMENTATION: _mask_items,
    Task.MULTICLASS: _label_items,
    Task.CLASSIFICATION: _class_items,
    Task.PROMPTED: _mask_items,
}
