"""Files that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mammo_runtime.errors import OutputError

PARTIAL_SUFFIX = ".part"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`; when the block ends without error, it becomes `path` in one step.

    Missing folders are made. On an error nothing is left behind. Raises OutputError for disk full, read-only …
    """
    temporary = path.with_name(f".{path.name[-80:]}.{secrets.token_hex(4)}{PARTIAL_SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with temporary.open("rb+") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that it is never seen half-written. Raises OutputError."""
    with whole_file(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text with "\\n" line ends so that it is never seen half-written. Raises OutputError."""
    write_bytes(path, content.encode("utf-8"))
