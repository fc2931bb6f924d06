"""INbreast 1.0: `AllDICOMs/<id>_<patient>_MG_{L,R}_{CC,ML}_ANON.dcm`, `AllXML/<id>.xml`, `INbreast.csv`."""

from __future__ import annotations

import plistlib
import re
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

from mammo_runtime.errors import UnreadableImage
from mammo_train.index import masks
from mammo_train.index.entry import Choice, Entry, Say, Truth, find_folder, missing, read_table

IMAGES, CASES = 410, 115
_FILE = re.compile(r"(?P<id>\d+)_(?P<patient>[0-9a-f]+)_MG_(?P<side>[LR])_(?P<view>CC|ML|MLO)_ANON\.dcm", re.IGNORECASE)
_POINT = re.compile(r"\(\s*(-?[\d.]+(?:e[+-]?\d+)?)\s*,\s*(-?[\d.]+(?:e[+-]?\d+)?)\s*\)", re.IGNORECASE)

_BROKEN = (OSError, ExpatError, plistlib.InvalidFileException, ValueError, KeyError, TypeError, AttributeError)
"""What reading a damaged property list, or one of another structure, raises."""

Outlines = dict[str, list[list[tuple[float, float]]]]


def entries(root: Path, choice: Choice, say: Say) -> list[Entry]:
    """Return one entry for each DICOM file; outlines named in `choice.rois` are filled. The patient is in the name."""
    folder = find_folder(root, "AllDICOMs")
    outlines = find_folder(root, "AllXML")
    files = [(path, m) for path in sorted(folder.iterdir()) if (m := _FILE.fullmatch(path.name))] if folder else []
    if not files or outlines is None:
        raise missing("inbreast", root, "AllDICOMs/<id>_<patient>_MG_L_CC_ANON.dcm … and AllXML/<id>.xml")
    table = _table(root, say)
    found = []
    for path, match in files:
        line = table.get(match["id"], {})
        if table and not line:
            say(f"{path.name} has no line in INbreast.csv")
        xml = outlines / f"{match['id']}.xml"
        found.append(_entry(path, match, line, xml if xml.is_file() else None, choice.rois, say))
    patients = len({entry.patient for entry in found})
    if (len(found), patients) != (IMAGES, CASES):
        say(f"not the whole collection: {len(found)} of {IMAGES} pictures, {patients} of {CASES} patients")
    return found


def _table(root: Path, say: Say) -> dict[str, dict[str, str]]:
    """Return the lines of INbreast.csv by file name; values may be blank (ACR of 53582540)."""
    path = next((p for p in sorted(root.rglob("*.csv")) if p.name.lower() == "inbreast.csv"), None)
    if path is None:
        say("INbreast.csv is not there: densities and BI-RADS are left empty")
        return {}
    return {line["file name"]: line for line in read_table(path) if line.get("file name")}


def _entry(
    path: Path, match: re.Match[str], line: dict[str, str], xml: Path | None, rois: tuple[str, ...], say: Say
) -> Entry:
    name, wanted = match["id"], {roi.lower() for roi in rois}
    try:
        outlines = read_outlines(xml) if xml else {}
        fault = ""
    except UnreadableImage as error:
        outlines, fault = {}, str(error)
    filled = [outline for roi, group in outlines.items() if roi.lower() in wanted for outline in group]
    drawn = [outline for outline in filled if len(outline) >= 3]
    if len(drawn) < len(filled):
        say(f"{name}: {len(filled) - len(drawn)} outlines of fewer than three points are no areas and are not filled")
    kind = "mass" if filled or fault else "non_mass_findings" if outlines else "normal"
    counts = Counter({roi: len(group) for roi, group in outlines.items()})
    columns = {
        "view": line.get("view") or {"ML": "MLO"}.get(match["view"].upper(), match["view"].upper()),
        "laterality": match["side"].upper(),
        "lesions": "; ".join(f"{n} {roi}" for roi, n in sorted(counts.items())),
        "pathology": f"BI-RADS {line['bi-rads']}" if line.get("bi-rads") else "",
        "note": f"ACR {line['acr']}" if line.get("acr") else "",
    }
    truth = partial(_truth, drawn, fault) if kind == "mass" else None
    return Entry(name, path, kind, f"inbreast_{match['patient'].lower()}", truth, columns=columns)


def _truth(outlines: list[list[tuple[float, float]]], fault: str, shape: tuple[int, int]) -> Truth:
    if fault:
        raise UnreadableImage(fault)
    return masks.filled_polygons(outlines, shape)


def read_outlines(path: Path) -> Outlines:
    """Return the outlines of one XML property list by name, each a list of (x, y) in pixels.

    `plistlib` refuses entity declarations, so no other file and no network is reached. Raises UnreadableImage.
    """
    try:
        content: Any = plistlib.loads(path.read_bytes(), fmt=plistlib.FMT_XML)
        outlines: Outlines = {}
        for image in content["Images"]:
            for roi in image["ROIs"]:
                points = [_POINT.fullmatch(text.strip()) for text in roi["Point_px"]]
                if None in points:
                    raise ValueError("a point that is not like (x, y)")
                own = [(float(point[1]), float(point[2])) for point in points if point]
                outlines.setdefault(str(roi.get("Name", "")).strip() or "Unnamed", []).append(own)
    except (
        OSError,
        ExpatError,
        plistlib.InvalidFileException,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
    ) as error:
        raise UnreadableImage(f"{path.name} holds no outlines that can be read: {error}") from error
    return outlines
