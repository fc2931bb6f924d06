"""The model card: what a model is for, made from and worth. Every number in it is a measurement of its run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mammo_runtime.spec import InputMode, ModelSpec, Task
from mammo_train.card_tables import failures, table
from mammo_train.config import TrainConfig
from mammo_train.data_notes import encoder_note
from mammo_train.grouping import GROUP, NOT_PATIENTS, PATIENT, counted, disjoint, units
from mammo_train.objectives import OBJECTIVES
from mammo_train.study_presets import PRESETS

ROLES = {
    "validation": "the fold on which the best epoch and the operating point were chosen: optimistic",
    "test": "never used for any choice",
    "training": "trained on: says nothing about new patients",
    "other": "not trained on",
}
PROMPTS = "a box round each mass"
_SEES: Mapping[Task, str] = {
    Task.SEGMENTATION: "the whole picture",
    Task.MULTICLASS: "the whole picture",
    Task.CLASSIFICATION: "the whole picture",
    Task.PROMPTED: f"the whole picture and {PROMPTS}",
}
_DOES: Mapping[Task, str] = {
    Task.SEGMENTATION: "marks {classes}",
    Task.MULTICLASS: "gives every pixel one of {n} classes ({classes})",
    Task.CLASSIFICATION: "gives a picture one of {n} classes ({classes})",
    Task.PROMPTED: "outlines {classes} in the boxes it is given",
}
_POINTED = " It outlines a mass that a person (or a detector) has pointed at; it does not search."
_USES: Mapping[Task, str] = {
    Task.SEGMENTATION: " It marks regions that resemble the masses it was trained on.",
    Task.MULTICLASS: " It gives every pixel the likeliest of the classes above, also where none of them fits.",
    Task.CLASSIFICATION: " It gives a picture as a whole the likeliest of the classes above; it shows no place.",
    Task.PROMPTED: _POINTED,
}
_BLIND_SPOTS: Mapping[Task, str] = {
    Task.SEGMENTATION: "",
    Task.MULTICLASS: "- What is none of the classes gets one of them nevertheless.",
    Task.CLASSIFICATION: "- A picture that shows none of the classes gets one of them nevertheless.",
    Task.PROMPTED: "- A box without a mass still gets an outline: no test measured that.",
}
_LEAK = (
    "**Not patient-disjoint: numbers are not comparable.** The split was made by picture, so pictures of one patient "
    "stand on both sides; every number below is too good by an unknown amount."
)


def model_card(spec: ModelSpec, metrics: Mapping[str, Any], config: TrainConfig) -> str:
    """Return the card as Markdown.

    `metrics` is the content of `metrics.json`. Words about the data come from `spec.training["data"]`
    (`data_notes.data_record`); sections without a measurement say so.
    """
    sections = [
        _head(spec),
        *_warnings(spec, metrics),
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
    mode = PROMPTS if spec.input.mode is InputMode.ROI else _SEES[spec.task]
    does = _DOES[spec.task].format(classes=", ".join(spec.classes), n=len(spec.classes))
    grid = f"{spec.input.height} x {spec.input.width}"
    return (
        f"# Model card: {spec.name}\n\n"
        f"`{spec.architecture}` {does} in {spec.modality.value} pictures; "
        f"input is {mode}, seen at {grid} cells. "
        f"Weights sha256 `{spec.parent_sha256}`, mammo-edge {spec.toolkit_version or 'unknown'}."
    )


def _warnings(spec: ModelSpec, metrics: Mapping[str, Any]) -> list[str]:
    """Return the section that says so when a model learned nothing, if there is cause."""
    of_folds = [text for block in metrics.values() for text in block.get("warnings", ())]
    found = dict.fromkeys([*spec.training.get("warnings", ()), *of_folds])
    return ["## Warnings\n\n" + "\n".join(f"- **{text}**" for text in found)] if found else []


def _intended_use(spec: ModelSpec) -> str:
    prompt = _POINTED if spec.input.mode is InputMode.ROI else _USES[spec.task]
    return (
        "## Intended use\n\n"
        "Research use only. **Not a medical device**: not for diagnosis, screening decisions or treatment." + prompt
    )


def _data(spec: ModelSpec) -> str:
    training = spec.training
    leaks, grouped_by = bool(training.get("leaking_split")), training.get("grouped_by", PATIENT)
    known = "pictures of one patient" + (", and near-duplicates," if grouped_by == GROUP else "")
    sharing = f"{known} may stand in several folds" if leaks else disjoint(grouped_by)
    number = training.get("train_patients")
    members = f"unknown {units(grouped_by)}" if number is None else counted(number, grouped_by)
    lines = [
        "## Data\n",
        f"Trained on {_known(training, 'train_images')} pictures of {members} "
        f"(folds {_listed(training.get('train_folds'))}; fold {_known(training, 'validation_fold')} for validation, "
        f"fold {_known(training, 'test_fold')} for testing; {sharing}).",
    ]
    if leaks:
        lines[1:1] = [_LEAK, ""]
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
        f"({OBJECTIVES[spec.task].score_name} {_grid_score(training)} on the network's grid, "
        f"fold {config.validation_fold}); {_rates(config)}; batch {config.batch_size}, seed {config.seed}",
        f"- Loss: {_loss(config)}; optimiser {config.optimizer}, schedule {config.schedule}",
        f"- Averaged weights: decay {config.ema_decay:g}" if config.ema_decay else "- No averaging of weights",
        f"- Cleaning before the network: {steps}",
    ]
    lines += _preset(spec)
    if spec.network:
        lines.append("- Network options: " + ", ".join(f"{name} {value}" for name, value in spec.network.items()))
    if training.get("stopped_by"):
        lines.append(f"- Training ended by: {training['stopped_by']}")
    if "initial_weights" in training:
        initial = training["initial_weights"]
        lines.insert(2, f"- Started from the weights of `{initial['name']}` (sha256 `{initial['sha256']}`)")
    if "qat" in training:
        lines.insert(3, _fine_tuned(training))
    return "\n".join(lines)


def _fine_tuned(training: Mapping[str, Any]) -> str:
    """Return how the run was fine-tuned for INT8; its weights are plain, so another precision may use them too."""
    qat = training["qat"]
    return (
        f"- Fine-tuned for INT8: {qat['layers']} layers computed as in the `{qat['form']}` graph while the weights "
        f"learned, batch norms at rest. Score on the network's grid: {_known(qat, 'validation_score_of_parent')} in "
        f"float before, {qat['validation_score_before']:.4f} in INT8 before, {_grid_score(training)} in INT8 after"
    )


def _preset(spec: ModelSpec) -> list[str]:
    """Return the preset's name and, unless it is the default one, what it says of its source."""
    name = spec.training.get("preset")
    if name is None:
        return []
    known = PRESETS.get(spec.architecture, {}).get(name) if name != "default" else None
    return [f"- Preset: {name}" + (f". {known.note}" if known is not None and known.note else "")]


def _grid_score(training: Mapping[str, Any]) -> str:
    """Return the best epoch's validation score; runs of the first version call it Dice."""
    return str(training.get("validation_score_grid", training.get("validation_dice_grid", "unknown")))


def _rates(config: TrainConfig) -> str:
    if not config.frozen_epochs:
        return f"rate {config.rate:g}"
    return f"{config.frozen_epochs} with frozen encoder at rate {config.frozen_rate:g}, then {config.rate:g}"


def _loss(config: TrainConfig) -> str:
    """Return the loss with those of its weights that it uses."""
    tversky = f"Tversky (missed {config.fn_weight:g}, false {config.fp_weight:g})"
    bce = f" + {config.bce_weight:g} x binary cross-entropy" if config.bce_weight else ""
    words = {
        "tversky_bce": tversky + bce,
        "tversky": tversky,
        "masked_bce": "binary cross-entropy over the breast "
        f"(mass {config.mass_weight:g}, tissue {config.tissue_weight:g})",
    }
    return words.get(config.loss, f"`{config.loss}`")


def _operating_point(spec: ModelSpec) -> str:
    record = spec.training.get("operating_point")
    if record and not record["n"]:
        return f"## Operating point\n\nThreshold and least area: {record['score']}."
    text = (
        f"## Operating point\n\nThreshold {spec.threshold:g} on the probability; findings below "
        f"{spec.min_area_cells:g} cells of the network's grid are dropped. "
    )
    if not record:
        return text + "Both are defaults: they were not chosen on data."
    score, chosen_on = record["score"], record["chosen_on"]
    value = record.get("value", record.get("dice"))
    boxes = f" ({record['boxes']})" if "boxes" in record else ""
    return f"{text}Chosen by {score} on {record['n']} items ({chosen_on}), {value:.3f} there{boxes}, and then frozen."


def _results(metrics: Mapping[str, Any]) -> str:
    if not metrics:
        return "## Results\n\nNot evaluated yet: run `mammo-train evaluate`."
    blocks = metrics.values()
    over = " or ".join(dict.fromkeys(units(block.get("grouped_by", PATIENT)) for block in blocks))
    interval = f"95 % intervals in brackets: percentile bootstrap over {over}"
    parts = [f"## Results\n\nAt original resolution, by the runtime itself; {interval}."]
    for name, block in metrics.items():
        parts.append(f"### {name}: fold {block['fold']}, {ROLES[block['role']]}")
        grouped_by = block.get("grouped_by", PATIENT)
        parts += [table(kind, values, grouped_by) for kind, values in block["kinds"].items()]
    return "\n\n".join(parts)


def _failures(metrics: Mapping[str, Any]) -> str:
    lines = ["## Known failure modes (measured)\n"]
    for name, block in metrics.items():
        for kind, values in block["kinds"].items():
            lines += [f"- {name}, {kind}: {text}" for text in failures(values)]
    if len(lines) == 1:
        lines.append("None measured yet.")
    return "\n".join(lines)


def _limits(spec: ModelSpec, metrics: Mapping[str, Any]) -> str:
    names = [str(entry["title"]) for entry in spec.training.get("data", ())]
    sizes = [
        (values["n_patients"], block.get("grouped_by", PATIENT))
        for block in metrics.values()
        for values in block["kinds"].values()
    ]
    groups = spec.training.get("grouped_by", PATIENT) == GROUP
    held_out = f"groups of near-duplicates ({NOT_PATIENTS})" if groups else "patients"
    if spec.training.get("leaking_split"):
        held_out = "pictures, not patients,"
    lines = [
        "## Limits\n",
        f"- Measured only on held-out {held_out} of the collections it was trained on"
        + (f" ({'; '.join(names)})" if names else "")
        + ": other scanners, hospitals and populations were not measured.",
    ]
    if sizes:
        lines.append(f"- The smallest set above has {counted(*min(sizes))}: read intervals, not means.")
    lines.append("- Age, ethnicity, breast density and implants were not controlled for.")
    blind = _BLIND_SPOTS[Task.PROMPTED if spec.takes_boxes else spec.task]
    if blind:
        lines.append(blind)
    return "\n".join(lines)


def _licence(spec: ModelSpec) -> str:
    return f"## Licence of the weights\n\n{spec.licence or 'Not stated: treat as research use only.'}"


def _known(training: Mapping[str, Any], name: str) -> str:
    return str(training.get(name, "unknown"))


def _listed(values: Any) -> str:
    return ", ".join(str(v) for v in values) if values else "unknown"
