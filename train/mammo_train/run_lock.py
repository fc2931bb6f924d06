"""One process trains into a run folder at a time; the lock ends with the process, however it ends."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mammo_runtime.errors import UsageError
from mammo_train import distributed

LOCK = "lock.sqlite"
"""An empty database: SQLite's exclusive lock works on every system and is the kernel's, so kill -9 frees it."""


@contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Make the run's folder and hold its lock. Of torchrun's processes the first one does, which alone writes.

    Raises UsageError when the folder cannot be written, or another process is training into it.
    """
    if not distributed.is_first():
        yield
        return
    try:
        run.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(run / LOCK, timeout=0, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
    except OSError as error:
        raise UsageError(f"cannot write the run folder {run}: {error.strerror or error}") from error
    except sqlite3.OperationalError as error:
        if "locked" in str(error):
            raise UsageError(
                f"another process is training into {run}; wait for it, or choose another folder"
            ) from error
        raise UsageError(f"cannot write the run folder {run}: {error}") from error
    try:
        yield
    finally:
        connection.close()
