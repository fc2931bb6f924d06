"""Overlap metrics from counts of pixels: two named aggregations, patient-level intervals, and their self-checks.

`per_image` is the mean of each picture's value; `pooled` comes from one confusion matrix over all pictures.
A metric that is 0/0 is NaN in arrays and None in results, never 0. Dice and IoU of two empty masks are 1,
as in `mammo_runtime.overlap`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mammo_runtime.errors import MammoError, UsageError

METRICS = ("dice", "iou", "sensitivity", "specificity", "precision", "accuracy", "g_mean")
RESAMPLES = 2000
REPORTED_TOLERANCE = 0.03
"""Of Dice and IoU in published rows whose averaging is unknown: ten of the twelve rows of study 000 differ from the
identity by at most 0.02, the two whose columns cannot belong together by 0.04 and 0.13."""
REPORTED_ROUNDING = 0.002
"""Of published columns that one confusion matrix fixes: three digits, and their errors carried on."""


@dataclass(frozen=True)
class Counts:
    """Pixels of one picture (or of one lesion's window)."""

    tp: int
    fp: int
    fn: int
    tn: int


def count(mask: np.ndarray, truth: np.ndarray) -> Counts:
    """Compare two boolean arrays of one shape."""
    tp, marked, wanted = (int(np.count_nonzero(m)) for m in (mask & truth, mask, truth))
    return Counts(tp, marked - tp, wanted - tp, truth.size - marked - wanted + tp)


def measure(counts: np.ndarray) -> dict[str, np.ndarray]:
    """Map counts [..., 4] (TP, FP, FN, TN) to each of `METRICS` as float64 [...]; NaN where it is 0/0."""
    tp, fp, fn, tn = np.moveaxis(np.asarray(counts, np.float64), -1, 0)
    empty = tp + fp + fn == 0
    with np.errstate(invalid="ignore", divide="ignore"):
        sensitivity, specificity = tp / (tp + fn), tn / (tn + fp)
        return {
            "dice": np.where(empty, 1.0, 2 * tp / (2 * tp + fp + fn)),
            "iou": np.where(empty, 1.0, tp / (tp + fp + fn)),
            "sensitivity": sensitivity,
            "specificity": specificity,
            "precision": tp / (tp + fp),
            "accuracy": (tp + tn) / (tp + fp + fn + tn),
            "g_mean": np.sqrt(sensitivity * specificity),
        }


def summarise(
    counts: Sequence[Counts], groups: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Return both aggregations of every metric with 95 % intervals, JSON-ready.

    `groups` names each item's patient. Items whose truth or mask is empty are counted in `n_empty_truth`,
    `n_empty_mask` and `n_both_empty`. Raises MammoError if the result contradicts itself.
    """
    if not counts or len(counts) != len(groups):
        raise UsageError(f"{len(counts)} results with {len(groups)} groups cannot be summarised")
    table = np.array([(c.tp, c.fp, c.fn, c.tn) for c in counts], np.float64)
    draws = Draws(groups, resamples, seed)
    per_image: dict[str, Any] = {}
    for name, values in measure(table).items():
        defined = ~np.isnan(values)
        per_image[name] = draws.ratio(np.where(defined, values, 0.0), defined.astype(np.float64))
        per_image[name]["n"] = int(defined.sum())
    whole, drawn = measure(table.sum(axis=0)), measure(draws.sums(table))
    no_truth, no_mask = table[:, 0] + table[:, 2] == 0, table[:, 0] + table[:, 1] == 0
    pooled: dict[str, Any] = {name: draws.estimate(float(whole[name]), drawn[name]) for name in METRICS}
    for aggregation, estimates in (("per_image", per_image), ("pooled", pooled)):
        problem = identity_problem(estimates["dice"]["value"], estimates["iou"]["value"], aggregation)
        if problem:
            raise MammoError(f"the metrics contradict themselves ({aggregation}): {problem}")
    return {
        "n": len(counts),
        "n_patients": draws.groups,
        "n_empty_truth": int(no_truth.sum()),
        "n_empty_mask": int(no_mask.sum()),
        "n_both_empty": int((no_truth & no_mask).sum()),
        "interval": draws.words,
        "per_image": per_image,
        "pooled": pooled,
    }


def ratio_interval(
    numerators: Sequence[float],
    denominators: Sequence[float],
    groups: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, float | None]:
    """Return sum(numerators) / sum(denominators) as {"value", "low", "high"}; the interval draws whole patients."""
    draws = Draws(groups, resamples, seed)
    return draws.ratio(np.asarray(numerators, np.float64), np.asarray(denominators, np.float64))


class Draws:
    """How often each patient was drawn in each resample (Efron & Tibshirani 1993, percentile interval)."""

    def __init__(self, groups: Sequence[str], resamples: int = RESAMPLES, seed: int = 0) -> None:
        names, self._member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
        self.groups = len(names)
        chances = np.full(self.groups, 1 / self.groups)
        self._times = np.random.default_rng(seed).multinomial(self.groups, chances, size=resamples)
        self.words = (
            f"95 %, percentile bootstrap over patients (or near-duplicate groups), {resamples} resamples, seed {seed}"
        )

    def times(self, numbers: np.ndarray) -> np.ndarray:
        """Return how often some items (by their numbers) were drawn in each resample: int64 [resamples, items]."""
        return np.asarray(self._times[:, self._member[numbers]])

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Sum float64 [items, k] over the patients of each resample: [resamples, k]."""
        by_group = np.zeros((self.groups, values.shape[1]))
        np.add.at(by_group, self._member, values)
        return np.asarray(self._times @ by_group)

    def ratio(self, numerators: np.ndarray, denominators: np.ndarray) -> dict[str, float | None]:
        """Estimate a ratio of two sums over items."""
        pair = np.stack([numerators, denominators], axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            whole, drawn = pair.sum(axis=0), self.sums(pair)
            return self.estimate(float(whole[0] / whole[1]), drawn[:, 0] / drawn[:, 1])

    def estimate(self, value: float, drawn: np.ndarray) -> dict[str, float | None]:
        """Return value and interval; None where undefined. One patient alone gives no interval."""
        drawn = drawn[np.isfinite(drawn)]
        if not math.isfinite(value):
            return {"value": None, "low": None, "high": None}
        if self.groups < 2 or not drawn.size:
            return {"value": value, "low": None, "high": None}
        low, high = np.percentile(drawn, (2.5, 97.5))
        return {"value": value, "low": float(low), "high": float(high)}


def identity_problem(dice: float, iou: float, aggregation: str, tolerance: float = 1e-9) -> str | None:
    """Return why Dice and IoU cannot come from the same counts, or None.

    Pooled: IoU = D / (2 - D). Per image: that is a lower bound of the mean IoU (the function is convex, so
    Jensen's inequality holds), and the mean Dice is an upper one.
    """
    expected = dice / (2 - dice)
    if aggregation == "pooled":
        if abs(iou - expected) > tolerance:
            return f"IoU {iou:.4f} differs from Dice/(2-Dice) = {expected:.4f} by {iou - expected:+.4f}"
    elif iou < expected - tolerance:
        return f"mean IoU {iou:.4f} is below {expected:.4f}, the least that a mean Dice of {dice:.4f} allows"
    elif iou > dice + tolerance:
        return f"mean IoU {iou:.4f} is above the mean Dice {dice:.4f}"
    return None


def reported_row_problem(
    row: Mapping[str, float], tolerance: float = REPORTED_TOLERANCE, rounding: float = REPORTED_ROUNDING
) -> str | None:
    """Return why a published table row contradicts itself, or None; columns that are not there are not checked.

    "dice" and "iou" must fit each other as pooled numbers do, within `tolerance` (about 0.001 for three digits where
    the row is known to be pooled); "g_mean" the "sensitivity" and "specificity", and "dice" the "precision" and
    "sensitivity", within `rounding`.
    """
    if {"dice", "iou"} <= set(row):
        problem = identity_problem(row["dice"], row["iou"], "pooled", tolerance)
        if problem and identity_problem(row["dice"], row["iou"], "per_image", tolerance):
            return f"{problem}; means over pictures cannot give that either: the columns were averaged differently"
        if problem:
            return f"{problem}; only means over pictures could give that, not one set of counts"
    expected: dict[str, float] = {}
    if {"sensitivity", "specificity", "g_mean"} <= set(row):
        expected["g_mean"] = math.sqrt(row["sensitivity"] * row["specificity"])
    if {"sensitivity", "precision", "dice"} <= set(row) and row["precision"] + row["sensitivity"] > 0:
        expected["dice"] = 2 * row["precision"] * row["sensitivity"] / (row["precision"] + row["sensitivity"])
    for name, value in expected.items():
        if abs(row[name] - value) > rounding:
            return f"{name} {row[name]:.4f} differs from {value:.4f}, which the row's other columns give"
    return None


def with_interval(estimate: dict[str, Any], digits: int = 3) -> str:
    """Return "0.512 (0.401-0.620)"; "undefined" for None."""
    if estimate["value"] is None:
        return "undefined"
    text = f"{estimate['value']:.{digits}f}"
    if estimate["low"] is None:
        return text
    between = "-" if estimate["low"] >= 0 else " to "
    return f"{text} ({estimate['low']:.{digits}f}{between}{estimate['high']:.{digits}f})"


def amount(number: int, noun: str) -> str:
    """Return "1 patient" or "3 patients"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
