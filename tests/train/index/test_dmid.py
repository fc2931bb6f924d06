"""DMID: nested folders, RGBA masks, drawn contours, patients from DICOM headers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np

from index_trees import disc, dmid, index, lines, stored_mask


def test_masks_kinds_and_patients(tmp_path: Path) -> None:
    root, output = dmid(tmp_path / "data"), tmp_path / "dmid.csv"
    result = index("dmid", root, output)
    assert result.exit_code == 3, result.output
    rows = lines(output)
    assert {name: row["kind"] for name, row in rows.items()} == {
        "IMG001": "mass", "IMG002": "findings", "IMG003": "non_mass_findings", "IMG004": "unlocated",
        "IMG005": "normal", "IMG006": "normal",
    }  # fmt: skip
    assert np.array_equal(stored_mask(root, rows["IMG001"]), disc(20, 20, 8))
    assert rows["IMG003"]["mask"] == rows["IMG004"]["mask"] == ""
    assert all(row["image"].endswith(".dcm") for row in rows.values())
    assert (rows["IMG001"]["view"], rows["IMG001"]["laterality"], rows["IMG001"]["note"]) == ("CC", "R", "BI-RADS 4B")
    assert (rows["IMG002"]["view"], rows["IMG002"]["laterality"], rows["IMG002"]["pathology"]) == ("MLO", "L", "M")
    assert rows["IMG001"]["patient"] == rows["IMG002"]["patient"] != rows["IMG003"]["patient"]
    assert rows["IMG001"]["patient"].startswith("dmid_")
    assert rows["IMG001"]["fold"] == rows["IMG002"]["fold"]


def test_a_drawn_contour_is_no_mask(tmp_path: Path) -> None:
    result = index("dmid", dmid(tmp_path / "data"), tmp_path / "dmid.csv")
    assert "Pixel-level annotation is not used: contours drawn on the picture are no masks" in result.output
    assert (
        "IMG007: IMG007.tif is no mask: it holds grey levels, as a picture with a drawn contour does" in result.output
    )
    assert "4 have a mask" in result.output
    assert "1 pictures have a mass but no mask" in result.output


def test_without_dicom_files_patients_are_unknown_and_told(tmp_path: Path) -> None:
    root, output = dmid(tmp_path / "data", dicom=False), tmp_path / "dmid.csv"
    result = index("dmid", root, output)
    assert "DICOM Images is not there, so patients are not known" in result.output
    assert "other pictures of one patient may still stand on both sides" in result.output
    rows = lines(output)
    assert "patient" not in rows["IMG001"]
    assert rows["IMG001"]["group"] == "IMG001"
    assert rows["IMG001"]["image"].endswith("TIFF Images/TIFF Images/IMG001.tif")
    assert np.array_equal(stored_mask(root, rows["IMG002"]), disc(20, 20, 8) | disc(45, 45, 6))


def test_the_same_patient_id_everywhere_tells_nothing(tmp_path: Path) -> None:
    result = index("dmid", dmid(tmp_path / "data", same_patient=True), tmp_path / "dmid.csv", "--pictures", "tiff")
    assert "the DICOM files do not tell patients apart" in result.output
    assert lines(tmp_path / "dmid.csv")["IMG001"]["image"].endswith(".tif")


def test_only_drawn_contours_is_said(tmp_path: Path) -> None:
    root = dmid(tmp_path / "data")
    shutil.rmtree(root / "ROI Masks")
    result = index("dmid", root, tmp_path / "dmid.csv")
    assert "ROI Masks is missing, so there is no truth at all" in result.output
    assert {row["kind"] for row in lines(tmp_path / "dmid.csv").values()} == {
        "unlocated", "non_mass_findings", "normal"
    }  # fmt: skip


def test_another_folder_is_told_where_to_get_it(tmp_path: Path) -> None:
    result = index("dmid", tmp_path, tmp_path / "dmid.csv")
    assert result.exit_code == 2
    assert "figshare" in result.output
    assert "CC BY 4.0" in result.output
