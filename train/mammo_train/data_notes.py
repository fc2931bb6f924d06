"""Where training data and weights come from and what their licences allow: words for specs and model cards."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mammo_train.index import IndexRow


@dataclass(frozen=True)
class DataNote:
    """What must be said about a collection."""

    title: str
    licence: str
    citation: str = ""
    research_only: bool = False
    """Weights trained on it are for research only."""
    where: str = ""
    """Where it is to be had."""


_MIAS_CITATION = (
    "Suckling J. et al. (1994), The Mammographic Image Analysis Society digital mammogram database, "
    "Excerpta Medica International Congress Series 1069, 375-378"
)
_BUSI_CITATION = "Al-Dhabyani W. et al. (2020), Dataset of breast ultrasound images, Data in Brief 28, 104863"

DATA_NOTES: Mapping[str, DataNote] = {
    "mias_full": DataNote(
        "mini-MIAS digitised film mammograms, mass masks by a third party",
        "mini-MIAS licence: research purposes only",
        _MIAS_CITATION,
        research_only=True,
        where="peipa.essex.ac.uk/info/mias.html; masks: github.com/kallebefelipe/mammography-segmentation",
    ),
    "mini_mias": DataNote(
        "mini-MIAS digitised film mammograms",
        "mini-MIAS licence: research purposes only",
        _MIAS_CITATION,
        research_only=True,
        where="peipa.essex.ac.uk/info/mias.html (all-mias.tar.gz)",
    ),
    "cdd_cesm": DataNote(
        "CDD-CESM contrast-enhanced spectral mammography (TCIA)",
        "CC BY 4.0",
        "Khaled R. et al. (2022), Categorized contrast enhanced mammography dataset, Scientific Data 9, 122; "
        "TCIA, doi:10.7937/29kw-ae92",
        where="The Cancer Imaging Archive, doi:10.7937/29kw-ae92",
    ),
    "cbis_ddsm": DataNote(
        "CBIS-DDSM digitised film mammograms with outlined lesions (TCIA)",
        "CC BY (see the collection's page)",
        "Lee R.S. et al. (2017), A curated mammography data set for use in computer-aided detection and diagnosis "
        "research, Scientific Data 4, 170177; TCIA, doi:10.7937/K9/TCIA.2016.7O02S9CY",
        where="The Cancer Imaging Archive, doi:10.7937/K9/TCIA.2016.7O02S9CY: the DICOM files and the four "
        "case_description CSV files",
    ),
    "inbreast": DataNote(
        "INbreast full-field digital mammograms",
        "restricted: by agreement with its owners, research only, not to be passed on",
        "Moreira I.C. et al. (2012), INbreast: toward a full-field digital mammographic database, "
        "Academic Radiology 19(2), 236-248",
        research_only=True,
        where="its owners (Breast Research Group, INESC Porto), on request",
    ),
    "dmid": DataNote(
        "DMID digital mammography data set for breast cancer diagnosis research",
        "CC BY 4.0",
        "Oza P. et al. (2023), Digital mammography dataset for breast cancer diagnosis research (DMID), "
        "Biomedical Engineering Letters; doi:10.6084/m9.figshare.24522883.v2",
        where="figshare, doi:10.6084/m9.figshare.24522883.v2 (about 11 GB)",
    ),
    "busi": DataNote(
        "BUSI breast ultrasound",
        "free for research with citation; no open licence stated by its authors",
        _BUSI_CITATION,
        research_only=True,
        where="scholar.cu.edu.eg/?q=afahmy/pages/dataset (Dataset_BUSI_with_GT), mirrored on Kaggle",
    ),
    "bcss": DataNote(
        "BCSS breast cancer tissue with 22 codes",
        "CC0",
        "Amgad M. et al. (2019), Structured crowdsourcing enables convolutional segmentation of histology images, "
        "Bioinformatics 35(18), 3461-3467",
        where="github.com/PathologyDataScience/BCSS (its download script), tiles on Kaggle",
    ),
    "bcdr": DataNote(
        "BCDR Breast Cancer Digital Repository",
        "by registration, for research",
        "Guevara Lopez M.A. et al. (2012), BCDR: a breast cancer digital repository, "
        "15th International Conference on Experimental Mechanics",
        research_only=True,
        where="bcdr.eu, after registration",
    ),
    "folder": DataNote("pictures of your own", "not stated", where="wherever they are"),
}
"""By the index's column `dataset`; without it, by the folder that an index names first in its image paths."""

ENCODERS: Mapping[str, str] = {
    "mobilenet_v2_imagenet_from_quant": "MobileNetV2 trained on ImageNet, from google-coral/test_data, Apache-2.0",
    "mobilenet_v2-": "MobileNetV2 trained on ImageNet, from torchvision, BSD-3-Clause",
    "none": "none (random start)",
}
"""By beginning of the weights file's name."""


def data_record(rows: Sequence[IndexRow], root: Path, notes: Mapping[str, str]) -> list[dict[str, Any]]:
    """Return one JSON-ready entry for each collection among `rows` (the images trained on), largest first.

    `notes` gives licence and citation of collections that are not in `DATA_NOTES`, or replaces theirs.
    """
    counted = Counter(row.dataset or _collection(row.image, root) for row in rows)
    record = []
    for name, images in counted.most_common():
        note = DATA_NOTES.get(name, DataNote(name, "not stated"))
        if name in notes:
            note = DataNote(note.title, notes[name], research_only=note.research_only)
        record.append({"name": name, "images": images, **asdict(note)})
    return record


def encoder_note(file_name: str) -> str:
    """Return origin and licence of encoder weights, by the name of their file."""
    known = (note for start, note in ENCODERS.items() if file_name.startswith(start))
    return next(known, f"{file_name} (origin not stated)")


def weights_licence(data: Sequence[Mapping[str, Any]], encoder_file: str) -> str:
    """Return the licence notice of weights trained on `data`, the result of `data_record`."""
    limiting = [str(entry["title"]) for entry in data if entry["research_only"]]
    unknown = [str(entry["name"]) for entry in data if entry["licence"] == "not stated"]
    use = "Research use only"
    if limiting:
        use += f", because of the training data: {'; '.join(limiting)}"
    elif unknown:
        use += f", because the licence of the training data is not stated: {', '.join(unknown)}"
    encoder = "" if encoder_file == "none" else f" Encoder started from: {encoder_note(encoder_file)}."
    return f"{use}. Not a medical device.{encoder}"


def _collection(image: Path, root: Path) -> str:
    """Return the first folder below the root; for other places the name of the picture's own folder."""
    parts = image.relative_to(root).parts if image.is_relative_to(root) else ()
    return parts[0] if len(parts) > 1 else image.parent.name
