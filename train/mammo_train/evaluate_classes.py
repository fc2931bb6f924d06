"""Classes judged: of every pixel (multi-class maps) and of whole pictures (classifiers)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_train.classification import summarise_classification
from mammo_train.confusion import accuracy, confusion, group_members, grouped, macro, summarise_classes
from mammo_train.index import IndexRow
from mammo_train.judge import Model

Report = Callable[[str], None]
ALL = "all kinds"
"""Name of a classifier's block: its classes are the kinds of pictures."""


def label_blocks(
    model: Model, rows: Sequence[IndexRow], kinds: Sequence[str], together: Sequence[str], report: Report | None
) -> dict[str, Any]:
    """Judge multi-class maps, one item per picture; pixels whose code the truth ignores are not counted.

    `together` has no meaning here: a matrix of all kinds would be ruled by the largest.
    """
    blocks: dict[str, Any] = {}
    for kind in kinds:
        own = [row for row in rows if row.kind == kind and row.mask is not None]
        if own:
            if report is not None:
                report(f"{kind}: {len(own)} pictures")
            blocks[kind] = _label_block(model, own)
    return blocks


def _label_block(model: Model, rows: Sequence[IndexRow]) -> dict[str, Any]:
    classes = model.spec.classes
    matrices = np.zeros((len(rows), len(classes), len(classes)), np.int64)
    items: list[dict[str, Any]] = []
    for number, row in enumerate(rows):
        matrices[number], pixels = label_matrix(model, row)
        items.append({"image": row.name, "group": row.group, "ignored_px": pixels - int(matrices[number].sum())})
    own_accuracy, means = accuracy(matrices), macro(matrices)
    for number, item in enumerate(items):
        values = {"accuracy": own_accuracy[number], "macro_dice": means["dice"][number]}
        item |= {name: float(v) if np.isfinite(v) else None for name, v in values.items()}
    groups = [row.group for row in rows]
    block = {
        "measures": "labels",
        "item": "image",
        "n_images": len(rows),
        **summarise_classes(matrices, groups, classes),
        "pixels": int(matrices.sum()),
        "ignored_px": sum(item["ignored_px"] for item in items),
    }
    members = group_members(classes)
    if members:
        united = grouped(matrices, list(members.values()))
        block["grouped"] = {
            "members": {group: [classes[k] for k in own] for group, own in members.items()},
            **summarise_classes(united, groups, list(members)),
        }
    return {**block, "items": items}


def label_matrix(model: Model, row: IndexRow) -> tuple[np.ndarray, int]:
    """Judge a multi-class map: confusion int64 [classes, classes] of the pixels that count, and all its pixels."""
    image, truth = model.read_labels(row)
    labels = model.judge(image).labels
    assert labels is not None, "the runtime answers labels to every multi-class model"
    return confusion(labels, truth, len(model.spec.classes)), truth.size


def classifier_blocks(
    model: Model, rows: Sequence[IndexRow], kinds: Sequence[str], together: Sequence[str], report: Report | None
) -> dict[str, Any]:
    """Judge a classifier on all kinds at once: a picture's kind is its true class.

    `together` has no meaning here. Raises UsageError for a kind that is no class of the model.
    """
    own = [row for row in rows if row.kind in kinds]
    strange = sorted({row.kind for row in own} - set(model.spec.classes))
    if strange:
        known = ", ".join(model.spec.classes)
        raise UsageError(f"{', '.join(strange)}: no class of this model, which knows {known}; leave these kinds out")
    if not own:
        return {}
    if report is not None:
        report(f"{len(own)} pictures")
    probabilities = np.stack([class_scores(model, row) for row in own])
    truth = np.array([model.spec.classes.index(row.kind) for row in own])
    items = [
        {
            "image": row.name,
            "group": row.group,
            "kind": row.kind,
            "predicted": model.spec.classes[int(scores.argmax())],
            "probabilities": [round(float(p), 6) for p in scores],
        }
        for row, scores in zip(own, probabilities)
    ]
    summary = summarise_classification(probabilities, truth, [row.group for row in own], model.spec.classes)
    return {ALL: {"measures": "classes", "item": "image", **summary, "items": items}}


def class_scores(model: Model, row: IndexRow) -> np.ndarray:
    """Return the class probabilities of a picture, float64 [classes], made to sum to exactly 1."""
    scores = np.array([entry.probability for entry in model.judge(model.read_image(row)).classes])  # type: ignore[union-attr]
    return np.asarray(scores / scores.sum())
