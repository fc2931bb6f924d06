"""Dice and IoU of two binary masks. The empty-mask convention is written here and nowhere else."""

from __future__ import annotations

import numpy as np


def dice(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return 2|A∩B| / (|A|+|B|) of two boolean arrays of one shape; both empty: 1, one empty: 0 (Dice 1945)."""
    total = int(np.count_nonzero(mask)) + int(np.count_nonzero(truth))
    return 1.0 if total == 0 else 2.0 * int(np.count_nonzero(mask & truth)) / total


def iou(mask: np.ndarray, truth: np.ndarray) -> float:
    """Return |A∩B| / |A∪B| of two boolean arrays of one shape; both empty: 1, one empty: 0 (Jaccard 1901)."""
    union = int(np.count_nonzero(mask | truth))
    return 1.0 if union == 0 else int(np.count_nonzero(mask & truth)) / union
