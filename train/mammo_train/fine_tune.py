"""What a run that is fine-tuned for INT8 takes over from its parent: network, input, classes, folds and settings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mammo_runtime.errors import UsageError
from mammo_runtime.spec import ModelSpec
from mammo_train import checkpoint, presets, results
from mammo_train.config import QatConfig, TrainConfig
from mammo_train.data_notes import weights_licence

DEFAULTS: Mapping[str, Any] = {
    # A thirtieth of the default rate: the network is trained, and the gradient that passes rounding unchanged is only
    # right for small steps. NVIDIA's recipe is a hundredth of the first rate for a tenth of the epochs.
    "rate": 1e-5,
    "schedule": "constant",
    "epochs": 10,
    "early_stop_patience": 10,
    "max_minutes": None,
    # The encoder is part of what is rounded, so it learns from the first step on.
    "frozen_epochs": 0,
    "freeze_encoder": False,
    # Averaged weights lie between the grid points that the network learned to sit on, and follow a short run too late.
    "ema_decay": 0.0,
    # Decay pulls on weights that rounding holds in place, and makes them flip between two integers.
    "weight_decay": 0.0,
}
"""Fields of `TrainConfig` in which fine-tuning differs from the parent's training."""


def qat_config(parent: Path, form: str, file: Path | None, given: Mapping[str, Any]) -> TrainConfig:
    """Return settings: what the user gave (None: not given) over the JSON file's, the above and the parent's.

    `form` is the key of the graph to simulate, unless the file names another.

    Raises UsageError for an unfinished parent, unknown or contradictory settings, and for other folds than the
    parent's: what it has learned from cannot judge its child.
    """
    own = results.read_config(parent)
    values = {**asdict(own), **DEFAULTS, "qat": asdict(QatConfig(form)), **presets.stored_settings(file)}
    values |= {name: value for name, value in given.items() if value is not None}
    config = TrainConfig.from_dict(values)
    folds = ("train_folds", "validation_fold", "test_fold")
    other = [name for name in folds if getattr(config, name) != getattr(own, name)]
    if other:
        told = ", ".join(f"{name} {getattr(own, name)}" for name in other)
        raise UsageError(f"fine-tuning keeps the folds of {parent} ({told}), or it would be judged on what that saw")
    return config


def qat_spec(parent: Path, name: str, data: Sequence[Mapping[str, Any]]) -> ModelSpec:
    """Return the spec of a fine-tuned run: the parent's, with its own name and data, and without results."""
    spec = checkpoint.load_spec(parent)
    fresh = ModelSpec(name, spec.architecture)
    encoder = str(spec.training.get("encoder_weights", "none"))
    training = {"data": data, "preset": spec.training.get("preset", "default")}
    return replace(
        spec,
        name=name,
        training=training,
        licence=weights_licence(data, encoder),
        threshold=fresh.threshold,
        min_area_cells=fresh.min_area_cells,
        parent_sha256=fresh.parent_sha256,
        toolkit_version=fresh.toolkit_version,
    )
