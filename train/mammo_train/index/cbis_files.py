"""Where CBIS-DDSM's files are: the case tables' paths are those of no download, so folders are found by name or UID."""

from __future__ import annotations

import os
import re
from collections import defaultdict
from functools import cached_property
from pathlib import Path

from mammo_train.index.entry import read_table

LOSSY = (".jpg", ".jpeg")
SUFFIXES = (".dcm", *LOSSY, ".png")
_CASE = re.compile(r"(?:Mass|Calc)-(?:Training|Test)_P_\d+_\w+", re.IGNORECASE)


def case_of(path: str) -> str:
    """Return the part of a table's path that names the case: Mass-Training_P_00001_LEFT_CC_1; empty if none does."""
    return next((part for part in path.split("/") if _CASE.fullmatch(part)), "")


def series_of(path: str) -> str:
    """Return the SeriesInstanceUID in a table's path, case/study/series/file."""
    parts = path.split("/")
    return parts[-2] if len(parts) >= 2 else ""


class Files:
    """All picture folders below a root, by name, by case and by the SeriesInstanceUID in their headers."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_case: dict[str, list[Path]] = defaultdict(list)
        self._pictures: dict[Path, list[Path]] = {}
        for parent, _, names in os.walk(root):
            pictures = sorted(name for name in names if name.lower().endswith(SUFFIXES))
            if pictures:
                folder = Path(parent)
                self._pictures[folder] = [folder / name for name in pictures]
                self._by_name[folder.name].append(folder)
                for case in {part.lower() for part in folder.relative_to(root).parts if _CASE.fullmatch(part)}:
                    self._by_case[case].append(folder)

    def __bool__(self) -> bool:
        return bool(self._pictures)

    def resolve(self, path: str, description: str) -> list[Path]:
        """Return the pictures of the series a table's path means; empty when nothing fits.

        In this order: a folder called after the SeriesInstanceUID; the case's only folder; that of the case's folders
        whose header has the UID, or whose name has the description (as the date-named folders of older download
        tools); Kaggle's dicom_info.csv; any folder whose header has the UID.
        """
        series, own = series_of(path), self._by_case.get(case_of(path).lower(), [])
        folders = self._by_name.get(series, [])
        if not folders and len(own) > 1:
            folders = [f for f in own if self._header_series.get(f) == series]
            folders = folders or [f for f in own if description.lower() in f.name.lower()]
        elif not folders:
            folders = own
        if folders:
            return [picture for folder in sorted(folders) for picture in self._pictures[folder]]
        listed = self._kaggle.get((case_of(path).lower(), description.lower()), [])
        if listed:
            return listed
        return [p for folder, uid in self._header_series.items() if uid == series for p in self._pictures[folder]]

    @cached_property
    def _header_series(self) -> dict[Path, str]:
        """SeriesInstanceUID of each folder's first DICOM file; read once, and only where names do not tell."""
        import pydicom

        found: dict[Path, str] = {}
        for folder, pictures in self._pictures.items():
            if pictures[0].suffix.lower() == ".dcm":
                try:
                    header = pydicom.dcmread(pictures[0], stop_before_pixels=True, specific_tags=["SeriesInstanceUID"])
                    found[folder] = str(header.get("SeriesInstanceUID", ""))
                except Exception:  # pydicom raises anything on damaged files; such a file is no one's series
                    continue
        return found

    @cached_property
    def _kaggle(self) -> dict[tuple[str, str], list[Path]]:
        """Files of Kaggle's dicom_info.csv by (case, description)."""
        table = next((path for path in sorted(self._root.rglob("dicom_info.csv"))), None)
        found: dict[tuple[str, str], list[Path]] = defaultdict(list)
        for line in read_table(table) if table else ():
            parts = line.get("image path", "").replace("\\", "/").split("/")
            for folder in self._by_name.get(parts[-2], ()) if len(parts) >= 2 else ():
                path = folder / parts[-1]
                if path in self._pictures[folder]:
                    found[line.get("patientid", "").lower(), line.get("seriesdescription", "").lower()].append(path)
        return found
