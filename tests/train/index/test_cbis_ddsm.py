"""CBIS-DDSM in every form it is downloaded in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_trees import CASES, SIDE, Case, cbis, disc, index, lines, picture, stored_mask
from mammo_runtime.errors import UsageError
from mammo_train.index import check_leaks, read_index
from mammo_train.index.cbis_ddsm import crop_place

MASSES = [case for case in CASES if case.table.startswith("mass")]


def by_case(output: Path) -> dict[str, dict[str, str]]:
    """Return the rows by patient and view."""
    return {f"{row['patient']}_{row['view']}": row for row in lines(output, "mask").values()}


@pytest.mark.parametrize("layout", ["tcia", "dated", "renamed", "literal", "headers", "kaggle", "kaggle_info"])
def test_every_layout_gives_the_same_truth(tmp_path: Path, layout: str) -> None:
    root, output = cbis(tmp_path / "data", layout), tmp_path / "out/cbis.csv"
    result = index("cbis_ddsm", root, output)
    assert result.exit_code == 0, result.output
    rows = by_case(output)
    assert len(rows) == 8  # nine masses in eight pictures; the calcification is not asked for
    for case in MASSES:
        if case.patient == 1:
            continue
        own = rows[f"P_{case.patient:05d}_{case.side_view.split('_')[1]}"]
        overlap = (stored_mask(root, own) > 0) == (disc(*case.lesion) > 0)
        assert overlap.mean() > (0.98 if case.mask_shape != (SIDE, SIDE) or "kaggle" in layout else 0.9999)
        assert (own["kind"], own["laterality"], own["pathology"]) == ("mass", case.side_view[0], "MALIGNANT")
    both = (disc(20, 20, 8) | disc(45, 45, 6)) > 0
    assert ((stored_mask(root, rows["P_00001_CC"]) > 0) == both).mean() > 0.99
    assert rows["P_00001_CC"]["lesions"] == "1 ROUND; 2 ROUND"
    read = read_index(output, root)
    check_leaks(read)
    assert {row.dataset for row in read} == {"cbis_ddsm"}


def test_a_mask_of_another_size_is_resized_and_told(tmp_path: Path) -> None:
    root, output = cbis(tmp_path / "data"), tmp_path / "cbis.csv"
    result = index("cbis_ddsm", root, output)
    assert (
        "Mass-Training_P_00004_RIGHT_MLO: mask of 48 x 48 for a picture of 64 x 64, resized (nearest)" in result.output
    )
    row = by_case(output)["P_00004_MLO"]
    assert stored_mask(root, row).shape == (SIDE, SIDE)
    assert row["note"] == "density 3; mask of 48 x 48 for a picture of 64 x 64, resized"
    assert "the mass train table has 6 lines; the published one has 1318" not in result.output
    assert "the mass train table has 7 lines; the published one has 1318" in result.output


def test_a_lesion_listed_twice_is_taken_once(tmp_path: Path) -> None:
    root = cbis(tmp_path / "data", cases=(*MASSES, MASSES[-1]))
    result = index("cbis_ddsm", root, tmp_path / "crops.csv", "--unit", "lesion")
    assert result.exit_code == 3
    assert "is that of Mass-Test_P_00008_LEFT_CC_1, which is kept" in result.output
    assert len(lines(tmp_path / "crops.csv", "mask")) == len(MASSES)


def test_the_older_tables_with_backslashes(tmp_path: Path) -> None:
    root = cbis(tmp_path / "data", cases=MASSES, older=True)
    result = index("cbis_ddsm", root, tmp_path / "cbis.csv")
    assert result.exit_code == 0, result.output
    row = by_case(tmp_path / "cbis.csv")["P_00002_CC"]
    assert (row["pathology"], row["note"], row["lesions"]) == ("BENIGN", "density 2", "1 OVAL")


def test_calcifications_have_a_column_with_a_space_and_are_no_masses(tmp_path: Path) -> None:
    root = cbis(tmp_path / "data")
    assert index("cbis_ddsm", root, tmp_path / "all.csv", "--abnormality", "all").exit_code == 0
    row = by_case(tmp_path / "all.csv")["P_00005_MLO"]
    assert (row["kind"], row["note"], row["laterality"]) == ("non_mass_findings", "density 3", "L")
    folds = {r["fold"] for r in lines(tmp_path / "all.csv", "mask").values() if r["patient"] == "P_00005"}
    assert len(folds) == 1


def test_lesion_crops_get_their_part_of_the_mask(tmp_path: Path) -> None:
    root, output = cbis(tmp_path / "data"), tmp_path / "crops.csv"
    result = index("cbis_ddsm", root, output, "--unit", "lesion")
    assert result.exit_code == 0, result.output
    rows = lines(output, "mask")
    assert len(rows) == len(MASSES)
    for case in MASSES:
        mask = stored_mask(root, rows[f"{case.folder}_{case.number}"])
        assert mask.shape == case.crop().shape
        if case.mask_shape == (SIDE, SIDE):
            x, y, radius = case.lesion
            cut = disc(*case.lesion)[y - radius - 2 : y + radius + 3, x - radius - 2 : x + radius + 3]
            assert np.array_equal(mask, cut)


def test_the_official_split_keeps_the_test_tables(tmp_path: Path) -> None:
    twice = Case(7, 1, (30, 40, 8), side_view="RIGHT_MLO")  # a test patient in the training table
    root = cbis(tmp_path / "data", cases=(*MASSES, twice))
    result = index("cbis_ddsm", root, tmp_path / "cbis.csv", "--split", "official")
    assert result.exit_code == 0, result.output
    assert "1 pictures left out: their patient, or a copy, stands in the published test" in result.output
    rows = lines(tmp_path / "cbis.csv", "mask").values()
    assert {row["patient"] for row in rows if row["fold"] == "0"} == {"P_00007", "P_00008"}
    assert {row["patient"] for row in rows if row["fold"] != "0"} == {f"P_{k:05d}" for k in range(1, 7)}
    check_leaks(read_index(tmp_path / "cbis.csv", root))


def test_the_studys_split_is_row_wise_and_refused_without_consent(tmp_path: Path) -> None:
    cases = [Case(k, n, (18 + 20 * n, 30, 7)) for k in range(1, 21) for n in (0, 1)]
    root, output = cbis(tmp_path / "data", cases=cases), tmp_path / "seed.csv"
    result = index("cbis_ddsm", root, output, "--split", "seed", "--unit", "lesion")
    assert result.exit_code == 0, result.output
    assert "training refuses it without --allow-leak" in result.output
    with pytest.raises(UsageError, match="--allow-leak"):
        read_index(output, root)
    folds = [row.fold for row in read_index(output, root, allow_leak=True)]
    assert [folds.count(fold) for fold in (0, 1, 2)] == [4, 4, 32]


def test_the_study_used_crops_that_share_a_folder_with_their_mask(tmp_path: Path) -> None:
    root = cbis(tmp_path / "data")
    result = index("cbis_ddsm", root, tmp_path / "seed.csv", "--split", "seed", "--unit", "lesion")
    assert result.exit_code == 0, result.output
    used = {row["patient"] for row in lines(tmp_path / "seed.csv", "mask").values()}
    assert used == {"P_00001", "P_00002", "P_00004", "P_00005", "P_00006"}  # not P_00003, and no test patient


def test_missing_and_broken_files_are_named_and_left_out(tmp_path: Path) -> None:
    root, output = cbis(tmp_path / "data"), tmp_path / "cbis.csv"
    next(root.rglob("*P_00005_LEFT_CC/*/*/1-1.dcm")).unlink()
    broken = next(root.rglob("*P_00006_LEFT_CC_1/*/*/1-2.dcm"))
    broken.write_bytes(broken.read_bytes()[:300])
    result = index("cbis_ddsm", root, output)
    assert result.exit_code == 3
    assert "2 pictures left out:" in result.output
    assert "Mass-Training_P_00005_LEFT_CC: there is no file for Mass-Training_P_00005_LEFT_CC/" in result.output
    assert "Mass-Training_P_00006_LEFT_CC: 1-2.dcm is no readable DICOM file" in result.output
    assert {f"P_0000{k}" for k in (1, 2, 3, 4, 7, 8)} == {row["patient"] for row in lines(output, "mask").values()}


def test_another_folder_is_told_where_to_get_it(tmp_path: Path) -> None:
    result = index("cbis_ddsm", tmp_path, tmp_path / "cbis.csv")
    assert result.exit_code == 2
    for words in ("mass_case_description_train_set.csv", "Cancer Imaging Archive, doi:10.7937", "Licence: CC BY"):
        assert words in result.output
    assert not (tmp_path / "cbis.csv").exists()


def test_a_crop_is_found_by_correlation_and_else_refused() -> None:
    full, mask = picture(1, (200, 180)).astype(np.uint16) * 100, disc(90, 120, 20, (200, 180))
    stretched = (full[95:150, 60:115] // 2 + 500).astype(np.uint16)
    assert crop_place(full, stretched, mask) == (95, 60)
    with pytest.raises(Exception, match="not found at its lesion"):
        crop_place(full, picture(9, (55, 55)), mask)
