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


DATA_NOTES: Mapping[str, DataNote] = {
    "mias_full": DataNote(
        "mini-MIAS digitised film mammograms, mass masks by a third party",
        "mini-MIAS licence: research purposes only",
        "Suckling J. et al. (1994), The Mammographic Image Analysis Society digital mammogram database, "
        "Excerpta Medica International Congress Series 1069, 375-378",
        research_only=True,
    ),
    "cdd_cesm": DataNote(
        "CDD-CESM contrast-enhanced spectral mammography (TCIA)",
        "CC BY 4.0",
        "Khaled R. et al. (2022), Categorized contrast enhanced mammography dataset, Scientific Data 9, 122; "
        "TCIA, doi:10.7937/29kw-ae92",
    ),
    "busi": DataNote(
        "BUSI breast ultrasound",
        "free for research with citation; no open licence stated by its authors",
        "Al-Dhabyani W. et al. (2020), Dataset of breast ultrasound images, Data in Brief 28, 104863",
        research_only=True,
    ),
}
"""By name of the folder that an index names first in its image paths."""

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
    counted = Counter(_collection(row.image, root) for row in rows)
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
