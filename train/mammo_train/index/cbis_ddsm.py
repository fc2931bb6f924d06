"""CBIS-DDSM: case tables; TCIA's DICOM folders under any of their names, or Kaggle's `jpeg/<SeriesUID>/`."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import cv2
import numpy as np

from mammo_runtime.errors import UnreadableImage
from mammo_train.index import masks
from mammo_train.index.cbis_files import LOSSY, Files, case_of, series_of
from mammo_train.index.entry import Choice, Entry, Say, Truth, first_value, missing, read_table

ROWS = {("mass", "train"): 1318, ("mass", "test"): 378, ("calc", "train"): 1546, ("calc", "test"): 326}
"""Lesions of the published tables."""
_TABLE = re.compile(r"(mass|calc)_case_description_(train|test)_set.*\.csv", re.IGNORECASE)
_KINDS = {"mass": ("mass",), "calcification": ("calc",), "all": ("mass", "calc")}
FOUND_AT = 0.9
"""Least correlation of a crop with the place in the whole picture it was cut from."""


@dataclass(frozen=True)
class Lesion:
    """One line of a case table, with where its files are."""

    files: Files
    abnormality: str
    part: str
    values: dict[str, str]

    @property
    def picture(self) -> str:
        """Path of the whole picture as the table has it; older tables write backslashes."""
        return first_value(self.values, "image file path", "od img path").replace("\\", "/")

    @property
    def crop_and_mask(self) -> tuple[str, str]:
        """Paths of crop and mask as the table has them: often swapped."""
        crop = first_value(self.values, "cropped image file path", "od crop path").replace("\\", "/")
        mask = first_value(self.values, "roi mask file path", "mask path").replace("\\", "/")
        return crop, mask

    @property
    def shares_folder(self) -> bool:
        """Whether crop and mask lie in one series folder."""
        crop, mask = self.crop_and_mask
        return series_of(crop) == series_of(mask)

    @property
    def patient(self) -> str:
        """Like P_00001, also where the column holds more."""
        match = re.search(r"P_\d+", self.values.get("patient id", "")) or re.search(r"P_\d+", self.picture)
        return match[0] if match else ""

    @cached_property
    def full(self) -> Path:
        """The whole picture. Raises UnreadableImage."""
        found = self.files.resolve(self.picture, "full mammogram images")
        if not found:
            raise UnreadableImage(f"there is no file for {self.picture}")
        return found[0]

    @cached_property
    def crop_file(self) -> Path:
        """The crop, told by content. Raises UnreadableImage."""
        found = self._told_apart[0]
        if found is None:
            raise UnreadableImage("there is no crop beside its mask")
        return found

    @cached_property
    def mask_file(self) -> Path:
        """The mask, told by content. Raises UnreadableImage."""
        return self._told_apart[1]

    @cached_property
    def _told_apart(self) -> tuple[Path | None, Path]:
        crop, mask = self.crop_and_mask
        paths = sorted({*self.files.resolve(crop, "cropped images"), *self.files.resolve(mask, "ROI mask images")})
        if not paths:
            raise UnreadableImage(f"there is no file for crop and mask of {case_of(mask)}")
        stored = {path: masks.mask_plane(masks.read_stored(path)) for path in paths}
        binary = [path for path in paths if masks.is_binary(stored[path], path.suffix.lower() in LOSSY)]
        if len(binary) > 1:
            full = masks.read_stored(self.full).shape[:2]
            binary = [path for path in binary if stored[path].shape == full] or binary
        others = [path for path in paths if path not in binary]
        if len(binary) != 1:
            raise UnreadableImage(f"{len(binary)} of {len(paths)} files of {case_of(mask)} hold a mask; one must")
        return (others[0] if others else None, binary[0])

    def mask(self) -> np.ndarray:
        """Return the mask 0/255 at its own size. Raises UnreadableImage."""
        lossy = self.mask_file.suffix.lower() in LOSSY
        return masks.binary_mask(masks.mask_plane(masks.read_stored(self.mask_file)), lossy)


def entries(root: Path, choice: Choice, say: Say) -> list[Entry]:
    """Return one entry for each whole picture with its lesions united, or one for each lesion crop (`choice.unit`)."""
    lesions = read_lesions(root, choice, say)
    if choice.unit == "lesion":
        return [_crop_entry(lesion) for lesion in lesions]
    own: dict[str, list[Lesion]] = {}
    for lesion in lesions:
        own.setdefault(case_of(lesion.picture), []).append(lesion)
    return [_picture_entry(name, group) for name, group in own.items()]


def read_lesions(root: Path, choice: Choice, say: Say) -> list[Lesion]:
    """Return the lines of the case tables asked for. Raises UsageError when none is there."""
    tables = [(path, match) for path in sorted(root.rglob("*.csv")) if (match := _TABLE.fullmatch(path.name))]
    files = Files(root)
    lesions = [
        Lesion(files, match[1].lower(), match[2].lower(), line)
        for wanted in _KINDS[choice.abnormality]
        for path, match in sorted(tables, key=lambda item: item[1][2].lower(), reverse=True)  # training tables first
        if match[1].lower() == wanted
        for line in read_table(path)
    ]
    if not lesions or not files:
        raise missing("cbis_ddsm", root, "mass_case_description_train_set.csv (and _test_set) with DICOM folders "
                                         "Mass-Training_P_00001_LEFT_CC …, or Kaggle's csv/ and jpeg/")  # fmt: skip
    for key, n in Counter((lesion.abnormality, lesion.part) for lesion in lesions).items():
        if n != ROWS[key]:
            say(f"the {key[0]} {key[1]} table has {n} lines; the published one has {ROWS[key]}")
    return lesions


def _columns(lesions: list[Lesion]) -> dict[str, str]:
    first = lesions[0].values
    side = first_value(first, "left or right breast", "side")
    return {
        "view": first_value(first, "image view", "view").upper(),
        "laterality": side[:1].upper(),
        "lesions": "; ".join(
            f"{first_value(one.values, 'abnormality id', 'abn num')} "
            f"{first_value(one.values, 'mass shape', 'calc type') or one.abnormality}"
            for one in lesions
        ),
        "pathology": "/".join(sorted({one.values["pathology"] for one in lesions if one.values.get("pathology")})),
        "note": f"density {density}" if (density := first_value(first, "breast density")) else "",
    }


def _kind(lesion: Lesion) -> str:
    return "mass" if lesion.abnormality == "mass" else "non_mass_findings"


def _picture_entry(name: str, lesions: list[Lesion]) -> Entry:
    first = lesions[0]
    # Without its folder there is still an entry, so that the missing file is named.
    return Entry(
        name, lambda: first.full, _kind(first), first.patient, partial(_united, lesions),
        part=first.part, in_study=first.part == "train", columns=_columns(lesions),
    )  # fmt: skip


def _united(lesions: list[Lesion], shape: tuple[int, int]) -> Truth:
    """Return the lesions' masks united, at their own size: the caller resizes and says so."""
    return masks.united(lesion.mask() for lesion in lesions)


def _crop_entry(lesion: Lesion) -> Entry:
    crop, mask = lesion.crop_and_mask
    # Study 000's crops are those whose mask lies in the same folder: 1,226 of 1,318.
    return Entry(
        case_of(mask) or case_of(crop), lambda: lesion.crop_file, _kind(lesion), lesion.patient,
        partial(_crop_truth, lesion), part=lesion.part, in_study=lesion.part == "train" and lesion.shares_folder,
        columns=_columns([lesion]),
    )  # fmt: skip


def _crop_truth(lesion: Lesion, shape: tuple[int, int]) -> Truth:
    """Return the part of the mask that the crop shows. Raises UnreadableImage when the crop is not found there."""
    full = masks.mask_plane(masks.read_stored(lesion.full))
    mask = masks.to_size(lesion.mask(), (full.shape[0], full.shape[1]))
    crop = masks.mask_plane(masks.read_stored(lesion.crop_file))
    top, left = crop_place(full, crop, mask)
    return mask[top : top + shape[0], left : left + shape[1]]


def crop_place(full: np.ndarray, crop: np.ndarray, mask: np.ndarray) -> tuple[int, int]:
    """Return (top, left) of a crop in its whole picture, searched round the mask by correlation.

    Crops may be stretched in brightness, which correlation does not mind. Raises UnreadableImage.
    """
    x, y, width, height = cv2.boundingRect(mask)
    rows, columns = crop.shape
    if not width or rows > full.shape[0] or columns > full.shape[1]:
        raise UnreadableImage("the mask is empty, or the crop is larger than its picture")
    # The crop holds the lesion: it starts at most its own size before the lesion's end, and not after its start.
    top, left = max(0, min(y, y + height - rows)), max(0, min(x, x + width - columns))
    bottom, right = max(y + height, y + rows), max(x + width, x + columns)
    window = full[top : min(bottom, full.shape[0]), left : min(right, full.shape[1])].astype(np.float32)
    if window.shape[0] < rows or window.shape[1] < columns:
        top, left = min(top, full.shape[0] - rows), min(left, full.shape[1] - columns)
        window = full[top : max(bottom, top + rows), left : max(right, left + columns)].astype(np.float32)
    _, best, _, (at_x, at_y) = cv2.minMaxLoc(cv2.matchTemplate(window, crop.astype(np.float32), cv2.TM_CCOEFF_NORMED))
    if not best >= FOUND_AT:
        raise UnreadableImage(f"the crop is not found at its lesion (correlation {best:.2f})")
    return top + at_y, left + at_x
