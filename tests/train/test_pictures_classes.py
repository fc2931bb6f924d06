"""Charts of classes show what they are given."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mammo_runtime.errors import UsageError
from mammo_train.classification import summarise_classification
from mammo_train.pictures_classes import LabelCase, confusion_png, label_cases_png, reliability_png

COLOURS = np.array([(230, 159, 0), (86, 180, 233), (0, 158, 115)], np.uint8)


def picture(path: Path) -> np.ndarray:
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert stored is not None
    return np.asarray(stored[..., ::-1]).astype(int)


def near(path: Path, colour: tuple[int, ...]) -> int:
    return int((np.abs(picture(path) - colour).max(axis=-1) < 20).sum())


def test_a_matrix_is_drawn_by_rows_with_every_class(tmp_path: Path) -> None:
    confusion_png([[9, 1], [0, 0]], ["a", "b"], tmp_path / "two.png", "pictures")
    confusion_png(np.eye(21, dtype=int).tolist(), [f"a_rather_long_name_{k}" for k in range(21)], tmp_path / "many.png")
    assert near(tmp_path / "two.png", (8, 48, 107)) > 100, "full blue: 100 % of the colour bar"
    assert picture(tmp_path / "many.png").shape[0] > 3 * 300
    with pytest.raises(UsageError, match="confusion matrix of 3 classes"):
        confusion_png([[1, 2], [3, 4]], ["a", "b", "c"], tmp_path / "wrong.png")


def test_a_reliability_diagram_of_few_pictures(tmp_path: Path) -> None:
    block = summarise_classification(np.array([[0.8, 0.2]]), np.array([0]), ["p"], ("a", "b"), resamples=10)
    reliability_png(block["calibration"], tmp_path / "reliability.png")
    assert near(tmp_path / "reliability.png", (0x33, 0x66, 0xAA)) > 10
    assert near(tmp_path / "reliability.png", (0x99, 0xBB, 0xDD)) > 500


def label_case(name: str, fill: int) -> LabelCase:
    truth = np.zeros((50, 80), np.uint8)
    truth[:, 40:], truth[:10] = 1, 255
    return LabelCase(name, "accuracy 0.5", np.full((50, 80, 3), 90, np.uint8), truth, np.full((50, 80), fill, np.uint8))


def test_label_maps_are_painted_with_their_colours(tmp_path: Path) -> None:
    path = tmp_path / "cases.png"
    label_cases_png([label_case("a", 2), label_case("b", 0)], [label_case("c", 1)], ["x", "y", "z"], COLOURS, path)
    for colour in COLOURS.tolist():
        assert near(path, tuple(colour)) > 1000
    assert near(path, (0, 0, 0)) > 1000, "what is not judged is black"
    label_cases_png([label_case("a", 0)], [], ["x", "y", "z"], COLOURS, tmp_path / "one.png")
    assert near(tmp_path / "one.png", tuple(COLOURS[2])) == 0, "the legend names only what occurs"
    with pytest.raises(UsageError, match="no case"):
        label_cases_png([], [], ["x"], COLOURS, path)


def test_same_data_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        confusion_png([[3, 1], [2, 5]], ["x", "y"], tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
