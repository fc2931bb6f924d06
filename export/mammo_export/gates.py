"""Gates: the limits that a graph must keep before it ships, and what is said when it does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from mammo_runtime.errors import GateMissed

MAX_LOGIT_ERROR = 1e-4
"""Largest logit difference as a fraction of the largest logit (issue 2, "The trainer and the exporter")."""
MAX_EMBEDDING_ERROR = 1e-4
"""The same for what a prompted model's encoder hands to its decoder: its values are unbounded like logits."""
MAX_PROBABILITY_ERROR = 1e-4
"""Largest probability difference of the shipped graph, activation included: the sigmoid's slope is at most 1/4, so
this is the logit limit for logits up to 4; float32 gave 1.1e-5 on real windows. Engines have no logits, only this."""
MAX_IOU_ERROR = 1e-3
"""Difference of the IoU that a prompted model predicts for its own mask, as a fraction of the largest: no activation
bounds it, and it is shown with three digits."""
MIN_EQUAL_PIXELS = 0.9999
"""Fraction of equal mask pixels at original resolution, kept by every single image (issue 2, same place)."""
MIN_EQUAL_LABELS = 0.9999
"""Fraction of equal labels on the network's grid, kept by every image. The rest must be ties: two best logits of the
trained network closer than twice `MAX_LOGIT_ERROR` of the largest logit, between which an error inside the logit
limit may decide either way."""
MAX_BATCH_DIFFERENCE = 1e-5
"""Probability difference of an image alone and in a batch, of a box alone and among others (where labels come out:
logits, as a fraction of the largest): float32 sums in another order give about 1e-7 at each of some 70 layers;
leakage between images of a batch gives far more."""


@dataclass(frozen=True)
class Gate:
    """One limit on one measured number."""

    limit: float
    words: str
    """Said when it is missed, with {value}, {image} and {limit}."""
    least: bool = False
    """True: the number must reach the limit; False: it must not pass it."""

    def kept(self, value: float) -> bool:
        """Tell whether a value keeps the limit; NaN never does."""
        return value >= self.limit if self.least else value <= self.limit

    def worse(self, value: float, than: float) -> bool:
        """Tell whether a value is at least as bad as another one; NaN is worst."""
        return not (value > than if self.least else value < than)


GATES: Mapping[str, Gate] = {
    "logit_error": Gate(
        MAX_LOGIT_ERROR, "logits differ by {value:.2g} of the largest logit on {image} (limit {limit:g})"
    ),
    "embedding_error": Gate(
        MAX_EMBEDDING_ERROR, "embeddings differ by {value:.2g} of the largest value on {image} (limit {limit:g})"
    ),
    "probability_error": Gate(
        MAX_PROBABILITY_ERROR, "probabilities differ by {value:.2g} on {image} (limit {limit:g})"
    ),
    "iou_error": Gate(
        MAX_IOU_ERROR, "predicted IoUs differ by {value:.2g} of the largest on {image} (limit {limit:g})"
    ),
    "equal_pixels": Gate(
        MIN_EQUAL_PIXELS, "only {value:.4%} of mask pixels are equal on {image} (limit {limit:.2%})", least=True
    ),
    "equal_labels": Gate(
        MIN_EQUAL_LABELS, "only {value:.4%} of labels are equal on {image} (limit {limit:.2%})", least=True
    ),
    "batch_difference": Gate(
        MAX_BATCH_DIFFERENCE,
        "an image in a batch differs by {value:.2g} from the same image alone (limit {limit:g})",
    ),
    "box_difference": Gate(
        MAX_BATCH_DIFFERENCE, "a box among others differs by {value:.2g} from the same box alone (limit {limit:g})"
    ),
    "batch_equal_labels": Gate(
        MIN_EQUAL_LABELS,
        "only {value:.4%} of an image's labels are the same in a batch (limit {limit:.2%})",
        least=True,
    ),
}
"""Field of `Parity` → its limit."""
FAULTS: Mapping[str, str] = {
    "unusable": "no usable output for {names}",
    "vanished": "the mask vanished on {names}",
    "appeared": "a mask appeared on {names}",
    "changed_class": "another class is predicted for {names}",
    "untied": "labels differ where the trained network is certain: {names}",
    "not_repeatable": "the same image gave two answers: {names}",
}
"""Field of `Parity` that must stay empty → what is said when it does not."""


@dataclass(frozen=True)
class Parity:
    """What was measured between the trained network and its graph on real images. None: the task has no such number.

    JSON-ready: `to_dict`.
    """

    reference: str
    """Backend of the trained network."""
    measured: str
    """Backend of the graph."""
    images: int
    windows: int
    """Inputs of the network: one for each image, in ROI mode one for each lesion box. Prompted: boxes."""
    windows_with_mask: int | None = None
    """Windows in which the trained network finds something; with none the mask gates say little."""
    classes_seen: int | None = None
    """Different classes that the trained network gave; with one of them the label gates say little."""
    logit_error: float | None = None
    """max |difference| over all logits / largest |logit| of the trained network."""
    logit_error_image: str = ""
    embedding_error: float | None = None
    """max |difference| over all embeddings / largest |value| of the trained network's."""
    embedding_error_image: str = ""
    probability_error: float | None = None
    """max |difference| over all probabilities."""
    probability_error_image: str = ""
    iou_error: float | None = None
    """max |difference| over all predicted IoUs / largest |IoU| of the trained network."""
    iou_error_image: str = ""
    equal_pixels: float | None = None
    """Fraction of equal mask pixels at original resolution in the worst image."""
    equal_pixels_image: str = ""
    equal_labels: float | None = None
    """Fraction of equal labels on the network's grid in the worst image."""
    equal_labels_image: str = ""
    batch_difference: float | None = None
    """Largest difference of an input alone and among others; see `MAX_BATCH_DIFFERENCE`."""
    box_difference: float | None = None
    """Largest probability difference of a prompted model's box alone and among others."""
    batch_equal_labels: float | None = None
    """Fraction of labels that are the same alone and among others."""
    appeared: tuple[str, ...] = ()
    """Images (and boxes) with a mask from the graph only."""
    vanished: tuple[str, ...] = ()
    """Images (and boxes) with a mask from the trained network only."""
    unusable: tuple[str, ...] = ()
    """Images for which a side gave NaN, infinite values, no probabilities or a wrong shape, with that side's name."""
    not_repeatable: tuple[str, ...] = ()
    """Images for which the graph gave two different answers."""
    changed_class: tuple[str, ...] = ()
    """Images for which the graph predicts another class."""
    untied: tuple[str, ...] = ()
    """Images with labels that differ although the trained network's two best logits do not tie."""

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements and their limits as JSON-ready values, without what the task does not have."""
        values = {name: value for name, value in asdict(self).items() if value is not None}
        absent = {f"{name}_image" for name in GATES if name not in values}
        limits = {name: gate.limit for name, gate in GATES.items() if name in values}
        return {**{name: value for name, value in values.items() if name not in absent}, "limits": limits}

    def misses(self) -> tuple[str, ...]:
        """Return a phrase with image and numbers for every limit that was not kept."""
        found = []
        for name, gate in GATES.items():
            value = getattr(self, name)
            if value is not None and not gate.kept(value):
                image = getattr(self, f"{name}_image", "")
                found.append(gate.words.format(value=value, image=image, limit=gate.limit))
        found += [words.format(names=_listed(getattr(self, name))) for name, words in FAULTS.items() if
                  getattr(self, name)]  # fmt: skip
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
