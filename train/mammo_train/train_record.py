"""What a finished run says of its training: settings, and the record in its spec."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mammo_runtime import __version__
from mammo_runtime.atomic import write_text
from mammo_runtime.spec import ModelSpec
from mammo_train import checkpoint, distributed
from mammo_train.config import TrainConfig
from mammo_train.dataset import usable_rows
from mammo_train.doubts import doubts_of_training
from mammo_train.grouping import common
from mammo_train.index import IndexRow
from mammo_train.objectives import OBJECTIVES
from mammo_train.resume import Progress


def write_record(
    run: Path,
    rows: Sequence[IndexRow],
    spec: ModelSpec,
    config: TrainConfig,
    progress: Progress,
    start: tuple[Path | None, Path | None],
    facts: dict[str, Any],
) -> ModelSpec:
    """Write settings and spec beside the best epoch's weights, and return the spec with its training record.

    `start` is (encoder weights, initial run); `facts` are what only the loop knows (precision, device, …).
    """
    train = usable_rows(rows, spec.input.mode, config.train_folds, config.kinds)
    encoder_weights, initial = start
    record: dict[str, Any] = {
        "train_folds": list(config.train_folds),
        "validation_fold": config.validation_fold,
        "test_fold": config.test_fold,
        "train_images": len(train),
        "train_patients": len({r.group for r in train}),
        "grouped_by": common(r.grouped_by for r in rows),
        "train_images_by_kind": {kind: sum(r.kind == kind for r in train) for kind in config.kinds},
        "epochs": progress.epoch,
        "best_epoch": progress.best_epoch,
        "validation_score_grid": round(progress.best_score, 4),
        "validation_score": OBJECTIVES[spec.task].score_name,
        "epochs_s": round(progress.seconds, 1),
        "encoder_weights": encoder_weights.name if encoder_weights else "none",
        "seed": config.seed,
        "torch": torch.__version__,
        "warnings": doubts_of_training(progress.history, progress.best_epoch),
        **facts,
    }
    if initial is not None:
        _, parent = checkpoint.load_model(initial)
        record["initial_weights"] = {"name": parent.name, "sha256": checkpoint.weights_sha256(initial)}
        if "qat" in facts:
            score = parent.training.get("validation_score_grid")
            record["qat"] = {**facts["qat"], "validation_score_of_parent": score}
        record["encoder_weights"] = parent.training.get("encoder_weights", "none")
    finished = replace(
        spec,
        toolkit_version=__version__,
        parent_sha256=checkpoint.weights_sha256(run),
        training={**spec.training, **record},
    )
    if distributed.rank() == 0:
        write_text(run / "config.json", config.to_json() + "\n")
        checkpoint.save_spec(run, finished)
    return finished
