"""Which real images a graph is proved on: the run's own validation images, unless told otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from mammo_runtime.errors import UsageError
from mammo_train.index import IndexRow, read_index
from mammo_train.run_data import read_data_json


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
    index, root = choice.index, choice.root
    if index is None:
        index, stored_root = read_data_json(run)
        root = root or stored_root
    rows = [row for row in read_index(index, root or index.parent) if row.fold == choice.fold]
    if not rows:
        raise UsageError(f"{index} holds no image of fold {choice.fold}; choose another --fold")
    count = len(rows) if choice.limit is None else min(choice.limit, len(rows))
    return tuple(rows[k * len(rows) // count] for k in range(count))
