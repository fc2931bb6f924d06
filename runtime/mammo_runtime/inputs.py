"""Which files a run is about: folders walked safely, boxes read and matched."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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

    @property
    def names(self) -> tuple[str, str]:
        """What a boxes file may call it: the path below the input folder, or the path as results show it."""
        return self.relative.as_posix(), self.path.as_posix()


@dataclass(frozen=True)
class InputList:
    """Everything found, in a fixed order: inputs as typed, each folder sorted by path."""

    files: tuple[InputFile, ...]
    notes: tuple[str, ...]
    """Folders not entered, with the reason."""


def find_inputs(inputs: Sequence[Path], recursive: bool, output: Path, results_mark: str = "") -> InputList:
    """List every file below `inputs`. The output folder is left out when it lies inside an input.

    So are sub-folders that hold a file called `results_mark`: their masks are no mammograms. Symbolic links to folders
    are followed unless they lead back to a folder already entered. A file reached twice is judged once. Raises
    UsageError when an input does not exist or nothing is found.
    """
    found: list[InputFile] = []
    notes: list[str] = []
    for given in inputs:
        # os.path, not Path: answers False where a name is too long or a folder is closed, on every Python.
        if not os.path.exists(given):  # noqa: PTH110
            raise UsageError(f"there is no file or folder {given}, or it cannot be looked at")
        below = _walk(given, recursive, output, results_mark, notes) if _is_folder(given) else None
        found += [_input_file(given, given.parent)] if below is None else below
    inside = [f.path for f in found if _lies_below(f.path, output)]
    if inside:
        raise UsageError(
            f"{inside[0]} lies inside the output folder {output}, where it could be overwritten; choose another -o"
        )
    if not found:
        hint = "" if recursive else " (sub-folders were not searched: --no-recursive)"
        raise UsageError(f"nothing to do: no file in {', '.join(str(p) for p in inputs)}{hint}{_listed(notes)}")
    return InputList(_judged_once(found), tuple(notes))


def _judged_once(found: Sequence[InputFile]) -> tuple[InputFile, ...]:
    """Mark every further path of a file as skipped; the file's own path is judged rather than a link to it."""
    own: dict[str, InputFile] = {}
    real = [os.path.realpath(file.path) for file in found]
    for path, file in zip(real, found):
        if path not in own or (os.path.abspath(file.path) == path != os.path.abspath(own[path].path)):  # noqa: PTH100
            own[path] = file
    again = "a link to, or another path of, a file that is judged once"
    return tuple(file if own[path] is file else replace(file, skip=again) for path, file in zip(real, found))


def _lies_below(path: Path, folder: Path) -> bool:
    return os.path.realpath(path).startswith(os.path.realpath(folder) + os.sep)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112


def _listed(notes: Sequence[str]) -> str:
    return f" ({'; '.join(notes[:3])})" if notes else ""


def _walk(folder: Path, recursive: bool, output: Path, mark: str, notes: list[str]) -> Iterator[InputFile]:
    """Yield the files below a folder, sorted; no symbolic-link loop, no results of this run or an earlier one."""
    entered: set[str] = set()
    output_real = os.path.realpath(output)

    def entries(current: Path) -> list[Path]:
        real, reason = os.path.realpath(current), ""
        if real == output_real:
            reason = "the output folder is not an input"
        elif real in entered:
            reason = "leads back to a folder already searched, not entered again"
        elif mark and current != folder and os.path.isfile(current / mark):  # noqa: PTH113
            reason = "holds the results of an earlier run, not searched"
        entered.add(real)
        try:
            found = [] if reason else sorted(current.iterdir(), key=lambda p: p.name, reverse=True)
        except OSError as error:
            found, reason = [], f"cannot be searched ({error.strerror})"
        if reason:
            notes.append(f"{current}: {reason}")
        return found

    # A stack, not recursion: folders can be nested more deeply than Python calls.
    waiting = entries(folder)
    while waiting:
        entry = waiting.pop()
        if not _is_folder(entry):
            yield _input_file(entry, folder)
        elif recursive and entry.name.startswith("."):
            notes.append(f"{entry}: hidden folder, not searched")
        elif recursive:
            waiting += entries(entry)


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
            reader = csv.DictReader(stream, delimiter=delimiter(stream.readline()))
            stream.seek(0)
            missing = {"image", "x", "y", "width", "height"} - set(reader.fieldnames or ())
            if missing:
                raise UsageError(f"{path} lacks the columns {', '.join(sorted(missing))}")
            for row in reader:
                try:
                    box = Box(*(_coordinate(row[name], name) for name in ("x", "y", "width", "height")))
                    image = _image_name(row["image"])
                except ValueError as error:
                    raise UsageError(f"{path} line {reader.line_num}: {error}") from error
                boxes.setdefault(image, []).append(box)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"cannot read the boxes file {path}: {error}") from error
    if not boxes:
        raise UsageError(f"{path} holds no boxes")
    return {image: tuple(found) for image, found in boxes.items()}


def delimiter(header: str) -> str:
    """Return the separator of a CSV's header line: ";", as spreadsheets write it in much of Europe, or ","."""
    return ";" if ";" in header and "," not in header else ","


def _coordinate(text: str | None, name: str) -> float:
    if text is None or not text.strip():
        raise ValueError(f"{name} is missing")
    try:
        value = float(text)
    except ValueError:
        raise ValueError(f"{name} is {text!r}, which is no number") from None
    if not abs(value) < 1e7:
        raise ValueError(f"{name} is {text!r}, which is no pixel coordinate")
    return value


def _image_name(text: str | None) -> str:
    name = (text or "").strip().replace("\\", "/")
    if not name:
        raise ValueError("image is missing")
    return PurePosixPath(name).as_posix()


def unmatched_boxes(boxes: Mapping[str, Sequence[Box]], files: Sequence[InputFile]) -> tuple[str, ...]:
    """Return the images named in the boxes file that are not among the inputs.

    Raises UsageError when a name means more than one input: a box drawn on one picture must not land on another.
    """
    present = Counter(name for file in files if not file.skip for name in set(file.names))
    for image in boxes:
        if present[image] > 1:
            raise UsageError(
                f"the boxes file's {image} means {present[image]} of the inputs; name them by their full path"
            )
    present.update(name for file in files if file.skip for name in file.names)
    return tuple(image for image in boxes if image not in present)
