"""INbreast: property lists, semicolons, patients in file names."""

from __future__ import annotations

from pathlib import Path

import pytest

from index_trees import inbreast, index, lines, stored_mask, write_plist
from mammo_runtime.errors import UnreadableImage
from mammo_train.index import read_index
from mammo_train.index.inbreast import read_outlines


def rows_of(root: Path, output: Path, *options: str, code: int = 0) -> dict[str, dict[str, str]]:
    result = index("inbreast", root, output, *options)
    assert result.exit_code == code, result.output
    return {name.split("_")[0]: row for name, row in lines(output).items()}


def test_outlines_called_mass_are_filled(tmp_path: Path) -> None:
    root = inbreast(tmp_path / "data")
    rows = rows_of(root, tmp_path / "in.csv")
    mask = stored_mask(root, rows["20586908"])
    assert mask[10:26, 10:31].all()  # the square, edges included
    assert mask[42, 45]  # the second mass
    assert not mask[5, 5]  # the calcification
    assert int((mask > 0).sum()) < 16 * 21 + 100
    assert {name: row["kind"] for name, row in rows.items()} == {
        "20586908": "mass", "20586934": "normal", "53582540": "mass", "22614522": "non_mass_findings",
        "22614568": "mass", "22670094": "normal", "22670147": "normal",
    }  # fmt: skip
    assert not stored_mask(root, rows["53582540"])[45, 44]
    assert rows["22614522"]["mask"] == ""
    assert rows["20586908"]["lesions"] == "1 Calcification; 2 Mass"


def test_other_outlines_are_filled_on_request(tmp_path: Path) -> None:
    root = inbreast(tmp_path / "data")
    rows = rows_of(root, tmp_path / "in.csv", "--roi", "Mass", "--roi", "Espiculated Region")
    assert stored_mask(root, rows["53582540"])[44, 44]


def test_the_table_and_the_file_names(tmp_path: Path) -> None:
    root = inbreast(tmp_path / "data")
    rows = rows_of(root, tmp_path / "in.csv")
    assert rows["53582540"]["note"] == ""  # the blank ACR
    assert rows["20586934"]["note"] == "ACR 2"
    assert (rows["20586934"]["view"], rows["20586934"]["laterality"]) == ("MLO", "L")
    assert rows["20586934"]["pathology"] == "BI-RADS 4a"
    assert rows["20586908"]["patient"] == rows["20586934"]["patient"] == "inbreast_6c613a14b80a8591"
    assert rows["20586908"]["fold"] == rows["20586934"]["fold"]
    assert {row.spacing_mm for row in read_index(tmp_path / "in.csv", root)} == {None}  # the DICOM header has it


def test_outlines_without_area_are_told(tmp_path: Path) -> None:
    result = index("inbreast", inbreast(tmp_path / "data"), tmp_path / "in.csv")
    assert "22614568: 1 outlines of fewer than three points are no areas" in result.output
    assert "not the whole collection: 7 of 410 pictures, 6 of 115 patients" in result.output


def test_a_broken_outline_file_costs_its_picture_only(tmp_path: Path) -> None:
    root = inbreast(tmp_path / "data")
    (root / "AllXML/20586908.xml").write_text("<plist><dict>", encoding="utf-8")
    rows = rows_of(root, tmp_path / "in.csv", code=3)
    assert "20586908" not in rows
    assert len(rows) == 6


def test_no_entity_is_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("secret", encoding="utf-8")
    path = write_plist(tmp_path / "a.xml", [("Mass", [(1, 1), (5, 1), (5, 5)])])
    assert read_outlines(path) == {"Mass": [[(1, 1), (5, 1), (5, 5)]]}
    text = path.read_text(encoding="utf-8").splitlines()
    text[1] = f'<!DOCTYPE plist [<!ENTITY x SYSTEM "{secret.as_uri()}">]>'
    path.write_text("\n".join(text).replace("Mass", "&x;"), encoding="utf-8")
    with pytest.raises(UnreadableImage, match="no outlines that can be read"):
        read_outlines(path)


def test_another_folder_is_told_where_to_get_it(tmp_path: Path) -> None:
    result = index("inbreast", tmp_path, tmp_path / "in.csv")
    assert result.exit_code == 2
    assert "AllXML" in result.output
    assert "not to be passed on" in result.output
