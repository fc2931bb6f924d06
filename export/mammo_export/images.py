"""Which real images a graph is proved on: the run's own validation images, unless told otherwise."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from mammo_runtime.errors import UsageError
from mammo_runtime.hashing import file_sha256
from mammo_train.index import IndexRow, read_index

DATA = "data.json"
"""Written by `mammo-train fit` into the run: {"index", "root": absolute paths, "index_sha256"}."""


@dataclass(frozen=True)
class ImageChoice:
    """The images to prove a graph on."""

    index: Path | None = None
    """Index CSV; None: the run's own, from its `data.json`."""
    root: Path | None = None
    """Folder the index's paths are relative to; None: the run's own, or with an index given that index's folder."""
    fold: int = 1
    """The validation fold: the graph meets images the network was not fitted to, and the test fold stays closed."""
    limit: int | None = None
    """At most so many images, spread evenly over the fold."""


def chosen_rows(run: Path, choice: ImageChoice) -> tuple[IndexRow, ...]:
    """Return the index rows to prove a graph on. Raises UsageError when there is no index or no row of the fold."""
    index, root = (choice.index, choice.root) if choice.index is not None else _data_of_run(run, choice.root)
    rows = [row for row in read_index(index, root or index.parent) if row.fold == choice.fold]
    if not rows:
        raise UsageError(f"{index} holds no image of fold {choice.fold}; choose another --fold")
    count = len(rows) if choice.limit is None else min(choice.limit, len(rows))
    return tuple(rows[k * len(rows) // count] for k in range(count))


def _data_of_run(run: Path, root: Path | None) -> tuple[Path, Path]:
    """Return index and root of the data a run was trained on."""
    path = run / DATA
    advice = "say which images to prove the graph on with --index FILE --root DIR"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        index, stored_root, expected = Path(values["index"]), Path(values["root"]), values["index_sha256"]
    except OSError as error:
        raise UsageError(f"cannot read {path} ({error.strerror}); {advice}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is not valid ({type(error).__name__}: {error}); {advice}") from error
    if not index.is_file():
        raise UsageError(f"the index that the run was trained with is not there any more ({index}); {advice}")
    if file_sha256(index) != expected:
        raise UsageError(f"{index} was changed since the run was trained, so its folds may differ; {advice}")
    return index, root or stored_root
