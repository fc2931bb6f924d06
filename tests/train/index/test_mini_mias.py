"""mini-MIAS: y from the bottom, odd lines, pairs of films; the real list where it is at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index_trees import disc, index, lines, mini_mias, stored_mask
from mammo_train.index import check_leaks, read_index
from mammo_train.index.mini_mias import read_info

INFO = """MAMMOGRAPHIC IMAGE ANALYSIS SOCIETY
Notes: mdb001 is the first film.

mdb001 G CIRC B 535 425 197
mdb002 G CIRC B 522 280 69
mdb003 D NORM
mdb004 D NORM
mdb005 F CIRC B 477 133 30
mdb005 F CIRC B 500 168 26
mdb006 F NORM
mdb007 D CALC M *NOTE 3*
mdb008 G SPIC M 100 900 40
mdb008 G CALC M 600 300 40
mdb009 F CIRC B
mdb010 F ARCH B 400 400 30
mdb011 F NORM
"""


def test_circles_pairs_and_odd_lines(tmp_path: Path) -> None:
    root, output = mini_mias(tmp_path / "data", INFO, 10), tmp_path / "mias.csv"
    result = index("mini_mias", root, output)
    assert result.exit_code == 0, result.output
    assert "not the whole collection: 13 of 330 lines, 10 of 322 films" in result.output
    assert "is a circle round each mass, not an outline" in result.output
    assert "1 films have a mass without a place" in result.output
    rows = lines(output)
    assert {name: row["kind"] for name, row in rows.items()} == {
        "mdb001": "mass", "mdb002": "mass", "mdb003": "normal", "mdb004": "normal", "mdb005": "mass",
        "mdb006": "normal", "mdb007": "non_mass_findings", "mdb008": "mass", "mdb009": "unlocated",
        "mdb010": "non_mass_findings",
    }  # fmt: skip
    shape = (1024, 1024)
    assert np.array_equal(stored_mask(root, rows["mdb001"]), disc(535, 1023 - 425, 197, shape))
    both = disc(477, 1023 - 133, 30, shape) | disc(500, 1023 - 168, 26, shape)
    assert np.array_equal(stored_mask(root, rows["mdb005"]), both)
    assert np.array_equal(stored_mask(root, rows["mdb008"]), disc(100, 123, 40, shape))  # not the calcification
    assert rows["mdb009"]["mask"] == rows["mdb007"]["mask"] == ""
    assert rows["mdb005"]["lesions"] == "CIRC B 477 133 30; CIRC B 500 168 26"
    assert rows["mdb001"]["note"] == "circle truth"
    assert (rows["mdb001"]["laterality"], rows["mdb002"]["laterality"]) == ("R", "L")
    for odd in range(1, 10, 2):
        first, second = rows[f"mdb{odd:03d}"], rows[f"mdb{odd + 1:03d}"]
        assert first["patient"] == second["patient"]
        assert first["fold"] == second["fold"]
    read = read_index(output, root)
    assert {row.spacing_mm for row in read} == {0.2}
    check_leaks(read)


def test_another_folder_is_told_where_to_get_it(tmp_path: Path) -> None:
    result = index("mini_mias", tmp_path, tmp_path / "mias.csv")
    assert result.exit_code == 2
    assert "research purposes only" in result.output


def test_the_real_list(shared_data: Path) -> None:
    lesions = read_info(shared_data / "mias_full/MIAS_Info.txt")
    assert len(lesions) == 330
    assert len({lesion.film for lesion in lesions}) == 322
    assert sum(lesion.abnormality == "NORM" for lesion in lesions) == 207
    unplaced = {lesion.film for lesion in lesions if lesion.abnormality != "NORM" and lesion.circle is None}
    assert unplaced == {"mdb059", "mdb216", "mdb233", "mdb245"}


def test_circles_lie_on_the_real_masses(shared_data: Path, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "Info.txt").write_bytes((shared_data / "mias_full/MIAS_Info.txt").read_bytes())
    names = sorted(path.name for path in (shared_data / "mias_full/masks").iterdir())[:12]
    for name in names:
        (root / name).symlink_to(shared_data / "mias_full/images" / name)
    result = index("mini_mias", root, tmp_path / "mias.csv")
    assert result.exit_code == 0, result.output
    rows = lines(tmp_path / "mias.csv")
    shares = []
    for name in names:
        circle = stored_mask(root, rows[Path(name).stem]) > 0
        outline = stored_mask(shared_data / "mias_full/masks", {"mask": name}) > 0
        shares.append(float((outline & circle).sum() / outline.sum()))
    assert np.median(shares) > 0.8  # from the bottom: counted from the top they would hardly meet
