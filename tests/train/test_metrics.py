"""Metrics: worked-out values, published tables, identities that must hold for any counts, and intervals."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_runtime.errors import MammoError, UsageError
from mammo_runtime.overlap import dice, iou
from mammo_train import metrics
from mammo_train.metrics import (
    METRICS,
    Counts,
    amount,
    choose_threshold,
    count,
    identity_problem,
    measure,
    ratio_interval,
    reported_row_problem,
    summarise,
    with_interval,
)

STUDY_000 = {  # Dice, IoU of the study's test table
    "AUNet": (0.3630, 0.2189), "Dense UNet": (0.3665, 0.2239), "UNet++": (0.3406, 0.2243), "CDUNet": (0.3534, 0.2239),
    "CUNet++": (0.3234, 0.3234), "CAUNet": (0.3789, 0.2458), "CDUNet (Cropped)": (0.8495, 0.7360),
    "Dense UNet (Cropped)": (0.8179, 0.6901), "CAUNet (Cropped)": (0.8663, 0.7620),
    "AUNet (Cropped)": (0.8484, 0.7344), "MSANet (Cropped)": (0.8556, 0.7409), "CUNet++ (Cropped)": (0.8344, 0.7577),
}  # fmt: skip
STUDY_003 = [  # pooled rows: IoU, F1, G-mean, sensitivity, specificity, precision
    (0.109, 0.197, 0.49, 0.243, 0.987, 0.165),
    (0.117, 0.21, 0.493, 0.246, 0.989, 0.184),
    (0.153, 0.266, 0.504, 0.256, 0.993, 0.277),
    (0.054, 0.103, 0.842, 0.831, 0.852, 0.055),
]
COUNTS = st.builds(Counts, *[st.integers(0, 500)] * 4).filter(lambda c: c.tp + c.fp + c.fn + c.tn > 0)


def test_count_by_hand() -> None:
    mask, truth = np.array([1, 1, 1, 0, 0, 0], bool), np.array([1, 0, 0, 1, 1, 0], bool)
    assert count(mask, truth) == Counts(tp=1, fp=2, fn=2, tn=1)


def test_measure_by_hand() -> None:
    values = {name: float(v) for name, v in measure(np.array([6, 2, 4, 88])).items()}
    assert values == pytest.approx({
        "dice": 12 / 18, "iou": 6 / 12, "sensitivity": 0.6, "specificity": 88 / 90, "precision": 0.75,
        "accuracy": 0.94, "g_mean": math.sqrt(0.6 * 88 / 90),
    })  # fmt: skip
    assert tuple(values) == METRICS


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_counts_and_masks_give_the_runtimes_dice_and_iou(pixels: list[tuple[bool, bool]]) -> None:
    mask, truth = np.array(pixels, bool).T
    c = count(mask, truth)
    values = measure(np.array([c.tp, c.fp, c.fn, c.tn]))
    assert float(values["dice"]) == pytest.approx(dice(mask, truth), abs=1e-12)
    assert float(values["iou"]) == pytest.approx(iou(mask, truth), abs=1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(COUNTS, min_size=1, max_size=12))
def test_identities_hold_for_any_counts(counts: list[Counts]) -> None:
    summary = summarise(counts, [f"p{k // 2}" for k in range(len(counts))], resamples=50)
    pooled, each = summary["pooled"], summary["per_image"]
    assert pooled["iou"]["value"] == pytest.approx(pooled["dice"]["value"] / (2 - pooled["dice"]["value"]), abs=1e-9)
    assert each["iou"]["value"] >= each["dice"]["value"] / (2 - each["dice"]["value"]) - 1e-9
    for block in (pooled, each):
        for estimate in block.values():
            value, low, high = estimate["value"], estimate["low"], estimate["high"]
            assert value is None or 0 <= value <= 1
            assert low is None or 0 <= low <= high <= 1
    assert "NaN" not in json.dumps(summary, allow_nan=False)


def test_empties_follow_the_convention_and_are_counted() -> None:
    both, missed, false, right = Counts(0, 0, 0, 9), Counts(0, 0, 4, 5), Counts(0, 3, 0, 6), Counts(4, 0, 0, 5)
    summary = summarise([both, missed, false, right], list("abcd"))
    assert summary["per_image"]["dice"]["value"] == pytest.approx((1 + 0 + 0 + 1) / 4)
    assert (summary["n"], summary["n_patients"]) == (4, 4)
    assert (summary["n_empty_truth"], summary["n_empty_mask"], summary["n_both_empty"]) == (2, 2, 1)


def test_undefined_is_none_and_never_averaged_in() -> None:
    empty, right = Counts(0, 0, 0, 9), Counts(3, 1, 0, 5)
    only_empty = summarise([empty, empty], ["a", "b"])
    for name in ("sensitivity", "precision", "g_mean"):
        assert only_empty["pooled"][name] == {"value": None, "low": None, "high": None}
        assert only_empty["per_image"][name] == {"value": None, "low": None, "high": None, "n": 0}
    mixed = summarise([empty, right], ["a", "b"])["per_image"]
    assert (mixed["precision"]["value"], mixed["precision"]["n"]) == (0.75, 1)
    assert mixed["dice"]["n"] == 2


def test_one_patient_gives_no_interval() -> None:
    summary = summarise([Counts(3, 1, 0, 5), Counts(1, 1, 1, 6)], ["a", "a"])
    assert summary["n_patients"] == 1
    assert summary["per_image"]["dice"]["low"] is None
    assert summary["pooled"]["dice"]["value"] == pytest.approx(8 / 11)


def test_bootstrap_is_seeded_and_by_patient() -> None:
    values, ones = [0.1, 0.9, 0.2, 0.8, 0.3, 0.7], [1.0] * 6
    alone = ratio_interval(values, ones, list("abcdef"))
    assert alone == ratio_interval(values, ones, list("abcdef"))
    assert alone != ratio_interval(values, ones, list("abcdef"), seed=1)
    # Within each of these patients the mean is 0.5, so drawing whole patients never moves it.
    paired = ratio_interval(values, ones, list("aabbcc"))
    assert (paired["low"], paired["high"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert alone["low"] < 0.45 < 0.55 < alone["high"]  # type: ignore[operator]


def test_the_interval_covers_the_true_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(200):
        # 40 patients with two pictures each that share the patient's own difficulty
        patient = rng.normal(0.6, 0.1, 40)
        values = np.repeat(patient, 2) + rng.normal(0, 0.05, 80)
        found = ratio_interval(values.tolist(), [1.0] * 80, [f"p{k // 2}" for k in range(80)], 500, trial)
        covered += found["low"] <= 0.6 <= found["high"]  # type: ignore[operator]
    assert 0.88 <= covered / 200 <= 0.99


def test_the_two_contradictory_rows_of_study_000_are_flagged_and_no_other() -> None:
    flagged = {name for name, (d, i) in STUDY_000.items() if reported_row_problem({"dice": d, "iou": i})}
    assert flagged == {"CUNet++", "CUNet++ (Cropped)"}


def test_study_003_agrees_within_rounding() -> None:
    names = ("iou", "dice", "g_mean", "sensitivity", "specificity", "precision")
    for row in STUDY_003:
        assert reported_row_problem(dict(zip(names, row)), tolerance=0.001) is None
    for column in ("iou", "g_mean", "dice"):
        wrong = dict(zip(names, STUDY_003[2]))
        wrong[column] += 0.01
        assert reported_row_problem(wrong, tolerance=0.001) is not None


@pytest.mark.parametrize(
    ("d", "i", "aggregation", "reason"),
    [
        (0.5, 1 / 3, "pooled", None),
        (0.5, 0.34, "pooled", "differs from"),
        (0.5, 0.4, "per_image", None),
        (0.5, 0.3, "per_image", "is below 0.3333"),
        (0.5, 0.51, "per_image", "is above the mean Dice"),
    ],
)
def test_identity_problem(d: float, i: float, aggregation: str, reason: str | None) -> None:
    problem = identity_problem(d, i, aggregation)
    assert (problem is None) == (reason is None)
    assert reason is None or reason in str(problem)


def test_summarise_refuses_to_contradict_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(counts: np.ndarray) -> dict[str, np.ndarray]:
        return {**measure(counts), "iou": measure(counts)["dice"]}

    monkeypatch.setattr(metrics, "measure", wrong)
    with pytest.raises(MammoError, match="contradict"):
        summarise([Counts(3, 1, 2, 5)], ["a"])


def test_nothing_to_summarise_is_refused() -> None:
    with pytest.raises(UsageError):
        summarise([], [])
    with pytest.raises(UsageError):
        summarise([Counts(1, 0, 0, 0)], ["a", "b"])


def maps(*levels: float) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Return a map that holds the mass at levels[0] and clutter at levels[1], with its truth."""
    probability, truth = np.zeros((10, 10), np.float32), np.zeros((10, 10), bool)
    truth[2:6, 2:6] = True
    probability[truth] = levels[0]
    probability[7:9, 7:9] = levels[1]
    return [probability], [truth]


def test_the_best_threshold_wins_and_ties_go_to_the_middle() -> None:
    # Any threshold above the clutter (0.62) and up to the mass (0.83) is perfect; 0.65 lies closest to 0.5.
    choice = choose_threshold(*maps(0.83, 0.62))
    assert (choice.threshold, choice.score) == (0.65, 1.0)
    assert choice.scores[0.8] == 1.0
    assert choice.scores[0.6] == pytest.approx(2 * 16 / (20 + 16))
    assert choice.scores[0.85] == 0
    assert choose_threshold(*maps(0.9, 0.0)).threshold == 0.5
    assert choose_threshold(*maps(0.38, 0.12)).threshold == 0.35


def test_pooled_iou_and_g_mean() -> None:
    probabilities, truths = (a + b for a, b in zip(maps(0.9, 0.3), maps(0.4, 0.3)))
    assert choose_threshold(probabilities, truths, "iou").threshold == 0.4
    assert choose_threshold(probabilities, truths, "iou").scores[0.5] == pytest.approx(16 / 32)
    assert choose_threshold(probabilities, truths, "gmean").scores[0.5] == pytest.approx(math.sqrt(0.5))


def test_metrics_may_disagree_on_the_threshold() -> None:
    # A tiny mass found early but with clutter: the per-image Dice and the pooled IoU weigh it differently.
    large, small = np.full((20, 20), 0.9, np.float32), np.zeros((20, 20), np.float32)
    large[:, 10:] = 0.3
    small[0, :2], small[5:8, :10] = 0.25, 0.15
    truths = [large > 0.5, small > 0.2]
    assert choose_threshold([large, small], truths, "dice").threshold == 0.25
    assert choose_threshold([large, small], truths, "iou").threshold == pytest.approx(0.5)


def test_postprocessing_sees_each_mask() -> None:
    def drop_clutter(number: int, mask: np.ndarray) -> np.ndarray:
        assert number == 0
        return mask & maps(1, 0)[1][0]

    assert choose_threshold(*maps(0.83, 0.62), postprocess=drop_clutter).threshold == 0.5


def test_threshold_errors() -> None:
    with pytest.raises(UsageError, match="dice, iou, gmean"):
        choose_threshold(*maps(0.9, 0.1), metric="auc")
    with pytest.raises(UsageError, match="no validation picture"):
        choose_threshold([], [])
    with pytest.raises(UsageError, match="undefined"):
        choose_threshold([np.zeros((4, 4))], [np.zeros((4, 4), bool)], "gmean")


def test_words() -> None:
    assert with_interval({"value": 0.5123, "low": 0.4, "high": 0.6}) == "0.512 (0.400-0.600)"
    assert with_interval({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert with_interval({"value": None, "low": None, "high": None}) == "undefined"
    assert (amount(1, "patient"), amount(2, "patient")) == ("1 patient", "2 patients")
