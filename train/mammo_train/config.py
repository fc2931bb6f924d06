"""Settings of a training run: frozen, one dataclass for each concern, contradictions refused on construction."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from mammo_runtime.errors import UsageError

OPTIMIZERS = ("adamw", "adam")
SCHEDULES = ("plateau", "cosine", "steps", "constant")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
CRITICS = ("hinge", "wasserstein")
THRESHOLD_METRICS = ("dice", "iou", "gmean")
QAT_FORMS = ("int8", "int8-cpu")


@dataclass(frozen=True)
class AugmentConfig:
    """The six augmentations of study 004 (its section IV.3.1 c), a colour jitter and the jitter of boxes."""

    affine_probability: float = 0.8
    shift_fraction: float = 0.0625
    """Largest shift, as a fraction of the side."""
    scale_fraction: float = 0.15
    rotate_deg: float = 30.0
    brightness_probability: float = 0.5
    brightness_contrast: float = 0.25
    """Largest change of contrast (a factor), and of brightness before `brightness_share`, on a 0..1 scale."""
    brightness_share: float = 0.5
    """Of `brightness_contrast`: the largest change of brightness (added)."""
    blur_probability: float = 0.1
    blur_sigma: float = 2.0
    """Largest; the smallest is 0.5 cells."""
    flip_probability: float = 0.5
    clahe_probability: float = 0.2
    clahe_clip_limit: float = 4.0
    rotate90_probability: float = 0.5
    """Only where the grid is square; a whole mammogram has an upright."""
    half_turn_probability: float = 0.0
    """Of a turn by 180 degrees, on any grid."""
    colour_probability: float = 0.0
    """Of a factor for each channel; colour pictures only."""
    colour_fraction: float = 0.1
    """Largest change of that factor."""
    box_shift_fraction: float = 0.15
    """ROI mode: the box is moved by up to this fraction of its side."""
    box_scale_fraction: float = 0.3
    """ROI mode: the box is made smaller or larger by up to this fraction."""


_STILL: Mapping[str, float] = {
    "affine_probability": 0, "brightness_probability": 0, "blur_probability": 0, "flip_probability": 0,
    "clahe_probability": 0, "rotate90_probability": 0, "box_shift_fraction": 0, "box_scale_fraction": 0,
}  # fmt: skip
AUGMENTATIONS: Mapping[str, AugmentConfig] = {
    "default": AugmentConfig(),
    "none": AugmentConfig(**_STILL),
    # Study 004, E.5 of the specification: its library's defaults at that time.
    "seed_004": AugmentConfig(
        affine_probability=0.5, shift_fraction=0.0625, scale_fraction=0.1, rotate_deg=45, brightness_probability=0.3,
        brightness_contrast=0.2, brightness_share=1, blur_probability=0.05, blur_sigma=3, flip_probability=0.5,
        clahe_probability=0.2, rotate90_probability=0.5, box_shift_fraction=0, box_scale_fraction=0,
    ),
    # Study 003: flip x four rotations, each as likely; an oblong grid knows two of them.
    "seed_003": AugmentConfig(
        **{**_STILL, "flip_probability": 0.5, "rotate90_probability": 0.75, "half_turn_probability": 0.5}
    ),
    "histology": AugmentConfig(
        affine_probability=0, brightness_probability=0.5, blur_probability=0, clahe_probability=0,
        rotate90_probability=0.75, colour_probability=0.5, box_shift_fraction=0, box_scale_fraction=0,
    ),
}  # fmt: skip
"""Sets of augmentations by name, for `--config` files and presets."""


@dataclass(frozen=True)
class QatConfig:
    """How INT8 is simulated in quantisation-aware fine-tuning."""

    form: str = "int8"
    """Key of the graph that is simulated: int8 (TensorRT's) or int8-cpu. A network that settled on the grid of one
    need not gain in the other's."""
    range_decay: float = 0.95
    """Of the moving average of a step's smallest and largest input."""
    range_epochs: int = 3
    """Afterwards the ranges rest: a range that moves changes what every integer means, and weights cannot settle."""
    calibration_images: int = 64
    """Training images whose ranges are the first ones."""

    def __post_init__(self) -> None:
        if self.form not in QAT_FORMS:
            raise UsageError(f"qat simulates the form {' or '.join(QAT_FORMS)}, not {self.form!r}")
        if not 0 <= self.range_decay < 1 or self.range_epochs < 0 or self.calibration_images < 1:
            raise UsageError("qat needs range_decay in 0..1, range_epochs from 0, calibration_images from 1")


@dataclass(frozen=True)
class TrainConfig:
    """How a network is trained. Defaults are ours; study 004's own values stand beside them."""

    seed: int = 0
    train_folds: tuple[int, ...] = (2, 3, 4)
    validation_fold: int = 1
    test_fold: int = 0
    """Never opened by `fit`."""
    kinds: tuple[str, ...] = ("mass", "findings", "normal")
    """Kinds of index rows trained on."""
    validation_kinds: tuple[str, ...] = ("mass",)
    """Kinds whose score selects the best epoch and the operating point."""
    ignore_codes: tuple[int, ...] = (0,)
    """Multi-class masks: codes that neither teach nor count."""
    loss: str = "tversky_bce"
    """One of `losses.LOSSES`, or an adversarial objective of `objectives.ADVERSARIAL`."""
    fn_weight: float = 0.7
    """Tversky weight of missed mass pixels."""
    fp_weight: float = 0.3
    """Tversky weight of wrongly marked pixels."""
    bce_weight: float = 0.3
    """tversky_bce: of the added binary cross-entropy; the study has Tversky alone."""
    mass_weight: float = 0.9
    """masked_bce: weight of mass pixels (study 003)."""
    tissue_weight: float = 0.1
    """masked_bce: weight of other breast pixels."""
    class_weights: tuple[float, ...] = ()
    """cross_entropy: one for each class; empty: all 1."""
    adversarial_weight: float = 0.01
    """Of the critics' opinion in the generator's loss."""
    critic_loss: str = "hinge"
    """adv_multiscale: hinge or wasserstein."""
    critic_rate: float = 1e-4
    """Adam rate of the critics; beta1 is 0.5."""
    optimizer: str = "adamw"
    """adamw: decoupled decay of all weights. adam: L2 penalty λ/2·‖w‖² on weights, not on biases and norms (003)."""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 1e-4
    batch_size: int = 8
    accumulate: int = 1
    """Parts a batch is split into; the step is the same (but for batch norm), the memory smaller."""
    precision: str = "auto"
    """Of forward and backward pass. auto: bf16 on GPUs that have it, fp16 with loss scaling on others, fp32 on CPUs."""
    freeze_encoder: bool = False
    """Prompted models: the encoder never learns, its embeddings are made once."""
    frozen_epochs: int = 5
    """Phase 1: encoder frozen, its batch norm in eval mode (study: 20)."""
    frozen_rate: float = 1e-3
    """Adam rate of phase 1 (study: 1e-4)."""
    epochs: int = 100
    """Both phases together."""
    max_minutes: float | None = None
    """Training stops after the epoch that passes this; a later call with more goes on."""
    rate: float = 3e-4
    """Adam rate of phase 2 (study: 1e-5)."""
    ema_decay: float = 0.99
    """Decay of the averaged weights that are validated and kept; 0: no averaging (study)."""
    schedule: str = "plateau"
    """plateau: falls when the validation loss rests. cosine: to 0 over `epochs`. steps: / 10 at `step_epochs`."""
    step_epochs: tuple[int, ...] = (30, 40)
    plateau_factor: float = 0.5
    plateau_patience: int = 8
    """Epochs without a lower validation loss before the rate falls (study: 5)."""
    min_rate: float = 1e-6
    early_stop_patience: int = 30
    """Epochs without a better validation score before training ends (study: 10)."""
    repeats: int = 1
    """Times each training image is drawn in an epoch, each time augmented anew (study: 3 variants)."""
    workers: int = 0
    """Loader processes; the result does not depend on it."""
    threshold_metric: str = "dice"
    """What the threshold is chosen by on the validation fold: mean Dice, or pooled IoU or G-mean (study 003)."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    qat: QatConfig | None = None
    """Fine-tuning of a finished run for INT8; None: training in float."""

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
        if not 1 <= self.accumulate <= self.batch_size:
            raise UsageError(f"accumulate must lie in 1..batch_size, got {self.accumulate} of {self.batch_size}")
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise UsageError(f"max_minutes must be above 0, got {self.max_minutes}")
        if not self.validation_kinds or not set(self.validation_kinds) <= set(self.kinds):
            raise UsageError(f"validation_kinds {self.validation_kinds} must be some of the kinds {self.kinds}")
        for name, known in _CHOICES.items():
            if getattr(self, name) not in known:
                raise UsageError(f"unknown {name} {getattr(self, name)!r}; known: {', '.join(known)}")
        if min(self.rate, self.frozen_rate, self.critic_rate, self.eps) <= 0 or self.weight_decay < 0:
            raise UsageError("rates and eps must be above 0, weight_decay not below")

    def to_json(self) -> str:
        """Return the settings as JSON text."""
        return json.dumps(asdict(self), indent=1, sort_keys=True)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Build from parsed JSON; `augment` may be a name of `AUGMENTATIONS`.

        Raises UsageError on unknown or contradictory settings.
        """
        known = dict(values)
        if "validation_kind" in known:  # runs of the first version had one
            known["validation_kinds"] = (known.pop("validation_kind"),)
        try:
            augment = known.get("augment", {})
            if isinstance(augment, str):
                if augment not in AUGMENTATIONS:
                    raise UsageError(f"unknown augment {augment!r}; known: {', '.join(AUGMENTATIONS)}")
                known["augment"] = AUGMENTATIONS[augment]
            else:
                known["augment"] = AugmentConfig(**augment)
            if known.get("qat") is not None:
                known["qat"] = QatConfig(**known["qat"])
            for name in (
                "train_folds",
                "kinds",
                "validation_kinds",
                "ignore_codes",
                "class_weights",
                "betas",
                "step_epochs",
            ):
                if name in known:
                    known[name] = tuple(known[name])
            unknown = sorted(set(known) - {f.name for f in fields(cls)})
            if unknown:
                settings = ", ".join(f.name for f in fields(cls))
                raise UsageError(f"unknown training setting {', '.join(unknown)}; known: {settings}")
            return cls(**known)
        except TypeError as error:
            raise UsageError(f"unknown training setting: {error}") from error


_CHOICES: Mapping[str, tuple[str, ...]] = {
    "optimizer": OPTIMIZERS,
    "schedule": SCHEDULES,
    "precision": PRECISIONS,
    "critic_loss": CRITICS,
    "threshold_metric": THRESHOLD_METRICS,
}
