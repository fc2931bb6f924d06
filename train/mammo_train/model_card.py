"""The model card: what a model is for, made from and worth. Every number in it is a measurement of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mammo_runtime.spec import InputMode, ModelSpec
from mammo_train.config import TrainConfig
from mammo_train.data_notes import encoder_note
from mammo_train.metrics import amount, with_interval

ROLES = {
    "validation": "the fold on which best epoch, threshold and least area were chosen: optimistic",
    "test": "never used for any choice",
    "training": "trained on: says nothing about new patients",
    "other": "not trained on",
}
UNKNOWN_SIZE = "unknown spacing"
"""The size class of lesions in pictures without a spacing (`evaluate.SIZES`)."""

EXTRA = {"lesion_sensitivity": "lesions touched by a finding", "false_findings_per_image": "false findings per picture"}


def model_card(spec: ModelSpec, metrics: Mapping[str, Any], config: TrainConfig) -> str:
    """Return the card as Markdown.

    `metrics` is the content of `metrics.json`. Words about the data come from `spec.training["data"]`
    (`data_notes.data_record`); sections without a measurement say so.
    """
    sections = [
        _head(spec),
        _intended_use(spec),
        _data(spec),
        _training(spec, config),
        _operating_point(spec),
        _results(metrics),
        _failures(metrics),
        _limits(spec, metrics),
        _licence(spec),
    ]
    return "\n\n".join(sections) + "\n"


def _head(spec: ModelSpec) -> str:
    mode = "a box round each mass" if spec.input.mode is InputMode.ROI else "the whole picture"
    grid = f"{spec.input.height} x {spec.input.width}"
    return (
        f"# Model card: {spec.name}\n\n"
        f"`{spec.architecture}`, {spec.task.value} of {', '.join(spec.classes)} in {spec.modality.value} pictures; "
        f"input is {mode}, seen at {grid} cells. "
        f"Weights sha256 `{spec.parent_sha256}`, mammo-edge {spec.toolkit_version or 'unknown'}."
    )


def _intended_use(spec: ModelSpec) -> str:
    prompt = (
        " It outlines a mass that a person (or a detector) has pointed at; it does not search."
        if spec.input.mode is InputMode.ROI
        else " It marks regions that resemble the masses it was trained on."
    )
    return (
        "## Intended use\n\n"
        "Research use only. **Not a medical device**: not for diagnosis, screening decisions or treatment." + prompt
    )


def _data(spec: ModelSpec) -> str:
    training = spec.training
    lines = [
        "## Data\n",
        f"Trained on {_known(training, 'train_images')} pictures of {_known(training, 'train_patients')} patients "
        f"(folds {_listed(training.get('train_folds'))}; fold {_known(training, 'validation_fold')} for validation, "
        f"fold {_known(training, 'test_fold')} for testing; folds share no patient and no picture).",
    ]
    by_kind = training.get("train_images_by_kind")
    if by_kind:
        lines.append("By kind: " + ", ".join(f"{count} {kind}" for kind, count in by_kind.items()) + ".")
    if training.get("data"):
        lines += ["", "| collection | training pictures | licence | cite |", "|---|---|---|---|"]
        for entry in training["data"]:
            title = entry["title"] if entry["title"] == entry["name"] else f"{entry['title']} (`{entry['name']}`)"
            lines.append(f"| {title} | {entry['images']} | {entry['licence']} | {entry['citation'] or '-'} |")
    else:
        lines.append("The collections were not recorded.")
    return "\n".join(lines)


def _training(spec: ModelSpec, config: TrainConfig) -> str:
    training = spec.training
    steps = ", ".join(step.name for step in spec.input.cleaning) or "none"
    lines = [
        "## Training\n",
        f"- Encoder: {encoder_note(str(training.get('encoder_weights', 'none')))}",
        f"- {_known(training, 'epochs')} epochs, best at {_known(training, 'best_epoch')} "
        f"(Dice {_known(training, 'validation_dice_grid')} on the network's grid, fold {config.validation_fold}); "
        f"{config.frozen_epochs} with frozen encoder at rate {config.frozen_rate:g}, then {config.rate:g}; "
        f"batch {config.batch_size}, seed {config.seed}",
        f"- Loss: Tversky (missed {config.fn_weight:g}, false {config.fp_weight:g})"
        + (f" + {config.bce_weight:g} x binary cross-entropy" if config.bce_weight else ""),
        f"- Averaged weights: decay {config.ema_decay:g}" if config.ema_decay else "- No averaging of weights",
        f"- Cleaning before the network: {steps}",
    ]
    if "initial_weights" in training:
        initial = training["initial_weights"]
        lines.insert(2, f"- Started from the weights of `{initial['name']}` (sha256 `{initial['sha256']}`)")
    return "\n".join(lines)


def _operating_point(spec: ModelSpec) -> str:
    record = spec.training.get("operating_point")
    text = (
        f"## Operating point\n\nThreshold {spec.threshold:g} on the probability; findings below "
        f"{spec.min_area_cells:g} cells of the network's grid are dropped. "
    )
    if not record:
        return text + "Both are defaults: they were not chosen on data."
    score, chosen_on = record["score"], record["chosen_on"]
    return f"{text}Chosen by {score} on {record['n']} items ({chosen_on}), {record['dice']:.3f} there, and then frozen."


def _results(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return "## Results\n\nNot evaluated yet: run `mammo-train evaluate`."
    interval = "95 % intervals in brackets: percentile bootstrap over patients"
    parts = [f"## Results\n\nAt original resolution, by the runtime itself; {interval}."]
    for name, block in metrics.items():
        parts.append(f"### {name}: fold {block['fold']}, {ROLES[block['role']]}")
        parts += [_kind_table(kind, values) for kind, values in block["kinds"].items()]
    return "\n\n".join(parts)


def _kind_table(kind: str, values: Mapping[str, Any]) -> str:
    sizes = amount(values["n"], values["item"])
    if values["item"] != "image":
        sizes += f" in {amount(values['n_images'], 'image')}"
    sizes += f" of {amount(values['n_patients'], 'patient')}"
    head = f"**{kind}**: {sizes}"
    if "per_image" not in values:
        return (
            f"{head}\n\n| measure | value |\n|---|---|\n"
            f"| pictures with a (false) finding | {with_interval(values['images_with_finding'])} |\n"
            f"| false findings per picture | {with_interval(values['findings_per_image'])} |"
        )
    head += f"; empty masks predicted: {values['n_empty_mask']}"
    lines = [head, "", f"| measure | mean per {values['item']} | pooled |", "|---|---|---|"]
    for metric, pooled in values["pooled"].items():
        lines.append(f"| {metric} | {with_interval(values['per_image'][metric])} | {with_interval(pooled)} |")
    for key, text in EXTRA.items():
        if key in values:
            lines.append(f"| {text} | {with_interval(values[key])} | |")
    if "jittered_boxes" in values:
        moved = values["jittered_boxes"]["per_image"]["dice"]
        lines.append(f"| dice with boxes moved by 10 % | {with_interval(moved)} | |")
    lines += ["", "| lesion size | n | dice | iou |", "|---|---|---|---|"]
    for size, own in values["by_size"].items():
        lines.append(f"| {size} | {own['n']} | {with_interval(own['dice'])} | {with_interval(own['iou'])} |")
    return "\n".join(lines)


def _failures(metrics: Mapping[str, Any]) -> str:
    lines = ["## Known failure modes (measured)\n"]
    for name, block in metrics.items():
        for kind, values in block["kinds"].items():
            lines += [f"- {name}, {kind}: {text}" for text in _failures_of(values)]
    if len(lines) == 1:
        lines.append("None measured yet.")
    return "\n".join(lines)


def _failures_of(values: Mapping[str, Any]) -> list[str]:
    items, item = values["items"], values["item"]
    if "per_image" not in values:
        marked = sum(row["findings"] > 0 for row in items)
        return [f"{marked} of {len(items)} pictures without a mass get a false finding"]
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


def _limits(spec: ModelSpec, metrics: Mapping[str, Any]) -> str:
    names = [str(entry["title"]) for entry in spec.training.get("data", ())]
    sizes = [values["n_patients"] for block in metrics.values() for values in block["kinds"].values()]
    lines = [
        "## Limits\n",
        "- Measured only on held-out patients of the collections it was trained on"
        + (f" ({'; '.join(names)})" if names else "")
        + ": other scanners, hospitals and populations were not measured.",
    ]
    if sizes:
        lines.append(f"- The smallest group above has {amount(min(sizes), 'patient')}: read intervals, not means.")
    lines.append("- Age, ethnicity, breast density and implants were not controlled for.")
    if spec.input.mode is InputMode.ROI:
        lines.append("- A box without a mass still gets an outline: no test measured that.")
    return "\n".join(lines)


def _licence(spec: ModelSpec) -> str:
    return f"## Licence of the weights\n\n{spec.licence or 'Not stated: treat as research use only.'}"


def _known(training: Mapping[str, Any], name: str) -> str:
    return str(training.get(name, "unknown"))


def _listed(values: Any) -> str:
    return ", ".join(str(v) for v in values) if values else "unknown"
