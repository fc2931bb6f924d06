from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mammo_runtime.overlap import dice, iou

MASKS = arrays(bool, (2, 6, 5))


@pytest.mark.parametrize(("mask", "truth", "expected"), [((0, 0), (0, 0), 1), ((1, 0), (0, 0), 0), ((0, 0), (1, 0), 0)])
def test_empty_masks(mask: tuple[int, int], truth: tuple[int, int], expected: float) -> None:
    a, b = np.array(mask, bool), np.array(truth, bool)
    assert dice(a, b) == iou(a, b) == expected


def test_known_overlap() -> None:
    mask, truth = np.array([1, 1, 1, 0], bool), np.array([0, 1, 1, 1], bool)
    assert dice(mask, truth) == pytest.approx(4 / 6)
    assert iou(mask, truth) == pytest.approx(2 / 4)


@given(MASKS, st.booleans())
def test_dice_and_iou_agree(pair: np.ndarray, swap: bool) -> None:
    mask, truth = (pair[1], pair[0]) if swap else (pair[0], pair[1])
    assert dice(mask, truth) == pytest.approx(2 * iou(mask, truth) / (1 + iou(mask, truth)))
    assert dice(mask, truth) == dice(truth, mask)
    assert dice(mask, mask) == iou(mask, mask) == 1
