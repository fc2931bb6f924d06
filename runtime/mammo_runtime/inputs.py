"""Which files a run is about: folders walked safely, boxes read and matched."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Box


@dataclass(frozen=True)
class InputFile:
    """One file to be accounted for."""

    path: Path
    """As found: starts with what the user typed."""
    relative: PurePosixPath
    """Below the input folder it was found in; the bare file name for a file given directly."""
    skip: str = ""
    """Why it is not even opened (hidden file, DICOMDIR), or empty."""


@dataclass(frozen=True)
class InputList:
    """Everything found, in a fixed order: inputs as typed, each folder sorted by path."""

    files: tuple[InputFile, ...]
    notes: tuple[str, ...]
    """Folders not entered, with the reason."""


def find_inputs(inputs: Sequence[Path], recursive: bool, output: Path) -> InputList:
    """List every file below `inputs`. The output folder is left out when it lies inside an input.

    Symbolic links to folders are followed unless they lead back to a folder already entered. A file reached twice is
    listed once. Raises UsageError when an input does not exist or nothing is found.
    """
    files: list[InputFile] = []
    notes: list[str] = []
    seen_files: set[str] = set()
    for given in inputs:
        if not given.exists():
            raise UsageError(f"there is no file or folder {given}")
        found = _walk(given, recursive, output, notes) if given.is_dir() else iter([_input_file(given, given.parent)])
        for file in found:
            real = os.path.realpath(file.path)
            if real in seen_files:
                notes.append(f"{file.path}: the same file was reached before, listed once")
                continue
            seen_files.add(real)
            files.append(file)
    if not files:
        hint = "" if recursive else " (sub-folders were not searched: --no-recursive)"
        raise UsageError(f"nothing to do: no file in {', '.join(str(p) for p in inputs)}{hint}")
    return InputList(tuple(files), tuple(notes))


def _walk(folder: Path, recursive: bool, output: Path, notes: list[str]) -> Iterator[InputFile]:
    """Yield the files below a folder, sorted; no symbolic-link loop, not the output folder."""
    entered: set[str] = set()
    output_real = os.path.realpath(output)

    def enter(current: Path) -> Iterator[InputFile]:
        real = os.path.realpath(current)
        if real == output_real:
            notes.append(f"{current}: the output folder is not an input")
            return
        if real in entered:
            notes.append(f"{current}: leads back to a folder already searched, not entered again")
            return
        entered.add(real)
        try:
            entries = sorted(current.iterdir(), key=lambda p: p.name)
        except OSError as error:
            notes.append(f"{current}: cannot be searched ({error.strerror})")
            return
        for entry in entries:
            if entry.is_dir():
                if recursive and not entry.name.startswith("."):
                    yield from enter(entry)
                elif recursive:
                    notes.append(f"{entry}: hidden folder, not searched")
            else:
                yield _input_file(entry, folder)

    yield from enter(folder)


def _input_file(path: Path, root: Path) -> InputFile:
    skip = ""
    if path.name.startswith("."):
        skip = "hidden file"
    elif path.name.upper() == "DICOMDIR":
        skip = "DICOMDIR: a table of contents, not an image"
    elif path.name in ("Thumbs.db", "desktop.ini"):
        skip = "a system file, not an image"
    return InputFile(path, PurePosixPath(path.relative_to(root).as_posix()), skip)


def read_boxes(path: Path) -> dict[str, tuple[Box, ...]]:
    """Read a boxes file: CSV with the columns image,x,y,width,height in original pixels, one row for each box.

    Returns the boxes by image (path relative to the input folder, with "/"). Raises UsageError naming the line.
    """
    boxes: dict[str, list[Box]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream)
            missing = {"image", "x", "y", "width", "height"} - set(reader.fieldnames or ())
            if missing:
                raise UsageError(f"{path} lacks the columns {', '.join(sorted(missing))}")
            for line, row in enumerate(reader, start=2):
                try:
                    box = Box(*(_finite(row[name]) for name in ("x", "y", "width", "height")))
                except (TypeError, ValueError) as error:
                    raise UsageError(f"{path} line {line}: {error}") from error
                image = PurePosixPath((row["image"] or "").strip().replace("\\", "/")).as_posix()
                boxes.setdefault(image, []).append(box)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read the boxes file {path}: {error}") from error
    if not boxes:
        raise UsageError(f"{path} holds no boxes")
    return {image: tuple(found) for image, found in boxes.items()}


def _finite(text: str) -> float:
    value = float(text)
    if not abs(value) < 1e7:
        raise ValueError(f"{text!r} is no pixel coordinate")
    return value


def unmatched_boxes(boxes: Mapping[str, Sequence[Box]], files: Sequence[InputFile]) -> tuple[str, ...]:
    """Return the images named in the boxes file that are not among the inputs."""
    present = {file.relative.as_posix() for file in files}
    return tuple(image for image in boxes if image not in present)
