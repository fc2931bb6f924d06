"""The charts hold what they are asked to show."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from mammo_runtime.errors import UsageError
from mammo_train.pictures import Case, cases_png, curves_png

LOG = "epoch,phase,rate,train_loss,validation_loss,validation_dice\n"


def pixels_of(path: Path) -> np.ndarray:
    """Return uint8 [rows, columns, 3] in RGB."""
    stored = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert stored is not None
    return np.asarray(stored[..., ::-1]).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture - colour).max(axis=-1) < 40).sum())


def write_log(folder: Path, epochs: int) -> Path:
    log = folder / "log.csv"
    lines = [f"{e},{1 + (e > 2)},0.001,{1 / e},{1.2 / e},{0.6 - abs(e - 4) / 10}" for e in range(1, epochs + 1)]
    log.write_text(LOG + "\n".join(lines) + ("\n" if lines else ""))
    return log


def case(name: str, shift: int, side: int = 100) -> Case:
    grey, truth, mask = (np.zeros((side, side), np.uint8) for _ in range(3))
    cv2.circle(grey, (side // 2, side // 2), side // 3, 120, -1)
    cv2.circle(truth, (side // 2, side // 2), side // 5, 1, -1)
    cv2.circle(mask, (side // 2 + shift, side // 2), side // 5, 1, -1)
    return Case(name, grey, truth.astype(bool), mask.astype(bool), 0.5)


def test_curves_show_both_losses_the_best_epoch_and_the_phase(tmp_path: Path) -> None:
    curves_png(write_log(tmp_path, 8), tmp_path / "curves.png")
    picture = pixels_of(tmp_path / "curves.png")
    assert picture.shape[0] > 500
    assert picture.shape[1] > 800
    for colour in ((0x33, 0x66, 0xAA), (0xDD, 0x77, 0x11), (0x22, 0x88, 0x4A), (0x88, 0x88, 0x88)):
        assert near(picture, colour) > 20
    one_phase = (tmp_path / "log.csv").read_text().replace(",2,0.001", ",1,0.001")
    (tmp_path / "log.csv").write_text(one_phase)
    curves_png(tmp_path / "log.csv", tmp_path / "plain.png")
    assert near(pixels_of(tmp_path / "plain.png"), (0x88, 0x88, 0x88)) < near(picture, (0x88, 0x88, 0x88))


def test_a_single_epoch_is_visible(tmp_path: Path) -> None:
    curves_png(write_log(tmp_path, 1), tmp_path / "curves.png")
    assert near(pixels_of(tmp_path / "curves.png"), (0x33, 0x66, 0xAA)) > 40


def test_an_empty_log_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no epoch"):
        curves_png(write_log(tmp_path, 0), tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_cases_show_truth_and_prediction(tmp_path: Path) -> None:
    cases_png([case("a", 6), case("b", 8)], [case("c", 0)], tmp_path / "cases.png")
    picture = pixels_of(tmp_path / "cases.png")
    assert near(picture, (0x22, 0xCC, 0x44)) > 100
    assert near(picture, (0xFF, 0x30, 0x30)) > 100


def test_one_row_is_enough_and_none_is_refused(tmp_path: Path) -> None:
    cases_png([case("a", 6)], [], tmp_path / "one.png")
    cases_png([case("a", 6)], [case("b", 1)], tmp_path / "two.png")
    assert pixels_of(tmp_path / "two.png").shape[0] > pixels_of(tmp_path / "one.png").shape[0]
    with pytest.raises(UsageError, match="no case"):
        cases_png([], [], tmp_path / "none.png")


def test_a_tiny_finding_in_a_large_picture_stays_visible(tmp_path: Path) -> None:
    empty = np.zeros((3000, 2000), bool)
    speck = empty.copy()
    speck[1500:1512, 900:912] = True
    grey = np.zeros((3000, 2000), np.uint8)
    cases_png([Case("large", grey, empty, speck, 0.0)], [], tmp_path / "with.png")
    cases_png([Case("large", grey, empty, empty, 0.0)], [], tmp_path / "without.png")
    with_it, without = (near(pixels_of(tmp_path / f"{n}.png"), (0xFF, 0x30, 0x30)) for n in ("with", "without"))
    assert with_it > without


def test_same_data_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        cases_png([case("a", 6)], [case("c", 0)], tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
