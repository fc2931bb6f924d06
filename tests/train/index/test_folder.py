"""One's own pictures, in both layouts."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_trees import CODES, SIDE, disc, index, lines, picture, stored_mask, tissue, write
from mammo_train.index import check_leaks, read_index


def own(root: Path) -> Path:
    """Write pairs: equal stems, `_mask`, several masks, an empty mask, no mask; two pictures per patient."""
    for number in range(12):
        name = f"p{number // 2}_{number % 2}"
        write(root / f"images/{name}.png", picture(number))
        if number not in (3, 5):
            end = "_mask" if number % 3 == 0 else ""
            write(root / f"masks/{name}{end}.png", disc(20, 20, 8) if number != 7 else disc(20, 20, 8) * 0)
    write(root / "masks/p0_0_mask_1.png", disc(50, 50, 6))
    write(root / "masks/p1_0.png", disc(20, 20, 8) // 255)  # 0 and 1 instead of 0 and 255
    return root


def test_pairs_of_pictures_and_masks(tmp_path: Path) -> None:
    root, output = own(tmp_path / "data"), tmp_path / "own.csv"
    result = index("folder", root, output, "--patient", r"^(p\d+)_")
    assert result.exit_code == 0, result.output
    assert "2 pictures have no mask file: taken for normal" in result.output
    rows = lines(output)
    assert np.array_equal(stored_mask(root, rows["p0_0"]), disc(20, 20, 8) | disc(50, 50, 6))
    assert np.array_equal(stored_mask(root, rows["p1_0"]), disc(20, 20, 8))
    assert rows["p2_0"]["mask"] == "masks/p2_0.png"
    assert {rows[name]["kind"] for name in ("p1_1", "p2_1", "p3_1")} == {"normal"}
    assert {row["patient"] for row in rows.values()} == {f"p{k}" for k in range(6)}
    check_leaks(read_index(output, root))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "no regular expression"), ("p", "has no group"), ("^(x)", "finds no patient in p0_0.png")],
)
def test_a_bad_pattern_is_refused(tmp_path: Path, pattern: str, message: str) -> None:
    result = index("folder", own(tmp_path / "data"), tmp_path / "own.csv", "--patient", pattern)
    assert result.exit_code == 2
    assert message in result.output


def test_class_folders(tmp_path: Path) -> None:
    root, output = tmp_path / "data", tmp_path / "own.csv"
    for number in range(10):
        kind = ("benign", "normal")[number % 2]
        write(root / f"{kind}/{number}.png", picture(number))
        if kind == "benign":
            write(root / f"{kind}/{number}_mask.png", disc(20, 20, 8))
    result = index("folder", root, output, "--modality", "ultrasound")
    assert result.exit_code == 0, result.output
    assert "patients are not known" in result.output
    rows = lines(output)
    assert len(rows) == 10
    assert (rows["2"]["kind"], rows["2"]["mask"]) == ("benign", "benign/2_mask.png")
    assert (rows["3"]["kind"], rows["3"]["mask"], rows["3"]["group"]) == ("normal", "", "normal_3")


def test_tissue_with_codes(tmp_path: Path) -> None:
    root, output = tmp_path / "data", tmp_path / "own.csv"
    for number in range(6):
        write(root / f"images/{number}.png", tissue(number))
        if number:
            write(root / f"masks/{number}.png", CODES)
    result = index("folder", root, output, "--modality", "histopathology")
    assert result.exit_code == 3
    assert "0: ValueError: it has 0 code masks" in result.output
    assert np.array_equal(stored_mask(root, lines(output)["1"]), CODES)
    assert lines(output)["1"]["kind"] == "tissue"


def test_too_few_patients_is_said_and_nothing_is_written(tmp_path: Path) -> None:
    write(tmp_path / "data/images/a.png", picture(1, (SIDE, SIDE)))
    result = index("folder", tmp_path / "data", tmp_path / "own.csv")
    assert result.exit_code == 2
    assert "5 folds need at least 5 patients or groups; there are 1" in result.output
    assert not (tmp_path / "own.csv").exists()


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert "looked for images/ with masks/" in index("folder", tmp_path / "data", tmp_path / "own.csv").output
