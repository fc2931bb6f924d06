"""The seam between the training loop and a model's task: how a batch costs, and how a held-out sample scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from mammo_runtime.errors import UsageError
from mammo_runtime.overlap import dice
from mammo_runtime.spec import ModelSpec, Task
from mammo_train.adversarial import ADVERSARIAL
from mammo_train.config import TrainConfig
from mammo_train.confusion import confusion, macro
from mammo_train.losses import IGNORE, LOSSES, loss_of
from mammo_train.models.prompted import PromptedNetwork
from mammo_train.prompted import freeze, prompted_cost, prompted_details, prompted_outputs

Batch = Sequence[torch.Tensor]
"""A stack of samples (`dataset.Sample` or `prompt_samples.Sample`), on the network's device."""
Outputs = Any
"""What a network returned: one tensor, or several whose first axis is the batch."""


@dataclass(frozen=True)
class Objective:
    """How a task learns and is selected."""

    prepare: Callable[[nn.Module, bool, TrainConfig], None]
    """Freezes what does not learn in an epoch; takes the network in train mode, and whether its encoder rests."""
    outputs: Callable[[nn.Module, Batch, TrainConfig], Outputs]
    """One forward pass."""
    cost: Callable[[Outputs, Batch, TrainConfig], torch.Tensor]
    """The loss of a batch."""
    details: Callable[[Outputs, Batch, TrainConfig], list[Any]]
    """Of each sample, what `score` is reckoned from."""
    score: Callable[[Sequence[Any]], float]
    """Selects the best epoch, on the network's grid; larger is better."""
    score_name: str


def _rest_encoder(network: nn.Module, frozen: bool, config: TrainConfig) -> None:
    """Freeze or release a pretrained encoder: no gradients, batch norm in eval mode."""
    encoder = getattr(network, "encoder", None)
    if isinstance(encoder, nn.Module):
        encoder.requires_grad_(not frozen)
        encoder.train(not frozen)


def _prepare_prompted(network: nn.Module, frozen: bool, config: TrainConfig) -> None:
    assert isinstance(network, PromptedNetwork)
    freeze(network, config, frozen)


def _images(network: nn.Module, batch: Batch, config: TrainConfig) -> Outputs:
    return network(batch[0])


def _cost(outputs: Outputs, batch: Batch, config: TrainConfig) -> torch.Tensor:
    return loss_of(outputs, batch[1], batch[2], config)


def _dices(logits: torch.Tensor, batch: Batch, config: TrainConfig) -> list[float]:
    found, truth = (logits > 0).cpu().numpy(), (batch[1] > 0.5).cpu().numpy()
    return [dice(own, wanted) for own, wanted in zip(found[:, 0], truth[:, 0])]


def _pixel_matrices(logits: torch.Tensor, batch: Batch, config: TrainConfig) -> list[np.ndarray]:
    labels = logits.argmax(1).to(torch.uint8).cpu().numpy()
    truth = batch[1].to(torch.uint8).cpu().numpy()
    return [confusion(own, wanted, logits.shape[1], IGNORE) for own, wanted in zip(labels, truth)]


def _picture_matrices(logits: torch.Tensor, batch: Batch, config: TrainConfig) -> list[np.ndarray]:
    matrices = np.zeros((len(logits), logits.shape[1], logits.shape[1]), np.int64)
    matrices[np.arange(len(logits)), batch[1].cpu().numpy(), logits.argmax(1).cpu().numpy()] = 1
    return list(matrices)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _macro(name: str) -> Callable[[Sequence[np.ndarray]], float]:
    def score(matrices: Sequence[np.ndarray]) -> float:
        return float(np.nan_to_num(macro(np.sum(matrices, axis=0))[name]))

    return score


OBJECTIVES: Mapping[Task, Objective] = {
    Task.SEGMENTATION: Objective(_rest_encoder, _images, _cost, _dices, _mean, "mean Dice"),
    Task.MULTICLASS: Objective(_rest_encoder, _images, _cost, _pixel_matrices, _macro("dice"), "macro Dice"),
    Task.CLASSIFICATION: Objective(
        _rest_encoder, _images, _cost, _picture_matrices, _macro("balanced_accuracy"), "balanced accuracy"
    ),
    Task.PROMPTED: Objective(
        _prepare_prompted, prompted_outputs, prompted_cost, prompted_details, _mean, "mean Dice with true boxes"
    ),
}


def check_loss(spec: ModelSpec, config: TrainConfig) -> None:
    """Raise UsageError when the loss does not teach this task, or weighs another number of classes."""
    able = _PER_TASK.get(spec.task, tuple(name for name in LOSSES if name not in ("ce_dice", "cross_entropy")))
    if spec.task is Task.PROMPTED:
        able = tuple(name for name in able if name not in ADVERSARIAL)
    if config.loss not in able:
        raise UsageError(f"the loss {config.loss!r} is not for {spec.task.value}; it learns by {', '.join(able)}")
    if config.class_weights and len(config.class_weights) != len(spec.classes):
        raise UsageError(f"class_weights has {len(config.class_weights)} values for {len(spec.classes)} classes")


_PER_TASK: Mapping[Task, tuple[str, ...]] = {
    Task.MULTICLASS: ("ce_dice",),
    Task.CLASSIFICATION: ("cross_entropy",),
}
"""Losses of the tasks that have classes; all others are for masks."""


def one(outputs: Outputs, number: int) -> Outputs:
    """Return one sample's outputs, the batch axis kept."""
    if isinstance(outputs, torch.Tensor):
        return outputs[number : number + 1]
    return tuple(part[number : number + 1] for part in outputs)
