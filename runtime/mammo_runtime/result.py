"""What a model says about one image, whatever its task, and the user's overrides of its operating point."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_runtime.findings import Finding
from mammo_runtime.spec import Task


@dataclass(frozen=True)
class OperatingPoint:
    """The user's overrides of the spec; None keeps the model's own value."""

    threshold: float | None = None
    """Probability at and above which a pixel belongs to the mask, 0..1."""
    min_area_px: float | None = None
    """Components with fewer original pixels are dropped."""

    def __post_init__(self) -> None:
        # NaN would mark nothing, which reads as "no mass".
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise UsageError(f"the threshold must be a probability from 0 to 1, got {self.threshold}")
        if self.min_area_px is not None and not 0 <= self.min_area_px < float("inf"):
            raise UsageError(f"the minimum area must be a number of pixels of at least 0, got {self.min_area_px}")


@dataclass(frozen=True)
class ClassScore:
    """How likely a classifier finds one class."""

    name: str
    probability: float
    """0..1; those of all classes sum to 1."""


@dataclass(frozen=True)
class ClassArea:
    """How much of a picture a multi-class map gives to one class."""

    name: str
    area_px: int
    fraction: float
    """Of the whole picture, 0..1."""
    area_mm2: float | None
    """None when the pixel spacing is unknown; never guessed."""


def _no_probability() -> np.ndarray:
    return np.empty((0, 0), np.float32)


def _no_mask() -> np.ndarray:
    return np.empty((0, 0), bool)


@dataclass(frozen=True, eq=False)
class Result:
    """What the model says about one image; what its task does not give is empty or None."""

    task: Task
    probability: np.ndarray = field(default_factory=_no_probability)
    """Segmentation, prompted: float32 [rows, columns] of the original image, 0..1; 0 where the model did not look."""
    mask: np.ndarray = field(default_factory=_no_mask)
    """Segmentation, prompted: bool [rows, columns]."""
    labels: np.ndarray | None = None
    """Multiclass: uint8 [rows, columns], the number of each pixel's class in `ModelSpec.classes`, from 0."""
    classes: tuple[ClassScore, ...] | tuple[ClassArea, ...] = ()
    """Classification: the probability, multiclass: the area of every class, in the order of `ModelSpec.classes`."""
    predicted_class: str | None = None
    """Classification: the likeliest class (the first of several equal ones)."""
    findings: tuple[Finding, ...] = ()
    box_predicted_iou: tuple[float, ...] | None = None
    """Prompted: for each box, how well the model itself expects its mask to overlap with the truth; about 0..1."""
    threshold: float | None = None
    """Segmentation, prompted: the one used."""
    min_area_px: float | None = None
    """Segmentation, prompted: the one used; the largest, where windows of several scales have several."""
    timings_ms: Mapping[str, float] = field(default_factory=dict)
    """Wall time of "preprocess", "infer" and "postprocess"."""
    notes: tuple[str, ...] = ()
