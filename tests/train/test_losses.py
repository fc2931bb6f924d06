"""Losses against values worked out by hand, and their gradients where sums are empty."""

from __future__ import annotations

import math

import pytest
import torch

from mammo_runtime.errors import UsageError
from mammo_train.config import TrainConfig
from mammo_train.losses import IGNORE, LOSSES, loss_of, tversky_loss

CERTAIN = 40.0
MASK_LOSSES = sorted(set(LOSSES) - {"ce_dice", "cross_entropy"})


def logits(*rows: list[int]) -> torch.Tensor:
    """Return logits [N, 1, 1, W] of certain answers, 1 or 0."""
    return torch.tensor(rows, dtype=torch.float32)[:, None, None] * 2 * CERTAIN - CERTAIN


def mask(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None, None]


def value(
    name: str, found: torch.Tensor, truth: torch.Tensor, valid: torch.Tensor | None = None, **more: float
) -> float:
    everywhere = torch.ones_like(truth, dtype=torch.bool) if valid is None else valid
    return float(loss_of(found, truth, everywhere, TrainConfig(loss=name, **more)))  # type: ignore[arg-type]


# A probability of 1/2 in both pixels, one of them mass: Σpt = 1/2, Σp = Σt = 1, Σp² = 1/2, BCE = ln 2.
UNDECIDED, HALF = torch.zeros(1, 1, 1, 2), mask([1, 0])


def test_tversky_by_hand() -> None:
    # TP 2, FP 1, FN 1: 1 - (2 + 1) / (2 + 0.7 + 0.3 + 1)
    assert float(tversky_loss(logits([1, 1, 1, 0, 0]), mask([1, 1, 0, 1, 0]))) == pytest.approx(0.25)
    assert value("tversky", logits([1, 1, 1, 0, 0]), mask([1, 1, 0, 1, 0])) == pytest.approx(0.25)


def test_fn_weight_weighs_missed_pixels_only() -> None:
    missed = logits([1, 0, 0]), mask([1, 1, 0])
    assert value("tversky", *missed, fn_weight=0.7, fp_weight=0.3) == pytest.approx(1 - 2 / 2.7)
    assert value("tversky", *missed, fn_weight=0.7, fp_weight=9.0) == pytest.approx(1 - 2 / 2.7)


def test_fp_weight_weighs_false_pixels_only() -> None:
    false = logits([1, 1, 0]), mask([1, 0, 0])
    assert value("tversky", *false, fn_weight=0.7, fp_weight=0.3) == pytest.approx(1 - 2 / 2.3)
    assert value("tversky", *false, fn_weight=9.0, fp_weight=0.3) == pytest.approx(1 - 2 / 2.3)


def test_images_are_summed_alone_and_then_averaged() -> None:
    right, missed = ([1, 0, 0], [1, 0, 0]), ([0, 0, 0], [1, 1, 0])
    both = logits(right[0], missed[0]), mask(right[1], missed[1])
    assert value("tversky", *both) == pytest.approx((0 + (1 - 1 / 2.4)) / 2)


def test_an_empty_picture_left_empty_costs_nothing() -> None:
    for name in ("tversky_bce", "tversky", "bce_dice", "dice_ce", "mse", "masked_bce"):
        assert value(name, logits([0, 0]), mask([0, 0])) == pytest.approx(0, abs=1e-6)


def test_undecided_pixels_by_hand() -> None:
    found = UNDECIDED, HALF
    tversky = 1 - 1.5 / (0.5 + 0.35 + 0.15 + 1)
    assert value("tversky", *found) == pytest.approx(tversky)
    assert value("tversky_bce", *found, bce_weight=0.3) == pytest.approx(tversky + 0.3 * math.log(2))
    assert value("tversky_bce", *found, bce_weight=0.0) == pytest.approx(tversky)
    assert value("bce_dice", *found) == pytest.approx(math.log(2) + 1 - (2 * 0.5 + 1) / (1 + 1 + 1))
    assert value("dice_ce", *found) == pytest.approx(math.log(2) + 1 - (2 * 0.5 + 1) / (0.5 + 1 + 1))
    assert value("dice_iou", *found) == pytest.approx(-(0.4 * 2 / 3 + 0.6 * 1.5 / (1.5 + 1)))
    assert value("mse", *found) == pytest.approx(0.25)


def test_dice_iou_pools_the_batch() -> None:
    found, truth = logits([1, 1, 1, 1], [0, 0, 0, 0]), mask([1, 1, 1, 1], [1, 0, 0, 0])
    assert value("dice_iou", found, truth) == pytest.approx(-(0.4 * 9 / 10 + 0.6 * 5 / 6))
    alone = [value("dice_iou", found[k : k + 1], truth[k : k + 1]) for k in range(2)]
    assert value("dice_iou", found, truth) != pytest.approx(sum(alone) / 2)


def test_masked_bce_counts_the_breast_alone() -> None:
    found, truth = torch.zeros(2, 1, 1, 4), mask([1, 0, 0, 0], [0, 0, 0, 0])
    valid = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]], dtype=torch.bool)[:, None, None]
    expected = (math.log(2) * (0.9 + 0.1) / 2 + math.log(2) * 0.1) / 2
    assert value("masked_bce", found, truth, valid, mass_weight=0.9, tissue_weight=0.1) == pytest.approx(expected)
    outside = found.clone()
    outside[0, ..., 2:] = 30.0
    assert value("masked_bce", outside, truth, valid, mass_weight=0.9, tissue_weight=0.1) == pytest.approx(expected)


def test_ce_dice_ignores_what_is_ignored() -> None:
    # Three classes; class 2 is not in the truth, the last pixel is ignored.
    target = torch.tensor([[[0, 1, 1, IGNORE]]])
    found = torch.zeros(1, 3, 1, 4)
    # p = 1/3 everywhere: Dice of class 0 = (2/3 + 1) / (1 + 1 + 1), of class 1 = (4/3 + 1) / (1 + 2 + 1)
    expected = math.log(3) + 1 - (5 / 9 + 7 / 12) / 2
    everywhere = torch.ones(1, 1, 1, 4, dtype=torch.bool)
    assert value("ce_dice", found, target, everywhere) == pytest.approx(expected)
    found[..., 3] = torch.tensor([9.0, -9.0, 5.0])[None, :, None]
    assert value("ce_dice", found, target, everywhere) == pytest.approx(expected)


def test_cross_entropy_of_pictures() -> None:
    found, valid = torch.tensor([[0.0, 0.0], [0.0, math.log(3)]]), torch.ones(2, 1, 1, 1, dtype=torch.bool)
    expected = (math.log(2) + math.log(4 / 3)) / 2
    assert value("cross_entropy", found, torch.tensor([0, 1]), valid) == pytest.approx(expected)
    weighted = (3 * math.log(2) + 0.5 * math.log(4 / 3)) / 2
    config = TrainConfig(loss="cross_entropy", class_weights=(3.0, 0.5))
    assert float(loss_of(found, torch.tensor([0, 1]), valid, config)) == pytest.approx(weighted)


def test_heads_are_averaged() -> None:
    first, second = logits([1, 0, 0]), logits([1, 1, 0])
    truth, valid, config = mask([1, 0, 0]), torch.ones(1, 1, 1, 3, dtype=torch.bool), TrainConfig(loss="tversky")
    alone = [float(loss_of(head, truth, valid, config)) for head in (first, second)]
    assert float(loss_of((first, second), truth, valid, config)) == pytest.approx(sum(alone) / 2)


def test_unknown_losses_are_listed() -> None:
    with pytest.raises(UsageError, match="tversky_bce"):
        value("dise", UNDECIDED, HALF)


@pytest.mark.parametrize("name", MASK_LOSSES)
@pytest.mark.parametrize("truth", [0.0, 1.0])
@pytest.mark.parametrize("level", [-200.0, 0.0, 200.0])
def test_gradients_are_finite_at_extremes(name: str, truth: float, level: float) -> None:
    for valid in (True, False):
        found = torch.full((2, 1, 4, 4), level, requires_grad=True)
        loss = loss_of(found, torch.full((2, 1, 4, 4), truth), torch.full((2, 1, 4, 4), valid), TrainConfig(loss=name))
        loss.backward()
        assert bool(torch.isfinite(loss))
        assert found.grad is not None
        assert bool(torch.isfinite(found.grad).all())
        if name == "masked_bce" and not valid:
            assert float(loss.detach()) == float(found.grad.abs().sum()) == 0


@pytest.mark.parametrize("level", [-200.0, 0.0, 200.0])
@pytest.mark.parametrize("label", [1, IGNORE])
def test_gradients_of_classes_are_finite_at_extremes(level: float, label: int) -> None:
    found = torch.zeros(2, 3, 4, 4)
    found[:, 0] = level
    found.requires_grad_(True)
    everywhere = torch.ones(2, 1, 4, 4, dtype=torch.bool)
    loss = loss_of(found, torch.full((2, 4, 4), label), everywhere, TrainConfig(loss="ce_dice"))
    loss.backward()
    assert bool(torch.isfinite(loss))
    assert found.grad is not None
    assert bool(torch.isfinite(found.grad).all())
    assert (float(found.grad.abs().sum()) == 0) is (label == IGNORE)
