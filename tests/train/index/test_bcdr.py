"""BCDR: outlines in tables, patients by thirds as the study drew them."""

from __future__ import annotations

from pathlib import Path

from index_trees import bcdr, index, lines, stored_mask
from mammo_train.index import check_leaks, read_index
from mammo_train.index.registry import COLLECTIONS
from mammo_train.index.split import shuffled_parts


def test_outlines_are_filled(tmp_path: Path) -> None:
    root, output = bcdr(tmp_path / "data"), tmp_path / "bcdr.csv"
    result = index("bcdr", root, output)
    assert result.exit_code == 3
    assert "bcdr_d01_img_img_4_4_1_RCC: ValueError: its outline has" in result.output
    rows = lines(output)
    assert len(rows) == 39
    mask = stored_mask(root, rows["img_1_1_1_RCC"]) > 0
    assert mask[12:41, 10:31].all()  # the square
    assert mask[48, 50]  # and the triangle
    assert not mask[60, 60]
    row = rows["img_2_2_1_RCC"]
    assert (row["kind"], row["pathology"], row["view"], row["laterality"]) == ("mass", "Malign", "CC", "R")
    assert (row["patient"], row["note"], row["pixel_spacing_mm"]) == ("bcdr_2", "density 2", "0.07")
    assert (rows["img_2_2_1_LO"]["kind"], rows["img_2_2_1_LO"]["view"]) == ("normal", "MLO")
    assert (rows["img_3_3_1_RCC"]["kind"], rows["img_3_3_1_RCC"]["mask"]) == ("non_mass_findings", "")
    assert rows["img_1_1_1_RCC"]["lesions"] == "2 masses, 0 others"
    check_leaks(read_index(output, root))


def test_the_studys_split_is_by_patient_and_so_no_leak(tmp_path: Path) -> None:
    root, output = bcdr(tmp_path / "data"), tmp_path / "bcdr.csv"
    result = index("bcdr", root, output, "--split", "seed")
    assert "--allow-leak" not in result.output
    read = read_index(output, root)
    check_leaks(read)
    patients = [len({row.group for row in read if row.fold == fold}) for fold in (2, 1, 0)]
    assert patients == [14, 3, 3]


def test_63_patients_become_43_10_10() -> None:
    study = COLLECTIONS["bcdr"].study
    assert study is not None
    folds = shuffled_parts(63, study)
    assert [folds.count(fold) for fold in (2, 1, 0)] == [43, 10, 10]


def test_1226_crops_become_980_123_123() -> None:
    study = COLLECTIONS["cbis_ddsm"].study
    assert study is not None
    folds = shuffled_parts(1226, study)
    assert [folds.count(fold) for fold in (2, 1, 0)] == [980, 123, 123]


def test_another_folder_is_told_where_to_get_it(tmp_path: Path) -> None:
    result = index("bcdr", tmp_path, tmp_path / "bcdr.csv")
    assert result.exit_code == 2
    assert "after registration" in result.output
