"""The limits that a lower precision keeps against FP32, and what is said, and advised, when it does not.

Limits of masks and maps: issue 4 ("Gates"). All are on the validation pictures at the frozen threshold, paired, with
patients drawn by the bootstrap. A model that misses one is not shipped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mammo_export.difference import Difference
from mammo_export.gates import MAX_BATCH_DIFFERENCE
from mammo_runtime.errors import UsageError
from mammo_runtime.session import Session
from mammo_runtime.spec import InputMode, ModelSpec, Task
from mammo_train.evaluate_masks import SIZES

REPEATS = 100


@dataclass(frozen=True)
class Limits:
    """What one precision may cost. None: no such limit."""

    most_change: float | None
    """Of the mean score, in both directions."""
    most_loss: float | None
    """Of the mean score."""
    most_loss_low: float | None
    """Of the lower end of the mean's 95 % interval."""
    most_loss_of_size: float | None
    """Of the mean score of the lesions of one size class, with however few of them; not of those of unknown size."""
    most_changed_classes: float
    """Classifiers: fraction of pictures with another predicted class; one picture is always allowed, since between
    two classes that tie any rounding decides."""
    most_accuracy_loss: float | None
    """Classifiers: fraction of pictures more that are wrong; one picture is always allowed. Right and wrong are too
    coarse for the limits on Dice: among 40 pictures the least change is 0.025."""
    batch_difference: float
    """Of an input alone and among others: probabilities, embeddings as a fraction of the largest, labels as a
    fraction of the pixels."""


HALF = Limits(
    most_change=0.001,
    most_loss=None,
    most_loss_low=None,
    most_loss_of_size=None,
    most_changed_classes=0.005,
    most_accuracy_loss=0.005,
    batch_difference=1e-3,
)
EIGHT_BITS = Limits(
    most_change=None,
    most_loss=0.005,
    most_loss_low=0.010,
    most_loss_of_size=0.020,
    most_changed_classes=0.03,
    most_accuracy_loss=0.01,
    batch_difference=1e-3,
)
LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(0.001, None, None, None, 0.0, 0.0, MAX_BATCH_DIFFERENCE),
    "fp16": HALF,
    "int8": EIGHT_BITS,
    "int8-cpu": EIGHT_BITS,
}
"""Key of a graph → its limits."""
ENOUGH_INPUTS = 256
"""Calibration inputs beyond which more seldom help."""
EXAMPLES = 5
"""Names in one sentence."""
UNKNOWN_SIZE = SIZES[-1]


def limits_of(key: str) -> Limits:
    """Return a key's limits. Raises UsageError for a key without any."""
    if key not in LIMITS:
        raise UsageError(f"there are no limits for {key!r}, but for {', '.join(LIMITS)}")
    return LIMITS[key]


def misses(
    key: str,
    difference: Difference,
    spec: ModelSpec,
    repeated: Mapping[str, Any] | None = None,
    batch_difference: float | None = None,
) -> tuple[str, ...]:
    """Return a sentence with numbers, names and limit for every limit that is not kept; () when it may ship.

    `repeated` and `batch_difference` are what `repeats` and `batch_invariance` returned. Masks that appear or vanish
    are no miss by themselves (the entry of the bundle names them), but a true lesion that only FP32 finds is.
    """
    limits = limits_of(key)
    found = []
    if difference.unusable:
        found.append(f"no usable answer (NaN, infinite or of a wrong shape) for {_listed(difference.unusable)}")
    if not difference.n:
        found.append(f"nothing could be scored: none of {difference.items} items has both a truth and two answers")
    elif spec.task is Task.CLASSIFICATION:
        found += _class_misses(limits, difference)
    else:
        found += _mean_misses(limits, difference, spec)
    if difference.lost:
        found.append(f"true lesions that FP32 finds are lost: {_listed(difference.lost)} (limit: none)")
    if repeated is not None and not repeated["identical"]:
        found.append(f"the same input gave another answer on run {repeated['differs_on']} of {repeated['runs']}")
    if batch_difference is not None and not batch_difference <= limits.batch_difference:
        found.append(
            f"an input among others differs by {batch_difference:.2g} from the same input alone "
            f"(limit {limits.batch_difference:g})"
        )
    return tuple(found)


def preference(difference: Difference) -> tuple[float, ...]:
    """Return what candidates are compared by, the largest is best: answers, lesions kept, mean score."""
    mean = -1.0 if difference.mean is None else difference.mean
    return -float(len(difference.unusable)), -float(len(difference.lost)), mean


def advice(key: str, difference: Difference, spec: ModelSpec, calibrated_on: int | None = None) -> tuple[str, ...]:
    """Return what to try when a precision misses its limits. `calibrated_on`: calibration inputs of INT8."""
    if difference.unusable:
        return (
            "look for the layer that overflows: the not-finite scan of the report names it; keep it in FP32, or train "
            "with weight decay so that its values stay small",
        )
    if not difference.n:
        return ("judge on other pictures (--fold, --index): masks are needed where masks are scored",)
    if key in ("fp32", "fp16"):
        return ("use FP32; the entry names the pictures that lose most: look at them first",)
    few = calibrated_on is not None and calibrated_on < ENOUGH_INPUTS
    among = "each class" if spec.task in (Task.MULTICLASS, Task.CLASSIFICATION) else "masses"
    other = "use FP16"
    if "mobilenet" in spec.architecture:
        other += ", or another network: its depthwise convolutions lose most in eight bits"
    return (
        f"calibrate on more pictures of the training folds, {among} among them"
        + (f" (so far {calibrated_on})" if few else ""),
        "fine-tune with quantisation in the loop: mammo-train fit --qat",
        other,
    )


def repeats(session: Session, *inputs: np.ndarray, times: int = REPEATS) -> dict[str, Any]:
    """Ask the same `times` times: {"runs", "identical", "differs_on"}; one bit that differs counts. JSON-ready."""
    first = session.run_all(*inputs)
    for run in range(2, times + 1):
        again = session.run_all(*inputs)
        if not all(np.array_equal(a, b, equal_nan=a.dtype.kind == "f") for a, b in zip(first, again, strict=True)):
            return {"runs": times, "identical": False, "differs_on": run}
    return {"runs": times, "identical": True, "differs_on": None}


def batch_invariance(session: Session, *inputs: np.ndarray) -> float:
    """Return how far inputs alone differ from the same inputs together; see `Limits.batch_difference`.

    One input float32 [N, C, H, W]: each of the N alone and all together. Two, of a prompted model's decoder
    (embedding, boxes float32 [1, B, 4]): each box alone and all together. NaN where an answer holds NaN.
    """
    *shared, many = inputs
    axis = 1 if shared else 0
    if many.shape[axis] < 2:
        raise UsageError("the comparison of inputs alone and together needs at least two of them")
    together = session.run_all(*inputs)
    parts = [session.run_all(*shared, np.ascontiguousarray(one)) for one in np.split(many, many.shape[axis], axis)]
    alone = [np.concatenate(answers, axis) for answers in zip(*parts, strict=True)]
    return max(_distance(a, b) for a, b in zip(alone, together, strict=True))


def limits_record(key: str) -> dict[str, float | None]:
    """Return a key's limits as the report shows them."""
    return asdict(limits_of(key))


def _distance(alone: np.ndarray, together: np.ndarray) -> float:
    if alone.dtype.kind != "f":
        return float((alone != together).mean())
    return float(np.abs(alone - together).max()) / max(1.0, float(np.abs(alone).max()))


def _mean_misses(limits: Limits, found: Difference, spec: ModelSpec) -> list[str]:
    assert found.mean is not None
    what = "macro Dice" if spec.task is Task.MULTICLASS else "Dice"
    over = f"over {found.n} {_things(spec)} of {found.patients} patients"
    said = []
    if limits.most_change is not None and not abs(found.mean) <= limits.most_change:
        said.append(f"mean {what} changed by {found.mean:+.4f} {over} (limit {limits.most_change:.4f} either way)")
    if limits.most_loss is not None and not found.mean >= -limits.most_loss:
        said.append(f"mean {what} changed by {found.mean:+.4f} {over} (limit {-limits.most_loss:+.4f})")
    if limits.most_loss_low is not None:
        if found.low is None:
            said.append(f"the mean {what} has no interval: all {_things(spec)} are of one patient")
        elif not found.low >= -limits.most_loss_low:
            said.append(
                f"the 95 % interval of the change in mean {what} reaches down to {found.low:+.4f} {over} "
                f"(limit {-limits.most_loss_low:+.4f})"
            )
    if limits.most_loss_of_size is not None:
        said += [
            f"lesions of {size}: mean {what} changed by {own['mean']:+.4f} over {own['n']} "
            f"(limit {-limits.most_loss_of_size:+.4f})"
            for size, own in found.by_size.items()
            if size != UNKNOWN_SIZE and not own["mean"] >= -limits.most_loss_of_size
        ]
    if said and found.worst:
        worst = ", ".join(f"{name} {change:+.3f}" for name, change in found.worst[:EXAMPLES])
        said[-1] += f"; worst: {worst}"
    return said


def _class_misses(limits: Limits, found: Difference) -> list[str]:
    assert found.mean is not None
    said = []
    changed, allowed = len(found.changed_class), max(1, int(limits.most_changed_classes * found.items))
    if limits.most_changed_classes == 0:
        allowed = 0
    if changed > allowed:
        said.append(
            f"another class is predicted for {changed} of {found.items} pictures (limit {allowed}): "
            f"{_listed(found.changed_class)}"
        )
    if limits.most_accuracy_loss is not None:
        most = max(limits.most_accuracy_loss, 1.0 / found.n) if limits.most_accuracy_loss else 0.0
        # A picture's worth is 1/n: rounding must not decide.
        if not found.mean >= -most - 1e-9:
            said.append(f"accuracy changed by {found.mean:+.4f} over {found.n} pictures (limit {-most:+.4f})")
    return said


def _things(spec: ModelSpec) -> str:
    boxes = spec.input.mode is InputMode.ROI or spec.task is Task.PROMPTED
    return "lesions" if boxes else "pictures"


def _listed(names: Sequence[str], most: int = EXAMPLES) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
