"""Losses against values worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from mammo_train.losses import training_loss, tversky_loss

CERTAIN = 40.0


def logits(*rows: list[int]) -> torch.Tensor:
    """Return logits [N, 1, 1, W] of certain answers, 1 or 0."""
    return torch.tensor(rows, dtype=torch.float32)[:, None, None] * 2 * CERTAIN - CERTAIN


def mask(*rows: list[int]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float32)[:, None, None]


def test_tversky_by_hand() -> None:
    # TP 2, FP 1, FN 1: 1 - (2 + 1) / (2 + 0.7 + 0.3 + 1)
    assert float(tversky_loss(logits([1, 1, 1, 0, 0]), mask([1, 1, 0, 1, 0]))) == pytest.approx(0.25)


def test_fn_weight_weighs_missed_pixels_only() -> None:
    missed = logits([1, 0, 0]), mask([1, 1, 0])
    assert float(tversky_loss(*missed, fn_weight=0.7, fp_weight=0.3)) == pytest.approx(1 - 2 / 2.7)
    assert float(tversky_loss(*missed, fn_weight=0.7, fp_weight=9.0)) == pytest.approx(1 - 2 / 2.7)


def test_fp_weight_weighs_false_pixels_only() -> None:
    false = logits([1, 1, 0]), mask([1, 0, 0])
    assert float(tversky_loss(*false, fn_weight=0.7, fp_weight=0.3)) == pytest.approx(1 - 2 / 2.3)
    assert float(tversky_loss(*false, fn_weight=9.0, fp_weight=0.3)) == pytest.approx(1 - 2 / 2.3)


def test_images_are_summed_alone_and_then_averaged() -> None:
    right, missed = ([1, 0, 0], [1, 0, 0]), ([0, 0, 0], [1, 1, 0])
    both = tversky_loss(logits(right[0], missed[0]), mask(right[1], missed[1]))
    assert float(both) == pytest.approx((0 + (1 - 1 / 2.4)) / 2)


def test_an_empty_picture_left_empty_costs_nothing() -> None:
    assert float(tversky_loss(logits([0, 0]), mask([0, 0]))) == pytest.approx(0, abs=1e-6)


def test_undecided_pixels_count_by_half() -> None:
    # p = 0.5 everywhere, one of two pixels is mass: TP = FN = FP = 0.5
    value = tversky_loss(torch.zeros(1, 1, 1, 2), mask([1, 0]))
    assert float(value) == pytest.approx(1 - 1.5 / (0.5 + 0.35 + 0.15 + 1))


def test_training_loss_adds_weighted_cross_entropy() -> None:
    undecided, truth = torch.zeros(1, 1, 1, 2), mask([1, 0])
    alone = float(training_loss(undecided, truth, 0.7, 0.3, 0.0))
    assert alone == pytest.approx(float(tversky_loss(undecided, truth, 0.7, 0.3)))
    assert float(training_loss(undecided, truth, 0.7, 0.3, 0.3)) == pytest.approx(alone + 0.3 * math.log(2))
