"""The index: a CSV with `image,mask,patient|group,fold,kind,pixel_spacing_mm`, paths relative to a root.

Optional: `dataset` (a key of `DATA_NOTES`) and `split` ("seed": the folds share patients). Other columns only describe.
Kinds of mammograms: mass; findings (the mask outlines masses and more); non_mass_findings; normal; unlocated (a mass is
there, nobody says where). Of ultrasound: benign, malignant, normal. Of tissue: tissue.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mammo_runtime.errors import UsageError
from mammo_runtime.hashing import file_sha256
from mammo_train.grouping import GROUP, PATIENT


@dataclass(frozen=True)
class IndexRow:
    """One image of a data set."""

    image: Path
    mask: Path | None
    """None: the mask is empty (a normal image)."""
    group: str
    """Patient, or near-duplicate group where patients are unknown: never split over folds."""
    fold: int
    kind: str
    spacing_mm: float | None
    dataset: str = ""
    """Key of `DATA_NOTES`; empty: the collection is told by the folder."""
    grouped_by: str = PATIENT
    """What `group` names: `grouping.PATIENT` or `grouping.GROUP`."""

    @property
    def name(self) -> str:
        """File name without suffix."""
        return self.image.stem


LEAKING = "seed"
"""In the column `split` of an index whose folds are known to share patients (`mammo-train index --split seed`)."""


def read_index(index: Path, root: Path, allow_leak: bool = False) -> tuple[IndexRow, ...]:
    """Read an index CSV. Raises UsageError naming the row when a column, file or number is missing or wrong.

    An index whose `split` column says that its folds share patients is refused, unless `allow_leak`.
    """
    from mammo_runtime.inputs import delimiter  # loads numpy, which the command line's help does without

    if not index.is_file():
        raise UsageError(f"there is no index file {index}")
    with index.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, delimiter=delimiter(stream.readline()))
        stream.seek(0)
        columns = set(reader.fieldnames or ())
        group_column = "patient" if "patient" in columns else "group"
        missing = {"image", "mask", "fold", "kind", group_column} - columns
        if missing:
            raise UsageError(f"{index} lacks the columns {', '.join(sorted(missing))}")
        lines = list(reader)
    if not allow_leak and any(values.get("split") == LEAKING for values in lines):
        raise UsageError(
            f"{index} was split as its study did, with patients on both sides, so its scores would mislead; "
            "index the collection again without --split seed, or say --allow-leak, which is recorded"
        )
    rows = tuple(_row(values, line, root, group_column) for line, values in enumerate(lines, start=2))
    if not rows:
        raise UsageError(f"{index} holds no images")
    twice = [path for path, count in Counter(row.image for row in rows).items() if count > 1]
    if twice:
        raise UsageError(f"{index} lists {twice[0]} more than once")
    return rows


def _row(values: dict[str, str], line: int, root: Path, group_column: str) -> IndexRow:
    try:
        spacing = values.get("pixel_spacing_mm") or ""
        row = IndexRow(
            image=root / values["image"],
            mask=root / values["mask"] if values["mask"] else None,
            group=values[group_column],
            fold=int(values["fold"]),
            kind=values["kind"],
            spacing_mm=float(spacing) if spacing else None,
            dataset=values.get("dataset") or "",
            grouped_by=PATIENT if group_column == "patient" else GROUP,
        )
        if row.spacing_mm is not None and not 0 < row.spacing_mm <= 5:
            raise ValueError(f"pixel_spacing_mm is {spacing}, which no image has")
        if row.kind == "mass" and row.mask is None:
            raise ValueError("kind is mass, but there is no mask")
        if row.mask == row.image:
            raise ValueError("the mask is the picture itself")
    except (TypeError, ValueError) as error:
        raise UsageError(f"index line {line}: {error}") from error
    for path in (row.image, row.mask):
        if path is not None and not path.is_file():
            raise UsageError(f"index line {line}: there is no file {path}; is --root right?")
    if not row.group:
        raise UsageError(f"index line {line}: no patient or group, so a split by patient cannot be proved")
    return row


def check_leaks(rows: Iterable[IndexRow]) -> None:
    """Refuse folds that share a patient or an image's bytes. Raises UsageError naming the first of each."""
    folds_of_group: dict[str, set[int]] = defaultdict(set)
    folds_of_content: dict[str, set[int]] = defaultdict(set)
    names: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        try:
            digest = file_sha256(row.image)
        except OSError as error:
            raise UsageError(f"cannot read {row.image}: {error.strerror}") from error
        folds_of_group[row.group].add(row.fold)
        folds_of_content[digest].add(row.fold)
        names[digest].append(row.image.name)
    for group, folds in folds_of_group.items():
        if len(folds) > 1:
            raise UsageError(f"leak: patient or group {group} stands in the folds {sorted(folds)}")
    for digest, folds in folds_of_content.items():
        if len(folds) > 1:
            raise UsageError(f"leak: the same picture ({', '.join(names[digest])}) stands in the folds {sorted(folds)}")
