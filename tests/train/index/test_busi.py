"""BUSI: masks of every form united, near-duplicates in one fold; the real pictures where they are at hand."""

from __future__ import annotations

import csv
from collections import Counter
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest

from index_trees import busi, disc, index, lines, stored_mask
from mammo_runtime.errors import UsageError
from mammo_train.index import check_leaks, read_index


def test_masks_are_united_and_read_in_every_form(tmp_path: Path) -> None:
    root, output = busi(tmp_path / "data"), tmp_path / "busi.csv"
    result = index("busi", root, output)
    assert result.exit_code == 0, result.output
    rows = lines(output)
    several = disc(20, 20, 8) | disc(50, 50, 5) | disc(50, 10, 5)
    assert np.array_equal(stored_mask(root, rows["benign (1)"]), several)
    for stem in ("benign (2)", "benign (3)"):
        assert np.array_equal(stored_mask(root, rows[stem]), disc(20, 20, 8))
        assert "busi_masks" in rows[stem]["mask"]
    assert rows["benign (5)"]["mask"] == "Dataset_BUSI_with_GT/benign/benign (5)_mask.png"  # clean: used as it is
    assert rows["normal (1)"]["mask"] == ""
    assert (rows["benign (1)"]["lesions"], rows["malignant (1)"]["pathology"]) == ("3", "malignant")
    assert Counter(row["kind"] for row in rows.values()) == {"benign": 6, "malignant": 6, "normal": 6}
    check_leaks(read_index(output, root))


def test_near_duplicates_share_a_group_and_a_fold_across_classes(tmp_path: Path) -> None:
    root, output = busi(tmp_path / "data"), tmp_path / "busi.csv"
    result = index("busi", root, output)
    rows = lines(output)
    assert rows["benign (4)"]["group"] == rows["malignant (6)"]["group"] == "benign (4)"
    assert rows["benign (4)"]["fold"] == rows["malignant (6)"]["fold"]
    assert "patients are not known: 17 groups of near-duplicates (2 pictures in groups of several)" in result.output


def test_an_incomplete_collection_is_told_by_counts(tmp_path: Path) -> None:
    result = index("busi", busi(tmp_path / "data"), tmp_path / "busi.csv")
    assert (
        "not the whole collection of 780 pictures: 6 of 437 benign, 6 of 210 malignant, 6 of 133 normal"
        in result.output
    )


def test_a_random_split_with_copies_on_both_sides_is_refused(tmp_path: Path) -> None:
    root, output = busi(tmp_path / "data"), tmp_path / "busi.csv"
    base = root / "Dataset_BUSI_with_GT"
    for number in range(7, 25):  # copies of one picture: some must fall on the other side
        for end in ("", "_mask"):
            (base / f"benign/benign ({number}){end}.png").write_bytes(
                (base / f"benign/benign (5){end}.png").read_bytes()
            )
    assert "training refuses it" in index("busi", root, output, "--split", "seed").output
    with pytest.raises(UsageError, match="--allow-leak"):
        read_index(output, root)
    assert index("busi", root, output).exit_code == 0  # by group it is sound
    check_leaks(read_index(output, root))


def test_a_benign_picture_without_mask_is_named(tmp_path: Path) -> None:
    root = busi(tmp_path / "data")
    (root / "Dataset_BUSI_with_GT/benign/benign (5)_mask.png").unlink()
    result = index("busi", root, tmp_path / "busi.csv")
    assert result.exit_code == 3
    assert "benign (5): there is no mask" in result.output


def test_another_folder_is_told_where_to_get_it(tmp_path: Path) -> None:
    result = index("busi", tmp_path, tmp_path / "busi.csv")
    assert result.exit_code == 2
    assert "scholar.cu.edu.eg" in result.output


def test_the_real_pictures_and_their_known_duplicates(shared_data: Path, tmp_path: Path) -> None:
    with (shared_data / "splits/busi.csv").open(newline="", encoding="utf-8") as stream:
        known = {Path(row["image"]).stem: row["group"] for row in csv.DictReader(stream)}
    root = tmp_path / "data"
    for stem in known:
        kind, number = stem.split("_")
        (root / kind).mkdir(parents=True, exist_ok=True)
        for folder, end in (("images", ""), ("masks", "_mask")):
            (root / kind / f"{kind} ({int(number)}){end}.png").symlink_to(shared_data / "busi" / folder / f"{stem}.png")
    result = index("busi", root, tmp_path / "busi.csv")
    assert result.exit_code == 0, result.output
    assert "not the whole collection" not in result.output
    rows = lines(tmp_path / "busi.csv")
    assert len(rows) == 780
    ours = {stem: rows["{} ({:d})".format(stem.split("_")[0], int(stem.split("_")[1]))]["group"] for stem in known}
    pairs_known, pairs_ours = paired(known), paired(ours)
    agreement = len(pairs_known & pairs_ours) / len(pairs_known)
    assert agreement > 0.98, f"only {agreement:.1%} of the known duplicate pairs share a group"
    assert len(pairs_ours) < 1.2 * len(pairs_known)  # 22 more than the 190 known


def paired(groups: dict[str, str]) -> set[tuple[str, str]]:
    """Return the pairs that share a group."""
    members: dict[str, list[str]] = {}
    for stem, group in sorted(groups.items()):
        members.setdefault(group, []).append(stem)
    return {pair for own in members.values() for pair in combinations(own, 2)}
