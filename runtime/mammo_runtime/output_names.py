"""Names of the output pictures: `masks/<relative path without suffix>.png`, never shared by two inputs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

from mammo_runtime.errors import OutputError
from mammo_runtime.hashing import path_key
from mammo_runtime.inputs import InputFile

FOLDER = {"mask": "masks", "overlay": "overlays", "probability": "probabilities"}
_FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]|[. ]+$')
"""Characters Windows refuses, control characters, trailing dots and blanks."""
_RESERVED = re.compile(r"^(con|prn|aux|nul|com\d|lpt\d)(\.|$)", re.IGNORECASE)
MAX_NAME_BYTES = 200
"""Room for the suffix and the temporary name within the 255 bytes file systems allow."""


MAX_STEM_BYTES = 1000
"""A longer relative path is replaced by a hash: below OUT it could pass the system's limit and stop the run."""


class OutputNames:
    """Hands out names in the order of the inputs; two that would collide get ~2, ~3 … behind the stem."""

    def __init__(self, taken: Mapping[str, bytes], deidentify: bool) -> None:
        """`taken`: names in use by earlier results of this folder, case-folded → the ledger's key of the input."""
        self._taken = dict(taken)
        self._deidentify = deidentify

    def claim(self, file: InputFile, digest: str, kinds: Sequence[str]) -> dict[str, str]:
        """Return kind → path below OUT, free of collisions also where case is ignored, and keep it reserved."""
        stem = digest[:32] if self._deidentify else _portable(file.relative)
        if len(os.fsencode(stem)) > MAX_STEM_BYTES:
            stem = hashlib.sha256(os.fsencode(stem)).hexdigest()[:32]
        owner, number = path_key(file.path), 1
        while True:
            suffix = "" if number == 1 else f"~{number}"
            names = {kind: f"{FOLDER[kind]}/{stem}{suffix}.png" for kind in kinds}
            # The mask's name is checked even when no mask is written, so that names do not depend on --save.
            probe = {*names.values(), f"{FOLDER['mask']}/{stem}{suffix}.png"}
            if all(self._taken.get(name.casefold(), owner) == owner for name in probe):
                self._taken.update(dict.fromkeys((name.casefold() for name in probe), owner))
                return names
            number += 1


def all_there(output: Path, record: Mapping[str, Any]) -> bool:
    """Tell whether every picture a record names exists; none is ever partial."""
    return all((output / name).is_file() for name in record["outputs"].values())


def remove_pictures(output: Path, record: Mapping[str, Any]) -> None:
    """Remove the pictures of a result that is about to be done again, so that none can outlive it.

    Folders left empty go too: their names are those of the input folders. Raises OutputError.
    """
    for name in record["outputs"].values():
        try:
            (output / name).unlink(missing_ok=True)
        except OSError as error:
            raise OutputError(f"cannot remove the earlier result {output / name}: {error.strerror or error}") from error
        with suppress(OSError):
            for parent in PurePosixPath(name).parents[:-1]:
                (output / parent).rmdir()


def _portable(relative: PurePosixPath) -> str:
    """Return the relative path without suffix in names every file system takes."""
    *folders, name = (_portable_part(part) for part in (*relative.parts[:-1], relative.stem or relative.name))
    # A folder called a.png must not stand where the picture of a.jpg goes.
    return "/".join([*(f + "_" if f.casefold().endswith(".png") else f for f in folders), name])


def _portable_part(part: str) -> str:
    safe = _FORBIDDEN.sub("_", part) or "_"
    safe = "_" + safe if _RESERVED.match(safe) else safe
    encoded = safe.encode("utf-8", "surrogateescape")
    if len(encoded) > MAX_NAME_BYTES:
        digest = hashlib.sha256(encoded).hexdigest()[:12]
        safe = encoded[: MAX_NAME_BYTES - 13].decode("utf-8", "ignore") + "-" + digest
    return safe
