"""Multi-class metrics: worked-out values, identities, absent classes, groups."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mammo_runtime.errors import MammoError, UsageError
from mammo_train import confusion as module
from mammo_train.confusion import (
    BCSS_GROUPS,
    OTHER,
    accuracy,
    confusion,
    group_members,
    grouped,
    macro,
    measure_classes,
    summarise_classes,
)
from mammo_train.metrics import METRICS, measure

HAND = np.array([[50, 10, 0, 0], [5, 30, 5, 0], [0, 0, 0, 0], [0, 0, 0, 0]], np.int64)
"""Class 2 is never in the truth but predicted 5 times; class 3 is nowhere."""


def test_pixels_are_counted_and_ignored_ones_left_out() -> None:
    truth = np.array([[0, 0, 1], [2, 255, 255]], np.uint8)
    labels = np.array([[0, 1, 1], [0, 2, 255]], np.uint8)
    assert confusion(labels, truth, 3).tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert confusion(labels, truth, 3).dtype == np.int64
    assert confusion(labels, np.full_like(truth, 255), 3).sum() == 0


def test_a_value_that_is_no_class_is_refused() -> None:
    truth = np.zeros((2, 2), np.uint8)
    with pytest.raises(UsageError, match="prediction holds the class 255"):
        confusion(np.full((2, 2), 255, np.uint8), truth, 3)
    with pytest.raises(UsageError, match="truth holds the class 3"):
        confusion(truth, truth + np.uint8(3), 3)


def test_metrics_by_hand() -> None:
    values = measure_classes(HAND)
    assert values["precision"][:3] == pytest.approx([50 / 55, 30 / 40, 0])
    assert values["recall"][:2] == pytest.approx([50 / 60, 30 / 40])
    assert values["dice"][:3] == pytest.approx([100 / 115, 60 / 80, 0])
    assert values["iou"][:3] == pytest.approx([50 / 65, 30 / 50, 0])
    assert values["f1"][:3] == pytest.approx(values["dice"][:3])
    assert np.isnan(values["recall"][2])
    assert all(np.isnan(v[3]) for v in values.values())
    means = macro(HAND)
    assert means["dice"] == pytest.approx((100 / 115 + 60 / 80) / 2), "over the two classes of the truth"
    assert means["balanced_accuracy"] == pytest.approx((50 / 60 + 30 / 40) / 2)
    assert accuracy(HAND) == pytest.approx(80 / 100)


def test_a_class_that_is_never_predicted_counts_as_zero_in_the_mean() -> None:
    missed = np.array([[8, 0], [4, 0]])
    assert np.isnan(measure_classes(missed)["precision"][1])
    assert macro(missed)["precision"] == pytest.approx(8 / 12 / 2)


def test_one_class_against_the_rest_is_the_binary_metric() -> None:
    matrix = np.random.default_rng(0).integers(0, 90, (5, 5))
    values = measure_classes(matrix)
    for c in range(5):
        tp, wanted, found = matrix[c, c], matrix[c].sum(), matrix[:, c].sum()
        binary = measure(np.array([tp, found - tp, wanted - tp, matrix.sum() - wanted - found + tp]))
        for own, of_two in (("precision", "precision"), ("recall", "sensitivity"), ("dice", "dice"), ("iou", "iou")):
            assert of_two in METRICS
            assert values[own][c] == pytest.approx(float(binary[of_two]))
    assert values["iou"] == pytest.approx(values["dice"] / (2 - values["dice"]))


def test_millions_of_pixels_do_not_overflow() -> None:
    huge = np.array([[3_000_000_000, 1], [2, 4_000_000_000]], np.int64)
    assert accuracy(huge) == pytest.approx(1, abs=1e-8)
    block = summarise_classes(np.stack([huge, huge]), ["a", "b"], ["x", "y"], resamples=20)
    assert block["confusion"][0][0] == 6_000_000_000


def test_the_summary_is_pooled_with_intervals_by_patient() -> None:
    matrices = np.stack([HAND, HAND, np.diag([10, 0, 0, 0])])
    block = summarise_classes(matrices, ["a", "a", "b"], ["w", "x", "y", "z"], resamples=200)
    assert (block["n"], block["n_patients"], block["n_classes_in_truth"]) == (3, 2, 2)
    assert block["accuracy"]["value"] == pytest.approx(170 / 210)
    assert block["accuracy"]["low"] == pytest.approx(0.8)
    assert block["accuracy"]["high"] == pytest.approx(1.0)
    w, x, y, z = block["classes"]
    assert (w["truth"], w["predicted"], w["n_images"]) == (130, 120, 3)
    assert (x["n_images"], y["recall"]["value"], z["dice"]["value"]) == (2, None, None)
    assert block["per_image"]["accuracy"]["value"] == pytest.approx((0.8 + 0.8 + 1) / 3)
    assert block["confusion"] == matrices.sum(axis=0).tolist()
    assert "NaN" not in json.dumps(block, allow_nan=False)


def test_a_picture_without_a_judged_pixel_is_left_out_of_the_means() -> None:
    block = summarise_classes(np.stack([HAND, 0 * HAND]), ["a", "b"], list("wxyz"), resamples=20)
    assert (block["per_image"]["accuracy"]["value"], block["per_image"]["accuracy"]["n"]) == (0.8, 1)
    nothing = summarise_classes(np.stack([0 * HAND]), ["a"], list("wxyz"), resamples=20)
    assert nothing["accuracy"]["value"] is None
    assert json.dumps(nothing, allow_nan=False)


def test_groups_sum_their_classes() -> None:
    classes = [*(name for names in BCSS_GROUPS.values() for name in names), "blood", "fat"]
    members = group_members(classes)
    assert list(members) == ["tumour", "stroma", "inflammatory", "necrosis", OTHER]
    assert members[OTHER] == [8, 9]
    matrix = np.arange(100).reshape(10, 10)
    five = grouped(matrix, list(members.values()))
    assert five.shape == (5, 5)
    assert five.sum() == matrix.sum()
    assert five[0, 4] == matrix[:3, 8:].sum()
    assert grouped(np.stack([matrix, matrix]), list(members.values())).shape == (2, 5, 5)
    assert group_members(["mass", "tissue"]) == {}


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError):
        summarise_classes(np.zeros((0, 2, 2), np.int64), [], ["a", "b"])
    monkeypatch.setattr(
        module, "measure_classes", lambda m: {**measure_classes(m), "f1": measure_classes(m)["precision"]}
    )
    with pytest.raises(MammoError, match="contradict"):
        summarise_classes(HAND[None], ["a"], list("wxyz"), resamples=20)
