"""Files that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mammo_runtime.errors import OutputError

PARTIAL_SUFFIX = ".part"
_PARTIAL = re.compile(r"\..*\.[0-9a-f]{8}" + re.escape(PARTIAL_SUFFIX), re.DOTALL)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends without error, it becomes `path` in one step.

    Missing folders are made. On an error nothing is left behind. Raises OutputError for disk full, read-only …
    """
    temporary = path.with_name(f".{path.name[-40:]}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            # Where even looking fails (a file in place of a folder, read-only), the first error is the one to tell.
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written. Raises OutputError."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text, its line ends as they are, so that it is never seen half-written. Raises OutputError."""
    write_bytes(path, content.encode("utf-8"))


def remove_partial(folder: Path) -> None:
    """Remove the temporary files that a killed process left in a folder and its sub-folders. Raises OutputError."""
    try:
        for parent, _, names in os.walk(folder):
            for name in names:
                if _PARTIAL.fullmatch(name):
                    (Path(parent) / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot clean up {folder}: {error.strerror or error}") from error
