"""What a run has finished: one SQLite file in the output folder, the source of every table and of resuming."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from mammo_runtime.errors import OutputError, UsageError

LEDGER = "ledger.sqlite"
_SCHEMA_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS results (
    input BLOB PRIMARY KEY,    -- hashing.path_key of the path as found: no name in clear
    work_key TEXT NOT NULL,    -- hash of pixels, model and settings: equal means "need not be done again"
    record TEXT NOT NULL,      -- the line of results.jsonl
    thumbnail BLOB             -- JPEG for the report, NULL for failed and skipped inputs
)
"""

Record = dict[str, Any]


class Ledger:
    """Results of one output folder, each committed (fsync) before the next image is begun. One process at a time.

    Inputs are named by keys (bytes). Every method raises OutputError when the disk is full or the file damaged.
    """

    def __init__(self, output: Path, overwrite: bool) -> None:
        """Open or create OUT/ledger.sqlite; `overwrite` allows a folder that holds something else.

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
            self._prepare(path)
        except sqlite3.Error as error:
            self._database.close()
            if "locked" in str(error):
                raise UsageError(f"another run is writing to {output}: wait, or choose another folder") from error
            raise UsageError(f"{path} is damaged or cannot be written ({error}); choose another folder") from error
        except UsageError:
            self._database.close()
            raise

    def _prepare(self, path: Path) -> None:
        """Lock the file, make sure it can be written, and create or check the table."""
        self._database.execute("PRAGMA locking_mode=EXCLUSIVE")
        self._database.execute("PRAGMA journal_mode=WAL")
        self._database.execute("PRAGMA synchronous=FULL")
        # What is forgotten must not linger in the file's free pages.
        self._database.execute("PRAGMA secure_delete=ON")
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, _SCHEMA_VERSION):
            raise UsageError(f"{path} was written by another version of mammo-edge; choose another folder")
        self._database.execute(_SCHEMA)
        self._database.execute(f"PRAGMA user_version={_SCHEMA_VERSION}")

    def find(self, key: bytes) -> tuple[str, Record] | None:
        """Return work key and record of an input, or None."""
        row = self._query("SELECT work_key, record FROM results WHERE input = ?", key)
        return None if row is None else (row[0], json.loads(row[1]))

    def store(self, key: bytes, work_key: str, record: Record, thumbnail: bytes | None) -> None:
        """Commit the result of one input; its files must be in place before."""
        self._query("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?)", key, work_key, json.dumps(record), thumbnail)

    def forget(self, key: bytes) -> None:
        """Drop an input's result, before it is done again."""
        self._query("DELETE FROM results WHERE input = ?", key)

    def keys(self) -> tuple[bytes, ...]:
        """Return the keys of all inputs this folder has ever held results of."""
        try:
            return tuple(row[0] for row in self._database.execute("SELECT input FROM results"))
        except sqlite3.Error as error:
            raise OutputError(f"cannot read the run's ledger: {error}") from error

    def records(self, keys: Sequence[bytes]) -> Iterator[Record]:
        """Yield the records of the given inputs, in that order."""
        for key in keys:
            found = self.find(key)
            if found is not None:
                yield found[1]

    def thumbnail(self, key: bytes) -> bytes | None:
        """Return the report's picture of an input."""
        row = self._query("SELECT thumbnail FROM results WHERE input = ?", key)
        return None if row is None else row[0]

    def output_names(self) -> dict[str, bytes]:
        """Return every output file named by a record, lower-cased → its input's key."""
        keys = self.keys()
        return {
            name.casefold(): key for key, record in zip(keys, self.records(keys)) for name in record["outputs"].values()
        }

    def close(self) -> None:
        """Close the file; SQLite removes its write-ahead log."""
        self._database.close()

    def _query(self, statement: str, *values: object) -> Any:
        """Run one statement, each its own transaction; returns its first row or None."""
        try:
            return self._database.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise OutputError(
                f"cannot write the run's ledger: {error}. Make room, then run the same command again to go on"
            ) from error

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
