"""What a run has finished: one SQLite file in the output folder, the source of every table and of resuming."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mammo_runtime.errors import UsageError

LEDGER = "ledger.sqlite"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    input BLOB PRIMARY KEY,    -- path as found, bytes of the file system
    work_key TEXT NOT NULL,    -- hash of pixels, model and settings: equal means "need not be done again"
    record TEXT NOT NULL,      -- the line of results.jsonl
    thumbnail BLOB             -- JPEG for the report, NULL for failed and skipped inputs
) STRICT
"""

Record = dict[str, Any]


class Ledger:
    """Results of one output folder, each committed (fsync) before the next image is begun. One process at a time."""

    def __init__(self, output: Path, overwrite: bool) -> None:
        """Open or create OUT/ledger.sqlite.

        Raises UsageError when the folder cannot be written, belongs to something else, or another run holds it.
        """
        path = output / LEDGER
        try:
            foreign = output.is_dir() and not path.exists() and any(output.iterdir())
            if foreign and not overwrite:
                raise UsageError(
                    f"{output} holds files but no results of mammo-infer; choose an empty folder, or --overwrite "
                    "to write there all the same"
                )
            output.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(path, timeout=1.0, isolation_level=None)
        except (OSError, sqlite3.Error) as error:
            raise UsageError(f"cannot write to the output folder {output}: {error}") from error
        try:
            self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(_SCHEMA.replace(" STRICT", "" if sqlite3.sqlite_version_info < (3, 37) else " STRICT"))
            if overwrite:
                self._database.execute("DELETE FROM results")
        except sqlite3.Error as error:
            self._database.close()
            if "locked" in str(error):
                raise UsageError(f"another run is writing to {output}; wait for it, or choose another folder") from error
            raise UsageError(
                f"{path} is damaged or cannot be written ({error}); with --overwrite in a new folder the run starts afresh"
            ) from error

    def find(self, source: Path) -> tuple[str, Record] | None:
        """Return work key and record of an input, or None."""
        row = self._database.execute(
            "SELECT work_key, record FROM results WHERE input = ?", (os.fsencode(source),)
        ).fetchone()
        return None if row is None else (row[0], json.loads(row[1]))

    def store(self, source: Path, work_key: str, record: Record, thumbnail: bytes | None) -> None:
        """Commit the result of one input; its files must be in place before."""
        self._database.execute(
            "INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)",
            (os.fsencode(source), work_key, json.dumps(record), thumbnail),
        )

    def forget(self, source: Path) -> None:
        """Drop an input's result, before it is done again."""
        self._database.execute("DELETE FROM results WHERE input = ?", (os.fsencode(source),))

    def records(self, sources: Sequence[Path]) -> Iterator[Record]:
        """Yield the records of the given inputs, in that order."""
        for source in sources:
            found = self.find(source)
            if found is not None:
                yield found[1]

    def thumbnail(self, source: Path) -> bytes | None:
        """Return the report's picture of an input."""
        row = self._database.execute(
            "SELECT thumbnail FROM results WHERE input = ?", (os.fsencode(source),)
        ).fetchone()
        return None if row is None else row[0]

    def output_names(self) -> dict[str, bytes]:
        """Return every output file named by a record, lower-cased → its input's path bytes."""
        taken: dict[str, bytes] = {}
        for source, record in self._database.execute("SELECT input, record FROM results"):
            for name in json.loads(record)["outputs"].values():
                taken[name.casefold()] = source
        return taken

    def close(self) -> None:
        """Close the file; SQLite removes its write-ahead log."""
        self._database.close()

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
