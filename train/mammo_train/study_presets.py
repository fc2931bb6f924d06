"""How each network is trained: by default our way, and by `--preset seed` the way its study did, oddities included.

Sources: the five seed studies and, where they are silent, the public code and papers named beside each value. "ours"
marks a proposal where a study says nothing. Decisions and their reasons: docs/decisions/0008.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import CleaningStep, Fit
from mammo_train.presets import IMAGENET, UNIT, Preset
from mammo_train.prompted import INPUTS

BCSS_CLASSES = (
    "tumor", "stroma", "lymphocytic_infiltrate", "necrosis_or_debris", "glandular_secretions", "blood", "exclude",
    "metaplasia_NOS", "fat", "plasma_cells", "other_immune_infiltrate", "mucoid_material", "normal_acinus_or_duct",
    "lymphatics", "undetermined", "nerve", "skin_adnexa", "blood_vessel", "angioinvasion", "dcis", "other",
)  # fmt: skip
"""Codes 1 to 21 of BCSS; code 0 (outside the region) and 7 (exclude) are ignored."""
BUSI_CLASSES = ("benign", "malignant", "normal")

# Whole pictures of study 000 (A.4): 5-pixel frame, largest contour (filled: one pixel wide it would keep an outline),
# gamma 2.0 read as brightening, CLAHE 1.0 on 8 x 8 tiles. Its line removal is left out: measured, it blackens breasts.
_CLEAN_000 = (
    CleaningStep("mask_border"), CleaningStep("keep_breast"), CleaningStep("gamma", {"exponent": 0.5}),
    CleaningStep("clahe", {"clip_limit": 1.0, "tiles": 8.0}),
)  # fmt: skip
_PLAIN: Mapping[str, Any] = {"ema_decay": 0.0, "weight_decay": 0.0, "augment": "none"}
"""What no study does: averaged weights, decay, unless said."""
_UNIT_256: Mapping[str, Any] = {"height": 256, "width": 256, "mean": UNIT[0], "std": UNIT[1]}

_STUDY_000 = Preset(
    "Stated: 256x256, batch 8, 50 epochs, plateau, early stop, best validation Dice. Its table fits BCE + Dice loss; "
    "its log reads as rate 1e-4. Patiences 5 and 10 and the crop margin are ours; the crops stand for CBIS-DDSM's "
    "own crop files.",
    full={**_UNIT_256, "cleaning": _CLEAN_000, "breast_crop_margin": None},
    roi={**_UNIT_256, "cleaning": _CLEAN_000[2:]},
    config={**_PLAIN, "loss": "bce_dice", "optimizer": "adam", "rate": 1e-4, "batch_size": 8, "epochs": 50,
            "schedule": "plateau", "plateau_patience": 5, "early_stop_patience": 10},
)  # fmt: skip

_STUDY_004 = Preset(
    "Stated: Tversky loss, Adam, 20 epochs at 1e-4 with the encoder frozen, then 1e-5, early stop 10, plateau "
    "0.5/5/1e-6, input scaled to 0..1 although the encoder's weights expect otherwise. Its two Tversky letters "
    "contradict each other: missed 0.7 and false 0.3 are ours; so are batch 8 and at most 80 epochs of phase 2.",
    full={**_UNIT_256, "cleaning": (), "breast_crop_margin": None},
    roi={**_UNIT_256, "cleaning": ()},
    config={**_PLAIN, "loss": "tversky", "fn_weight": 0.7, "fp_weight": 0.3, "optimizer": "adam", "frozen_epochs": 20,
            "frozen_rate": 1e-4, "rate": 1e-5, "batch_size": 8, "epochs": 100, "plateau_patience": 5,
            "early_stop_patience": 10, "repeats": 3, "augment": "seed_004"},
)  # fmt: skip


def _cobos(side: int, rate: float, decay: float, mass: float, metric: str) -> Preset:
    """Study 003 (D.3, D.4), from its public code: breast-area loss, Adam 0.9/0.995/1e-6, rate / 10 at 30 and 40."""
    grid = {112: (1120, 672), 128: (1280, 768)}[side]
    return Preset(
        "One whole picture a step. The study's scale is 2 cm = 112 (128) pixels, any size; ours is one grid that "
        "holds a breast at about that scale. Per-image whitening is replaced by a stretch of the tissue's grey "
        "values; bilinear is half-pixel (TensorFlow 1 was not). Later mirror padding and the repository's other "
        "sizes are left out.",
        full={"height": grid[0], "width": grid[1], "cleaning": (CleaningStep("keep_breast"), CleaningStep("stretch"))},
        config={**_PLAIN, "loss": "masked_bce", "mass_weight": mass, "tissue_weight": 1 - mass if mass < 1 else 1.0,
                "optimizer": "adam", "betas": (0.9, 0.995), "eps": 1e-6, "rate": rate, "weight_decay": decay,
                "schedule": "steps", "step_epochs": (30, 40), "batch_size": 1, "epochs": 50, "early_stop_patience": 50,
                "repeats": 8, "augment": "seed_003", "threshold_metric": metric},
    )  # fmt: skip


_SAM = Preset(
    "Stated: Adam 1e-5, no decay, DiceCE on low-resolution logits, 20 epochs, mask decoder only; batch 2 from the "
    "tutorial it names, which widens each box by up to 20 pixels. Boxes come from the truth: an upper bound, no "
    "stand-alone segmentation.",
    config={**_PLAIN, "loss": "dice_ce", "optimizer": "adam", "rate": 1e-5, "schedule": "constant", "batch_size": 2,
            "epochs": 20, "early_stop_patience": 20, "freeze_encoder": True, "kinds": BUSI_CLASSES[:2]},
    modality=Modality.ULTRASOUND,
)  # fmt: skip
_PROMPTED: Mapping[str, Any] = {
    "loss": "dice_ce", "rate": 1e-4, "batch_size": 4, "kinds": BUSI_CLASSES[:2], "augment": "none"
}  # fmt: skip


def _published(name: str) -> Mapping[str, Any]:
    """Return how a prompted network was published to see pictures; its side follows from its width."""
    seen = INPUTS[name]
    return {"height": seen.height, "width": seen.width, "fit": seen.fit, "scaling": seen.scaling, "mean": seen.mean,
            "std": seen.std}  # fmt: skip


_VGG_INPUT: Mapping[str, Any] = {"height": 224, "width": 224, "mean": IMAGENET[0], "std": IMAGENET[1]}


_OURS = Preset()
_OURS_BUSI = Preset(modality=Modality.ULTRASOUND)

PRESETS: Mapping[str, Mapping[str, Preset]] = {
    "unet": {"default": _OURS, "seed": _STUDY_000},
    "attention_unet": {"default": _OURS, "seed": _STUDY_000},
    "dense_unet": {"default": _OURS, "seed": _STUDY_000},
    "unetpp": {
        "default": Preset("Four heads are trained, one is shipped.", network={"deep_supervision": True}),
        "seed": _STUDY_000,
    },
    "connected_unet": {"default": _OURS, "seed": _STUDY_000},
    "connected_dense_unet": {"default": _OURS, "seed": _STUDY_000},
    "connected_attention_unet": {"default": _OURS, "seed": _STUDY_000},
    "connected_unetpp": {"default": _OURS, "seed": _STUDY_000},
    "msanet": {
        "default": Preset("Multiscale critics, hinge loss.", config={"loss": "adv_multiscale"}),
        "seed": replace(
            _STUDY_000,
            note="The study gives a title only; three spectral-norm critics after Chen et al. 2020 (IEEE Access), "
            "whose layers are not public: adversarial weight 0.01 and critics' Adam 1e-4 (beta1 0.5) are ours. "
            + _STUDY_000.note,
            config={**_STUDY_000.config, "loss": "adv_multiscale", "adversarial_weight": 0.01},
        ),
        "segan": Preset(
            "SegAN's one critic with multi-scale L1 (Xue et al. 2018), weights clamped to 0.05.",
            config={"loss": "segan_l1"},
        ),
    },
    "bcss_unet_resnet34": {
        "default": Preset(
            config={"loss": "ce_dice", "ignore_codes": (0, 7), "augment": "histology"},
            modality=Modality.HISTOPATHOLOGY,
            classes=BCSS_CLASSES,
        ),
        "seed": Preset(
            "Stated: network, 512x512 tiles, 21 classes. Loss, optimiser, rate, schedule and epochs are ours (the "
            "study is silent); batch 64 of its summary table needs 7.5 GB of activations at 224x224, so 8.",
            full={"height": 512, "width": 512, "mean": UNIT[0], "std": UNIT[1]},
            config={
                **_PLAIN,
                "loss": "ce_dice",
                "ignore_codes": (0, 7),
                "optimizer": "adamw",
                "rate": 1e-4,
                "schedule": "cosine",
                "epochs": 40,
                "batch_size": 8,
                "augment": "histology",
            },
            modality=Modality.HISTOPATHOLOGY,
            classes=BCSS_CLASSES,
        ),
    },
    "busi_unet": {
        "default": Preset(
            full={"height": 128, "width": 128}, config={"batch_size": 16, "rate": 1e-3}, modality=Modality.ULTRASOUND
        ),
        "seed": Preset(
            "Stated: 128x128 grey input, mean squared error, ReLU after the last convolution, dropout. The ReLU can "
            "die and its range is not 0..1: the number it gives is cut at 1 and taken for a probability. Adam 1e-3, "
            "batch 16 and 50 epochs are ours.",
            full={"height": 128, "width": 128, "mean": UNIT[0], "std": UNIT[1], "fit": Fit.STRETCH},
            config={
                **_PLAIN,
                "loss": "mse",
                "optimizer": "adam",
                "rate": 1e-3,
                "batch_size": 16,
                "epochs": 50,
                "early_stop_patience": 50,
            },
            network={"final": "relu"},
            modality=Modality.ULTRASOUND,
        ),
    },
    "vgg16_busi": {
        "default": Preset(
            full=_VGG_INPUT,
            config={
                "loss": "cross_entropy",
                "batch_size": 32,
                "rate": 1e-4,
                "schedule": "cosine",
                "validation_kinds": BUSI_CLASSES,
            },
            modality=Modality.ULTRASOUND,
            classes=BUSI_CLASSES,
        ),
        "seed": Preset(
            "Stated: VGG-16 with three outputs, 224x224, cross-entropy, 50 epochs. AdamW 1e-4, cosine and batch 32 "
            "are ours. The study also fed pictures overlaid with the true masks: that leaks the label (an empty mask "
            "says normal), so it is not offered.",
            full=_VGG_INPUT,
            config={
                **_PLAIN,
                "loss": "cross_entropy",
                "optimizer": "adamw",
                "rate": 1e-4,
                "schedule": "cosine",
                "epochs": 50,
                "batch_size": 32,
                "early_stop_patience": 50,
                "validation_kinds": BUSI_CLASSES,
                "augment": "seed_004",
            },
            modality=Modality.ULTRASOUND,
            classes=BUSI_CLASSES,
        ),
    },
    "sam_box": {
        "default": Preset(
            "Ours: rate 1e-4, batch 4.",
            _published("sam_box"),
            config={**_PROMPTED, "freeze_encoder": True},
            modality=Modality.ULTRASOUND,
        ),
        "seed": replace(_SAM, full=_published("sam_box")),
    },
    "medsam_box": {
        "default": Preset(
            "Ours: rate 1e-4, batch 4.",
            _published("medsam_box"),
            config={**_PROMPTED, "freeze_encoder": True},
            modality=Modality.ULTRASOUND,
        ),
        "seed": replace(_SAM, full=_published("medsam_box")),
    },
    "lite_medsam": {
        "default": Preset(
            "Encoder and mask decoder are trained, as MedSAM's authors do.",
            _published("lite_medsam"),
            config={**_PROMPTED, "freeze_encoder": False},
            modality=Modality.ULTRASOUND,
        ),
        "seed": replace(
            _SAM,
            full=_published("lite_medsam"),
            config={**_SAM.config, "freeze_encoder": False},
            note="Not in the study: LiteMedSAM as its edge variant, with the study's settings for SAM. " + _SAM.note,
        ),
    },
    "cobos_vgg": {
        "default": Preset(full={"height": 576, "width": 352}),
        "seed-exp1": _cobos(112, 3e-6, 5e-4, 1.0, "iou"),
        "seed-exp2": _cobos(112, 2e-5, 2e-3, 0.9, "iou"),
    },
    "cobos_dilated": {
        "default": Preset(full={"height": 576, "width": 352}),
        "seed-exp3": _cobos(128, 4e-5, 4e-4, 0.9, "iou"),
        "seed-exp3-gmean": _cobos(128, 4e-5, 4e-4, 0.9, "gmean"),
    },
    "mobilenetv2_resunet": {"default": _OURS, "seed": _STUDY_004},
    "mobilenetv2_unet": {"default": _OURS, "seed": _STUDY_004},
    "resunet": {
        "default": _OURS,
        "seed": replace(_STUDY_004, config={**_STUDY_004.config, "frozen_epochs": 0, "rate": 1e-4}),
    },
}
"""Network → preset's name → preset. Networks not listed (`smp:…`) have the default one."""


def preset(architecture: str, name: str = "default") -> Preset:
    """Return a preset. Raises UsageError listing those of the network for an unknown one."""
    own = PRESETS.get(architecture, {"default": _OURS})
    if name not in own:
        raise UsageError(f"{architecture} has no preset {name!r}; it has {', '.join(own)}")
    return own[name]
