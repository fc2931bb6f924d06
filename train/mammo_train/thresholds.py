"""Which threshold on a probability is best: from masks, where they are cleaned first, or from histograms."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_train.metrics import count, measure

THRESHOLDS = tuple(round(0.05 * k, 2) for k in range(1, 20))
"""Tried for the mean Dice: 0.05, 0.10 … 0.95; over few pictures it is too flat for finer steps."""
FINE_THRESHOLDS = tuple(round(0.01 * k, 2) for k in range(1, 100))
"""Tried for pooled metrics, as study 003 did (it chose 0.86 and 0.72)."""
CHOICES: Mapping[str, tuple[str, bool]] = {"dice": ("dice", False), "iou": ("iou", True), "gmean": ("g_mean", True)}
"""Name of a choice → (its metric in `metrics.METRICS`, whether counts are pooled over all pictures first)."""


@dataclass(frozen=True)
class ThresholdChoice:
    """The best threshold with the whole scan."""

    threshold: float
    score: float
    scores: Mapping[float, float | None]


def choose_threshold(
    probabilities: Iterable[np.ndarray],
    truths: Iterable[np.ndarray],
    metric: str = "dice",
    postprocess: Callable[[int, np.ndarray], np.ndarray] | None = None,
    thresholds: Sequence[float] = THRESHOLDS,
) -> ThresholdChoice:
    """Return the threshold with the best score on validation pictures; ties: closest to 0.5.

    `probabilities` (float, any shape) and `truths` (bool, same shapes) are gone through once. `metric` is one of
    `CHOICES`. `postprocess(number, mask)` may clean each mask.
    Raises UsageError for an unknown metric, no pictures, or a metric that is undefined on them.
    """
    tables = []
    for number, (probability, truth) in enumerate(zip(probabilities, truths, strict=True)):
        masks = (probability >= t for t in thresholds)
        found = [count(m if postprocess is None else postprocess(number, m), truth) for m in masks]
        tables.append([(c.tp, c.fp, c.fn, c.tn) for c in found])
    return best_threshold(tables, metric, thresholds)


def counts_at(probability: np.ndarray, truth: np.ndarray, thresholds: Sequence[float]) -> np.ndarray:
    """Return TP, FP, FN, TN at each threshold, int64 [thresholds, 4], from two histograms instead of masks.

    `probability` float32 and `truth` bool, same shape; `thresholds` ascending. A pixel at a threshold is marked.
    """
    reached = np.searchsorted(np.asarray(thresholds, np.float32), probability.astype(np.float32).ravel(), side="right")
    bins, wanted = len(thresholds) + 1, truth.ravel()
    # Marked at threshold k: every pixel that reached more than k thresholds.
    marked, right = (
        np.bincount(of, minlength=bins)[::-1].cumsum()[::-1][1:].astype(np.int64) for of in (reached, reached[wanted])
    )
    positives = int(np.count_nonzero(wanted))
    return np.stack([right, marked - right, positives - right, truth.size - positives - (marked - right)], axis=1)


def best_threshold(tables: Sequence[object], metric: str, thresholds: Sequence[float]) -> ThresholdChoice:
    """Return the threshold with the best score; `tables`: for each picture TP, FP, FN, TN at each threshold.

    Ties go to the one closest to 0.5. Raises UsageError for an unknown metric, no pictures, or a metric that is
    undefined on them.
    """
    if metric not in CHOICES:
        raise UsageError(f"unknown metric {metric!r} for a threshold; known: {', '.join(CHOICES)}")
    if not tables:
        raise UsageError("no validation picture to choose a threshold on")
    name, pooled = CHOICES[metric]
    table = np.array(tables, np.float64)
    scores = measure(table.sum(axis=0))[name] if pooled else measure(table)[name].mean(axis=0)
    known = {t: round(float(s), 12) for t, s in zip(thresholds, scores) if math.isfinite(s)}
    if not known:
        raise UsageError(f"{metric} is undefined on these validation pictures: they hold no mass")
    best = max(known, key=lambda t: (known[t], -abs(t - 0.5), -t))
    return ThresholdChoice(best, known[best], {t: known.get(t) for t in thresholds})
