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
    count,
    identity_problem,
    measure,
    ratio_interval,
    reported_row_problem,
    summarise,
    with_interval,
)
from mammo_train.systems import SYSTEMS
from reported_rows import REPORTED

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


@pytest.mark.parametrize("study", sorted({row.study for row in REPORTED}))
def test_exactly_the_contradictory_rows_of_the_studies_are_flagged(study: str) -> None:
    rows = [row for row in REPORTED if row.study == study]
    flagged = {row.name: reported_row_problem(row.values) for row in rows}
    assert {name for name, problem in flagged.items() if problem} == {row.name for row in rows if row.flagged}
    for row in rows:
        assert row.flagged in (flagged[row.name] or "")


def test_study_003_agrees_within_rounding() -> None:
    rows = [dict(row.values) for row in REPORTED if row.study == "003"]
    assert len(rows) == 4
    for row in rows:
        assert reported_row_problem(row, tolerance=0.001, rounding=0.001) is None
    for column in ("iou", "g_mean", "dice"):
        wrong = {**rows[2], column: rows[2][column] + 0.01}
        assert reported_row_problem(wrong, tolerance=0.001) is not None


def test_the_table_of_systems_holds_the_same_rows() -> None:
    table = [row.values for system in SYSTEMS.values() for row in system.reported]
    for row in REPORTED:
        assert any(row.values.items() <= values.items() for values in table), row.name
    flagged = [values for values in table if reported_row_problem(values)]
    assert len(flagged) == sum(bool(row.flagged) for row in REPORTED)


def test_columns_that_are_missing_are_not_checked() -> None:
    assert reported_row_problem({}) is None
    assert reported_row_problem({"dice": 0.6, "accuracy": 0.9, "loss": 2.0}) is None
    assert reported_row_problem({"dice": 0.0, "precision": 0.0, "sensitivity": 0.0}) is None


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


def test_words() -> None:
    assert with_interval({"value": 0.5123, "low": 0.4, "high": 0.6}) == "0.512 (0.400-0.600)"
    assert with_interval({"value": -0.1, "low": -0.4, "high": 0.2}) == "-0.100 (-0.400 to 0.200)"
    assert with_interval({"value": 0.5, "low": None, "high": None}) == "0.500"
    assert with_interval({"value": None, "low": None, "high": None}) == "undefined"
    assert (amount(1, "patient"), amount(2, "patient")) == ("1 patient", "2 patients")
