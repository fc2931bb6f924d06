"""mini-MIAS: `Info.txt` and `mdb001.pgm` … `mdb322.pgm`; circles round the lesions, y counted from the bottom."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from mammo_train.index import masks
from mammo_train.index.entry import Choice, Entry, Say, Truth, missing

MASSES = {"CIRC", "SPIC", "MISC"}
"""Well-defined, spiculated and other masses; CALC, ARCH and ASYM are findings that are no masses."""
SPACING_MM = 0.2
ROWS = 1024
FILMS, LINES = 322, 330
"""Films and lines of the published list."""
_FILM = re.compile(r"mdb\d{3}\.(pgm|png|tiff?)", re.IGNORECASE)
_LINE = re.compile(r"(mdb\d{3})\s+([FGD])\s+(CALC|CIRC|SPIC|MISC|ARCH|ASYM|NORM)\b(.*)")


@dataclass(frozen=True)
class Lesion:
    """One line of the list."""

    film: str
    tissue: str
    abnormality: str
    severity: str
    circle: tuple[float, float, float] | None
    """x, y from the bottom, radius in pixels; None where the list gives no place."""


def read_info(path: Path) -> list[Lesion]:
    """Return the lines of the list; the text round it is skipped."""
    lesions = []
    for line in path.read_text(encoding="latin-1").splitlines():
        match = _LINE.match(line.strip())
        if match:
            film, tissue, abnormality, rest = match.groups()
            severity, *place = rest.split() or [""]
            numbers = [float(text) for text in place if re.fullmatch(r"\d+(\.\d+)?", text)]
            # "*NOTE 3*" holds one number-like word at most: only three plain numbers are a circle.
            circle = (numbers[0], numbers[1], numbers[2]) if len(place) == len(numbers) == 3 else None
            lesions.append(Lesion(film, tissue, abnormality, severity, circle))
    return lesions


def entries(root: Path, choice: Choice, say: Say) -> list[Entry]:
    """Return one entry for each film of the list; a mass's truth is its circle, films N and N+1 (N odd) one patient."""
    info = next((p for p in sorted(root.rglob("*.txt")) if p.name.lower().endswith("info.txt")), None)
    films = {path.stem.lower(): path for path in sorted(root.rglob("*")) if _FILM.fullmatch(path.name)}
    lesions = read_info(info) if info else []
    if not lesions or not films:
        raise missing("mini_mias", root, "Info.txt with lines like 'mdb001 G CIRC B 535 425 197', and mdb001.pgm …")
    own: dict[str, list[Lesion]] = {}
    for lesion in lesions:
        own.setdefault(lesion.film, []).append(lesion)
    absent = [film for film in own if film not in films]
    if absent or (len(own), len(lesions)) != (FILMS, LINES):
        say(f"not the whole collection: {len(lesions)} of {LINES} lines, {len(own) - len(absent)} of {FILMS} films")
    found = [_entry(film, films[film], group) for film, group in own.items() if film in films]
    kinds = Counter(entry.kind for entry in found)
    say(f"the truth of {kinds['mass']} films is a circle round each mass, not an outline")
    if kinds["unlocated"]:
        say(f"{kinds['unlocated']} films have a mass without a place; their kind is 'unlocated', which no preset uses")
    return found


def _entry(film: str, path: Path, lesions: list[Lesion]) -> Entry:
    number = int(film[3:])
    masses = [lesion for lesion in lesions if lesion.abnormality in MASSES]
    circles = [lesion.circle for lesion in masses if lesion.circle]
    if masses:
        # A mass without a place would make the rest of the film false: nothing there is known to be clean.
        kind = "mass" if len(circles) == len(masses) else "unlocated"
    else:
        kind = "normal" if all(lesion.abnormality == "NORM" for lesion in lesions) else "non_mass_findings"
    columns = {
        "view": "MLO",
        "laterality": "L" if number % 2 == 0 else "R",
        "lesions": "; ".join(_words(lesion) for lesion in lesions if lesion.abnormality != "NORM"),
        "pathology": "/".join(sorted({lesion.severity for lesion in lesions if lesion.severity})),
        "note": "circle truth" if kind == "mass" else "",
    }
    truth = partial(_truth, circles) if kind == "mass" else None
    patient = f"mias_{(number - 1) // 2:03d}"
    return Entry(film, path, kind, patient, truth, SPACING_MM, columns=columns)


def _words(lesion: Lesion) -> str:
    place = " ".join(f"{value:g}" for value in lesion.circle) if lesion.circle else "no place"
    return f"{lesion.abnormality} {lesion.severity} {place}"


def _truth(circles: list[tuple[float, float, float]], shape: tuple[int, int]) -> Truth:
    scale = shape[0] / ROWS  # copies of the collection come in other sizes too
    flipped = [(x * scale, shape[0] - 1 - y * scale, radius * scale) for x, y, radius in circles]
    return masks.filled_circles(flipped, shape)
