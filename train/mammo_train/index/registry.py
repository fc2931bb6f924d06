"""The collections that `mammo-train index` knows. Light: the command line shows it without loading anything."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Study:
    """A study's own split, for `--split seed`."""

    by: str
    """"row": pictures are drawn one by one; "patient"; "part": the folders the collection comes in."""
    validation: float = 0.1
    test: float = 0.1
    seed: int = 42


@dataclass(frozen=True)
class Collection:
    """One collection."""

    finder: str
    """"module:function" → `(root, choice, say) -> list[Entry]`."""
    summary: str
    """First sentence of the help."""
    details: str
    """The rest of it: layout, what the truth is, what is left out."""
    modality: str = "mammography"
    official: bool = False
    study: Study | None = None
    options: tuple[str, ...] = ()
    """Fields of `Choice` that it asks for, besides `split` and `seed`."""

    @property
    def splits(self) -> tuple[str, ...]:
        """Values of --split, the default first."""
        return ("patient", *(("official",) if self.official else ()), *(("seed",) if self.study else ()))

    def load(self) -> Any:
        """Return the finder."""
        module, _, function = self.finder.partition(":")
        return getattr(importlib.import_module(f"mammo_train.index.{module}"), function)


COLLECTIONS: Mapping[str, Collection] = {
    "cbis_ddsm": Collection(
        "cbis_ddsm:entries",
        "CBIS-DDSM, digitised film with outlined masses (TCIA download, or the Kaggle mirror in JPEG).",
        "Crop and mask are told apart by content; lesions of one picture are united. --split official uses the "
        "published test tables, --split seed draws the training tables' rows 80/10/10 as study 000 did.",
        official=True,
        study=Study("row", 0.1, 0.1, 42),
        options=("unit", "abnormality"),
    ),
    "inbreast": Collection(
        "inbreast:entries",
        "INbreast, full-field digital mammograms with outlines in XML.",
        "AllDICOMs, AllXML and INbreast.csv; outlines called Mass are filled (--roi for others).",
        options=("rois",),
    ),
    "dmid": Collection(
        "dmid:entries",
        "DMID, digital mammograms with masks for about half of them.",
        "Info.txt, TIFF Images, ROI Masks and, for the patients' identity, DICOM Images. The folder "
        "Pixel-level annotation holds drawn contours, not masks, and is not used.",
        options=("pictures",),
    ),
    "busi": Collection(
        "busi:entries",
        "BUSI, breast ultrasound: benign, malignant and normal.",
        "Several masks of a picture are united. Patients are not known: near-duplicates stay in one fold. --split seed "
        "draws pictures 80/10/10 at random, as is common on BUSI; study 002 does not state its shares.",
        modality="ultrasound",
        study=Study("row", 0.1, 0.1, 42),
    ),
    "bcss": Collection(
        "bcss:entries",
        "BCSS, breast cancer tissue in 22 codes, and its tiles from Kaggle.",
        "Masks are used as they are; code 0 is ignored. --split official is the published split by hospital. The "
        "224-pixel tiles are split at random within slides and are taken with --split seed only.",
        modality="histopathology",
        official=True,
        study=Study("part"),
    ),
    "mini_mias": Collection(
        "mini_mias:entries",
        "mini-MIAS, digitised film; lesions are known as circles only.",
        "Info.txt and mdb001.pgm … mdb322.pgm. A circle round a mass is no outline: good for finding, not for Dice.",
    ),
    "bcdr": Collection(
        "bcdr:entries",
        "BCDR, film or digital mammograms with outlines in CSV.",
        "bcdr_*_img.csv and bcdr_*_outlines.csv. --split seed draws patients 70/15/15 as study 003 did.",
        study=Study("patient", 0.15, 0.15, 42),
    ),
    "folder": Collection(
        "folder:entries",
        "Your own pictures: images/ with masks/ of equal names, or one folder for each class.",
        "A mask may be called like its picture, or with _mask (_mask_1 …) behind the name. Masks of tissue "
        "(--modality histopathology) are 8-bit grey code images, not colours: code 0 is ignored, code k is class k-1, "
        "and results are numbered from 0. Without --patient near-duplicates stay in one fold, which does not keep "
        "patients apart.",
        options=("patient_pattern", "modality"),
    ),
}
