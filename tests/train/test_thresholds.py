"""The choice of a threshold: known answers from masks, and the same from histograms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mammo_runtime.errors import UsageError
from mammo_train.metrics import count
from mammo_train.thresholds import FINE_THRESHOLDS, THRESHOLDS, best_threshold, choose_threshold, counts_at


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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=40))
def test_histograms_count_what_masks_count(pixels: list[tuple[float, bool]]) -> None:
    values, truth = (np.array(v) for v in zip(*pixels))
    for dtype in (np.float32, np.float64):
        # Values on the very thresholds, too.
        probability = np.concatenate([values.astype(dtype), np.asarray(FINE_THRESHOLDS, dtype)]).astype(np.float32)
        wanted = np.concatenate([truth, np.arange(99) % 2 == 0])
        table = counts_at(probability, wanted, FINE_THRESHOLDS)
        for row, threshold in zip(table.tolist(), FINE_THRESHOLDS):
            c = count(probability >= threshold, wanted)
            assert row == [c.tp, c.fp, c.fn, c.tn]


def test_histograms_and_masks_choose_the_same_fine_threshold() -> None:
    probabilities, truths = (a + b for a, b in zip(maps(0.93, 0.855), maps(0.97, 0.3)))
    tables = [counts_at(p, t, FINE_THRESHOLDS) for p, t in zip(probabilities, truths)]
    assert best_threshold(tables, "iou", FINE_THRESHOLDS).threshold == 0.86
    assert choose_threshold(probabilities, truths, "iou", thresholds=FINE_THRESHOLDS).threshold == 0.86
    assert choose_threshold(probabilities, truths, "iou").threshold == 0.9
    assert (len(THRESHOLDS), len(FINE_THRESHOLDS)) == (19, 99)
