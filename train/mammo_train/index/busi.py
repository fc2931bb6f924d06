"""BUSI: folders benign, malignant and normal, with "benign (1).png", "benign (1)_mask.png", "… (1)_mask_1.png"."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from pathlib import Path

from mammo_train.index import masks
from mammo_train.index.entry import Choice, Entry, Say, Truth, find_folder, missing

COUNTS = {"benign": 437, "malignant": 210, "normal": 133}
"""The published collection: 780 pictures."""
_PICTURE = re.compile(r"(?P<stem>(?:benign|malignant|normal) ?\(\d+\))(?P<mask>_mask(?:_\d+)?)?\.png", re.IGNORECASE)


def entries(root: Path, choice: Choice, say: Say) -> list[Entry]:
    """Return one entry for each picture; its masks are united, a normal one has none. Patients are not known."""
    folders = {kind: folder for kind in COUNTS if (folder := find_folder(root, kind)) is not None}
    found: list[Entry] = []
    for kind, folder in folders.items():
        pictures: dict[str, Path] = {}
        own: dict[str, list[Path]] = {}
        for path in sorted(folder.iterdir()):
            match = _PICTURE.fullmatch(path.name)
            if match and match["mask"]:
                own.setdefault(match["stem"], []).append(path)
            elif match:
                pictures[match["stem"]] = path
        for stem, path in sorted(pictures.items(), key=lambda item: int(re.sub(r"\D", "", item[0]))):
            columns = {"pathology": kind, "lesions": "" if kind == "normal" else str(len(own.get(stem, ())))}
            truth = None if kind == "normal" else partial(_truth, own.get(stem, []))
            found.append(Entry(stem, path, kind, truth=truth, columns=columns))
    if not found:
        raise missing("busi", root, 'folders benign, malignant and normal with files like "benign (1).png"')
    counts = Counter(entry.kind for entry in found)
    if counts != COUNTS:
        shown = ", ".join(f"{counts[kind]} of {n} {kind}" for kind, n in COUNTS.items())
        say(f"this is not the whole collection of {sum(COUNTS.values())} pictures: {shown}")
    return found


def _truth(files: list[Path], shape: tuple[int, int]) -> Truth:
    if len(files) == 1 and masks.clean_file(files[0], shape):
        return files[0]
    return masks.united(masks.mask_from_file(path) for path in files)
