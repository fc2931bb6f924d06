"""What the commands do: one function for each, from paths and choices to lines for the user."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from mammo_runtime.spec import ModelSpec, Task
from mammo_train import checkpoint, models, presets, results, run_data
from mammo_train.config import TrainConfig
from mammo_train.data_notes import data_record, weights_licence
from mammo_train.dataset import usable_rows
from mammo_train.fit import Report
from mammo_train.fit import fit as fit_network
from mammo_train.index import read_index

REFERENCE_SIDE = 256
"""Grid at which networks are listed."""


@dataclass(frozen=True)
class Choices:
    """What a user chooses about a model, besides how it is trained."""

    architecture: str
    mode: str
    """"full" or "roi"."""
    name: str
    encoder_weights: str
    """A file, "imagenet" or "none"."""
    initial: Path | None
    """A finished run to start from."""
    size: tuple[int, int] | None
    """Height and width of the network's grid; None: the mode's default."""
    roi_margin: float
    notes: Mapping[str, str]
    """Licences of collections by folder name, where `data_notes` does not know them."""


def train(index: Path, root: Path, run: Path, choices: Choices, config: TrainConfig, report: Report) -> list[str]:
    """Train, freeze the operating point, evaluate the validation fold. Returns the lines to print at the end.

    Raises UsageError for anything wrong with index, folds, weights or the run folder.
    """
    rows = read_index(index, root)
    models.known(choices.architecture)  # an unknown name is refused before anything is read or downloaded
    known = models.known(choices.architecture)
    encoder = presets.encoder_file(choices.encoder_weights)
    statistics = presets.IMAGENET if choices.encoder_weights == "imagenet" else presets.SYMMETRIC
    encoder_name = encoder.name if encoder else "none"
    if choices.initial is not None:
        _, parent = checkpoint.load_model(choices.initial)
        statistics = parent.input.mean, parent.input.std
        encoder_name = str(parent.training.get("encoder_weights", "none"))
    spec_input = presets.input_spec(choices.mode, choices.size, statistics, choices.roi_margin, known.multiple)
    data = data_record(usable_rows(rows, spec_input.mode, config.train_folds, config.kinds), root, choices.notes)
    spec = ModelSpec(
        choices.name,
        choices.architecture,
        input=spec_input,
        training={"data": data},
        licence=weights_licence(data, encoder_name),
    )
    fit_network(rows, spec, config, run, encoder, report, choices.initial)
    folds = (*config.train_folds, config.validation_fold)
    run_data.write_data_json(run, index, root, [row for row in rows if row.fold in folds])
    block = results.freeze_operating_point(run, rows, report, index)
    return [*results.summary_lines("validation", block), f"wrote {run}"]


def evaluate_run(
    run: Path, fold: int, index: Path | None, root: Path | None, report: Report
) -> tuple[dict[str, Any], list[str]]:
    """Evaluate one fold of a finished run; index and root default to those it was trained with.

    Returns the block of `metrics.json` and the lines to print.
    """
    if index is None:
        trained_index, trained_root = run_data.read_data_json(run)
        index, root = trained_index, root or trained_root
    rows = read_index(index, root or index.parent)
    config = results.read_config(run)
    if fold not in (*config.train_folds, config.validation_fold):
        run_data.check_unseen(run, [row for row in rows if row.fold == fold])
    block = results.evaluate_fold(run, rows, fold, report, index)
    return block, [*results.summary_lines(f"fold {fold}", block), f"wrote {run / results.METRICS}"]


def model_rows() -> list[dict[str, Any]]:
    """Return every network as a JSON-ready object."""
    defaults = {f.name: f.default for f in fields(TrainConfig)}
    loss = f"Tversky (missed {defaults['fn_weight']}, false {defaults['fp_weight']}) + {defaults['bce_weight']} x BCE"
    return [
        {
            "name": name,
            "seed": known.study,
            "widths": list(known.widths),
            "input": f"{known.channels}x{REFERENCE_SIDE}x{REFERENCE_SIDE}",
            "outputs": 1,
            "parameters": known.parameters,
            "loss": loss,
            "task": Task.SEGMENTATION.value,
        }
        for name, known in models.ARCHITECTURES.items()
    ]
