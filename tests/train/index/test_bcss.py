"""BCSS: codes, hospitals, and tiles that leak."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_trees import CODES, bcss, bcss_tiles, index, lines, stored_mask, write
from mammo_runtime.errors import UsageError
from mammo_train.index import check_leaks, read_index


def test_regions_keep_their_codes_and_cases(tmp_path: Path) -> None:
    root, output = bcss(tmp_path / "data"), tmp_path / "bcss.csv"
    result = index("bcss", root, output)
    assert result.exit_code == 0, result.output
    assert "not the whole collection: 10 of 151 regions" in result.output
    rows = lines(output)
    own = [row for row in rows.values() if row["patient"] == "TCGA-AR-A0TS"]
    assert len(own) == 2
    assert own[0]["fold"] == own[1]["fold"]
    assert own[0]["mask"].startswith("masks/")  # used as it is
    assert np.array_equal(stored_mask(root, own[0]), CODES)
    read = read_index(output, root)
    assert {(row.kind, row.spacing_mm) for row in read} == {("tissue", 0.00025)}
    check_leaks(read)


def test_the_published_split_is_by_hospital(tmp_path: Path) -> None:
    root, output = bcss(tmp_path / "data"), tmp_path / "bcss.csv"
    assert index("bcss", root, output, "--split", "official").exit_code == 0
    folds: dict[str, set[str]] = {}
    for row in lines(output).values():
        folds.setdefault(row["fold"], set()).add(row["patient"][5:7])
    assert folds["0"] == {"OL", "S3", "E2"}
    assert folds["1"] == {"BH", "A8"}
    assert set.union(*(folds[fold] for fold in "234")) == {"AR", "AN", "AO", "D8"}


def test_a_mask_in_colours_or_with_wrong_codes(tmp_path: Path) -> None:
    root, output = bcss(tmp_path / "data"), tmp_path / "bcss.csv"
    first, second, third, *_ = sorted((root / "masks").iterdir())
    write(first, np.dstack([CODES] * 3))
    write(second, CODES * 12)
    write(third, CODES * 0)
    result = index("bcss", root, output)
    assert result.exit_code == 3
    assert "its mask holds 252; codes end at 21" in result.output
    assert "its mask is all code 0" in result.output
    row = lines(output)[first.stem]
    assert row["mask"] == f"../bcss_masks/{first.name}" or row["mask"].endswith(first.name)
    assert np.array_equal(stored_mask(root, row), CODES)


def test_tiles_of_512_are_split_by_case_or_hospital(tmp_path: Path) -> None:
    root, output = bcss_tiles(tmp_path / "data", 512), tmp_path / "tiles.csv"
    assert index("bcss", root, output).exit_code == 0
    check_leaks(read_index(output, root))
    assert index("bcss", root, output, "--split", "official").exit_code == 0
    assert {row["patient"] for row in lines(output).values() if row["fold"] == "0"} == {"TCGA-OL-A5D6"}
    assert index("bcss", root, output, "--split", "seed").exit_code == 0
    rows = lines(output).values()
    assert {row["patient"][5:7] for row in rows if row["fold"] == "1"} == {"OL", "BH"}
    assert {row["split"] for row in rows} == {"study"}  # by hospital: disjoint, so training takes it
    assert {row["pixel_spacing_mm"] for row in rows} == {"0.00025"}
    check_leaks(read_index(output, root))


def test_tiles_of_224_leak_and_are_taken_on_request_only(tmp_path: Path) -> None:
    root, output = bcss_tiles(tmp_path / "data", 224), tmp_path / "tiles.csv"
    result = index("bcss", root, output)
    assert result.exit_code == 2
    assert "dealt to train, val and test at random" in result.output
    assert not output.exists()
    result = index("bcss", root, output, "--split", "seed")
    assert result.exit_code == 0, result.output
    assert "training refuses it without --allow-leak" in result.output
    with pytest.raises(UsageError, match="--allow-leak"):
        read_index(output, root)
    assert {row.fold for row in read_index(output, root, allow_leak=True)} == {1, 2}  # the test tiles have no masks


def test_regions_have_no_study_split(tmp_path: Path) -> None:
    result = index("bcss", bcss(tmp_path / "data"), tmp_path / "bcss.csv", "--split", "seed")
    assert result.exit_code == 2
    assert "needs Kaggle's tiles" in result.output


def test_another_folder_is_told_where_to_get_it(tmp_path: Path) -> None:
    result = index("bcss", tmp_path, tmp_path / "bcss.csv")
    assert result.exit_code == 2
    assert "PathologyDataScience/BCSS" in result.output
    assert "CC0" in result.output
