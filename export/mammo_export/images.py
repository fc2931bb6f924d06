"""Which real images a graph is proved, judged and calibrated on: the run's own folds, unless told otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mammo_runtime.bundle import MANIFEST
from mammo_runtime.errors import UsageError
from mammo_runtime.spec import ModelSpec
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


@dataclass(frozen=True)
class Pictures:
    """The rows of an index by what the exporter may do with them."""

    proof: tuple[IndexRow, ...]
    """Of the validation fold: parity is proved on them."""
    training: tuple[IndexRow, ...]
    """Of training folds, and of the kinds the model was trained on: INT8 is calibrated on them."""
    protected: tuple[IndexRow, ...]
    """All others: never calibrated on."""

    def judged(self, spec: ModelSpec) -> tuple[IndexRow, ...]:
        """Return the proof rows of the kinds that the model was trained on: their masks mean what it looks for."""
        kinds = trained_kinds(spec)
        return tuple(row for row in self.proof if not kinds or row.kind in kinds)


def chosen_pictures(source: Path, spec: ModelSpec, choice: ImageChoice) -> Pictures:
    """Return the rows for an export. Raises UsageError when there is no index or no row of the fold."""
    rows = _all_rows(source, choice)
    known = spec.training.get("train_folds")
    folds = set(known) if known else {row.fold for row in rows} - {choice.fold, spec.training.get("test_fold", 0)}
    folds -= {choice.fold}
    kinds = trained_kinds(spec)
    training = [row for row in rows if row.fold in folds and (not kinds or row.kind in kinds)]
    protected = [row for row in rows if row.fold not in folds]
    return Pictures(_of_fold(rows, choice), tuple(training), tuple(protected))


def chosen_rows(run: Path, choice: ImageChoice) -> tuple[IndexRow, ...]:
    """Return the index rows to prove a graph on. Raises UsageError when there is no index or no row of the fold."""
    return _of_fold(_all_rows(run, choice), choice)


def trained_kinds(spec: ModelSpec) -> frozenset[str]:
    """Return the kinds of pictures that a model was trained on; none where its spec does not say."""
    return frozenset(spec.training.get("train_images_by_kind", ()))


def _all_rows(source: Path, choice: ImageChoice) -> tuple[IndexRow, ...]:
    index, root = choice.index, choice.root
    if index is None and (source / MANIFEST).is_file():
        raise UsageError(f"{source} is a bundle, which does not know where its images are: give --index and --root")
    if index is None:
        index, stored_root = read_data_json(source)
        root = root or stored_root
    return read_index(index, root or index.parent)


def _of_fold(rows: Sequence[IndexRow], choice: ImageChoice) -> tuple[IndexRow, ...]:
    own = [row for row in rows if row.fold == choice.fold]
    if not own:
        raise UsageError(f"the index holds no image of fold {choice.fold}; choose another --fold")
    count = len(own) if choice.limit is None else min(choice.limit, len(own))
    return tuple(own[k * len(own) // count] for k in range(count))
