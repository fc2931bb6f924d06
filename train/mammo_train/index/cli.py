"""`mammo-train index COLLECTION ROOT -o index.csv`: one command for each collection; the work is done in `build`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from mammo_runtime.errors import ExitCode
from mammo_train.command import guarded, progress
from mammo_train.index.registry import COLLECTIONS, Collection

_SPLITS = {
    "patient": "patient: five folds, none of which share a patient",
    "official": "official: the published parts",
    "seed": "seed: the study's own, to reproduce it",
}
_OPTIONS: Mapping[str, Callable[[Any], Any]] = {
    "unit": click.option(
        "--unit", type=click.Choice(["image", "lesion"]), default="image", show_default=True,
        help="Whole pictures with all their lesions, or one row for each lesion crop."),
    "abnormality": click.option(
        "--abnormality", type=click.Choice(["mass", "calcification", "all"]), default="mass", show_default=True,
        help="Which case tables to use."),
    "rois": click.option(
        "--roi", "rois", multiple=True, default=("Mass",), show_default=True, metavar="NAME",
        help='Outlines to fill, as "Mass" or "Espiculated Region". Repeatable.'),
    "pictures": click.option(
        "--pictures", type=click.Choice(["auto", "dicom", "tiff"]), default="auto", show_default=True,
        help="Which copy to index; auto: DICOM where it is there."),
    "patient_pattern": click.option(
        "--patient", "patient_pattern", metavar="REGEX",
        help="Finds the patient in a file name, as its first group: '^(p[0-9]+)_'."),
    "modality": click.option(
        "--modality", type=click.Choice(["mammography", "ultrasound", "histopathology"]), default="mammography",
        show_default=True, help="Kind of pictures."),
}  # fmt: skip


@click.group("index")
def index() -> None:
    """Turn a data set as it lies on disk into an index CSV for training.

    Reads every picture once, writes masks beside the index where the collection has none that can be used as they are,
    and shares the pictures among five folds so that no patient (or group of near-duplicates) stands in two: fold 0 for
    testing, 1 for validation, 2 to 4 for training. Nothing is downloaded; where a folder does not hold the collection,
    the message says where to get it and under which licence.
    """


def _command(name: str, collection: Collection) -> click.Command:
    """Return the command of one collection."""

    @guarded
    def run(root: Path, output: Path, quiet: bool, **given: Any) -> None:
        from mammo_train.index.advice import told
        from mammo_train.index.build import build_index
        from mammo_train.index.entry import Choice

        say = progress(quiet)
        choice = Choice(**{"modality": collection.modality, **given})
        outcome = build_index(name, root, output, choice, say)
        click.echo("\n".join(told(output, root, outcome, choice, own=name == "folder")))
        if outcome.failures:
            click.echo(f"{len(outcome.failures)} pictures left out:", err=True)
            for picture, reason in outcome.failures:
                click.echo(f"  {picture}: {reason}", err=True)
            sys.exit(ExitCode.SOME_FAILED)

    decorators = [
        click.argument("root", type=click.Path(exists=True, file_okay=False, path_type=Path)),
        click.option("-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path),
                     help="Index CSV; masks go to a folder beside it."),
        click.option("--split", type=click.Choice(collection.splits), default="patient", show_default=True,
                     help="; ".join(_SPLITS[name] for name in collection.splits) + "."),
        click.option("--seed", type=int, default=0, show_default=True, help="Of the folds."),
        *(_OPTIONS[option] for option in collection.options),
    ]  # fmt: skip
    for decorate in reversed(decorators):
        run = decorate(run)
    return click.command(name, short_help=collection.summary, help=f"{collection.summary}\n\n{collection.details}")(run)


for _name, _collection in COLLECTIONS.items():
    index.add_command(_command(_name, _collection))
