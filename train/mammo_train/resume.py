"""What a killed run resumes from: everything that changes while training, to and from one flat table of tensors."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mammo_runtime.hashing import file_sha256
from mammo_runtime.spec import ModelSpec
from mammo_train.adversarial import Adversary
from mammo_train.config import TrainConfig
from mammo_train.index import IndexRow
from mammo_train.qat import Simulation


@dataclass
class Progress:
    """The numbers that change while training; stored after every epoch."""

    epoch: int = 0
    """Epochs done."""
    rate: float = 0.0
    best_score: float = -1.0
    best_epoch: int = 0
    best_loss: float = float("inf")
    loss_epoch: int = 0
    """Epoch since which the plateau counts."""
    seconds: float = 0.0
    """Spent on the epochs so far, in all calls."""
    history: list[dict[str, float]] = field(default_factory=list)

    def log_csv(self) -> str:
        """Return one line for each epoch as CSV text."""
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(self.history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.history)
        return stream.getvalue()

    def limit(self, config: TrainConfig) -> str:
        """Return why training ends here, or "" when it goes on."""
        if self.epoch >= config.epochs:
            return "epochs"
        if self.epoch - self.best_epoch >= config.early_stop_patience:
            return "early stop"
        if self.epoch and config.max_minutes is not None and self.seconds >= 60 * config.max_minutes:
            return f"max_minutes ({config.max_minutes:g})"
        return ""

    def line(self, config: TrainConfig, seconds: float, score_name: str) -> str:
        """Return what to tell the user after an epoch that took `seconds`."""
        last, left = self.history[-1], (config.epochs - self.epoch) * seconds
        if config.max_minutes is not None:
            left = min(left, max(0.0, 60 * config.max_minutes - self.seconds))
        return (
            f"epoch {self.epoch}/{config.epochs}  loss {last['train_loss']:.4f}  "
            f"validation loss {last['validation_loss']:.4f}  {score_name} {last['validation_score']:.4f} "
            f"(best {self.best_score:.4f} at {self.best_epoch})  {seconds:.0f} s, "
            f"at most {left / 60:.0f} min left"
        )


def ended(training: Mapping[str, Any], config: TrainConfig) -> str:
    """Return why training ended, in words: `training` holds "epochs", "best_epoch", "epochs_s" and "stopped_by"."""
    epoch = training["epochs"]
    minutes = f"{config.max_minutes or 0:g} minutes is reached ({training['epochs_s'] / 60:.1f} used in all calls)"
    reasons = {
        "epochs": f"all epochs asked for are done ({config.epochs})",
        "early stop": f"no better score for {epoch - training['best_epoch']} epochs (early stop)",
    }
    timed = f"the limit of {minutes}; the same command with more --minutes goes on"
    return f"training ended after epoch {epoch}: {reasons.get(training['stopped_by'], timed)}"


@dataclass(eq=False)
class Learner:
    """A network in training with all that belongs to it."""

    network: nn.Module
    optimizer: torch.optim.Optimizer
    average: dict[str, torch.Tensor]
    """The averaged weights, which are validated and kept."""
    scaler: torch.amp.GradScaler
    progress: Progress
    adversary: Adversary | None = None
    """Critics of adversarial training."""
    simulation: Simulation | None = None
    """INT8, in quantisation-aware fine-tuning."""

    def state(self, identity: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        """Return tensors and JSON-ready record for `checkpoint.save_state`; `restore` is the inverse."""
        tensors = {f"network/{k}": v for k, v in self.network.state_dict().items()}
        tensors |= {f"average/{k}": v for k, v in self.average.items()}
        for number, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer/{number}/{k}": torch.as_tensor(v) for k, v in moments.items()}
        if self.adversary is not None:
            tensors |= {f"adversary/{k}": v for k, v in self.adversary.state().items()}
        if self.simulation is not None:
            tensors |= {f"simulation/{k}": v for k, v in self.simulation.state().items()}
        record = {"identity": identity, "progress": asdict(self.progress), "scaler": self.scaler.state_dict()}
        return tensors, record

    def restore(self, tensors: dict[str, torch.Tensor], record: dict[str, Any]) -> None:
        """Take over what `state` returned."""
        network = {k.removeprefix("network/"): v for k, v in tensors.items() if k.startswith("network/")}
        self.network.load_state_dict(network)
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("average/"):
                self.average[key.removeprefix("average/")].copy_(value)
            elif key.startswith("optimizer/"):
                _, number, name = key.split("/")
                moments.setdefault(int(number), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.adversary is not None:
            critics = {k.removeprefix("adversary/"): v for k, v in tensors.items() if k.startswith("adversary/")}
            self.adversary.restore(critics)
        if self.simulation is not None:
            own = {k.removeprefix("simulation/"): v for k, v in tensors.items() if k.startswith("simulation/")}
            self.simulation.restore(own, next(self.network.parameters()).device)
        self.scaler.load_state_dict(record["scaler"])
        self.progress = Progress(**record["progress"])


def identity_of(rows: Sequence[IndexRow], spec: ModelSpec, config: TrainConfig, weights: Sequence[Path]) -> str:
    """Return a hash of what the epochs done so far depend on: not the loader processes, not how long it will go on
    (unless the rate depends on it), not the words about data and licence. `weights` are the files training starts from.
    """
    settings = {k: v for k, v in asdict(config).items() if k not in ("workers", "epochs", "max_minutes")}
    if config.qat is None:
        del settings["qat"]  # runs of the first versions, which may be resumed, did not have it
    if config.schedule == "cosine":
        settings["epochs"] = config.epochs
    parts = [replace(spec, training={}, licence="").to_json(), json.dumps(settings, sort_keys=True)]
    for row in rows:
        files = [row.image] if row.mask is None else [row.image, row.mask]
        digests = " ".join(file_sha256(path) for path in files)
        parts.append(f"{digests} {row.group} {row.fold} {row.kind} {row.spacing_mm}")
    parts += [file_sha256(path) for path in weights]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
