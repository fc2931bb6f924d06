"""Multi-class metrics from confusion matrices of pixels (or pictures): int64 [classes, classes], truth by rows.

A class that neither the truth nor the prediction holds has no metrics (NaN in arrays, None in results).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mammo_runtime.errors import MammoError, UsageError
from mammo_train.metrics import RESAMPLES, Draws

CLASS_METRICS = ("precision", "recall", "f1", "iou", "dice")
BCSS_GROUPS: Mapping[str, tuple[str, ...]] = {
    "tumour": ("tumor", "angioinvasion", "dcis"),
    "stroma": ("stroma",),
    "inflammatory": ("lymphocytic_infiltrate", "plasma_cells", "other_immune_infiltrate"),
    "necrosis": ("necrosis_or_debris",),
}
"""The groups of Amgad et al. (2019, Bioinformatics 35, 3461), by BCSS's own class names; what is left is "other"."""
OTHER = "other classes"


def confusion(labels: np.ndarray, truth: np.ndarray, classes: int, ignore: int = 255) -> np.ndarray:
    """Count pixels: int64 [classes, classes], row = truth, column = label; pixels whose truth is `ignore` left out.

    Both are whole numbers of one shape. Raises UsageError when another value is no class.
    """
    judged = truth != ignore
    wanted, found = truth[judged].astype(np.int64), labels[judged].astype(np.int64)
    for name, values in (("truth", wanted), ("prediction", found)):
        if values.size and not 0 <= int(values.min()) <= int(values.max()) < classes:
            raise UsageError(f"the {name} holds the class {int(values.max())}, but there are {classes} (from 0)")
    return np.bincount(wanted * classes + found, minlength=classes * classes).reshape(classes, classes)


def measure_classes(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Map matrices [..., K, K] to each of `CLASS_METRICS` as float64 [..., K]; NaN where it is 0/0."""
    matrices = np.asarray(matrices, np.float64)
    right = np.diagonal(matrices, axis1=-2, axis2=-1)
    wanted, found = matrices.sum(axis=-1), matrices.sum(axis=-2)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision, recall = right / found, right / wanted
        # Of two right definitions: where nothing of a class is right, the harmonic mean is 0/0 and F1 is 0.
        harmonic = 2 * precision * recall / (precision + recall)
        dice = 2 * right / (wanted + found)
        return {
            "precision": precision,
            "recall": recall,
            "f1": np.where(right > 0, harmonic, dice),
            "iou": right / (wanted + found - right),
            "dice": dice,
        }


def macro(matrices: np.ndarray) -> dict[str, np.ndarray]:
    """Return means over the classes that the truth holds, float64 [...]; a class never predicted counts as 0.

    "balanced_accuracy" is the mean recall. NaN where the truth holds no class.
    """
    present = np.asarray(matrices).sum(axis=-1) > 0
    number = present.sum(axis=-1)
    values = measure_classes(matrices)
    with np.errstate(invalid="ignore", divide="ignore"):
        means = {n: np.where(present, np.nan_to_num(v), 0.0).sum(axis=-1) / number for n, v in values.items()}
    return {**means, "balanced_accuracy": means["recall"]}


def accuracy(matrices: np.ndarray) -> np.ndarray:
    """Return the fraction on the diagonal of matrices [..., K, K], float64 [...]; NaN where nothing was counted."""
    matrices = np.asarray(matrices, np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.trace(matrices, axis1=-2, axis2=-1) / matrices.sum(axis=(-2, -1)))


def grouped(matrix: np.ndarray, members: Sequence[Sequence[int]]) -> np.ndarray:
    """Sum the classes of [..., K, K] that belong together: [..., groups, groups]."""
    pick = np.zeros((matrix.shape[-1], len(members)), matrix.dtype)
    for number, own in enumerate(members):
        pick[list(own), number] = 1
    return np.asarray(pick.T @ matrix @ pick)


def group_members(classes: Sequence[str], groups: Mapping[str, Sequence[str]] = BCSS_GROUPS) -> dict[str, list[int]]:
    """Return group → numbers of its classes, the rest as `OTHER`; empty when a class of the map is missing."""
    if not {name for names in groups.values() for name in names} <= set(classes):
        return {}
    members = {group: [classes.index(name) for name in names] for group, names in groups.items()}
    taken = {k for own in members.values() for k in own}
    rest = [k for k in range(len(classes)) if k not in taken]
    return {**members, OTHER: rest} if rest else members


def summarise_classes(
    matrices: np.ndarray, groups: Sequence[str], classes: Sequence[str], resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Any]:
    """Return per-class, macro and overall metrics with patient-level 95 % intervals, JSON-ready.

    `matrices` int64 [pictures, K, K]; `groups` names each picture's patient. Pooled over all pictures; `per_image`
    holds the means of each picture's accuracy and macro Dice and IoU. A resample without a class takes the mean of
    the others. Raises MammoError if F1 and Dice, which are reckoned in two ways, differ.
    """
    if not len(matrices) or len(matrices) != len(groups):
        raise UsageError(f"{len(matrices)} matrices with {len(groups)} groups cannot be summarised")
    draws, k = Draws(groups, resamples, seed), len(classes)
    whole = matrices.sum(axis=0)
    drawn = draws.sums(matrices.reshape(len(matrices), k * k).astype(np.float64)).reshape(-1, k, k)
    own, own_drawn = measure_classes(whole), measure_classes(drawn)
    if not np.allclose(own["f1"], own["dice"], rtol=0, atol=1e-9, equal_nan=True):
        raise MammoError("the metrics contradict themselves: F1 of a class differs from its Dice")
    rows = [
        {
            "name": name,
            "truth": int(whole[c].sum()),
            "predicted": int(whole[:, c].sum()),
            "n_images": int((matrices[:, c].sum(axis=1) > 0).sum()),
            **{m: draws.estimate(float(own[m][c]), own_drawn[m][:, c]) for m in CLASS_METRICS},
        }
        for c, name in enumerate(classes)
    ]
    means, means_drawn = macro(whole), macro(drawn)
    return {
        "n": len(matrices),
        "n_patients": draws.groups,
        "interval": draws.words,
        "accuracy": draws.estimate(float(accuracy(whole)), accuracy(drawn)),
        "macro": {m: draws.estimate(float(means[m]), means_drawn[m]) for m in means},
        "n_classes_in_truth": int((whole.sum(axis=1) > 0).sum()),
        "per_image": _per_image(matrices, draws),
        "classes": rows,
        "confusion": whole.tolist(),
    }


def _per_image(matrices: np.ndarray, draws: Draws) -> dict[str, Any]:
    """Return means over pictures; one without a judged pixel has no value and is left out (`n`)."""
    means = macro(matrices)
    values = {"accuracy": accuracy(matrices), "macro_dice": means["dice"], "macro_iou": means["iou"]}
    found: dict[str, Any] = {}
    for name, each in values.items():
        known = ~np.isnan(each)
        found[name] = {**draws.ratio(np.where(known, each, 0.0), known.astype(np.float64)), "n": int(known.sum())}
    return found
