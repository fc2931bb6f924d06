"""DMID: `Info.txt`, `TIFF Images`, `DICOM Images`, `ROI Masks`; zips nest each folder in itself."""

from __future__ import annotations

import hashlib
import re
from collections import Counter, defaultdict
from functools import partial
from pathlib import Path

from mammo_train.index import masks
from mammo_train.index.entry import Choice, Entry, Say, Truth, find_folder, missing

IMAGES = 510
MASSES = {"CIRC", "SPIC", "MISC"}
_ABNORMALITIES = {*MASSES, "CALC", "ARCH", "ASYM", "NORM"}
_LINE = re.compile(r"(IMG\s*\d+)[\s,;:]+(.*)", re.IGNORECASE)
_VIEW = re.compile(r"(CC|MLO)\s*(LT|RT|L|R)", re.IGNORECASE)
CONTOURS = "Pixel-level annotation"
"""Pictures with the contour drawn on them: no masks."""


def entries(root: Path, choice: Choice, say: Say) -> list[Entry]:
    """Return one entry for each picture of Info.txt. Lesions of one picture are merged in its mask.

    The patient is the hashed DICOM PatientID where those files are there and tell patients apart, else unknown.
    """
    info = next((path for path in sorted(root.rglob("*.txt")) if path.name.lower() == "info.txt"), None)
    tiff, dicom = _files(root, "TIFF Images", (".tif", ".tiff")), _files(root, "DICOM Images", (".dcm", ".dicom", ""))
    lines = read_info(info) if info else {}
    if not lines or not (tiff or dicom):
        raise missing("dmid", root, "Info.txt with lines like 'IMG001 CCRT G CIRC B x y radius', and TIFF Images")
    drawn = _files(root, "ROI Masks", (".tif", ".tiff", ".png"))
    if find_folder(root, CONTOURS) is not None:
        hint = "" if drawn else "; ROI Masks is missing, so there is no truth at all"
        say(f"{CONTOURS} is not used: contours drawn on the picture are no masks{hint}")
    patients = _patients(dicom, say)
    reports = _files(root, "Reports", (".txt",))
    pictures = {"dicom": dicom, "tiff": tiff, "auto": {**tiff, **dicom}}[choice.pictures]
    absent = [name for name in lines if name not in pictures]
    if absent:
        say(f"{len(absent)} pictures of Info.txt have no file, as {absent[0]}")
    unlisted = sorted(set(pictures) - set(lines))
    if unlisted:
        say(f"{len(unlisted)} pictures are not in Info.txt and are left out, as {unlisted[0]}")
    found = [_entry(name, pictures[name], own, drawn.get(name), patients.get(name, ""), reports.get(name))
             for name, own in lines.items() if name in pictures]  # fmt: skip
    kinds = Counter(entry.kind for entry in found)
    say(f"{len(found)} pictures (published: {IMAGES}); {sum(name in drawn for name in lines)} have a mask")
    if kinds["unlocated"]:
        say(f"{kinds['unlocated']} pictures have a mass but no mask; their kind is 'unlocated', which no preset uses")
    return found


def _files(root: Path, folder: str, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """Return the files of a folder by name in capitals: IMG001."""
    place = find_folder(root, folder)
    listed = sorted(place.rglob("*")) if place else ()
    return {_name(path.stem): path for path in listed if path.is_file() and path.suffix.lower() in suffixes}


def _name(text: str) -> str:
    return text.upper().replace(" ", "")


def read_info(path: Path) -> dict[str, list[list[str]]]:
    """Return the fields after the name of each line, by picture; several lines of one name are several lesions."""
    lines: dict[str, list[list[str]]] = defaultdict(list)
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        match = _LINE.match(line.strip())
        if match:
            lines[_name(match[1])].append([field for field in re.split(r"[\s,;]+", match[2].upper()) if field])
    return dict(lines)


def _entry(
    name: str, path: Path, lines: list[list[str]], mask: Path | None, patient: str, report: Path | None
) -> Entry:
    fields = [field for line in lines for field in line]
    classes = [part for field in fields for part in re.split(r"[+/&]", field) if part in _ABNORMALITIES - {"NORM"}]
    masses = [part for part in classes if part in MASSES]
    if masses and mask is None:
        kind = "unlocated"
    elif masses:
        # Its mask merges all lesions, so beside other findings it is not a mass's outline alone.
        kind = "mass" if len(masses) == len(classes) else "findings"
    else:
        kind = "non_mass_findings" if classes else "normal"
    view = next((match for field in fields if (match := _VIEW.fullmatch(field))), None)
    columns = {
        "view": view[1].upper() if view else "",
        "laterality": view[2][0].upper() if view else "",
        "lesions": "; ".join(" ".join(line[2:]) for line in lines if "NORM" not in line),
        "pathology": "/".join(sorted({field for field in fields if field in ("B", "M")})),
        "note": _birads(report) if report else "",
    }
    truth = partial(_truth, mask) if mask and kind in ("mass", "findings") else None
    return Entry(name, path, kind, patient, truth, columns=columns)


def _birads(report: Path) -> str:
    match = re.search(r"BI-?RADS\s*:?\s*([0-6][A-C]?)", report.read_text("utf-8", errors="replace"), re.IGNORECASE)
    return f"BI-RADS {match[1].upper()}" if match else ""


def _truth(path: Path, shape: tuple[int, int]) -> Truth:
    if path.suffix.lower() == ".png" and masks.clean_file(path, shape):
        return path
    return masks.mask_from_file(path)


def _patients(dicom: dict[str, Path], say: Say) -> dict[str, str]:
    """Return hashed patient ids by picture; empty where the files are missing or do not tell patients apart."""
    import pydicom

    ids: dict[str, str] = {}
    for name, path in dicom.items():
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=["PatientID"])
            ids[name] = str(header.get("PatientID", "")).strip()
        except Exception:  # pydicom raises anything on damaged files; the picture itself is judged later
            ids[name] = ""
    if not ids:
        say("DICOM Images is not there, so patients are not known")
        return {}
    distinct = set(ids.values()) - {""}
    if "" in ids.values() or (len(distinct) == 1 and len(ids) > 1):
        say("the DICOM files do not tell patients apart (PatientID is blank or always the same)")
        return {}
    return {name: f"dmid_{hashlib.sha256(own.encode()).hexdigest()[:12]}" for name, own in ids.items()}
