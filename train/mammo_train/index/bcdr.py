"""BCDR: `bcdr_*_img.csv`, `bcdr_*_outlines.csv` and `patient_P/study_S/img_P_S_X_{LO,LCC,RO,RCC}.tif`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath

from mammo_train.index import masks
from mammo_train.index.entry import Choice, Entry, Say, Truth, first_value, missing, read_table

SPACING_MM = {"d": 0.07}
"""By the letter of the subset: D digital. Film subsets (F) state none."""
_VIEWS = {"O": "MLO", "CC": "CC"}

Line = dict[str, str]


def entries(root: Path, choice: Choice, say: Say) -> list[Entry]:
    """Return one entry for each picture of the image tables; outlines of masses (nodules) are filled and united."""
    tables = sorted(root.rglob("*_img.csv"))
    found: list[Entry] = []
    for table in tables:
        beside = table.with_name(table.name.replace("_img.csv", "_outlines.csv"))
        if not beside.is_file():
            say(f"{table.name} has no {beside.name}: its pictures are taken for normal")
        outlines: dict[str, list[Line]] = defaultdict(list)
        for line in read_table(beside) if beside.is_file() else ():
            outlines[_key(line.get("image filename", ""))].append(line)
        subset = table.name.lower().removeprefix("bcdr_")[:1]
        seen: set[str] = set()
        for line in read_table(table):
            key = _key(line.get("image filename", ""))
            if key and key not in seen:
                seen.add(key)
                found.append(_entry(table, line, outlines.pop(key, []), SPACING_MM.get(subset)))
        if outlines:
            say(f"{beside.name}: {len(outlines)} pictures with outlines are not in {table.name}, as {min(outlines)}")
    if not found:
        raise missing("bcdr", root, "bcdr_d01_img.csv with bcdr_d01_outlines.csv (or another subset's)")
    return found


def _key(file_name: str) -> str:
    """Return a picture's name: tables write " ./patient_1/…/img_1_1_1_RCC.tif", with spaces and either slash."""
    return PurePosixPath(file_name.strip().replace("\\", "/")).name


def _entry(table: Path, line: Line, outlines: Sequence[Line], spacing_mm: float | None) -> Entry:
    written = line["image filename"].replace("\\", "/")
    name = PurePosixPath(written).stem
    masses = [own for own in outlines if own.get("mammography nodule", "1") not in ("0", "")]
    side_view = name.rsplit("_", 1)[-1].upper()
    columns = {
        "view": _VIEWS.get(side_view[1:], ""),
        "laterality": side_view[:1] if side_view[:1] in ("L", "R") else "",
        "lesions": f"{len(masses)} masses, {len(outlines) - len(masses)} others" if outlines else "",
        "pathology": "/".join(sorted({own["classification"] for own in outlines if own.get("classification")})),
        "note": f"density {line['density']}" if first_value(line, "density") else "",
    }
    kind = "mass" if masses else "non_mass_findings" if outlines else "normal"
    truth = partial(_truth, masses) if masses else None
    patient = f"bcdr_{line.get('patient id', '')}"
    return Entry(f"{table.stem}_{name}", partial(_image, table.parent, written), kind, patient, truth,
                 spacing_mm, columns=columns)  # fmt: skip


def _image(folder: Path, written: str) -> Path:
    """Return the file: as written below the table's folder, else wherever its name is below it."""
    direct = folder / PurePosixPath(written)
    if direct.is_file():
        return direct
    found = sorted(folder.rglob(PurePosixPath(written).name))
    if not found:
        raise FileNotFoundError(f"there is no file {written} below {folder}")
    return found[0]


def _truth(outlines: Sequence[Line], shape: tuple[int, int]) -> Truth:
    return masks.filled_polygons([_points(line) for line in outlines], shape)


def _points(line: Line) -> list[tuple[float, float]]:
    """Return the outline of a line: two lists of numbers with spaces. Raises ValueError when they are no outline."""
    x = [float(text) for text in line.get("lw x points", "").split()]
    y = [float(text) for text in line.get("lw y points", "").split()]
    if len(x) != len(y) or len(x) < 3:
        raise ValueError(f"its outline has {len(x)} x and {len(y)} y values")
    return list(zip(x, y))
