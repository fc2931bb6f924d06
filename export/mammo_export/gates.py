"""Gates: the limits that a graph must keep before it ships, and what is said when it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mammo_runtime.errors import GateMissed

MAX_LOGIT_ERROR = 1e-4
"""Largest logit difference as a fraction of the largest logit (issue 2, "The trainer and the exporter")."""
MAX_PROBABILITY_ERROR = 1e-4
"""Largest probability difference of the shipped graph, activation included: the sigmoid's slope is at most 1/4, so
this is the logit limit for logits up to 4; float32 gave 1.1e-5 on real windows. Engines have no logits, only this."""
MIN_EQUAL_PIXELS = 0.9999
"""Fraction of equal mask pixels at original resolution, kept by every single image (issue 2, same place)."""
MAX_BATCH_DIFFERENCE = 1e-5
"""Probability difference of an image alone and in a batch: float32 sums in another order give about 1e-7 at
each of some 70 layers; leakage between images of a batch gives far more."""
LIMITS: Mapping[str, float] = {
    "logit_error": MAX_LOGIT_ERROR,
    "probability_error": MAX_PROBABILITY_ERROR,
    "equal_pixels": MIN_EQUAL_PIXELS,
    "batch_difference": MAX_BATCH_DIFFERENCE,
}


@dataclass(frozen=True)
class Parity:
    """What was measured between the trained network and its graph on real images. JSON-ready: `to_dict`."""

    reference: str
    """Backend of the trained network."""
    measured: str
    """Backend of the graph."""
    images: int
    windows: int
    """Inputs of the network: one for each image, in ROI mode one for each lesion box."""
    windows_with_mask: int
    """Windows in which the trained network finds something; with none the mask gates say little."""
    logit_error: float
    """max |difference| over all logits / largest |logit| of the trained network."""
    logit_error_image: str
    probability_error: float
    """max |difference| over all probabilities."""
    probability_error_image: str
    equal_pixels: float
    """Fraction of equal mask pixels at original resolution in the worst image."""
    equal_pixels_image: str
    batch_difference: float
    """Largest probability difference of an input alone and among others."""
    appeared: tuple[str, ...] = ()
    """Images (and boxes) with a mask from the graph only."""
    vanished: tuple[str, ...] = ()
    """Images (and boxes) with a mask from the trained network only."""
    unusable: tuple[str, ...] = ()
    """Images for which a side gave NaN, infinite values, no probabilities or a wrong shape, with that side's name."""
    not_repeatable: tuple[str, ...] = ()
    """Images for which the graph gave two different answers."""

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements and their limits as JSON-ready values."""
        return {**asdict(self), "limits": dict(LIMITS)}

    def misses(self) -> tuple[str, ...]:
        """Return a phrase with image and numbers for every limit that was not kept."""
        # Each comparison is written so that NaN misses.
        found = []
        if self.unusable:
            found.append(f"no usable output for {_listed(self.unusable)}")
        if not self.logit_error <= MAX_LOGIT_ERROR:
            found.append(
                f"logits differ by {self.logit_error:.2g} of the largest logit on {self.logit_error_image} "
                f"(limit {MAX_LOGIT_ERROR:g})"
            )
        if not self.probability_error <= MAX_PROBABILITY_ERROR:
            found.append(
                f"probabilities differ by {self.probability_error:.2g} on {self.probability_error_image} "
                f"(limit {MAX_PROBABILITY_ERROR:g})"
            )
        if not self.equal_pixels >= MIN_EQUAL_PIXELS:
            found.append(
                f"only {self.equal_pixels:.4%} of mask pixels are equal on {self.equal_pixels_image} "
                f"(limit {MIN_EQUAL_PIXELS:.2%})"
            )
        if self.vanished:
            found.append(f"the mask vanished on {_listed(self.vanished)}")
        if self.appeared:
            found.append(f"a mask appeared on {_listed(self.appeared)}")
        if not self.batch_difference <= MAX_BATCH_DIFFERENCE:
            found.append(
                f"an image in a batch differs by {self.batch_difference:.2g} in probability from the same image alone "
                f"(limit {MAX_BATCH_DIFFERENCE:g})"
            )
        if self.not_repeatable:
            found.append(f"the same image gave two answers: {_listed(self.not_repeatable)}")
        return tuple(found)


def require_parity(parity: Parity) -> None:
    """Raise GateMissed in one sentence that names every missed limit with its worst image and number."""
    misses = parity.misses()
    if misses:
        raise GateMissed(
            f"the graph is not the trained network (measured on {parity.images} images): {'; '.join(misses)}"
        )


def _listed(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
