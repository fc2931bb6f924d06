"""The table of published systems: complete, buildable, its numbers as printed."""

from __future__ import annotations

import pytest

from mammo_runtime.errors import UsageError
from mammo_train import models
from mammo_train.metrics import reported_row_problem
from mammo_train.study_presets import preset
from mammo_train.systems import SYSTEMS, chosen_systems


def test_every_network_stands_in_the_table() -> None:
    assert {system.architecture for system in SYSTEMS.values()} == set(models.ARCHITECTURES)


@pytest.mark.parametrize("key", SYSTEMS)
def test_a_systems_preset_and_width_exist(key: str) -> None:
    system = SYSTEMS[key]
    assert preset(system.architecture, system.preset).modality is system.modality
    assert set(system.network) <= {"width"}
    if system.network:
        assert system.network["width"] in models.known(system.architecture).widths


def test_the_rows_that_contradict_themselves_are_the_known_ones() -> None:
    flagged = {
        (key, row.label): reported_row_problem(row.values) for key, system in SYSTEMS.items() for row in system.reported
    }
    assert {key for key, problem in flagged.items() if problem} == {
        ("connected_unetpp", "CUNet++"),
        ("connected_unetpp_cropped", "CUNet++ (Cropped)"),
        ("bcss_unet_resnet34", "tumour class"),
        ("resunet", "ResUNet"),
        ("mobilenetv2_unet", "MobileNetV2-UNet"),
    }


def test_study_000_has_its_twelve_rows() -> None:
    rows = [r for s in SYSTEMS.values() if s.study == "000" for r in s.reported]
    assert len(rows) == 12
    assert min(r.values["loss"] - (1 - r.values["dice"]) for r in rows) > 0  # fits BCE + (1 - Dice)


def test_unknown_system_lists_the_known() -> None:
    assert chosen_systems("all") is SYSTEMS
    assert list(chosen_systems("msanet")) == ["msanet"]
    with pytest.raises(UsageError, match="known: all, unet"):
        chosen_systems("unet9000")
