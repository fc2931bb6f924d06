"""The few numbers of a block of `metrics.json` that a table has room for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mammo_train.evaluate import measures, primary_block

Estimate = Mapping[str, float | None]


def headline(block: Mapping[str, Any], kinds: Sequence[str]) -> dict[str, Any]:
    """Return the numbers of the block that `kinds` (those the model was selected on) are measured in.

    {"kind", "item", "n", "n_patients", "metrics": name → {"value", "low", "high"}}.
    """
    name = primary_block(block["kinds"], kinds)
    own = block["kinds"][name]
    metrics = dict(_METRICS[measures(own)](own))
    for kind, values in block["kinds"].items():
        if kind != name and measures(values) == "findings":
            metrics[f"{kind} pictures with a false finding"] = values["images_with_finding"]
    return {"kind": name, "item": own["item"], "n": own["n"], "n_patients": own["n_patients"], "metrics": metrics}


def _overlap(own: Mapping[str, Any]) -> dict[str, Estimate]:
    numbers = {
        "mean Dice": own["per_image"]["dice"],
        "mean IoU": own["per_image"]["iou"],
        "pooled Dice": own["pooled"]["dice"],
    }
    if "breast_area" in own:
        pooled = own["breast_area"]["pooled"]
        numbers |= {"pooled IoU in the breast": pooled["iou"], "pooled G-mean in the breast": pooled["g_mean"]}
    if "lesion_sensitivity" in own:
        numbers["lesions touched"] = own["lesion_sensitivity"]
    if "jittered_boxes" in own:
        numbers["mean Dice, boxes moved by 10 %"] = own["jittered_boxes"]["per_image"]["dice"]
    for key, words in (("baseline_dice_box", "filling the box"), ("baseline_dice_everything", "marking everything")):
        if key in own:
            numbers[f"no model, {words}: mean Dice"] = {"value": own[key], "low": None, "high": None}
            break
    return numbers


def _findings(own: Mapping[str, Any]) -> dict[str, Estimate]:
    return {"pictures with a false finding": own["images_with_finding"]}


def _labels(own: Mapping[str, Any]) -> dict[str, Estimate]:
    return {"accuracy": own["accuracy"], "macro Dice": own["macro"]["dice"], "macro IoU": own["macro"]["iou"]}


def _classes(own: Mapping[str, Any]) -> dict[str, Estimate]:
    return {
        "AUC (macro)": own["auc"]["macro"],
        "accuracy": own["accuracy"],
        "balanced accuracy": own["balanced_accuracy"],
        "calibration error": own["calibration"]["ece"],
    }


_METRICS: Mapping[str, Callable[[Mapping[str, Any]], Mapping[str, Estimate]]] = {
    "overlap": _overlap,
    "findings": _findings,
    "labels": _labels,
    "classes": _classes,
}
