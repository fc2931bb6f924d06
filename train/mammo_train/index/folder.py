"""Pictures of one's own: `images/` with `masks/` (equal names or `_mask`), or one folder for each class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from mammo_runtime.errors import UsageError
from mammo_train.index import masks
from mammo_train.index.codes import code_plane
from mammo_train.index.entry import Choice, Entry, Say, Truth, find_folder, missing

SUFFIXES = {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".pgm", ".dcm", ".dicom"}
_MASK = re.compile(r"(?P<stem>.+?)_mask(?:_?\d+)?", re.IGNORECASE)
_MASK_FOLDERS = {"mask", "masks"}


def entries(root: Path, choice: Choice, say: Say) -> list[Entry]:
    """Return the pictures of either layout. Kinds: mass or normal by the masks, or the names of the class folders.

    Tissue pictures need a code mask each and are of kind tissue. Raises UsageError for a bad --patient.
    """
    try:
        pattern = re.compile(choice.patient_pattern) if choice.patient_pattern else None
    except re.error as error:
        raise UsageError(f"--patient {choice.patient_pattern!r} is no regular expression: {error}") from error
    if pattern is not None and not pattern.groups:
        raise UsageError(f"--patient {choice.patient_pattern!r} has no group: write it like '^(p[0-9]+)_'")
    images = next((folder for name in ("images", "image") if (folder := root / name).is_dir()), None)
    if images is not None:
        found = _pairs(images, find_folder(root, "masks", "mask"), None, choice, pattern)
    else:
        classes = [f for f in sorted(root.iterdir()) if f.is_dir() and not f.name.startswith(".")]
        found = [entry for f in classes if f.name.lower() not in _MASK_FOLDERS
                 for entry in _pairs(f, find_folder(f, "masks", "mask"), f.name, choice, pattern)]  # fmt: skip
    if not found:
        raise missing("folder", root, "images/ with masks/ of equal names, or one folder of pictures for each class")
    without = sum(entry.kind == "normal" and entry.truth is None for entry in found) if images else 0
    if without:
        say(f"{without} pictures have no mask file: taken for normal, with nothing to find")
    return found


def _pairs(
    folder: Path, masks_folder: Path | None, kind: str | None, choice: Choice, pattern: re.Pattern[str] | None
) -> list[Entry]:
    """Return the pictures directly in a folder with their masks, from `masks_folder` and beside the pictures."""
    listed = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in SUFFIXES]
    stems = {path.stem for path in listed}
    own: dict[str, list[Path]] = {}
    pictures = []
    for path in listed:
        match = _MASK.fullmatch(path.stem)
        if match and match["stem"] in stems:
            own.setdefault(match["stem"], []).append(path)
        else:
            pictures.append(path)
    for path in sorted(masks_folder.iterdir()) if masks_folder else ():
        if path.suffix.lower() in SUFFIXES:
            match = _MASK.fullmatch(path.stem)
            own.setdefault(match["stem"] if match and path.stem not in stems else path.stem, []).append(path)
    return [_entry(path, own.get(path.stem, []), kind, choice, pattern) for path in pictures]


def _entry(
    path: Path, files: Sequence[Path], kind: str | None, choice: Choice, pattern: re.Pattern[str] | None
) -> Entry:
    name = path.stem if kind is None else f"{kind}_{path.stem}"
    patient = ""
    if pattern is not None:
        found = pattern.search(path.name)
        if not found or not found[1]:
            raise UsageError(f"--patient {pattern.pattern!r} finds no patient in {path.name}")
        patient = found[1]
    if choice.modality == "histopathology" and kind is None:
        return Entry(name, path, "tissue", patient, partial(_codes, files))
    truth = partial(_mask, files) if files else None
    if kind is None:
        # An empty mask file says that nothing is there; a broken one is told when the picture's turn comes.
        kind = "mass" if files and not _empty(files) else "normal"
    return Entry(name, path, kind, patient, truth)


def _empty(files: Sequence[Path]) -> bool:
    try:
        return not any(masks.mask_from_file(path).any() for path in files)
    except Exception:  # whatever is wrong with it is told, with the picture's name, when the mask is made
        return False


def _mask(files: Sequence[Path], shape: tuple[int, int]) -> Truth:
    if len(files) == 1 and files[0].suffix.lower() == ".png" and masks.clean_file(files[0], shape):
        return files[0]
    return masks.united(masks.mask_from_file(path) for path in files)


def _codes(files: Sequence[Path], shape: tuple[int, int]) -> Truth:
    """Return a mask of codes as it is. Raises ValueError, UnreadableImage unless it is one 8-bit grey picture."""
    if len(files) != 1:
        raise ValueError(f"it has {len(files)} code masks; one is needed")
    plane, grey = code_plane(files[0])
    if not plane.any():
        raise ValueError("its code mask is all 0: nothing to learn from")
    return files[0] if files[0].suffix.lower() == ".png" and grey and plane.shape == shape else plane
