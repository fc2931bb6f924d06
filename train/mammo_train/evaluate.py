"""A model judged as a site would meet it: the runtime's own `segment` on original pictures, against their truth."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mammo_runtime import __version__
from mammo_runtime.errors import UsageError
from mammo_runtime.machine import machine_record
from mammo_runtime.spec import Task
from mammo_train.evaluate_classes import classifier_blocks, label_blocks
from mammo_train.evaluate_masks import mask_blocks
from mammo_train.grouping import common
from mammo_train.index import IndexRow
from mammo_train.judge import Model

KINDS = ("mass", "findings", "normal")

Blocks = Callable[..., dict[str, Any]]
TASKS: Mapping[Task, Blocks] = {
    Task.SEGMENTATION: mask_blocks,
    Task.MULTICLASS: label_blocks,
    Task.CLASSIFICATION: classifier_blocks,
    Task.PROMPTED: mask_blocks,
}
"""Each takes (model, rows, kinds, together, report) and returns blocks of results by name, JSON-ready."""


def evaluate(
    model: Model,
    rows: Sequence[IndexRow],
    kinds: Sequence[str] = KINDS,
    report: Callable[[str], None] | None = None,
    together: Sequence[str] = (),
) -> dict[str, Any]:
    """Judge `rows` (one fold) and return a JSON-ready result, whose "kinds" hold what the model's task measures.

    "measures" of a block says what: "overlap" (masks), "findings" (pictures without any mask), "labels" (multi-class)
    or "classes" (classifiers). Kinds of pictures have blocks of their own and are never mixed, but for those in
    `together`, which get one more for all of them. Raises UsageError when nothing is left.
    """
    spec = model.spec
    blocks = TASKS[spec.task](model, rows, kinds, together, report)
    if not blocks:
        raise UsageError(f"no picture of the kinds {', '.join(kinds)} to evaluate in this fold")
    return {
        "task": spec.task.value,
        "mode": spec.input.mode.value,
        "threshold": spec.threshold,
        "min_area_cells": spec.min_area_cells,
        "grouped_by": common(row.grouped_by for row in rows),
        "kinds": blocks,
        "backend": model.session.backend,
        "machine": machine_record(),
        "mammo_edge": __version__,
    }


def measures(block: Mapping[str, Any]) -> str:
    """Return what a block holds; results of the first version, which knew masks only, do not say."""
    return str(block.get("measures", "overlap" if "per_image" in block else "findings"))


def primary_block(blocks: Mapping[str, Any], kinds: Sequence[str]) -> str:
    """Return the name of the block that `kinds`, on which the model was selected, are measured in."""
    wanted = ["+".join(kind for kind in dict.fromkeys(kinds) if kind in blocks), *kinds, *blocks]
    return next(name for name in wanted if name in blocks)
