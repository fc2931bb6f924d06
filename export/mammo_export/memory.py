"""What an export found out so far, on disk: a killed export resumes from it, and another input finds nothing in it."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from mammo_runtime.atomic import write_text
from mammo_runtime.errors import MammoError, OutputError

Json: TypeAlias = Any
"""Dictionaries with string keys, lists, strings, finite numbers, booleans and None."""
FORMAT = 1
"""Part of every key: another version of this file remembers nothing of this one."""


class Memory:
    """Results by the content they follow from.

    A file for each, which appears whole or not at all, so that kill -9 at any moment leaves either nothing or all of
    it. Two processes may share a folder: at worst both compute the same result. The caller removes it when its work
    is done.
    """

    def __init__(self, folder: Path) -> None:
        """Take a folder that need not exist yet; nothing else may be kept in it."""
        self.folder = folder

    def remembered(self, key_parts: Mapping[str, Json], make: Callable[[], Json]) -> Json:
        """Return what `make` returned for these parts, now or in an earlier process, always as JSON gives it back.

        `key_parts` name everything that the result follows from: hashes of graphs and pictures, settings, versions of
        the tools. Tuples come back as lists. Raises MammoError when parts or result are not JSON (a NaN is not), and
        OutputError when the folder cannot be written.
        """
        parts = _text({"format": FORMAT, "parts": dict(key_parts)}, "the parts of a key")
        path = self.folder / f"{hashlib.sha256(parts.encode()).hexdigest()}.json"
        known, value = _read(path, parts)
        if known:
            return value
        content = _text({"key": parts, "value": make()}, f"the result for {_what(key_parts)}")
        try:
            write_text(path, content)
        except OutputError:
            # Another process may have removed the folder between making and renaming the file.
            write_text(path, content)
        return json.loads(content)["value"]

    def remove(self) -> None:
        """Forget everything. Raises OutputError; a folder that is gone already is no error."""
        try:
            shutil.rmtree(self.folder)
        except FileNotFoundError:
            return
        except OSError as error:
            raise OutputError(f"cannot remove {self.folder}: {error.strerror or error}") from error


def _read(path: Path, parts: str) -> tuple[bool, Json]:
    """Return whether a whole file of this key is there, and its value; a damaged one counts as none."""
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] == parts:
            return True, stored["value"]
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return False, None


def _text(value: Json, what: str) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise MammoError(f"{what} cannot be remembered: {error}") from error


def _what(key_parts: Mapping[str, Json]) -> str:
    return str(key_parts.get("what", ", ".join(key_parts)))
