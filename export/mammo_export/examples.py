"""The pictures that a precision changes most, with the masks of both sides, for the report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from mammo_export.files import opened
from mammo_export.outcome import Outcome
from mammo_export.workshop import Graphs, Workshop
from mammo_runtime.spec import ModelSpec, Task
from mammo_train.cases import windowed
from mammo_train.dataset import LabelledImage
from mammo_train.evaluate_masks import lesion_window
from mammo_train.judge import Model

EACH = 3
"""Of every precision that was judged."""


def examples(shop: Workshop | None, outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Return the worst cases of each precision, of models that draw masks: {"key", "name", "numbers", "image" uint8
    [rows, columns], "truth", "reference", "candidate" bool [rows, columns]}.
    """
    if shop is None or shop.source.spec.task not in (Task.SEGMENTATION, Task.PROMPTED):
        return []
    return [case for one in outcomes[1:] if one.difference is not None for case in _of(shop, one)]


def _of(shop: Workshop, outcome: Outcome) -> list[dict[str, Any]]:
    assert outcome.difference is not None
    scores = [{item.name: item for item in items} for items in (shop.reference, shop.items(outcome.judged))]
    wanted = dict.fromkeys(name for name, _ in outcome.difference.worst[:EACH])
    found = []
    for name in wanted:
        before, after = scores[0][name], scores[1][name]
        row = next(row for row in shop.rows if row.name == before.image and row.group == before.group)
        labelled = shop.desk.labelled(row)
        masks = [_mask(shop.source.spec, graphs, labelled, before.part) for graphs in _both(shop, outcome)]
        part = _part(shop.source.spec, labelled, before.part)
        image, truth, reference, candidate = (
            array[part] for array in (windowed(labelled.image.pixels), labelled.mask, *masks)
        )
        found.append({
            "key": outcome.key, "name": name, "image": image, "truth": truth, "reference": reference,
            "candidate": candidate, "numbers": {"fp32": before.score, outcome.key: after.score},
        })  # fmt: skip
    return found


def _both(shop: Workshop, outcome: Outcome) -> tuple[Graphs, Graphs]:
    return shop.source.files.shipped, outcome.judged


def _mask(spec: ModelSpec, graphs: Graphs, labelled: LabelledImage, part: int) -> np.ndarray:
    with ExitStack() as stack:
        model, *decoders = (stack.enter_context(opened(graph)) for graph in graphs)
        judge = Model(model, spec, decoders[0] if decoders else None)
        return judge.judge(labelled.image, [labelled.boxes[part - 1]] if part else None).mask


def _part(spec: ModelSpec, labelled: LabelledImage, part: int) -> tuple[slice, slice]:
    """Return what of the picture is shown: of a lesion, its window."""
    if part:
        return lesion_window(labelled, labelled.boxes[part - 1], spec.input.roi_margin)
    rows, columns = labelled.mask.shape
    return slice(0, rows), slice(0, columns)
