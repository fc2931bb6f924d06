"""Optimiser and rate against numbers worked out by hand."""

from __future__ import annotations

import pytest
import torch

from mammo_train.resume import Progress
from mammo_train.schedule import lower_on_plateau, optimizer_for, rate_of_epoch
from training_phantoms import tiny_config


def rates(epochs: int, **changes: object) -> list[float]:
    config = tiny_config(**{"epochs": epochs, "frozen_epochs": 0, "rate": 1.0, "min_rate": 1e-9, **changes})
    progress = Progress(rate=config.rate)
    found = []
    for progress.epoch in range(epochs):
        found.append(rate_of_epoch(progress, config))
    return found


def test_steps_divide_by_ten() -> None:
    found = rates(50, schedule="steps", step_epochs=(30, 40))
    assert found[29] == 1
    assert found[30] == found[39] == pytest.approx(0.1)
    assert found[40] == found[49] == pytest.approx(0.01)


def test_cosine_falls_to_its_floor() -> None:
    found = rates(4, schedule="cosine")
    assert found == pytest.approx([1, 0.5 + 0.5 / 2**0.5, 0.5, 0.5 - 0.5 / 2**0.5])
    assert rates(4, schedule="cosine", min_rate=0.4)[3] == 0.4


def test_the_frozen_phase_has_its_own_rate() -> None:
    found = rates(4, schedule="cosine", frozen_epochs=2, frozen_rate=7.0)
    assert found == pytest.approx([7, 7, 1, 0.5])
    assert rates(3, schedule="constant") == [1, 1, 1]


def test_plateau_halves_after_its_patience() -> None:
    config = tiny_config(rate=1.0, plateau_patience=2, plateau_factor=0.5, min_rate=0.2, frozen_epochs=0)
    progress, found = Progress(rate=1.0), []
    for loss in (3.0, 2.0, 2.0, 2.5, 2.0, 2.0, 2.0, 2.0, 1.0):
        progress.epoch += 1
        lower_on_plateau(progress, loss, config)
        found.append(progress.rate)
    assert found == [1, 1, 1, 0.5, 0.5, 0.25, 0.25, 0.2, 0.2]


def test_adams_penalty_is_half_lambda_times_the_squared_weights_and_spares_biases() -> None:
    layer = torch.nn.Conv2d(1, 2, 3)
    before = layer.weight.detach().clone()
    config = tiny_config(optimizer="adam", weight_decay=0.5, betas=(0.9, 0.995), eps=1e-6)
    optimizer = optimizer_for(layer, config)
    (0 * layer.weight.sum() + 0 * layer.bias.sum()).backward()  # type: ignore[union-attr]
    bias = layer.bias.detach().clone()  # type: ignore[union-attr]
    optimizer.step()
    moments = optimizer.state[layer.weight]
    assert torch.allclose(moments["exp_avg"], 0.1 * 0.5 * before)  # the penalty's gradient is λ·w
    assert torch.equal(layer.bias, bias)  # type: ignore[arg-type]
    assert {(g["betas"], g["eps"]) for g in optimizer.param_groups} == {((0.9, 0.995), 1e-6)}


def test_adamw_is_the_default() -> None:
    optimizer = optimizer_for(torch.nn.Conv2d(1, 2, 3), tiny_config())
    assert isinstance(optimizer, torch.optim.AdamW)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [1e-4]
