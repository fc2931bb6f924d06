"""Presets: every network has ours and its study's, each gives a spec and settings that hold together."""

from __future__ import annotations

from pathlib import Path

import pytest

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import InputMode, Task
from mammo_train import models, presets, recipe
from mammo_train.study_presets import BCSS_CLASSES, PRESETS, preset

EVERY = [(name, kind) for name, own in PRESETS.items() for kind in own]


def choices(name: str, kind: str, **wish: object) -> recipe.Choices:
    small = {"width": "tiny"} if "tiny" in models.known(name).widths else {}
    return recipe.Choices(name, "n", kind, presets.Wish(**wish), small)  # type: ignore[arg-type]


def test_every_network_has_a_preset_of_ours_and_one_of_its_study() -> None:
    assert set(PRESETS) == set(models.ARCHITECTURES)
    for own in PRESETS.values():
        assert "default" in own
        assert any(kind.startswith("seed") for kind in own)


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_a_preset_gives_a_spec_and_settings(name: str, kind: str, tmp_path: Path) -> None:
    wanted = choices(name, kind)
    config = recipe.config_for(wanted, None, {})
    spec = recipe.spec_for(wanted, [], tmp_path, config, None)
    assert spec.task is models.known(name).task
    assert spec.input.channels == models.known(name).channels
    assert models.build_for(spec) is not None
    assert config.frozen_epochs == 0  # nothing pretrained was given
    assert type(spec).from_dict(spec.to_dict()) == spec


def test_the_studys_numbers() -> None:
    config = recipe.config_for(choices("unet", "seed"), None, {})
    assert (config.loss, config.optimizer, config.rate, config.batch_size, config.epochs) == (
        "bce_dice", "adam", 1e-4, 8, 50,
    )  # fmt: skip
    third = recipe.config_for(choices("cobos_dilated", "seed-exp3"), None, {})
    assert (third.loss, third.rate, third.weight_decay, third.mass_weight) == ("masked_bce", 4e-5, 4e-4, 0.9)
    assert third.tissue_weight == pytest.approx(0.1)
    assert (third.betas, third.eps, third.step_epochs) == ((0.9, 0.995), 1e-6, (30, 40))
    busi = recipe.config_for(choices("busi_unet", "seed"), None, {})
    assert busi.loss == "mse"
    assert preset("busi_unet", "seed").network == {"final": "relu"}
    frozen = presets.train_config(None, {}, pretrained=True, preset=preset("mobilenetv2_unet", "seed"))
    assert (frozen.frozen_epochs, frozen.frozen_rate, frozen.rate, frozen.repeats) == (20, 1e-4, 1e-5, 3)


def test_the_user_wins_over_the_preset() -> None:
    config = recipe.config_for(choices("unet", "seed"), None, {"epochs": 3, "loss": "tversky", "batch_size": None})
    assert (config.epochs, config.loss, config.batch_size) == (3, "tversky", 8)


def test_the_networks_own_loss_is_the_default() -> None:
    assert recipe.config_for(choices("vgg16_busi", "default"), None, {}).loss == models.known("vgg16_busi").loss


def test_other_pictures_than_the_presets(tmp_path: Path) -> None:
    wanted = choices("unet", "seed", modality=Modality.ULTRASOUND)
    spec = recipe.spec_for(wanted, [], tmp_path, recipe.config_for(wanted, None, {}), None)
    assert spec.modality is Modality.ULTRASOUND
    assert spec.input.cleaning == ()  # the study's cleaning is for mammograms
    assert recipe.config_for(wanted, None, {}).validation_kinds == ("benign", "malignant", "mass")


def test_classes_of_ones_own_have_their_own_codes_to_ignore() -> None:
    own = recipe.Choices("bcss_unet_resnet34", "n", classes=("a", "b"))
    assert recipe.config_for(own, None, {}).ignore_codes == (0,)
    assert recipe.config_for(recipe.Choices("bcss_unet_resnet34", "n"), None, {}).ignore_codes == (0, 7)


def test_a_prompted_network_on_other_pictures_than_its_studys() -> None:
    config = recipe.config_for(choices("sam_box", "seed", modality=Modality.MAMMOGRAPHY), None, {})
    assert (config.kinds, config.validation_kinds) == (("mass", "findings", "normal"), ("mass",))
    assert config.freeze_encoder


def test_sizes(tmp_path: Path) -> None:
    half = presets.input_spec(presets.Wish(scale=0.5), preset("unet"), None, 3, 16)
    assert (half.height, half.width) == (256, 160)
    with pytest.raises(UsageError, match=r"multiples of 16.*112x96 is"):
        presets.input_spec(presets.Wish(size=(111, 96)), preset("unet"), None, 3, 16)
    with pytest.raises(UsageError, match="taken whole"):
        presets.input_spec(presets.Wish("roi"), preset("bcss_unet_resnet34"), None, 3, 32)
    window = presets.input_spec(presets.Wish("roi", roi_margin=0.2), preset("unet", "seed"), None, 1, 16)
    assert (window.mode, window.roi_margin, window.mean) == (InputMode.ROI, 0.2, (0.0,))


def test_a_prompted_networks_grid_is_its_own(tmp_path: Path) -> None:
    wanted = choices("sam_box", "seed", size=(512, 512))
    spec = recipe.spec_for(wanted, [], tmp_path, recipe.config_for(wanted, None, {}), None)
    assert spec.task is Task.PROMPTED
    assert (spec.input.height, spec.prompt and spec.prompt.mask_side) == (64, 16)


def test_a_presets_own_statistics_stay_and_a_parents_win() -> None:
    stated = presets.input_spec(presets.Wish(), preset("mobilenetv2_resunet", "seed"), presets.SYMMETRIC, 3, 32)
    assert (stated.mean, stated.std) == ((0.0,) * 3, (1.0,) * 3)  # the study scales to 0..1 all the same
    ours = presets.input_spec(presets.Wish(), preset("mobilenetv2_resunet"), presets.IMAGENET, 3, 32)
    assert ours.mean == presets.IMAGENET[0]
    parent = presets.input_spec(presets.Wish(), preset("unet", "seed"), None, 3, 16, presets.SYMMETRIC)
    assert parent.mean == (0.5,) * 3


@pytest.mark.parametrize(
    ("option", "reason"), [({"channels": 2}, "has no option channels"), ({"up": 3}, "is like 'transposed', not 3")]
)
def test_options_that_are_none_are_refused(option: dict[str, object], reason: str, tmp_path: Path) -> None:
    wanted = recipe.Choices("unet", "n", network=option)
    with pytest.raises(UsageError, match=reason):
        models.build_for(recipe.spec_for(wanted, [], tmp_path, recipe.config_for(wanted, None, {}), None))


def test_unknown_presets_and_the_tissue_codes() -> None:
    with pytest.raises(UsageError, match="default, seed"):
        preset("unet", "sead")
    assert preset("smp:Unet/resnet18").modality is Modality.MAMMOGRAPHY
    assert len(BCSS_CLASSES) == 21
    assert BCSS_CLASSES[6] == "exclude"  # code 7


@pytest.mark.parametrize("name", ["sam_box", "medsam_box", "lite_medsam", "vgg16_busi"])
def test_published_weights_see_pictures_as_they_were_published(name: str, tmp_path: Path) -> None:
    """A weights file once made every network see 2x - 1, whatever its weights were trained with."""
    weights = tmp_path / "published.safetensors"
    network = {"width": models.TINY}
    with_file = recipe.Choices(name, "run", network=network, encoder_weights=str(weights))
    without = recipe.Choices(name, "run", network=network)
    config = recipe.config_for(without, None, {})
    seen = recipe.spec_for(with_file, [], tmp_path, config, weights).input
    assert seen == recipe.spec_for(without, [], tmp_path, config, None).input


def test_a_network_of_masks_marks_one_class(tmp_path: Path) -> None:
    wanted = recipe.Choices("busi_unet", "run", classes=("a", "b"))
    with pytest.raises(UsageError, match="marks one class, not 2"):
        recipe.spec_for(wanted, [], tmp_path, recipe.config_for(wanted, None, {}), None)
