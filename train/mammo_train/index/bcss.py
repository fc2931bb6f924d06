"""BCSS: `rgbs_colorNormalized/` and `masks/` with equal names, or Kaggle's tiles of 512 or 224 pixels."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path

from mammo_runtime.errors import UsageError
from mammo_train.index.codes import code_plane
from mammo_train.index.entry import Choice, Entry, Say, Truth, find_folder, missing

REGIONS = 151
HIGHEST_CODE = 21
TEST_HOSPITALS = {"OL", "LL", "E2", "EW", "GM", "S3"}
VALIDATION_HOSPITALS = {"BH", "C8", "A8", "A1", "E9"}
"""Published split, by the second field of a TCGA barcode; all others train."""
SPACING_MM = 0.00025
_NAME = re.compile(r"TCGA-(?P<hospital>[A-Z0-9]{2})-[A-Z0-9]{4}.*", re.IGNORECASE)
_FIELDS = re.compile(r"MPP-(?P<mpp>[\d.]+)")


def entries(root: Path, choice: Choice, say: Say) -> list[Entry]:
    """Return regions or tiles; the patient is the TCGA case, the first 12 characters of the name.

    Raises UsageError for the 224-pixel tiles without --split seed: they were dealt at random, within slides.
    """
    pictures, codes = find_folder(root, "rgbs_colorNormalized", "rgbs"), find_folder(root, "masks")
    if pictures and codes:
        found = _pairs(pictures, codes, "", "", choice)
        if len(found) != REGIONS:
            say(f"not the whole collection: {len(found)} of {REGIONS} regions")
        if choice.split == "seed":
            raise UsageError("the study trained on tiles; --split seed needs Kaggle's tiles, not the regions")
        return found
    tiles = _tiles(root, "_512", choice)
    if tiles:
        say(f"{len(tiles)} tiles of 512 pixels, 22 codes")
        return tiles
    small = _tiles(root, "", choice)
    if not small:
        raise missing("bcss", root, "rgbs_colorNormalized/ and masks/ with equal names, or BCSS_512/train_512 with "
                                    "train_mask_512, or BCSS/train with train_mask")  # fmt: skip
    if choice.split != "seed":
        raise UsageError(
            "these 224-pixel tiles were dealt to train, val and test at random, so neighbours of one slide stand in "
            "several parts, and their masks hold 3 labels only; take the regions or the 512-pixel tiles, or say "
            "--split seed to reproduce the leaking split"
        )
    say(f"{len(small)} tiles of 224 pixels with 3 labels, dealt at random within slides")
    return small


def _tiles(root: Path, suffix: str, choice: Choice) -> list[Entry]:
    """Return Kaggle's tiles, {train,val,test}<suffix> with {train,val}_mask<suffix>; a part needs its masks."""
    found: list[Entry] = []
    for part, meaning in (("train", "train"), ("val", "validation"), ("test", "test")):
        pictures = find_folder(root, f"{part}{suffix}")
        codes = find_folder(root, f"{part}_mask{suffix}", f"{part}{suffix}_mask")
        if pictures and codes:
            found += _pairs(pictures, codes, meaning, f"{part}_", choice)
    return found


def _pairs(pictures: Path, codes: Path, part: str, prefix: str, choice: Choice) -> list[Entry]:
    own = {path.name: path for path in codes.iterdir()}
    found = []
    for path in sorted(pictures.iterdir()):
        match = _NAME.fullmatch(path.stem)
        if not match or path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".tif"):
            continue
        hospital = match["hospital"].upper()
        published = (
            "test" if hospital in TEST_HOSPITALS else "validation" if hospital in VALIDATION_HOSPITALS else "train"
        )
        if choice.split == "seed":
            published = part  # the folder the tile comes in
        columns = {"note": f"hospital {hospital}" + (f", {part} folder" if part else "")}
        truth = partial(_truth, own.get(path.name) or own.get(f"{path.stem}.png"))
        found.append(Entry(f"{prefix}{path.stem}", path, "tissue", path.stem[:12].upper(), truth, _spacing(path.stem),
                           part=published, columns=columns))  # fmt: skip
    return found


def _spacing(stem: str) -> float:
    """Return millimetres per pixel from MPP-0.2500; tiles' names break off at "MPP-0", at the same resolution."""
    match = _FIELDS.search(stem)
    microns = float(match["mpp"].rstrip(".")) if match else 0.0
    return microns / 1000 if microns > 0 else SPACING_MM


def _truth(path: Path | None, shape: tuple[int, int]) -> Truth:
    if path is None:
        raise ValueError("it has no mask of its name")
    plane, grey = code_plane(path)
    if int(plane.max()) > HIGHEST_CODE:
        raise ValueError(f"its mask holds {plane.max()}; codes end at {HIGHEST_CODE}")
    if not plane.any():
        raise ValueError("its mask is all code 0: nothing to learn from")
    return path if grey and plane.shape == shape else plane
