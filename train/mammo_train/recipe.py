"""What `mammo-train` does, read from top to bottom: from choices to a trained, measured run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import ACTIVATION_OF, ModelSpec, PromptSpec, Task
from mammo_train import checkpoint, distributed, fine_tune, models, presets, results, run_data
from mammo_train.config import TrainConfig
from mammo_train.data_notes import data_record, weights_licence
from mammo_train.dataset import usable_rows
from mammo_train.fit import fit as fit_network
from mammo_train.index import IndexRow, read_index
from mammo_train.resume import ended
from mammo_train.run_lock import run_lock
from mammo_train.study_presets import preset

Report = Callable[[str], None]


@dataclass(frozen=True)
class Choices:
    """What a user chooses about a model, besides how it is trained."""

    architecture: str
    name: str
    preset: str = "default"
    wish: presets.Wish = field(default_factory=presets.Wish)
    network: Mapping[str, Any] = field(default_factory=dict)
    """Options of the network, over the preset's; "width" among them."""
    classes: tuple[str, ...] = ()
    """Empty: the preset's."""
    encoder_weights: str = "none"
    """A file, "imagenet" or "none"."""
    initial: Path | None = None
    """A finished run to start from."""
    qat: str | None = None
    """Fine-tune `initial` for this form of INT8: network, input, classes and folds are its own, whatever stands above.
    """
    notes: Mapping[str, str] = field(default_factory=dict)
    """Licences of collections by folder name, where `data_notes` does not know them."""
    allow_leak: bool = False
    """Train on a split that is known not to be disjoint by patient (`mammo-train index --split seed`)."""


SETTINGS = (
    "epochs", "max_minutes", "batch_size", "accumulate", "precision", "loss", "seed", "train_folds", "validation_fold",
)  # fmt: skip
"""Options of `mammo-train fit` that are fields of `TrainConfig`."""


def choices_from(given: Mapping[str, Any], default_name: str) -> Choices:
    """Return the choices in the options of `mammo-train fit`."""
    modality = Modality(given["modality"]) if given["modality"] else None
    wish = presets.Wish(given["mode"], modality, given["size"], roi_margin=given["roi_margin"])
    width = {"width": given["width"]} if given["width"] else {}
    names = ("architecture", "preset", "classes", "encoder_weights", "initial", "qat", "notes", "allow_leak")
    same = {name: given[name] for name in names}
    if given["qat"]:
        if given["initial"] is None:
            raise UsageError("--qat fine-tunes a finished run: say which with --init RUN")
        same["architecture"] = checkpoint.load_spec(given["initial"]).architecture
    return Choices(name=given["name"] or default_name, wish=wish, network={**given["options"], **width}, **same)


def config_for(choices: Choices, file: Path | None, given: Mapping[str, Any]) -> TrainConfig:
    """Return the settings: `given` (None: not given) over the JSON file's, the preset's and the defaults.

    Raises UsageError on unknown or contradictory settings.
    """
    if choices.qat:
        assert choices.initial is not None
        return fine_tune.qat_config(choices.initial, choices.qat, file, given)
    known, chosen = models.known(choices.architecture), preset(choices.architecture, choices.preset)
    if choices.classes:  # other classes than the preset's have other codes to ignore
        chosen = replace(chosen, config={k: v for k, v in chosen.config.items() if k != "ignore_codes"})
    pretrained = choices.encoder_weights != "none" or choices.initial is not None
    return presets.train_config(file, given, pretrained, chosen, choices.wish.modality, known.loss)


def data_of(index: Path | None, root: Path | None, choices: Choices) -> tuple[Path, Path]:
    """Return index and root; without an index those that the run to fine-tune was trained with."""
    if index is not None:
        return index, root or index.parent
    assert choices.initial is not None
    trained_index, trained_root = run_data.read_data_json(choices.initial)
    return trained_index, root or trained_root


def train(index: Path, root: Path, run: Path, choices: Choices, config: TrainConfig, report: Report) -> list[str]:
    """Train, freeze the operating point, evaluate the validation fold. Returns the lines to print at the end.

    Of the processes that torchrun starts, the first one does all that follows training. Raises UsageError for anything
    wrong with index, folds, weights or the run folder.
    """
    models.known(choices.architecture)  # an unknown name is refused before anything is read or downloaded
    with run_lock(run):
        return _train(index, root, run, choices, config, report)


def _train(index: Path, root: Path, run: Path, choices: Choices, config: TrainConfig, report: Report) -> list[str]:
    rows = read_index(index, root, choices.allow_leak)
    encoder = presets.encoder_file(choices.encoder_weights)
    spec = spec_for(choices, rows, root, config, encoder)
    trained = fit_network(rows, spec, config, run, encoder, report, choices.initial, choices.allow_leak)
    if not distributed.is_first():
        return []
    folds = (*config.train_folds, config.validation_fold)
    run_data.write_data_json(run, index, root, [row for row in rows if row.fold in folds], choices.initial)
    block = results.freeze_operating_point(run, rows, report, index)
    return [*results.summary_lines("validation", block), f"wrote {run}", ended(trained.training, config)]


def spec_for(
    choices: Choices, rows: Sequence[IndexRow], root: Path, config: TrainConfig, encoder: Path | None
) -> ModelSpec:
    """Return the spec of a model that shall be trained, with its data and licence but without results."""
    if choices.qat:
        assert choices.initial is not None
        mode = checkpoint.load_spec(choices.initial).input.mode
        data = data_record(usable_rows(rows, mode, config.train_folds, config.kinds), root, choices.notes)
        return fine_tune.qat_spec(choices.initial, choices.name, data)
    known, chosen = models.known(choices.architecture), preset(choices.architecture, choices.preset)
    expected, inherited, encoder_name = None, None, "none"
    if encoder is not None:
        # The MobileNetV2 file at hand comes from TensorFlow; the other published encoders were trained by torchvision.
        tensorflow = choices.encoder_weights != "imagenet" and choices.architecture.startswith("mobilenetv2")
        expected = presets.SYMMETRIC if tensorflow else presets.IMAGENET
        encoder_name = encoder.name
    if choices.initial is not None:
        _, parent = checkpoint.load_model(choices.initial)
        inherited = parent.input.mean, parent.input.std
        encoder_name = str(parent.training.get("encoder_weights", "none"))
    network = {**chosen.network, **choices.network}
    foreign = sorted(set(network) - {"width", *known.options})
    if foreign:
        own = ", ".join(known.options) or "none"
        raise UsageError(f"{choices.architecture} has no option {', '.join(foreign)}; it has {own}")
    wish, prompt = choices.wish, None
    if known.task is Task.PROMPTED:
        side, prompt = _prompt_of(choices.architecture, network)
        wish = replace(wish, size=(side, side))  # transformers fix their grid
    classes = choices.classes or chosen.classes
    if known.task in (Task.SEGMENTATION, Task.PROMPTED) and len(classes) != 1:
        raise UsageError(f"{choices.architecture} marks one class, not {len(classes)}: give --classes one name")
    size = presets.input_spec(wish, chosen, expected, known.channels, known.multiple, inherited)
    data = data_record(usable_rows(rows, size.mode, config.train_folds, config.kinds), root, choices.notes)
    try:
        return ModelSpec(
            choices.name,
            choices.architecture,
            network=network,
            task=known.task,
            modality=choices.wish.modality or chosen.modality,
            input=size,
            classes=classes,
            activation=ACTIVATION_OF[known.task],
            prompt=prompt,
            training={"data": data, "preset": choices.preset},
            licence=weights_licence(data, encoder_name),
        )
    except ValueError as error:
        raise UsageError(f"{choices.architecture} cannot be trained so: {error}") from error


def _prompt_of(architecture: str, network: Mapping[str, Any]) -> tuple[int, PromptSpec]:
    """Return the side of a prompted network's grid and what lies between its two graphs, without allocating it."""
    with torch.device("meta"):
        built: Any = models.build(architecture, **network)
    return built.size.side, built.prompt_spec()


def evaluate_run(
    run: Path, fold: int, index: Path | None, root: Path | None, report: Report
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate one fold of a finished run; index and root default to those it was trained with.

    Returns the block of `metrics.json` and the lines to print.
    """
    _, spec = checkpoint.load_model(run)
    if index is None:
        trained_index, trained_root = run_data.read_data_json(run)
        index, root = trained_index, root or trained_root
    rows = read_index(index, root or index.parent, bool(spec.training.get("leaking_split")))
    config = results.read_config(run)
    if fold not in (*config.train_folds, config.validation_fold) and not spec.training.get("leaking_split"):
        run_data.check_unseen(run, [row for row in rows if row.fold == fold])
    block = results.evaluate_fold(run, rows, fold, report, index)
    return block, [*results.summary_lines(f"fold {fold}", block), f"wrote {run / results.METRICS}"]
