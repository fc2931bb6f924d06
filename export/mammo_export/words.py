"""Measurements in one line each, for people who watch an export."""

from __future__ import annotations

from mammo_export.gates import Parity
from mammo_export.outcome import Outcome
from mammo_runtime.spec import ModelSpec


def outcome_line(outcome: Outcome) -> str:
    """Return what became of one precision."""
    found = outcome.difference
    measured = ""
    if found is not None and found.mean is not None:
        between = "" if found.low is None else f" (95 % {found.low:+.4f} to {found.high:+.4f})"
        measured = f"; score {found.mean:+.4f}{between} against FP32, n {found.n}"
        for words, names in (("appeared", found.appeared), ("vanished", found.vanished)):
            measured += f", masks {words}: {', '.join(names)}" if names else ""
    fast = "".join(f"; {one['ratio']:.2f} times as fast as {one['than']} on this CPU" for one in outcome.speed)
    why = f": {'; '.join(outcome.misses)}" if outcome.misses else ""
    return f"{outcome.key}: {outcome.verdict}{why}{measured}{fast}"


def parity_line(parity: Parity, spec: ModelSpec, chosen: int) -> str:
    """Return the measurements in one line for people; `chosen`: how many images were asked for."""
    changed = len(parity.changed_class) + len(parity.untied)
    measured = [
        ("logit error {:.1e} of the largest", parity.logit_error),
        ("embedding error {:.1e} of the largest", parity.embedding_error),
        ("probability error {:.1e}", parity.probability_error),
        ("predicted IoU error {:.1e} of the largest", parity.iou_error),
        ("mask pixels equal {:.4%} in the worst image", parity.equal_pixels),
        ("labels equal {:.4%} in the worst image", parity.equal_labels),
        (f"masks {{}} of {parity.windows}", parity.windows_with_mask),
        (f"classes seen {{}} of {len(spec.classes)}, changed {changed}", parity.classes_seen),
        ("appeared {}", None if parity.windows_with_mask is None else len(parity.appeared)),
        ("vanished {}", None if parity.windows_with_mask is None else len(parity.vanished)),
        ("in a batch {:.1e}", parity.batch_difference),
        ("among other boxes {:.1e}", parity.box_difference),
    ]
    told = ", ".join(words.format(value) for words, value in measured if value is not None)
    # Only models that take boxes leave images out.
    left = f" ({chosen - parity.images} without a lesion left out)" if chosen > parity.images else ""
    return f"parity on {parity.images} images{left}: {told}{_coverage(parity, spec)}"


def _coverage(parity: Parity, spec: ModelSpec) -> str:
    """Return a warning where the images show so few of the classes that equal labels say little, else nothing."""
    seen, known = parity.classes_seen, len(spec.classes)
    if seen is None or known == 1 or (seen > 1 and 2 * seen >= known):
        return ""
    more = "other images (--fold, --index, a higher --limit) would prove more"
    return f"; the network gave only {seen} of its {known} classes on these images: {more}"
