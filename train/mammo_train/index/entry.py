"""What an indexer finds: one `Entry` for each picture, read later and one at a time."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_runtime.inputs import delimiter
from mammo_train.data_notes import DATA_NOTES

Truth = Path | np.ndarray | None
"""A mask file that can be used as it is, a mask uint8 [rows, columns] to be written, or None: nothing to find."""
Say = Callable[[str], None]
DEPTH = 4
"""Levels below the root that are searched for a collection's folders: archives unpack into two or three."""


@dataclass(frozen=True)
class Choice:
    """What the user chose."""

    split: str = "patient"
    """"patient" (five folds), "official" (the published parts) or "seed" (the study's own)."""
    seed: int = 0
    unit: str = "image"
    """"image": a whole picture with all its lesions; "lesion": the collection's lesion crops (CBIS-DDSM only)."""
    abnormality: str = "mass"
    """CBIS-DDSM: "mass", "calcification" or "all"."""
    rois: tuple[str, ...] = ("Mass",)
    """INbreast: names of the outlines that are filled."""
    pictures: str = "auto"
    """DMID: "tiff", "dicom", or "auto": DICOM where it is there."""
    patient_pattern: str | None = None
    """folder: regular expression whose first group, found in the file name, is the patient."""
    modality: str = "mammography"


@dataclass(frozen=True)
class Entry:
    """One picture of a collection."""

    name: str
    """Unique in the index: names its mask file, and the picture in messages."""
    image: Path | Callable[[], Path]
    """A function where the file must be chosen by content; it may raise ImageError."""
    kind: str
    patient: str = ""
    """Empty: not known."""
    truth: Callable[[tuple[int, int]], Truth] | None = None
    """Makes the mask for a picture of (rows, columns); may raise ImageError. None: there is nothing to find."""
    spacing_mm: float | None = None
    part: str = ""
    """Published part: "train", "validation", "test"; empty where none is published."""
    in_study: bool = True
    """False: the study whose split `--split seed` reproduces did not use it."""
    columns: Mapping[str, str] = field(default_factory=dict)
    """Descriptive columns: view, laterality, lesions, pathology, note …"""


def missing(collection: str, root: Path, looked_for: str) -> UsageError:
    """Return the error for a folder that does not hold a collection: what was looked for, where it is to be had."""
    note = DATA_NOTES[collection]
    return UsageError(
        f"{root} does not hold {note.title}: looked for {looked_for}. Get it from {note.where}. Licence: {note.licence}"
    )


def find_folder(root: Path, *names: str) -> Path | None:
    """Return the nearest folder called one of `names`, ignoring case: the root or at most `DEPTH` levels below it.

    A folder that holds a folder of its own name (as zip archives unpack) is entered.
    """
    wanted = {name.lower() for name in names}
    level = [root]
    for _ in range(DEPTH + 1):
        found = next((folder for folder in level if folder.name.lower() in wanted), None)
        if found is not None:
            inner = next((folder for folder in _folders(found) if folder.name.lower() in wanted), None)
            return inner or found
        level = [folder for parent in level for folder in _folders(parent)]
    return None


def _folders(parent: Path) -> list[Path]:
    with os.scandir(parent) as listed:
        return sorted(parent / entry.name for entry in listed if entry.is_dir() and not entry.name.startswith("."))


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a CSV with "," or ";"; column names in lower case with spaces for "_", values without space around them.

    Values may hold line breaks inside quotes. Raises UsageError when it is unreadable.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig", errors="replace") as stream:
            separator = delimiter(stream.readline())
            stream.seek(0)
            lines = list(csv.DictReader(stream, delimiter=separator))
    except (OSError, csv.Error) as error:
        raise UsageError(f"cannot read {path}: {error}") from error
    return [
        {name.strip().lower().replace("_", " "): (value or "").strip() for name, value in line.items() if name}
        for line in lines
        if any(isinstance(value, str) and value.strip() for value in line.values())
    ]


def first_value(line: Mapping[str, str], *names: str) -> str:
    """Return the first of some columns that is there and not empty, else ""."""
    return next((line[name] for name in names if line.get(name)), "")
