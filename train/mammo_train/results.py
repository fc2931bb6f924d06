"""What a finished run is worth: its operating point, `metrics.json`, pictures and model card."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mammo_runtime.atomic import write_text
from mammo_runtime.errors import UsageError
from mammo_runtime.hashing import file_sha256
from mammo_runtime.spec import ModelSpec, Task
from mammo_train import cases, checkpoint
from mammo_train.config import TrainConfig
from mammo_train.doubts import doubts_of_block, doubts_of_fine_tuning, doubts_of_training
from mammo_train.evaluate import evaluate, measures, primary_block
from mammo_train.grouping import PATIENT, counted
from mammo_train.index import IndexRow
from mammo_train.judge import Model
from mammo_train.metrics import amount, with_interval
from mammo_train.model_card import model_card
from mammo_train.objectives import OBJECTIVES
from mammo_train.operating_point import NO_THRESHOLD, choose_operating_point
from mammo_train.torch_session import TorchSession

METRICS, CARD, CONFIG = "metrics.json", "MODEL_CARD.md", "config.json"

Report = Callable[[str], None]


def read_config(run: Path) -> TrainConfig:
    """Return the settings a run was trained with. Raises UsageError when it is not finished."""
    if not (run / CONFIG).is_file():
        raise UsageError(f"{run} holds no {CONFIG}; is it a finished run of `mammo-train fit`?")
    return TrainConfig.from_dict(json.loads((run / CONFIG).read_text(encoding="utf-8")))


def read_metrics(run: Path) -> dict[str, Any]:
    """Return `metrics.json`, without results of other weights or another operating point; empty if there is none."""
    path = run / METRICS
    if not path.is_file():
        return {}
    stored: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    _, spec = checkpoint.load_model(run)
    return {name: block for name, block in stored.items() if isinstance(block, dict) and _is_current(block, run, spec)}


def freeze_operating_point(
    run: Path, rows: Sequence[IndexRow], report: Report = print, index: Path | None = None
) -> dict[str, Any]:
    """Choose threshold and smallest finding on the validation fold, write them into the run's spec, evaluate that fold.

    `index` is the file `rows` came from. Returns the validation block of `metrics.json`.
    """
    config = read_config(run)
    held_out = [row for row in rows if row.fold == config.validation_fold]
    with TorchSession.from_run(run) as session:
        model = Model(session, session.spec, session.decoder, config.ignore_codes)
        choice = choose_operating_point(model, held_out, config.validation_kinds, config.threshold_metric)
        frozen = replace(
            session.spec,
            threshold=choice.threshold,
            min_area_cells=choice.min_area_cells,
            training={**session.spec.training, "operating_point": choice.record},
        )
    checkpoint.save_spec(run, frozen)
    if frozen.task not in NO_THRESHOLD:
        report(f"operating point: threshold {choice.threshold:g}, least area {choice.min_area_cells:g} cells")
    block = evaluate_fold(run, rows, config.validation_fold, report, index)
    baseline = block["kinds"][primary_block(block["kinds"], config.validation_kinds)].get("baseline_dice_everything")
    learned = {"warnings": block["warnings"]} | ({} if baseline is None else {"baseline_dice_everything": baseline})
    judged = replace(frozen, training={**frozen.training, **learned})
    checkpoint.save_spec(run, judged)
    write_text(run / CARD, model_card(judged, read_metrics(run), config))
    return block


def evaluate_fold(
    run: Path, rows: Sequence[IndexRow], fold: int, report: Report = print, index: Path | None = None
) -> dict[str, Any]:
    """Evaluate one fold and write its block ("validation" or "fold_N") into `metrics.json`.

    Also draws what belongs to the task (case sheet, confusion matrix, reliability) and the learning curves, and renews
    the model card. `index` is the file `rows` came from.
    Returns the block. Raises UsageError when the fold holds nothing.
    """
    from mammo_train.pictures import curves_png

    config = read_config(run)
    own = [row for row in rows if row.fold == fold]
    if not own:
        raise UsageError(f"the index has no fold {fold}; it has {sorted({row.fold for row in rows})}")
    name = "validation" if fold == config.validation_fold else f"fold_{fold}"
    with TorchSession.from_run(run) as session:
        spec = session.spec
        model = Model(session, spec, session.decoder, config.ignore_codes)
        block = evaluate(model, own, config.kinds, report, config.validation_kinds)
        block = {
            "fold": fold,
            "role": _role(fold, config),
            "weights_sha256": checkpoint.weights_sha256(run),
            "index_sha256": None if index is None else file_sha256(index),
            **block,
        }
        block["warnings"] = [*_doubts_of_log(run, spec, name), *doubts_of_block(block, config.validation_kinds)]
        drawn = primary_block(block["kinds"], config.validation_kinds)
        among = [row for row in own if row.kind in drawn.split("+") or spec.task is Task.CLASSIFICATION]
        cases.draw(run, name, model, among, block["kinds"][drawn])
    # Kept as one file with the other folds' results, as long as those are of the same weights and operating point.
    metrics = {**read_metrics(run), name: block}
    write_text(run / METRICS, json.dumps(metrics, indent=1, allow_nan=False) + "\n")
    if (run / "log.csv").is_file():
        score = f"{OBJECTIVES[spec.task].score_name} on the network's grid"
        curves_png(run / "log.csv", run / "curves.png", score, spec.training.get("best_epoch"))
    write_text(run / CARD, model_card(spec, metrics, config))
    return block


def summary_lines(name: str, block: dict[str, Any]) -> list[str]:
    """Return one line for each part of a block of `metrics.json`, and its warnings."""
    lines, grouped_by = [], block.get("grouped_by", PATIENT)
    for kind, values in block["kinds"].items():
        items, patients = amount(values["n"], values["item"]), counted(values["n_patients"], grouped_by)
        lines.append(f"{name}, {kind}: {items} of {patients}: {_SUMMARIES[measures(values)](values)}")
    return [*lines, *(f"warning: {text}" for text in block.get("warnings", ()))]


def _doubts_of_log(run: Path, spec: ModelSpec, name: str) -> list[str]:
    """Return what is wrong with how training went, beside the results it was selected by."""
    if name != "validation" or not (run / "log.csv").is_file():
        return []
    with (run / "log.csv").open(newline="", encoding="utf-8") as stream:
        found = doubts_of_training(list(csv.DictReader(stream)), int(spec.training.get("best_epoch", 0)))
    qat = spec.training.get("qat")
    return [*found, *(doubts_of_fine_tuning(qat, spec.training["validation_score_grid"]) if qat else [])]


def _overlap_summary(values: dict[str, Any]) -> str:
    text = f"mean Dice {with_interval(values['per_image']['dice'])}, pooled {with_interval(values['pooled']['dice'])}"
    if "baseline_dice_everything" in values:
        text += f" (marking everything: {values['baseline_dice_everything']:.3f})"
    if "jittered_boxes" in values:
        text += f", jittered boxes {with_interval(values['jittered_boxes']['per_image']['dice'])}"
    if "predicted_iou" in values:
        text += f", predicted IoU off by {with_interval(values['predicted_iou']['mean_absolute_error'])}"
    return text


def _findings_summary(values: dict[str, Any]) -> str:
    return f"{with_interval(values['findings_per_image'])} false findings per picture"


def _labels_summary(values: dict[str, Any]) -> str:
    accuracy, dice = with_interval(values["accuracy"]), with_interval(values["macro"]["dice"])
    return f"pixel accuracy {accuracy}, mean Dice of {values['n_classes_in_truth']} classes {dice}"


def _classes_summary(values: dict[str, Any]) -> str:
    return (
        f"AUC {with_interval(values['auc']['macro'])}, accuracy {with_interval(values['accuracy'])}, "
        f"balanced {with_interval(values['balanced_accuracy'])}, ECE {with_interval(values['calibration']['ece'])}"
    )


_SUMMARIES: Mapping[str, Callable[[dict[str, Any]], str]] = {
    "overlap": _overlap_summary,
    "findings": _findings_summary,
    "labels": _labels_summary,
    "classes": _classes_summary,
}


def _role(fold: int, config: TrainConfig) -> str:
    if fold == config.validation_fold:
        return "validation"
    if fold in config.train_folds:
        return "training"
    return "test" if fold == config.test_fold else "other"


def _is_current(block: dict[str, Any], run: Path, spec: ModelSpec) -> bool:
    now = (checkpoint.weights_sha256(run), spec.threshold, spec.min_area_cells)
    return (block.get("weights_sha256"), block.get("threshold"), block.get("min_area_cells")) == now
