"""The charts hold what they are asked to show."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Box
from mammo_train.pictures import Case, cases_png, curves_png

LOG = "epoch,phase,rate,train_loss,validation_loss,validation_score\n"


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
    return Case(name, "Dice 0.500", grey, truth.astype(bool), mask.astype(bool))


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


def test_logs_of_the_first_version_and_holes_are_drawn(tmp_path: Path) -> None:
    log = write_log(tmp_path, 6)
    curves_png(log, tmp_path / "new.png")
    log.write_text(log.read_text().replace("validation_score", "validation_dice"))
    curves_png(log, tmp_path / "old.png")
    assert (tmp_path / "old.png").read_bytes() == (tmp_path / "new.png").read_bytes()
    log.write_text(LOG + "1,1,0.1,2,2,\n2,1,0.1,nan,2,0.5\n3,1,0.1,1,1,-3\n")
    curves_png(log, tmp_path / "holes.png", "minus the error", best_epoch=3)
    assert near(pixels_of(tmp_path / "holes.png"), (0x22, 0x88, 0x4A)) > 20


def test_a_prompt_and_a_colour_picture_are_drawn(tmp_path: Path) -> None:
    plain = case("a", 6)
    colour = np.dstack([plain.pixels, 0 * plain.pixels, 0 * plain.pixels])
    cases_png([replace(plain, box=Box(20, 20, 60, 60))], [Case("b", "benign 0.9", colour)], tmp_path / "cases.png")
    picture = pixels_of(tmp_path / "cases.png")
    assert near(picture, (0x33, 0xBB, 0xFF)) > 60
    assert near(picture, (120, 0, 0)) > 1000


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
    cases_png([Case("large", "Dice 0", grey, empty, speck)], [], tmp_path / "with.png")
    cases_png([Case("large", "Dice 0", grey, empty, empty)], [], tmp_path / "without.png")
    with_it, without = (near(pixels_of(tmp_path / f"{n}.png"), (0xFF, 0x30, 0x30)) for n in ("with", "without"))
    assert with_it > without


def test_same_data_same_file(tmp_path: Path) -> None:
    for name in ("a", "b"):
        cases_png([case("a", 6)], [case("c", 0)], tmp_path / f"{name}.png")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png"]
