"""Entries → index: every picture read once, masks written, folds chosen, the CSV last."""

from __future__ import annotations

import csv
import io
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np

from mammo_runtime.atomic import remove_partial, whole_file
from mammo_runtime.errors import ImageError, UsageError
from mammo_runtime.mammogram import Modality
from mammo_runtime.readers import ReadOptions, read_image
from mammo_train.index import masks, near, split
from mammo_train.index.codes import CodeCount
from mammo_train.index.contract import LEAKING, read_index
from mammo_train.index.entry import Choice, Entry, Say
from mammo_train.index.registry import COLLECTIONS, Collection

COLUMNS = ("image", "mask", "kind", "fold", "pixel_spacing_mm", "split", "dataset")
DESCRIPTIVE = ("view", "laterality", "lesions", "pathology", "note")
STEPS, PAUSE_S = 10, 2.0
"""At most so many lines of progress over a whole collection, and so much time between two of them."""


@dataclass
class Outcome:
    """What was made of a collection."""

    rows: list[dict[str, str]] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    """(picture, reason), in the order met."""
    notes: list[str] = field(default_factory=list)
    codes: CodeCount = field(default_factory=CodeCount)
    """Of tissue masks; of other collections nothing."""
    known: bool = False
    """Whether the collection says who the patients are."""


@dataclass(frozen=True)
class _Read:
    """A picture that could be read, with its truth on disk."""

    entry: Entry
    image: Path
    mask: Path | None
    digest: str
    fingerprint: np.ndarray | None
    note: str


def build_index(name: str, root: Path, output: Path, choice: Choice, say: Say) -> Outcome:
    """Index a collection below `root` into the CSV `output`; masks go to a folder beside it where they must be made.

    Unreadable pictures are named in the outcome and left out. Raises UsageError when the layout is not there, nothing
    is readable or the split cannot be made; then no CSV is written.
    """
    collection, outcome = COLLECTIONS[name], Outcome()
    if choice.split not in collection.splits:
        raise UsageError(f"{name} has no split {choice.split!r}; it has {', '.join(collection.splits)}")

    def note(text: str) -> None:
        outcome.notes.append(text)
        say(f"note: {text}")

    entries = collection.load()(root, choice, note)
    folder = output.parent / f"{output.stem}_masks"
    if folder.is_dir():
        remove_partial(folder)
    read: list[_Read] = []
    known_files: dict[Path, str] = {}
    progress = _Progress(len(entries), say)
    for number, entry in enumerate(_named_apart(entries), start=1):
        try:
            item = _read(entry, folder, Modality(choice.modality), note)
            first = known_files.setdefault(item.image, entry.name)
            if first != entry.name:
                raise ValueError(f"its file {item.image.name} is that of {first}, which is kept")
            read.append(item)
            if entry.kind == "tissue" and item.mask is not None:
                outcome.codes.add(masks.read_stored(item.mask))
        except (ImageError, OSError, cv2.error, ValueError, MemoryError) as error:
            reason = str(error) if isinstance(error, ImageError) else f"{type(error).__name__}: {error}"
            outcome.failures.append((entry.name, reason))
            say(f"left out: {entry.name}: {reason}")
        progress.reached(number)
    if not read:
        raise UsageError(f"none of {len(entries)} pictures could be used; the first: {_named(outcome.failures)}")
    known = outcome.known = any(item.entry.patient for item in read)
    units = _units(read, choice, known, note)
    folds = _folds(read, units, collection, choice, note)
    leaks = len({(unit, fold) for unit, fold in zip(units, folds) if fold is not None}) > len(
        {unit for unit, fold in zip(units, folds) if fold is not None}
    )
    if leaks:
        note("this split has patients (or copies) on both sides: training refuses it without --allow-leak")
    for item, unit, fold in zip(read, units, folds):
        if fold is not None:
            values = _row(item, fold, root, name, choice, leaks)
            values["patient" if known else "group"] = (item.entry.patient if known else "") or unit
            outcome.rows.append(values)
    _write(output, outcome.rows, "patient" if known else "group", root)
    return outcome


class _Progress:
    """Says now and then how far a collection was read, and always when it is done."""

    def __init__(self, total: int, say: Say) -> None:
        self._total, self._say = total, say
        self._step, self._time = 0, time.monotonic()

    def reached(self, number: int) -> None:
        """Note that so many pictures were read."""
        step, now = number * STEPS // self._total, time.monotonic()
        if number == self._total or (step > self._step and now - self._time >= PAUSE_S):
            self._step, self._time = step, now
            self._say(f"{number} of {self._total} pictures")


def _named_apart(entries: Sequence[Entry]) -> Iterator[Entry]:
    """Yield the entries; a name that was there before gets a number, so that no mask overwrites another."""
    seen: Counter[str] = Counter()
    for entry in entries:
        # Ignoring case, as some file systems do.
        seen[entry.name.lower()] += 1
        times = seen[entry.name.lower()]
        yield entry if times == 1 else replace(entry, name=f"{entry.name}_again{times}")


def _named(failures: Sequence[tuple[str, str]]) -> str:
    return f"{failures[0][0]}: {failures[0][1]}" if failures else "there is none"


def _read(entry: Entry, folder: Path, modality: Modality, note: Say) -> _Read:
    """Read one picture and write its mask where it has no file that can be used as it is."""
    image = entry.image if isinstance(entry.image, Path) else entry.image()
    picture = read_image(image, ReadOptions(pixel_spacing_mm=entry.spacing_mm, modality=modality))
    shape, remark = (picture.rows, picture.columns), entry.columns.get("note", "")
    truth = entry.truth(shape) if entry.truth else None
    if isinstance(truth, np.ndarray):
        if truth.shape != shape:
            fault = f"mask of {truth.shape[0]} x {truth.shape[1]} for a picture of {shape[0]} x {shape[1]}, resized"
            note(f"{entry.name}: {fault} (nearest)")
            remark = "; ".join(part for part in (remark, fault) if part)
            truth = masks.to_size(truth, shape)
        if not truth.any():
            if entry.kind != "normal":
                raise ValueError("its mask is empty")
            truth = None
        else:
            path = folder / f"{entry.name}.png"
            masks.write_mask(path, truth)
            truth = path
    return _Read(entry, image, truth, picture.file_sha256, near.fingerprint(picture.pixels), remark)


def _units(read: Sequence[_Read], choice: Choice, known: bool, note: Say) -> list[str]:
    """Return the unit of each picture: its patient and whatever is (nearly) the same picture."""
    names, patients = [item.entry.name for item in read], [item.entry.patient for item in read]
    first: dict[str, int] = {}
    same = [(first.setdefault(item.digest, k), k) for k, item in enumerate(read)]
    pairs = {(i, j) for i, j in same if i != j} | set(near.near_pairs([item.fingerprint for item in read]))
    across = [(i, j) for i, j in sorted(pairs) if not patients[i] or patients[i] != patients[j]]
    if across and known:
        i, j = across[0]
        note(
            f"{len(across)} pairs of (nearly) equal pictures under two patients, kept together where folds are chosen "
            f"here: {names[i]}, {names[j]} …"
        )
    units = split.units_of(names, patients, pairs)
    if not known:
        sizes = Counter(units)
        several = sum(count for count in sizes.values() if count > 1)
        note(
            f"patients are not known: {len(sizes)} groups of near-duplicates ({several} pictures in groups of several) "
            "stay in one fold each; other pictures of one patient may still stand on both sides"
        )
    return units


def _folds(
    read: Sequence[_Read], units: Sequence[str], collection: Collection, choice: Choice, note: Say
) -> Sequence[int | None]:
    entries = [item.entry for item in read]
    if choice.split == "official":
        return split.official(entries, units, choice.seed, note)
    if choice.split == "seed" and collection.study is not None:
        return split.as_in_study(entries, collection.study)
    return split.spread([entry.kind for entry in entries], units, (split.TEST, split.VALIDATION, *split.TRAINING),
                        choice.seed)  # fmt: skip


def _row(item: _Read, fold: int, root: Path, name: str, choice: Choice, leaks: bool) -> dict[str, str]:
    spacing = item.entry.spacing_mm
    values = {
        "image": _relative(item.image, root),
        "mask": _relative(item.mask, root) if item.mask else "",
        "kind": item.entry.kind,
        "fold": str(fold),
        "pixel_spacing_mm": "" if spacing is None else f"{spacing:g}",
        "split": LEAKING if leaks else {"seed": "study"}.get(choice.split, choice.split),
        "dataset": name,
    }
    described = {column: item.entry.columns.get(column, "") for column in DESCRIPTIVE}
    return {**values, **described, "note": item.note}


def _relative(path: Path, root: Path) -> str:
    """Return a path from the root, with "/", stepping out of it where the file lies elsewhere."""
    return Path(os.path.relpath(path, root)).as_posix()


def _write(output: Path, rows: Sequence[dict[str, str]], group: str, root: Path) -> None:
    """Write the CSV, after reading it back as training will. Raises UsageError, OutputError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, [*COLUMNS[:2], group, *COLUMNS[2:], *DESCRIPTIVE], lineterminator="\n")
    writer.writeheader()
    writer.writerows(sorted(rows, key=lambda row: row["image"]))
    with whole_file(output) as temporary:
        temporary.write_text(text.getvalue(), encoding="utf-8")
        read_index(temporary, root, allow_leak=True)
