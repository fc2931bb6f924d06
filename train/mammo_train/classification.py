"""Metrics of a classifier from its class probabilities: ranking, decisions and calibration, with intervals.

Intervals come from a bootstrap over patients or near-duplicate groups. DeLong's interval of the AUC (1988) takes
pictures for independent, which several pictures of one patient are not (Obuchowski 1997, Biometrics 53, 567).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_train.confusion import accuracy, macro, summarise_classes
from mammo_train.metrics import RESAMPLES, Draws

BINS = 10
"""Equal widths of the likeliest class's probability, for the calibration error and the reliability diagram."""
_CHUNK = 2_000_000
"""Numbers in memory at once while AUCs of resamples are reckoned (16 MB)."""


def auc(scores: np.ndarray, positive: np.ndarray, times: np.ndarray | None = None) -> np.ndarray:
    """Return the probability that a positive ranks above a negative, ties counting half (Mann-Whitney, exact).

    `scores` float [n], `positive` bool [n], `times` [resamples, n] how often each item counts (once if None).
    Returns float64 [resamples] (or [1]); NaN where one of both is missing.
    """
    weights = np.ones((1, len(scores))) if times is None else times
    values, level = np.unique(scores, return_inverse=True)
    found = np.empty(len(weights))
    step = max(1, _CHUNK // max(1, len(values)))
    order = np.argsort(level, kind="stable")
    starts = np.searchsorted(level[order], np.arange(len(values)))
    for first in range(0, len(weights), step):
        part = weights[first : first + step][:, order].astype(np.float64)
        wins = positive[order].astype(np.float64)
        ups, downs = (np.add.reduceat(part * own, starts, axis=1) for own in (wins, 1 - wins))
        below = np.cumsum(downs, axis=1) - downs
        with np.errstate(invalid="ignore", divide="ignore"):
            pairs = ups.sum(axis=1) * downs.sum(axis=1)
            found[first : first + step] = (ups * (below + 0.5 * downs)).sum(axis=1) / pairs
    return found


def reliability(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return for each item and bin: counted, confidence, right; float64 [n, 3·`BINS`], bins fastest."""
    confidence, label = probabilities.max(axis=1), probabilities.argmax(axis=1)
    number = np.minimum((confidence * BINS).astype(int), BINS - 1)
    table = np.zeros((len(truth), 3, BINS))
    rows = np.arange(len(truth))
    table[rows, 0, number], table[rows, 1, number] = 1, confidence
    table[rows, 2, number] = label == truth
    return table.reshape(len(truth), 3 * BINS)


def calibration_error(sums: np.ndarray) -> np.ndarray:
    """Return the expected calibration error of summed `reliability` rows [..., 3·`BINS`]: float64 [...].

    Mean over items of |right - confidence| of their bin (Guo et al. 2017).
    """
    counted, confidence, right = np.moveaxis(np.asarray(sums).reshape(*np.shape(sums)[:-1], 3, BINS), -2, 0)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.abs(confidence - right).sum(axis=-1) / counted.sum(axis=-1))


def brier(probabilities: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Return each item's squared error summed over the classes (Brier 1950): float64 [n], 0 best, 2 worst."""
    wanted = np.eye(probabilities.shape[1])[truth]
    return np.asarray(((probabilities - wanted) ** 2).sum(axis=1))


def summarise_classification(
    probabilities: np.ndarray,
    truth: np.ndarray,
    groups: Sequence[str],
    classes: Sequence[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """Return AUC, decisions (arg-max) and calibration with 95 % intervals, JSON-ready.

    `probabilities` float [n, K], rows summing to 1; `truth` whole numbers [n]; `groups` names each item's patient.
    Raises UsageError when there is nothing, or values that are no probabilities.
    """
    if not len(truth) or not len(truth) == len(groups) == len(probabilities):
        raise UsageError(f"{len(truth)} results with {len(groups)} groups cannot be summarised")
    # Written so that NaN fails too.
    if not (probabilities.min() >= 0 and np.allclose(probabilities.sum(axis=1), 1, atol=1e-3)):
        raise UsageError("class probabilities must not be negative and must sum to 1")
    probabilities = probabilities.astype(np.float64)
    draws, k, n = Draws(groups, resamples, seed), len(classes), len(truth)
    matrices = np.zeros((n, k, k), np.int64)
    matrices[np.arange(n), truth, probabilities.argmax(axis=1)] = 1
    decided = summarise_classes(matrices, groups, classes, resamples, seed)
    drawn = draws.sums(matrices.reshape(n, k * k).astype(np.float64)).reshape(-1, k, k)
    bins = reliability(probabilities, truth)
    error = brier(probabilities, truth)
    whole = matrices.sum(axis=0)
    return {
        "n": n,
        "n_images": n,
        "n_patients": draws.groups,
        "interval": draws.words,
        "auc": _aucs(probabilities, truth, draws, classes),
        "accuracy": draws.estimate(float(accuracy(whole)), accuracy(drawn)),
        "balanced_accuracy": draws.estimate(
            float(macro(whole)["balanced_accuracy"]), macro(drawn)["balanced_accuracy"]
        ),
        "macro_f1": decided["macro"]["f1"],
        "calibration": {
            "ece": draws.estimate(float(calibration_error(bins.sum(axis=0))), calibration_error(draws.sums(bins))),
            "brier": draws.ratio(error, np.ones(n)),
            "definition": f"ECE: {BINS} equal bins of the likeliest class's probability; Brier: summed over classes, "
            "0 to 2",
            "bins": _bins(bins.sum(axis=0)),
        },
        "classes": [_one_class(row) for row in decided["classes"]],
        "confusion": decided["confusion"],
    }


def _aucs(probabilities: np.ndarray, truth: np.ndarray, draws: Draws, classes: Sequence[str]) -> dict[str, Any]:
    """Return one class against the rest for each, and their mean over the classes that have one."""
    times = draws.times(np.arange(len(truth)))
    whole = np.array([auc(probabilities[:, c], truth == c)[0] for c in range(len(classes))])
    drawn = np.stack([auc(probabilities[:, c], truth == c, times) for c in range(len(classes))], axis=1)
    known = ~np.isnan(whole)
    each = {name: draws.estimate(float(whole[c]), drawn[:, c]) for c, name in enumerate(classes)}
    # A resample without one of the classes has no macro AUC: a mean over other classes is another number.
    means = drawn[:, known].mean(axis=1) if known.any() else np.full(len(drawn), np.nan)
    mean = draws.estimate(float(whole[known].mean()) if known.any() else np.nan, means)
    return {"one_vs_rest": each, "macro": mean, "classes_in_macro": int(known.sum())}


def _bins(sums: np.ndarray) -> list[dict[str, Any]]:
    counted, confidence, right = sums.reshape(3, BINS)
    return [
        {
            "from": round(k / BINS, 4),
            "to": round((k + 1) / BINS, 4),
            "n": int(counted[k]),
            "confidence": float(confidence[k] / counted[k]) if counted[k] else None,
            "right": float(right[k] / counted[k]) if counted[k] else None,
        }
        for k in range(BINS)
    ]


def _one_class(row: dict[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("name", "truth", "predicted", "precision", "recall", "f1")}
