"""The synthetic data sets: readable, without leaks, with known truth."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mammo_runtime.mammogram import Modality
from mammo_train.index import check_leaks, read_index
from mammo_train.phantom_sets import FOLDS, TISSUES, write_phantom_set
from mammo_train.presets import PICTURES


@pytest.mark.parametrize("modality", Modality)
def test_a_set_is_an_index_without_leaks_and_the_same_each_time(modality: Modality, tmp_path: Path) -> None:
    index = write_phantom_set(tmp_path / "a", modality)
    rows = read_index(index, tmp_path / "a")
    check_leaks(rows)
    assert {row.fold for row in rows} == set(range(FOLDS))
    assert {row.kind for row in rows} <= set(PICTURES[modality].kinds)
    for fold in range(FOLDS):
        assert {r.kind for r in rows if r.fold == fold and r.mask} & set(PICTURES[modality].validation_kinds)
    write_phantom_set(tmp_path / "b", modality)
    for path in (tmp_path / "a").rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "b" / path.relative_to(tmp_path / "a")).read_bytes()


def test_truth(tmp_path: Path) -> None:
    tissue = read_index(write_phantom_set(tmp_path, Modality.HISTOPATHOLOGY), tmp_path)
    codes = np.unique([cv2.imread(str(row.mask), cv2.IMREAD_UNCHANGED) for row in tissue])
    assert codes.min() == 0
    assert codes.max() <= TISSUES
    masses = read_index(write_phantom_set(tmp_path, Modality.MAMMOGRAPHY), tmp_path)
    for row in masses:
        assert (row.mask is None) == (row.kind == "normal")
        if row.mask is not None:
            picture, mask = (cv2.imread(str(p), cv2.IMREAD_GRAYSCALE).astype(float) for p in (row.image, row.mask))
            assert picture[mask > 0].mean() > picture[(mask == 0) & (picture > 0)].mean()
