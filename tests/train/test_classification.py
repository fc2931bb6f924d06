"""Classifier metrics: AUC by brute force, calibration by hand, intervals by group."""

from __future__ import annotations

import json

import numpy as np
import pytest

from mammo_runtime.errors import UsageError
from mammo_train.classification import (
    BINS,
    auc,
    brier,
    calibration_error,
    reliability,
    summarise_classification,
)

CLASSES = ("normal", "benign", "malignant")


def brute(scores: np.ndarray, positive: np.ndarray, times: np.ndarray) -> float:
    pairs = wins = 0.0
    for i in np.flatnonzero(positive):
        for j in np.flatnonzero(~positive):
            weight = times[i] * times[j]
            pairs += weight
            wins += weight * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return wins / pairs if pairs else np.nan


def test_auc_equals_all_pairs_with_ties_and_repeated_items() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 6, 30) / 5, rng.random(30) < 0.4
    times = rng.integers(0, 3, (7, 30))
    assert auc(scores, positive)[0] == pytest.approx(brute(scores, positive, np.ones(30)))
    assert auc(scores, positive, times) == pytest.approx([brute(scores, positive, t) for t in times])


def test_auc_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    scores, positive, times = rng.random(20), rng.random(20) < 0.5, rng.integers(0, 4, (9, 20))
    whole = auc(scores, positive, times)
    monkeypatch.setattr("mammo_train.classification._CHUNK", 40)
    assert auc(scores, positive, times) == pytest.approx(whole)


@pytest.mark.parametrize(
    ("scores", "positive", "value"),
    [
        ([0.1, 0.2, 0.8, 0.9], [0, 0, 1, 1], 1.0),
        ([0.9, 0.8, 0.2, 0.1], [0, 0, 1, 1], 0.0),
        ([0.5, 0.5, 0.5, 0.5], [0, 0, 1, 1], 0.5),
        ([0.1, 0.4, 0.35, 0.8], [0, 0, 1, 1], 0.75),
        ([0.1, 0.2], [0, 0], np.nan),
    ],
)
def test_auc_of_known_rankings(scores: list[float], positive: list[int], value: float) -> None:
    assert auc(np.array(scores), np.array(positive, bool))[0] == pytest.approx(value, nan_ok=True)


def test_calibration_by_hand() -> None:
    probabilities = np.array([[0.95, 0.05], [0.95, 0.05], [0.35, 0.65], [1.0, 0.0]])
    truth = np.array([0, 1, 1, 0])
    sums = reliability(probabilities, truth).sum(axis=0).reshape(3, BINS)
    assert sums[0].tolist() == [0] * 6 + [1, 0, 0, 3]
    assert sums[1, 9] == pytest.approx(2.9)
    assert sums[2, 9] == 2
    assert float(calibration_error(sums.ravel())) == pytest.approx((abs(0.65 - 1) + abs(2.9 - 2)) / 4)
    assert brier(probabilities, truth) == pytest.approx([2 * 0.05**2, 2 * 0.95**2, 2 * 0.35**2, 0])


def sample(n: int = 300, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Return probabilities that are right as often as they say, the truth drawn from them, two items a group."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet((0.6, 0.6, 0.6), n)
    truth = np.array([rng.choice(3, p=p) for p in probabilities])
    return probabilities, truth, [f"g{k // 2}" for k in range(n)]


def test_a_calibrated_classifier_is_measured_as_one() -> None:
    block = summarise_classification(*sample(2000), CLASSES, resamples=100)
    assert block["calibration"]["ece"]["value"] < 0.04
    for entry in block["calibration"]["bins"]:
        assert entry["right"] is None or entry["n"] < 60 or abs(entry["right"] - entry["confidence"]) < 0.12
    assert sum(entry["n"] for entry in block["calibration"]["bins"]) == 2000


def test_the_summary_by_hand() -> None:
    probabilities, truth, groups = sample(60)
    block = summarise_classification(probabilities, truth, groups, CLASSES, resamples=200)
    right = probabilities.argmax(axis=1) == truth
    assert block["accuracy"]["value"] == pytest.approx(right.mean())
    recalls = [right[truth == c].mean() for c in range(3)]
    assert block["balanced_accuracy"]["value"] == pytest.approx(np.mean(recalls))
    assert [row["recall"]["value"] for row in block["classes"]] == pytest.approx(recalls)
    one = [brute(probabilities[:, c], truth == c, np.ones(60)) for c in range(3)]
    assert [v["value"] for v in block["auc"]["one_vs_rest"].values()] == pytest.approx(one)
    assert block["auc"]["macro"]["value"] == pytest.approx(np.mean(one))
    assert block["calibration"]["brier"]["value"] == pytest.approx(brier(probabilities, truth).mean())
    assert (block["n"], block["n_patients"]) == (60, 30)
    assert np.array(block["confusion"]).sum() == 60
    for estimate in (block["accuracy"], block["auc"]["macro"], block["calibration"]["ece"]):
        assert estimate["low"] < estimate["value"] < estimate["high"]
    assert json.dumps(block, allow_nan=False)
    assert block == summarise_classification(probabilities, truth, groups, CLASSES, resamples=200)


def test_the_interval_is_by_group() -> None:
    # Ten groups that hold the same items: whichever are drawn, nothing changes.
    probabilities, truth, _ = sample(40)
    wide = summarise_classification(probabilities, truth, [str(k) for k in range(40)], CLASSES, resamples=300)
    narrow = summarise_classification(
        np.tile(probabilities, (10, 1)), np.tile(truth, 10), [str(k // 40) for k in range(400)], CLASSES, resamples=300
    )
    assert narrow["auc"]["macro"]["high"] - narrow["auc"]["macro"]["low"] == pytest.approx(0, abs=1e-12)
    assert wide["auc"]["macro"]["high"] - wide["auc"]["macro"]["low"] > 0.05


def test_the_auc_interval_covers_the_true_value_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(120):
        # Normal scores one standard deviation apart: the true AUC is Phi(1/sqrt 2) = 0.7602.
        truth = np.repeat([0, 1], 40)
        score = 1 / (1 + np.exp(-(rng.normal(0, 1, 80) + truth)))
        block = summarise_classification(
            np.stack([1 - score, score], axis=1), truth, [str(k) for k in range(80)], ("a", "b"), resamples=300
        )
        found = block["auc"]["one_vs_rest"]["b"]
        covered += found["low"] <= 0.7602 <= found["high"]
    assert 0.87 <= covered / 120 <= 0.99


def test_a_missing_class_is_none_and_left_out() -> None:
    probabilities, truth, groups = sample(40)
    kept = truth != 2
    block = summarise_classification(
        probabilities[kept], truth[kept], [g for g, k in zip(groups, kept) if k], CLASSES, resamples=50
    )
    assert block["auc"]["one_vs_rest"]["malignant"]["value"] is None
    assert block["auc"]["classes_in_macro"] == 2
    assert block["classes"][2]["recall"]["value"] is None
    alone = summarise_classification(probabilities[:1], truth[:1], ["a"], CLASSES, resamples=50)
    assert alone["auc"]["macro"]["value"] is None
    assert alone["accuracy"]["low"] is None
    assert json.dumps(alone, allow_nan=False)


def test_what_is_no_probability_is_refused() -> None:
    probabilities, truth, groups = sample(10)
    with pytest.raises(UsageError, match="sum to 1"):
        summarise_classification(2 * probabilities, truth, groups, CLASSES)
    probabilities[0, 0] = np.nan
    with pytest.raises(UsageError, match="sum to 1"):
        summarise_classification(probabilities, truth, groups, CLASSES)
    with pytest.raises(UsageError, match="cannot be summarised"):
        summarise_classification(probabilities[:0], truth[:0], [], CLASSES)
