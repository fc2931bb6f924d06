"""A run's files: weights as safetensors, the spec as JSON, and the state a killed run resumes from. No pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import nn

from mammo_runtime.atomic import write_bytes, write_text
from mammo_runtime.errors import UsageError
from mammo_runtime.spec import ModelSpec
from mammo_train import models

WEIGHTS = "model.safetensors"
SPEC = "spec.json"
STATE = "state.safetensors"


def save_model(run: Path, state_dict: dict[str, torch.Tensor]) -> None:
    """Write the weights of the best epoch."""
    write_bytes(run / WEIGHTS, save({k: v.detach().cpu().contiguous() for k, v in state_dict.items()}))


def save_spec(run: Path, spec: ModelSpec) -> None:
    """Write the spec that belongs to the weights."""
    write_text(run / SPEC, json.dumps(spec.to_dict(), indent=1, sort_keys=True) + "\n")


def load_spec(run: Path) -> ModelSpec:
    """Return the spec of a finished run. Raises UsageError when there is none, or a damaged one."""
    if not (run / SPEC).is_file():
        raise UsageError(f"{run} holds no {SPEC}; is it a finished run of `mammo-train fit`?")
    try:
        values = json.loads((run / SPEC).read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{run / SPEC} is damaged ({error}); get the run again from where it was trained") from error
    return ModelSpec.from_dict(values)


def load_model(run: Path) -> tuple[nn.Module, ModelSpec]:
    """Return a trained network in eval mode and its spec. Raises UsageError when the run is not finished or damaged."""
    for name in (WEIGHTS, SPEC):
        if not (run / name).is_file():
            raise UsageError(f"{run} holds no {name}; is it a finished run of `mammo-train fit`?")
    spec = load_spec(run)
    if spec.parent_sha256 and spec.parent_sha256 != weights_sha256(run):
        raise UsageError(
            f"{run / WEIGHTS} and {SPEC} do not belong together: the training was interrupted, or a file was replaced. "
            "Run `mammo-train fit` to its end, or get the run again from where it was trained"
        )
    multiple = models.known(spec.architecture).multiple
    if spec.input.height % multiple or spec.input.width % multiple:
        raise UsageError(
            f"{run / SPEC} names a grid that is no multiple of {multiple}: it was changed after the training"
        )
    network = models.build_for(spec)
    try:
        network.load_state_dict(load_file(run / WEIGHTS))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"{run / WEIGHTS} is damaged or of another network than {SPEC} ({reason}); "
            "get the run again from where it was trained"
        ) from error
    return network.eval(), spec


def weights_sha256(run: Path) -> str:
    """Return the sha256 of the run's weights: the checkpoint's identity."""
    return hashlib.sha256((run / WEIGHTS).read_bytes()).hexdigest()


def save_state(run: Path, tensors: dict[str, torch.Tensor], progress: dict[str, Any]) -> None:
    """Write everything a resumed run needs in one file, so that it is either of this epoch or of the last."""
    contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    write_bytes(run / STATE, save(contiguous, metadata={"progress": json.dumps(progress)}))


def load_state(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
    """Return what `save_state` wrote, or None when there is nothing to resume."""
    path = run / STATE
    if not path.is_file():
        return None
    with safe_open(path, framework="pt") as stored:
        metadata = stored.metadata() or {}
    return load_file(path), dict(json.loads(metadata["progress"]))
