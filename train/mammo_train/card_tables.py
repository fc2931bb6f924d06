"""Tables and failure modes of a model card, by what was measured (`evaluate.measures`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from mammo_train.doubts import only_class
from mammo_train.evaluate import measures
from mammo_train.grouping import PATIENT, counted
from mammo_train.metrics import amount, with_interval

UNKNOWN_SIZE = "unknown spacing"
"""The size class of lesions in pictures without a spacing (`evaluate_masks.SIZES`)."""
BASELINES = {
    "baseline_dice_everything": "dice of marking everything (no model)",
    "baseline_dice_box": "dice of filling the box (no model)",
}
EXTRA = {"lesion_sensitivity": "lesions touched by a finding", "false_findings_per_image": "false findings per picture"}
SHOWN = {"precision": "precision", "recall": "recall", "dice": "Dice (= F1)", "iou": "IoU"}
"""Class metrics in tables: metric → heading."""
UNBOUNDED = "The predicted IoU is a regression without bounds: it can be below 0 or above 1, and is no probability."
CONFUSIONS = 3
"""Confusions of classes named as failure modes."""


def table(kind: str, values: Mapping[str, Any], grouped_by: str = PATIENT) -> str:
    """Return a block of `metrics.json` as Markdown; "n_patients" counts what the index is `grouped_by`."""
    sizes = amount(values["n"], values["item"])
    if values["item"] != "image":
        sizes += f" in {amount(values['n_images'], 'image')}"
    sizes += f" of {counted(values['n_patients'], grouped_by)}"
    return f"**{kind}**: {sizes}" + _TABLES[measures(values)](values)


def failures(values: Mapping[str, Any]) -> list[str]:
    """Return what went wrong in a block of `metrics.json`, counted."""
    return _FAILURES[measures(values)](values)


def _overlap_table(values: Mapping[str, Any]) -> str:
    lines = [f"; empty masks predicted: {values['n_empty_mask']}"]
    if "boxes" in values:
        lines[0] += f"; {values['boxes']}"
    lines += ["", f"| measure | mean per {values['item']} | pooled |", "|---|---|---|"]
    for metric, pooled in values["pooled"].items():
        lines.append(f"| {metric} | {with_interval(values['per_image'][metric])} | {with_interval(pooled)} |")
    for key, text in BASELINES.items():
        if key in values:
            lines.append(f"| {text} | {values[key]:.3f} | |")
    for key, text in EXTRA.items():
        if key in values:
            lines.append(f"| {text} | {with_interval(values[key])} | |")
    if "jittered_boxes" in values:
        moved = values["jittered_boxes"]["per_image"]["dice"]
        lines.append(f"| dice with boxes moved by 10 % | {with_interval(moved)} | |")
    expected = values.get("predicted_iou", {})
    for key, value in expected.items():
        if key != "n":
            lines.append(f"| predicted IoU: {key.replace('_', ' ')} | {with_interval(value)} | |")
    if expected:
        lines += ["", UNBOUNDED]
    lines += _breast_lines(values.get("breast_area"))
    if set(values["by_size"]) <= {UNKNOWN_SIZE}:
        return "\n".join(lines)
    lines += ["", "| lesion size | n | dice | iou |", "|---|---|---|---|"]
    for size, own in values["by_size"].items():
        lines.append(f"| {size} | {own['n']} | {with_interval(own['dice'])} | {with_interval(own['iou'])} |")
    return "\n".join(lines)


def _breast_lines(block: Mapping[str, Any] | None) -> list[str]:
    if block is None:
        return []
    head = f"Pixels {block['pixels']} only ({amount(block['n_without_breast'], 'picture')} without an outline):"
    lines = ["", head, "", "| measure | pooled over breast pixels |", "|---|---|"]
    return [*lines, *(f"| {metric} | {with_interval(value)} |" for metric, value in block["pooled"].items())]


def _findings_table(values: Mapping[str, Any]) -> str:
    return (
        "\n\n| measure | value |\n|---|---|\n"
        f"| pictures with a (false) finding | {with_interval(values['images_with_finding'])} |\n"
        f"| false findings per picture | {with_interval(values['findings_per_image'])} |"
    )


def _labels_table(values: Mapping[str, Any]) -> str:
    parts = [_classes_of_pixels(values)]
    if "grouped" in values:
        parts.append("Classes put together in groups:" + _classes_of_pixels(values["grouped"]))
    return "\n\n".join(parts)


def _classes_of_pixels(values: Mapping[str, Any]) -> str:
    lines = ["", "", "| measure | pooled over pixels |", "|---|---|"]
    lines.append(f"| pixel accuracy | {with_interval(values['accuracy'])} |")
    over = f"mean of the {values['n_classes_in_truth']} classes in the truth"
    lines += [f"| {text}, {over} | {with_interval(values['macro'][name])} |" for name, text in SHOWN.items()]
    lines += ["", f"| class | pixels | {' | '.join(SHOWN.values())} |", "|---|---|" + "---|" * len(SHOWN)]
    for row in values["classes"]:
        numbers = " | ".join(with_interval(row[metric]) for metric in SHOWN)
        lines.append(f"| {row['name']} | {row['truth']:,} | {numbers} |")
    return "\n".join(lines)


def _classes_table(values: Mapping[str, Any]) -> str:
    calibration = values["calibration"]
    rows = {
        f"AUC, mean of {values['auc']['classes_in_macro']} classes, each against the rest": values["auc"]["macro"],
        "accuracy": values["accuracy"],
        "balanced accuracy": values["balanced_accuracy"],
        "macro F1": values["macro_f1"],
        "expected calibration error": calibration["ece"],
        "Brier score": calibration["brier"],
    }
    lines = ["", "", "| measure | value |", "|---|---|"]
    lines += [f"| {name} | {with_interval(value)} |" for name, value in rows.items()]
    lines += [
        "",
        f"{calibration['definition']}." + _calibrated_by_share(values),
        "",
        "| class | n | AUC | precision | recall | F1 |",
        "|---|---|" + "---|" * 4,
    ]
    for row in values["classes"]:
        shown = (values["auc"]["one_vs_rest"][row["name"]], row["precision"], row["recall"], row["f1"])
        lines.append(f"| {row['name']} | {row['truth']} | {' | '.join(with_interval(v) for v in shown)} |")
    return "\n".join(lines)


def _calibrated_by_share(values: Mapping[str, Any]) -> str:
    name = only_class(values)
    if name is None:
        return ""
    return (
        f" **Every picture is called {name}: a low calibration error only says that the probability given is near that "
        "class's share of the pictures. It does not speak for the model.**"
    )


def _overlap_failures(values: Mapping[str, Any]) -> list[str]:
    items, item = values["items"], values["item"]
    found = []
    missed = sum(row["dice"] == 0 for row in items)
    poor = sum(0 < row["dice"] < 0.5 for row in items)
    found.append(f"{missed} of {len(items)} {item}s missed completely (Dice 0), {poor} more below Dice 0.5")
    if "false_findings" in items[0]:
        marked = sum(row["false_findings"] > 0 for row in items)
        found.append(f"{marked} of {len(items)} pictures carry a finding that touches nothing outlined")
    sized = {size: own["dice"]["value"] for size, own in values["by_size"].items() if size != UNKNOWN_SIZE}
    if len(sized) > 1:
        worst = min(sized, key=lambda size: sized[size])
        n = values["by_size"][worst]["n"]
        found.append(f"weakest by lesion size: {worst}, mean Dice {sized[worst]:.3f}, n = {n}")
    if "jittered_boxes" in values:
        change = values["jittered_boxes"]["per_image"]["dice"]["value"] - values["per_image"]["dice"]["value"]
        found.append(f"boxes moved by 10 % change the mean Dice by {change:+.3f}")
    return found


def _findings_failures(values: Mapping[str, Any]) -> list[str]:
    marked = sum(row["findings"] > 0 for row in values["items"])
    return [f"{marked} of {len(values['items'])} pictures without a mass get a false finding"]


def _labels_failures(values: Mapping[str, Any]) -> list[str]:
    classes = [row for row in values["classes"] if row["truth"]]
    found = []
    lost = [row["name"] for row in classes if row["recall"]["value"] == 0]
    if lost:
        found.append(f"never found: {', '.join(lost)}")
    if classes:
        worst = min(classes, key=lambda row: float(row["dice"]["value"]))
        found.append(f"weakest class: {worst['name']}, Dice {worst['dice']['value']:.3f}, {worst['truth']:,} pixels")
    return found + _confusions(values, "pixels")


def _classes_failures(values: Mapping[str, Any]) -> list[str]:
    items = values["items"]
    wrong = [row for row in items if row["predicted"] != row["kind"]]
    sure = sum(max(row["probabilities"]) >= 0.9 for row in wrong)
    found = [
        f"{len(wrong)} of {len(items)} pictures get a wrong class, {sure} of them with a probability of 0.9 or more"
    ]
    return found + _confusions(values, "pictures")


def _confusions(values: Mapping[str, Any], unit: str) -> list[str]:
    """Return the most frequent confusions, as parts of the true class."""
    names, matrix = [row["name"] for row in values["classes"]], values["confusion"]
    pairs = [(matrix[t][p], t, p) for t in range(len(names)) for p in range(len(names)) if t != p and matrix[t][p]]
    pairs.sort(key=lambda pair: (-pair[0], pair[1:]))
    return [
        f"{names[t]} taken for {names[p]}: {n:,} of {sum(matrix[t]):,} {unit} ({100 * n / sum(matrix[t]):.0f} %)"
        for n, t, p in pairs[:CONFUSIONS]
    ]


_TABLES: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "overlap": _overlap_table,
    "findings": _findings_table,
    "labels": _labels_table,
    "classes": _classes_table,
}
_FAILURES: Mapping[str, Callable[[Mapping[str, Any]], list[str]]] = {
    "overlap": _overlap_failures,
    "findings": _findings_failures,
    "labels": _labels_failures,
    "classes": _classes_failures,
}
