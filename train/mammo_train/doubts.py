"""Signs that a run learned nothing, as sentences: a number alone does not warn whoever reads it first."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mammo_train.evaluate import measures, primary_block

EARLY = 0.1
"""Share of the epochs in which a best epoch is early."""
LEAST_EPOCHS = 5
"""Fewer epochs say nothing about when the best one comes."""
MARGIN = 0.01
"""Dice by which a model must beat what needs no model."""
INT8_LOSS = 0.005
"""What INT8 may cost against FP32 (the exporter's gate)."""
MOSTLY = 0.9
"""Share of pictures without a mass from which false findings make a model useless for searching."""


def doubts_of_training(history: Sequence[Mapping[str, Any]], best_epoch: int) -> list[str]:
    """Return what is wrong with how the epochs went: `history` holds a row of `log.csv` for each."""
    epochs = len(history)
    if epochs < LEAST_EPOCHS or not 1 <= best_epoch <= max(1, EARLY * epochs):
        return []
    then, last = (float(history[k]["train_loss"]) for k in (best_epoch - 1, -1))
    if last >= then:
        return []
    return [
        f"The best epoch is {best_epoch} of {epochs}, while the training loss went on falling ({then:.4f} to "
        f"{last:.4f}): the score on the validation fold did not follow, and the model kept is hardly trained."
    ]


def doubts_of_fine_tuning(qat: Mapping[str, Any], best_score: float) -> list[str]:
    """Return what is wrong with fine-tuning for INT8; `qat` is its record in a spec."""
    before, parent, found = qat["validation_score_before"], qat.get("validation_score_of_parent"), []
    if best_score <= before:
        found.append(
            f"Fine-tuning for INT8 gained nothing: the simulated score was {before:.4f} before and {best_score:.4f} at "
            "the best epoch. Export the run it started from instead."
        )
    if parent is not None and best_score < parent - INT8_LOSS:
        found.append(
            f"In INT8 the fine-tuned network scores {best_score:.4f}, the one it started from {parent:.4f} in float. "
            "The exporter compares INT8 with this run's own FP32, so its gates do not see that loss."
        )
    return found


def doubts_of_block(block: Mapping[str, Any], kinds: Sequence[str]) -> list[str]:
    """Return what is wrong with the results of a fold; `kinds` are those the model was selected on."""
    found = []
    primary = primary_block(block["kinds"], kinds)
    for name, values in block["kinds"].items():
        own = _DOUBTS[measures(values)](values) if name == primary or measures(values) != "overlap" else []
        found += [f"Fold {block['fold']} ({block['role']}), {name}: {text}" for text in own]
    return found


def only_class(values: Mapping[str, Any]) -> str | None:
    """Return the one class that everything gets although the truth has several, else None."""
    columns = [sum(column) for column in zip(*values["confusion"])]
    predicted = [number for number, count in enumerate(columns) if count]
    several = sum(bool(sum(row)) for row in values["confusion"]) > 1
    return str(values["classes"][predicted[0]]["name"]) if several and len(predicted) == 1 else None


def _overlap(values: Mapping[str, Any]) -> list[str]:
    key, words = (
        ("baseline_dice_box", "filling each box")
        if "predicted_iou" in values
        else ("baseline_dice_everything", "marking every pixel")
    )
    dice, baseline = values["per_image"]["dice"]["value"], values.get(key)
    if dice is None or baseline is None or dice > baseline + MARGIN:
        return []
    return [f"mean Dice {dice:.3f} is not better than {baseline:.3f}, which {words} gets without any model."]


def _findings(values: Mapping[str, Any]) -> list[str]:
    marked, n = sum(row["findings"] > 0 for row in values["items"]), len(values["items"])
    if not n or marked < MOSTLY * n:
        return []
    return [f"{marked} of {n} pictures without a mass get a false finding: a finding says nothing."]


def _classes(values: Mapping[str, Any]) -> list[str]:
    name, item = only_class(values), "pixel" if measures(values) == "labels" else "picture"
    return [] if name is None else [f"every {item} is called {name}: the model does not tell the classes apart."]


_DOUBTS: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "overlap": _overlap,
    "findings": _findings,
    "labels": _classes,
    "classes": _classes,
}
