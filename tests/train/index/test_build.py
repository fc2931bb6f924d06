"""What all collections share: folds, copies, determinism, the command line, the check of an index."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from index_trees import bcdr, bcss, busi, cbis, dmid, inbreast, index, lines, mini_mias, picture, write
from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Modality
from mammo_train.cli import main
from mammo_train.data_notes import DATA_NOTES, data_record
from mammo_train.dataset import read_codes, read_labelled, read_picture
from mammo_train.index import read_index
from mammo_train.index.near import NEAR_BITS, check_near, fingerprint, near_pairs
from mammo_train.index.registry import COLLECTIONS
from mammo_train.index.split import spread, units_of

NORMALS = "\n".join(f"mdb{k:03d} G NORM" for k in range(1, 13))


def bits(first: np.ndarray, second: np.ndarray) -> int:
    a, b = fingerprint(first), fingerprint(second)
    assert a is not None
    assert b is not None
    return int((a != b).sum())


def test_a_hash_survives_encoding_size_depth_and_brightness() -> None:
    plain = picture(1, (300, 240))
    jpeg = cv2.imdecode(cv2.imencode(".jpg", plain, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0)
    assert bits(plain, jpeg) <= NEAR_BITS // 4
    assert bits(plain, cv2.resize(plain, (120, 150))) <= NEAR_BITS // 4
    assert bits(plain, plain.astype(np.uint16) * 16) <= NEAR_BITS // 4
    assert bits(plain, cv2.convertScaleAbs(plain, alpha=0.7, beta=30)) <= NEAR_BITS // 4
    assert bits(plain, cv2.merge([plain] * 3)) == 0
    assert bits(plain, picture(2, (300, 240))) > 2 * NEAR_BITS


def test_blank_pictures_are_like_nothing() -> None:
    blank = fingerprint(np.full((50, 50), 7, np.uint8))
    assert blank is None
    first = fingerprint(picture(1))
    assert list(near_pairs([first, blank, fingerprint(picture(2)), blank, first])) == [(0, 4)]


def test_units_join_patients_and_copies() -> None:
    units = units_of(["a", "b", "c", "d", "e"], ["p", "q", "p", "", ""], [(1, 2), (3, 4)])
    assert units == ["p", "p", "p", "d", "d"]


def test_folds_share_every_kind_and_repeat() -> None:
    kinds = ["mass"] * 50 + ["normal"] * 150
    units = [f"u{k // 2}" for k in range(200)]
    folds = spread(kinds, units, range(5), seed=3)
    assert folds == spread(kinds, units, range(5), seed=3) != spread(kinds, units, range(5), seed=4)
    assert Counter(zip(folds, kinds)) == {(f, k): n for f in range(5) for k, n in (("mass", 10), ("normal", 30))}
    assert len(set(zip(units, folds))) == 100


def test_the_same_call_gives_the_same_index(tmp_path: Path) -> None:
    root = mini_mias(tmp_path / "data", NORMALS, 12)
    assert index("mini_mias", root, tmp_path / "a.csv").exit_code == 0
    assert index("mini_mias", root, tmp_path / "b.csv", "-q").exit_code == 0
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert index("mini_mias", root, tmp_path / "b.csv", "--seed", "1").exit_code == 0
    assert (tmp_path / "a.csv").read_bytes() != (tmp_path / "b.csv").read_bytes()


def test_a_copy_under_another_patient_shares_its_fold(tmp_path: Path) -> None:
    root, output = mini_mias(tmp_path / "data", NORMALS, 12), tmp_path / "mias.csv"
    again = cv2.imdecode(cv2.imencode(".jpg", picture(1, (1024, 1024)))[1], 0)
    write(root / "all-mias/mdb012.pgm", again)
    result = index("mini_mias", root, output)
    assert "1 pairs of (nearly) equal pictures under two patients" in result.output
    assert "mdb001, mdb012" in result.output
    rows = lines(output)
    assert rows["mdb001"]["fold"] == rows["mdb002"]["fold"] == rows["mdb011"]["fold"] == rows["mdb012"]["fold"]
    check_near(read_index(output, root))


def test_check_index_finds_copies_in_other_folds(tmp_path: Path) -> None:
    root, output = mini_mias(tmp_path / "data", NORMALS, 12), tmp_path / "mias.csv"
    assert index("mini_mias", root, output).exit_code == 0
    rows = list(lines(output).values())
    other = next(row for row in rows if row["fold"] != rows[0]["fold"])
    write(root / other["image"], cv2.GaussianBlur(cv2.imread(str(root / rows[0]["image"]), 0), (5, 5), 1))
    call = ["check-index", str(output), "--root", str(root)]
    assert CliRunner().invoke(main, call).exit_code == 0  # other bytes: the plain check sees nothing
    result = CliRunner().invoke(main, [*call, "--near"])
    assert result.exit_code == 2
    assert "are nearly the same picture, one of 1 such pairs" in result.output


def test_unreadable_pictures_do_not_stop_the_rest_but_nothing_left_does(tmp_path: Path) -> None:
    root, output = mini_mias(tmp_path / "data", NORMALS, 12), tmp_path / "mias.csv"
    (root / "all-mias/mdb003.pgm").write_bytes(b"P5\n1024 1024\n255\n")
    result = index("mini_mias", root, output, "-q")
    assert result.exit_code == 3
    assert "1 pictures left out:\n  mdb003: " in result.output
    assert len(lines(output)) == 11
    output.unlink()
    for path in root.rglob("*.pgm"):
        path.write_bytes(b"P5\n")
    result = index("mini_mias", root, output)
    assert result.exit_code == 2
    assert "none of 12 pictures could be used; the first: mdb001" in result.output
    assert not output.exists()


def test_the_help_names_every_collection_with_a_sentence() -> None:
    text = " ".join(CliRunner().invoke(main, ["index", "--help"]).output.split())
    for name, collection in COLLECTIONS.items():
        assert f"{name} {collection.summary}" in text
        assert DATA_NOTES[name].where
        assert DATA_NOTES[name].licence
        own = " ".join(CliRunner().invoke(main, ["index", name, "--help"]).output.split())
        assert all(f"--{word}" in own for word in ("split", "seed", "output"))


def test_a_collection_offers_its_own_splits_only(tmp_path: Path) -> None:
    result = index("inbreast", tmp_path, tmp_path / "a.csv", "--split", "official")
    assert result.exit_code == 2
    assert "'official' is not 'patient'" in result.output


def test_the_licence_follows_the_index(tmp_path: Path) -> None:
    root, output = mini_mias(tmp_path / "data", NORMALS, 12), tmp_path / "mias.csv"
    index("mini_mias", root, output)
    record = data_record(read_index(output, root), root, {})
    assert [(entry["name"], entry["research_only"], entry["images"]) for entry in record] == [("mini_mias", True, 12)]


def test_masks_lie_beside_the_index_and_the_root_may_be_elsewhere(tmp_path: Path) -> None:
    root = mini_mias(tmp_path / "a/deep/data", "mdb001 G CIRC B 535 425 50\n" + NORMALS.split("\n", 1)[1], 12)
    output = tmp_path / "b/out.v1.csv"
    assert index("mini_mias", root, output).exit_code == 0
    row = lines(output)["mdb001"]
    assert row["mask"] == "../../../b/out.v1_masks/mdb001.png"
    assert [path.name for path in (tmp_path / "b").iterdir() if path.name.startswith(".")] == []
    with output.open(newline="", encoding="utf-8") as stream:
        assert next(csv.reader(stream))[:5] == ["image", "mask", "patient", "kind", "fold"]


@pytest.mark.parametrize(
    ("collection", "tree"),
    [("cbis_ddsm", cbis), ("inbreast", inbreast), ("dmid", dmid), ("busi", busi), ("bcdr", bcdr), ("bcss", bcss)],
)
def test_training_reads_what_was_indexed(tmp_path: Path, collection: str, tree: Callable[[Path], Path]) -> None:
    root, output = tree(tmp_path / "data"), tmp_path / "out.csv"
    assert index(collection, root, output).exit_code in (0, 3)
    modality = Modality(COLLECTIONS[collection].modality)
    for row in read_index(output, root):
        if modality is Modality.HISTOPATHOLOGY:
            labels = read_codes(row, read_picture(row, modality), (0,))
            assert set(np.unique(labels)) == {*range(21), 255}
        else:
            labelled = read_labelled(row, modality)
            assert labelled.mask.any() == (row.kind in ("mass", "findings", "benign", "malignant"))


def test_a_leaking_index_is_refused_unless_allowed(tmp_path: Path) -> None:
    root, output = mini_mias(tmp_path / "data", NORMALS, 12), tmp_path / "mias.csv"
    index("mini_mias", root, output)
    output.write_text(
        output.read_text(encoding="utf-8").replace(",patient,mini_mias", ",seed,mini_mias"), encoding="utf-8"
    )
    with pytest.raises(UsageError, match="say --allow-leak, which is recorded"):
        read_index(output, root)
    assert len(read_index(output, root, allow_leak=True)) == 12
