"""Settings: what contradicts itself is refused, what is stored comes back."""

from __future__ import annotations

import json

import pytest

from mammo_runtime.errors import UsageError
from mammo_train.config import AUGMENTATIONS, AugmentConfig, TrainConfig
from training_phantoms import tiny_config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation_fold": 2}, "overlap"),
        ({"frozen_epochs": 3}, "frozen_epochs must lie in 0..epochs, got 3 of 2"),
        ({"epochs": 0, "frozen_epochs": 0}, "epochs must be at least 1"),
        ({"batch_size": 0}, "batch_size"),
        ({"accumulate": 5}, "accumulate must lie in 1..batch_size, got 5 of 4"),
        ({"accumulate": 0}, "accumulate"),
        ({"max_minutes": 0.0}, "max_minutes must be above 0"),
        ({"validation_kinds": ()}, "validation_kinds"),
        ({"validation_kinds": ("benign",)}, "must be some of the kinds"),
        ({"optimizer": "sgd"}, "unknown optimizer 'sgd'; known: adamw, adam"),
        ({"schedule": "linear"}, "known: plateau, cosine, steps, constant"),
        ({"precision": "fp8"}, "known: auto, fp32, bf16, fp16"),
        ({"critic_loss": "bce"}, "known: hinge, wasserstein"),
        ({"threshold_metric": "auc"}, "known: dice, iou, gmean"),
        ({"rate": 0.0}, "rates and eps"),
        ({"weight_decay": -1.0}, "weight_decay"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        tiny_config(**changes)


def test_settings_come_back_from_json() -> None:
    config = tiny_config(
        validation_kinds=("mass", "findings"), ignore_codes=(0, 7), betas=(0.9, 0.995), step_epochs=(3, 5),
        max_minutes=1.5, class_weights=(1.0, 2.0), augment=AUGMENTATIONS["histology"],
    )  # fmt: skip
    assert TrainConfig.from_dict(json.loads(config.to_json())) == config


def test_unknown_settings_are_refused() -> None:
    with pytest.raises(UsageError, match=r"unknown training setting.*learning_rate"):
        TrainConfig.from_dict({"learning_rate": 1})
    with pytest.raises(UsageError, match=r"unknown training setting.*warp"):
        TrainConfig.from_dict({"augment": {"warp": 1}})


def test_augmentations_have_names() -> None:
    assert TrainConfig.from_dict({}).augment == AUGMENTATIONS["default"] == AugmentConfig()
    for name, wanted in AUGMENTATIONS.items():
        assert TrainConfig.from_dict({"augment": name}).augment == wanted
    with pytest.raises(UsageError, match="unknown augment 'strong'; known: default, none"):
        TrainConfig.from_dict({"augment": "strong"})


def test_the_studys_augmentations() -> None:
    study = AUGMENTATIONS["seed_004"]
    probabilities = (
        study.affine_probability, study.brightness_probability, study.blur_probability, study.flip_probability,
        study.clahe_probability, study.rotate90_probability,
    )  # fmt: skip
    assert probabilities == (0.5, 0.3, 0.05, 0.5, 0.2, 0.5)
    assert (study.shift_fraction, study.scale_fraction, study.rotate_deg) == (0.0625, 0.1, 45)
    assert (study.brightness_contrast, study.brightness_share, study.clahe_clip_limit) == (0.2, 1, 4.0)
    assert study.blur_sigma == 3


def test_settings_of_the_first_version_are_read() -> None:
    assert TrainConfig.from_dict({"validation_kind": "findings"}).validation_kinds == ("findings",)
