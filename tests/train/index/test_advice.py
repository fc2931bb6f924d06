"""What an index says at the end: codes, folds, the next command; colours that are no codes."""

from __future__ import annotations

import shlex
from pathlib import Path

import cv2
import numpy as np
import pytest

from index_trees import CODES, bcss, disc, index, lines, picture, stored_mask, tissue, write
from mammo_train.cli import fit
from mammo_train.index import build

TISSUE = ("--modality", "histopathology")


def own_tissue(root: Path, mask: np.ndarray, suffix: str = ".png") -> Path:
    for number in range(8):
        write(root / f"images/{number}.png", tissue(number))
        write(root / f"masks/{number}{suffix}", mask)
    return root


def next_command(output: str) -> dict[str, object]:
    """Return the options of the command that is advised, as `fit` parses them."""
    line = next(line for line in output.splitlines() if line.startswith("next: mammo-train fit "))
    return fit.make_context("fit", shlex.split(line)[3:]).params


def test_colours_are_no_codes(tmp_path: Path) -> None:
    three = CODES % 3 + 1
    coloured = np.stack([(three == k) * np.uint8(200) for k in (1, 2, 3)], axis=2)
    result = index("folder", own_tissue(tmp_path / "data", coloured), tmp_path / "own.csv", *TISSUE)
    assert result.exit_code == 2
    assert "the mask 0.png is coloured" in result.output
    assert "8-bit grey images (code 0 ignored, code k = class k-1)" in result.output


def test_a_palette_and_a_jpeg_are_no_codes(tmp_path: Path) -> None:
    from PIL import Image

    root = own_tissue(tmp_path / "data", CODES % 3 + 1)
    palette = Image.fromarray(CODES % 3, "P")
    palette.putpalette([0, 0, 0, 200, 0, 0, 0, 200, 0])
    palette.save(root / "masks/0.png")
    write(root / "masks/1.jpg", CODES % 3 + 1)
    (root / "masks/1.png").unlink()
    write(root / "masks/2.png", cv2.merge([CODES % 3 + 1] * 3))
    result = index("folder", root, tmp_path / "own.csv", *TISSUE)
    assert "0: the mask 0.png is coloured, or has a palette" in result.output
    assert "1: the code mask 1.jpg is a JPEG" in result.output
    assert np.array_equal(stored_mask(root, lines(tmp_path / "own.csv")["2"]), CODES % 3 + 1), "grey in RGB is grey"


def test_codes_that_begin_at_0_are_listed_and_warned_of(tmp_path: Path) -> None:
    result = index("folder", own_tissue(tmp_path / "data", CODES % 3), tmp_path / "own.csv", *TISSUE)
    assert result.exit_code == 0, result.output
    assert "0 in 8 (ignored), 1 in 8, 2 in 8" in result.output
    assert "of the pixels have code 0, which is ignored; if 0 is a class of yours, add 1" in result.output
    assert "--classes takes 2 names" in result.output
    assert next_command(result.output)["classes"] == ("NAME1", "NAME2")


def test_codes_that_begin_at_1_need_no_warning_but_gaps_do(tmp_path: Path) -> None:
    from_one = index("folder", own_tissue(tmp_path / "one", CODES % 3 + 1), tmp_path / "one.csv", *TISSUE)
    assert "warning" not in from_one.output
    gaps = index("folder", own_tissue(tmp_path / "gaps", CODES % 2 * 3 + 4), tmp_path / "gaps.csv", *TISSUE)
    assert "no picture has code 1, 2, 3, 5, 6; a model needs" in gaps.output
    assert "the preset ignores code 7, too" in gaps.output


def test_code_0_of_bcss_is_known_to_be_outside(tmp_path: Path) -> None:
    result = index("bcss", bcss(tmp_path / "data"), tmp_path / "bcss.csv")
    assert "21 in 10" in result.output
    assert "warning" not in result.output
    assert next_command(result.output)["architecture"] == "bcss_unet_resnet34"
    assert "folds by patient" in result.output


def test_the_next_command_is_one_that_fit_takes(tmp_path: Path) -> None:
    root = tmp_path / "my data"
    for number in range(10):
        write(root / f"images/{number}.png", picture(number))
        write(root / f"masks/{number}.png", disc(20, 20, 8))
    result = index("folder", root, tmp_path / "own.csv")
    advised = next_command(result.output)
    assert (advised["index"], advised["root"]) == (tmp_path / "own.csv", root)
    assert (advised["modality"], advised["architecture"]) == ("mammography", "mobilenetv2_resunet")
    assert "the paths in the index start there" in result.output
    assert "folds by group of near-duplicates" in result.output
    assert "split patient" not in result.output


def test_class_folders_without_masks_ask_for_a_classifier(tmp_path: Path) -> None:
    for number in range(10):
        write(tmp_path / f"data/{('cyst', 'other')[number % 2]}/{number}.png", picture(number))
    result = index("folder", tmp_path / "data", tmp_path / "own.csv", "--modality", "ultrasound")
    line = next(line for line in result.output.splitlines() if line.startswith("next: "))
    assert line.endswith("--model vgg16_busi --classes cyst,other --config KINDS.json -o RUN")
    assert 'KINDS.json holds {"kinds": ["cyst", "other"], "validation_kinds": ["cyst", "other"]}' in result.output


@pytest.mark.parametrize(("pause", "said"), [(0.0, [*range(10, 101, 10)]), (60.0, [100])])
def test_progress_is_said_now_and_then(monkeypatch: pytest.MonkeyPatch, pause: float, said: list[int]) -> None:
    monkeypatch.setattr(build, "PAUSE_S", pause)
    told: list[str] = []
    progress = build._Progress(100, told.append)
    for number in range(1, 101):
        progress.reached(number)
    assert told == [f"{number} of 100 pictures" for number in said]
