"""Calibration images: masses first, training folds only, streamed, the same each time; leaks are refused."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mammo_export.calibration import check_no_leak, choose_calibration
from mammo_runtime.errors import UsageError
from mammo_runtime.hashing import file_sha256
from mammo_runtime.preprocess import preprocess
from mammo_runtime.spec import InputMode, InputSpec, ModelSpec
from mammo_train.dataset import read_labelled
from mammo_train.index import IndexRow, read_index
from training_phantoms import tiny_spec, write_phantoms


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[IndexRow, ...]:
    return write_phantoms(tmp_path_factory.mktemp("calibration")).rows()


def of(rows: tuple[IndexRow, ...], *folds: int) -> list[IndexRow]:
    return [row for row in rows if row.fold in folds]


def test_masses_come_first_and_every_mask_before_the_rest(data: tuple[IndexRow, ...]) -> None:
    chosen = choose_calibration(of(data, 2, 3, 4), of(data, 0, 1), tiny_spec())
    assert [row.kind for row in chosen.rows] == ["mass"] * 6 + ["findings"] * 3 + ["normal"] * 3
    few = choose_calibration(of(data, 2, 3, 4), of(data, 0, 1), tiny_spec(), wanted=3)
    assert [(row.kind, row.fold) for row in few.rows] == [("mass", 2), ("mass", 3), ("mass", 4)]


def test_batches_are_what_the_network_sees_each_time_anew(data: tuple[IndexRow, ...]) -> None:
    chosen = choose_calibration(of(data, 2), of(data, 0, 1), tiny_spec())
    first, again = list(chosen.batches()), list(chosen.batches())
    assert len(first) == chosen.count == 4
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    picture = read_labelled(chosen.rows[0]).image
    assert (first[0] == preprocess(picture, tiny_spec().input)[0]).all()
    assert first[0].dtype == np.float32
    assert first[0].shape == (1, 3, 64, 64)


def test_windows_come_in_twos_tight_and_moved(data: tuple[IndexRow, ...]) -> None:
    chosen = choose_calibration(of(data, 2), of(data, 0, 1), tiny_spec(InputMode.ROI))
    assert [len(boxes) for boxes in chosen.boxes] == [2, 4, 2]
    assert chosen.count == len(list(chosen.batches())) == 8
    assert all(row.mask is not None for row in chosen.rows)
    assert choose_calibration(of(data, 2), of(data, 0, 1), tiny_spec(InputMode.ROI), wanted=3).count == 3


def test_the_manifest_names_no_patient(data: tuple[IndexRow, ...]) -> None:
    chosen = choose_calibration(of(data, 2, 3), of(data, 1), tiny_spec())
    manifest = chosen.manifest()
    assert manifest["folds"] == [2, 3]
    assert manifest["images"] == manifest["inputs"] == 8
    assert manifest["kinds"] == {"findings": 2, "mass": 4, "normal": 2}
    assert manifest["images_sha256"] == [file_sha256(row.image) for row in chosen.rows]
    assert "p2_0" not in str(manifest)
    assert len(manifest["groups_sha256"]) == 4
    assert "8 usable pictures" in manifest["fewer_than_100"]
    assert "whole pictures" in manifest["crop"]
    cropped = replace(tiny_spec(), input=InputSpec(height=64, width=64, breast_crop_margin=0.05))
    assert "breast crops" in choose_calibration(of(data, 2), [], cropped).manifest()["crop"]


def test_a_shared_patient_is_a_leak(data: tuple[IndexRow, ...]) -> None:
    rows = of(data, 2, 3)
    protected = [replace(of(data, 1)[0], group=rows[0].group)]
    with pytest.raises(UsageError, match=r"leak: .*shares its patient"):
        choose_calibration(rows, protected, tiny_spec())


def test_the_same_bytes_under_another_name_are_a_leak(data: tuple[IndexRow, ...], tmp_path: Path) -> None:
    rows = of(data, 2, 3)
    copy = tmp_path / "renamed.png"
    shutil.copy(rows[0].image, copy)
    with pytest.raises(UsageError, match=r"leak: .*same picture as renamed\.png"):
        choose_calibration(rows, [replace(of(data, 1)[0], image=copy)], tiny_spec())


def test_no_leak_gives_the_digests(data: tuple[IndexRow, ...]) -> None:
    rows = of(data, 2)
    assert check_no_leak(rows, of(data, 0, 1)) == tuple(file_sha256(row.image) for row in rows)


def test_nothing_to_calibrate_with(data: tuple[IndexRow, ...]) -> None:
    with pytest.raises(UsageError, match="no image of a training fold"):
        choose_calibration([], of(data, 1), tiny_spec())
    normal = [row for row in of(data, 2) if row.kind == "normal"]
    with pytest.raises(UsageError, match="no image of a training fold"):
        choose_calibration(normal, of(data, 1), tiny_spec(InputMode.ROI))


def test_real_images_of_the_training_folds(shared_data: Path) -> None:
    rows = read_index(shared_data / "splits" / "mammo_full.csv", shared_data)
    spec = ModelSpec("full", "mobilenetv2_resunet", input=InputSpec(height=384, width=256, breast_crop_margin=0.05))
    chosen = choose_calibration(of(rows, 2, 3, 4), of(rows, 0, 1), spec)
    manifest = chosen.manifest()
    assert manifest["images"] >= 100
    assert manifest["fewer_than_100"] is None
    assert manifest["folds"] == [2, 3, 4]
    assert {row.kind for row in chosen.rows[:41]} == {"mass"}
