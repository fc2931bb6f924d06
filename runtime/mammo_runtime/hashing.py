"""The sha256 of a file names inputs, models and weights; that of a path is the ledger's key."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes in hexadecimal, read in blocks. Raises OSError."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()


def path_key(path: Path) -> bytes:
    """Return the sha256 of a path's own bytes (32 bytes): tells inputs apart without holding their names."""
    return hashlib.sha256(os.fsencode(path)).digest()
