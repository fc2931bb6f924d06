"""Optimiser and rate of every epoch."""

from __future__ import annotations

import math

import torch
from torch import nn

from mammo_train.config import TrainConfig
from mammo_train.resume import Progress

STEP_FACTOR = 0.1
"""steps: the rate falls to this at each of `step_epochs` (study 003)."""


def optimizer_for(network: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """Return the optimiser; Adam's penalty λ/2·‖w‖² is on weights alone, not on biases and batch norms (study 003)."""
    if config.optimizer == "adamw":
        return torch.optim.AdamW(
            network.parameters(), config.frozen_rate, config.betas, config.eps, config.weight_decay
        )  # fmt: skip
    weights = [p for p in network.parameters() if p.ndim > 1]
    others = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": weights, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.Adam([g for g in groups if g["params"]], config.frozen_rate, config.betas, config.eps)


def rate_of_epoch(progress: Progress, config: TrainConfig) -> float:
    """Return the rate of the epoch that begins; a plateau's is kept in `progress.rate`."""
    epoch = progress.epoch
    if epoch < config.frozen_epochs:
        return config.frozen_rate if config.schedule != "plateau" else progress.rate
    if config.schedule == "cosine":
        done = (epoch - config.frozen_epochs) / max(1, config.epochs - config.frozen_epochs)
        return max(config.min_rate, config.rate * 0.5 * (1 + math.cos(math.pi * done)))
    if config.schedule == "steps":
        return config.rate * STEP_FACTOR ** sum(epoch >= step for step in config.step_epochs)
    return config.rate if config.schedule == "constant" else progress.rate


def lower_on_plateau(progress: Progress, validation_loss: float, config: TrainConfig) -> None:
    """Lower `progress.rate` when the validation loss has rested for `plateau_patience` epochs."""
    if validation_loss < progress.best_loss:
        progress.best_loss, progress.loss_epoch = validation_loss, progress.epoch
    elif progress.epoch - progress.loss_epoch >= config.plateau_patience:
        progress.rate = min(progress.rate, max(config.min_rate, progress.rate * config.plateau_factor))
        progress.loss_epoch = progress.epoch
