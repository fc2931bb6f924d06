"""Settings of a training run: frozen, one dataclass for each concern, contradictions refused on construction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from mammo_runtime.errors import UsageError


@dataclass(frozen=True)
class AugmentConfig:
    """The six augmentations of study 004 (its section IV.3.1 c); probabilities and limits."""

    affine_probability: float = 0.8
    shift_fraction: float = 0.0625
    """Largest shift, as a fraction of the side."""
    scale_fraction: float = 0.15
    rotate_deg: float = 30.0
    brightness_probability: float = 0.5
    brightness_contrast: float = 0.25
    """Largest change of brightness (added) and contrast (factor) on a 0..1 scale."""
    blur_probability: float = 0.1
    flip_probability: float = 0.5
    clahe_probability: float = 0.2
    clahe_clip_limit: float = 4.0
    rotate90_probability: float = 0.5
    """Only where the grid is square; a whole mammogram has an upright."""
    box_shift_fraction: float = 0.15
    """ROI mode: the box is moved by up to this fraction of its side."""
    box_scale_fraction: float = 0.3
    """ROI mode: the box is made smaller or larger by up to this fraction."""


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained. Defaults are ours; study 004's own values stand beside them."""

    seed: int = 0
    train_folds: tuple[int, ...] = (2, 3, 4)
    validation_fold: int = 1
    test_fold: int = 0
    """Never opened by `fit`."""
    kinds: tuple[str, ...] = ("mass", "findings", "normal")
    """Kinds of index rows trained on; validation Dice is measured on `validation_kind`."""
    validation_kind: str = "mass"
    batch_size: int = 8
    frozen_epochs: int = 5
    """Phase 1: encoder frozen, its batch norm in eval mode (study: 20)."""
    frozen_rate: float = 1e-3
    """Adam rate of phase 1 (study: 1e-4)."""
    epochs: int = 100
    """Both phases together."""
    rate: float = 3e-4
    """Adam rate of phase 2 (study: 1e-5)."""
    weight_decay: float = 1e-4
    fn_weight: float = 0.7
    """Tversky weight of missed mass pixels."""
    fp_weight: float = 0.3
    """Tversky weight of wrongly marked pixels."""
    bce_weight: float = 0.3
    """Added binary cross-entropy; 0: Tversky alone, as in the study."""
    ema_decay: float = 0.99
    """Decay of the averaged weights that are validated and kept; 0: no averaging (study)."""
    plateau_factor: float = 0.5
    plateau_patience: int = 8
    """Epochs without a lower validation loss before the rate falls (study: 5)."""
    min_rate: float = 1e-6
    early_stop_patience: int = 30
    """Epochs without a better validation Dice before training ends (study: 10)."""
    repeats: int = 1
    """Times each training image is drawn in an epoch, each time augmented anew (study: 3 variants)."""
    workers: int = 0
    """Loader processes; the result does not depend on it."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    def __post_init__(self) -> None:
        folds = [*self.train_folds, self.validation_fold, self.test_fold]
        if len(set(folds)) != len(folds):
            raise UsageError(f"training, validation and test folds overlap: {folds}")
        if not 0 <= self.frozen_epochs <= self.epochs:
            raise UsageError(f"frozen_epochs must lie in 0..epochs, got {self.frozen_epochs} of {self.epochs}")
        if self.epochs < 1:
            raise UsageError(f"epochs must be at least 1, got {self.epochs}")
        if self.batch_size < 1 or not 0 <= self.ema_decay < 1 or self.repeats < 1:
            raise UsageError("batch_size and repeats must be at least 1, ema_decay in 0..1")

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from parsed JSON. Raises UsageError on unknown or contradictory settings."""
        known = dict(values)
        try:
            known["augment"] = AugmentConfig(**known.get("augment", {}))
            for name in ("train_folds", "kinds"):
                if name in known:
                    known[name] = tuple(known[name])
            return cls(**known)
        except TypeError as error:
            raise UsageError(f"unknown training setting: {error}") from error
