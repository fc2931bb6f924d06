"""`mammo-train`: fit, evaluate, models, check-index. Parses, calls one function, reports; torch only when used."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mammo_runtime import __version__
from mammo_runtime.errors import EXIT_MEANING, ExitCode
from mammo_train.command import guarded as _command
from mammo_train.command import progress as _report
from mammo_train.index.cli import index as index_command

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


def _size(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    found = re.fullmatch(r"(\d+)[xX](\d+)", text)
    if not found:
        raise click.BadParameter("give height x width, like 512x320")
    return int(found[1]), int(found[2])


def _folds(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise click.BadParameter("give fold numbers with commas, like 2,3,4") from error


def _names(_context: click.Context, _parameter: click.Parameter, text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def _options(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> Mapping[str, Any]:
    """Return options of a network; a value is read as JSON (true, 3, 0.5) where it is that, else as text."""
    values: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise click.BadParameter("give NAME=VALUE")
        try:
            values[name] = json.loads(value)
        except ValueError:
            values[name] = value
    return values


def _notes(_context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]) -> Mapping[str, str]:
    notes = dict(text.partition("=")[::2] for text in texts)
    if not all(name and note for name, note in notes.items()):
        raise click.BadParameter("give FOLDER=LICENCE")
    return notes


KEPT = ("architecture", "width", "options", "preset", "modality", "classes", "mode", "encoder_weights", "size",
        "roi_margin")  # fmt: skip
"""Parameters of `fit` that a run fine-tuned for INT8 takes from the one it starts from."""


def _refuse_what_is_kept(context: click.Context) -> None:
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name in KEPT
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    ]
    if given:
        raise click.UsageError(f"--qat keeps network and input of the run it starts from: leave out {', '.join(given)}")


_EXITS = "; ".join(f"{code.value} {text}" for code, text in EXIT_MEANING.items())


@click.group(epilog=f"Exit codes: {_EXITS}.", context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="mammo-train")
def main() -> None:
    """Train breast-mass segmentation and measure it. Images and masks in, weights with their spec out."""


main.add_command(index_command)


@main.command()
@click.option("--index", type=FILE,
              help="CSV with image, mask, patient or group, fold, kind. [required, but with --qat: default that of "
              "--init]")  # fmt: skip
@click.option("--root", type=FOLDER, help="Folder its paths start from. [default: the index file's folder]")
@click.option(
    "--model", "architecture", default="mobilenetv2_resunet", show_default=True, help="See `mammo-train models`."
)
@click.option("--width", help="One of the network's widths, as L, S or tiny. [default: its first]")
@click.option("--option", "options", multiple=True, callback=_options, metavar="NAME=VALUE",
              help="Option of the network, see `mammo-train models --json`. Repeatable.")  # fmt: skip
@click.option("--preset", default="default", show_default=True,
              help="`seed` trains as the network's study did, oddities included; `models --json` lists each "
              "network's.")  # fmt: skip
@click.option("--modality", type=click.Choice(["mammography", "ultrasound", "histopathology"]),
              help="Kind of pictures. [default: the preset's]")  # fmt: skip
@click.option("--classes", callback=_names, metavar="A,B,…",
              help="Names of the classes; of code masks: code 0 is ignored, code k is class k-1, and results are "
                   "numbered from 0. [default: the preset's]")  # fmt: skip
@click.option("--input", "mode", type=click.Choice(["full", "roi"]), default="full", show_default=True,
              help="Whole pictures, or a window round each mass.")  # fmt: skip
@click.option("-o", "--output", "run", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="Folder of this run; the same command continues a stopped one.")  # fmt: skip
@click.option("--encoder-weights", default="none", show_default=True, metavar="FILE|imagenet|none",
              help="Pretrained encoder; `imagenet` downloads torchvision's.")  # fmt: skip
@click.option("--init", "initial", type=FOLDER, help="Start from the weights of this finished run.")
@click.option("--qat", is_flag=False, flag_value="int8", type=click.Choice(["int8", "int8-cpu"]),
              help="Fine-tune the run of --init while it computes as in INT8 (alone: int8, TensorRT's), when that "
              "misses its gate. Network, input, folds and settings are that run's.")  # fmt: skip
@click.option("--size", callback=_size, metavar="HxW", help="The network's grid. [default: the preset's]")
@click.option("--epochs", type=click.IntRange(min=1), help="At most this many.")
@click.option("--minutes", "max_minutes", type=click.FloatRange(min=0, min_open=True),
              help="Stop after the epoch that passes this; the same command with more goes on.")  # fmt: skip
@click.option("--batch", "batch_size", type=click.IntRange(min=1), help="Pictures per step.")
@click.option("--accumulate", type=click.IntRange(min=1), help="Split each step into this many parts, to save memory.")
@click.option("--precision", type=click.Choice(["auto", "fp32", "bf16", "fp16"]), help="Of forward and backward pass.")
@click.option("--loss", help="Name of the loss. [default: the preset's, else the network's]")
@click.option("--seed", type=click.IntRange(min=0), help="Same seed, same weights.")
@click.option("--train-folds", callback=_folds, metavar="N,N,…", help="Folds to learn from. [default: 2,3,4]")
@click.option("--validation-fold", type=int, help="Fold to select on. [default: 1]")
@click.option(
    "--config",
    "settings",
    type=FILE,
    help="JSON with settings of training, as in any RUN/config.json; options win over it.",
)
@click.option("--roi-margin", type=click.FloatRange(min=0), default=0.5, show_default=True,
              help="Window side is (1 + 2·margin) times the box's.")  # fmt: skip
@click.option("--name", help="Name in the spec. [default: the run folder's name]")
@click.option("--data-note", "notes", multiple=True, callback=_notes, metavar="FOLDER=LICENCE",
              help="Licence and citation of a collection, for spec and model card. Repeatable.")  # fmt: skip
@click.option("--allow-leak", is_flag=True, help="Take an index whose split is known to share patients (recorded).")
@_command
def fit(index: Path | None, root: Path | None, run: Path, settings: Path | None, quiet: bool, **given: Any) -> None:
    """Train on the training folds, select on the validation fold, never look at the test fold (0).

    Continues a stopped run. Afterwards threshold and smallest finding are chosen on the validation fold and written
    into RUN/spec.json; RUN/metrics.json, curves.png, cases_validation.png and MODEL_CARD.md are made.
    """
    from mammo_train import recipe

    if given["qat"]:
        _refuse_what_is_kept(click.get_current_context())
    elif index is None:
        raise click.UsageError("Missing option '--index'.")
    choices = recipe.choices_from(given, run.resolve().name)
    config = recipe.config_for(choices, settings, {name: given[name] for name in recipe.SETTINGS})
    index, root = recipe.data_of(index, root, choices)
    lines = recipe.train(index, root, run, choices, config, _report(quiet))
    click.echo("\n".join(lines))


@main.command()
@click.argument("run", type=FOLDER)
@click.option("--fold", required=True, type=int, help="Fold to evaluate; 0 is the test fold.")
@click.option("--index", type=FILE, help="[default: the index the run was trained with]")
@click.option("--root", type=FOLDER, help="[default: the folder the run was trained with]")
@click.option("--json", "as_json", is_flag=True, help="Print the whole result as JSON.")
@_command
def evaluate(run: Path, fold: int, index: Path | None, root: Path | None, as_json: bool, quiet: bool) -> None:
    """Measure a finished RUN on one fold, at original resolution and its frozen operating point.

    Adds or replaces the fold's block in RUN/metrics.json and renews the model card.
    """
    from mammo_train import recipe

    block, lines = recipe.evaluate_run(run, fold, index, root, _report(quiet or as_json))
    click.echo(json.dumps(block, indent=1) if as_json else "\n".join(lines))


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")
@_command
def models(as_json: bool, quiet: bool) -> None:
    """List the networks that can be trained, with the parameters of each width (takes seconds: they are counted).

    Any network of segmentation-models-pytorch can be trained too, as smp:ARCH/ENCODER, like smp:Unet/resnet34.
    """
    from mammo_train.models import listing

    rows = listing.model_rows()
    click.echo(json.dumps(rows, indent=1) if as_json else "\n".join(listing.table_lines(rows, heading=not quiet)))


@main.command()
@click.argument("system", required=False)
@click.option("--list", "listing", is_flag=True, help="Name the systems and stop.")
@click.option("--root", type=FOLDER, help="Data: splits/mammo_full.csv, splits/busi.csv, splits/bcss.csv below it, "
              "each with paths that start from here.")  # fmt: skip
@click.option("--index", type=FILE, help="Index for one system, instead of the one below --root.")
@click.option("-o", "--output", type=click.Path(file_okay=False, path_type=Path),
              help="Folder of the runs and of reproduction.json; the same command goes on.")  # fmt: skip
@click.option("--budget", "budget_min", type=click.FloatRange(min=0, min_open=True),
              help="Minutes of training for each system. [default: the study's epochs]")  # fmt: skip
@click.option("--tiny", is_flag=True, help="Tiny networks on synthetic phantoms: proves the path, measures nothing.")
@click.option("--scale", type=click.FloatRange(0.05, 1), default=1.0, show_default=True,
              help="Factor on each study's grid, for machines that cannot afford it (recorded).")  # fmt: skip
@click.option("--width", help="Width of the network, where it has that one. [default: S, or the only one]")
@click.option("--option", "options", multiple=True, callback=_options, metavar="NAME=VALUE",
              help="Option of the network (recorded). Repeatable.")  # fmt: skip
@click.option("--encoder-weights", type=FILE, help="MobileNetV2 encoder for the systems that start from one.")
@click.option("--set", "settings", type=FILE, help="JSON with fields of TrainConfig over every preset's (recorded).")
@_command
def reproduce(system: str | None, listing: bool, settings: Path | None, quiet: bool, **given: Any) -> None:
    """Train SYSTEM (or `all`) as its study did; evaluate, export and run it; one row of results each.

    OUT/reproduction.json holds reported and measured numbers side by side, each with what it was measured on. A system
    whose data is not at hand gets a row that says so. With --tiny the numbers mean nothing. Exit code 2 when nothing
    was trained for want of data, 3 when some systems failed, 4 when all did.
    """
    if listing:
        from mammo_train.systems import SYSTEMS

        for name, known in SYSTEMS.items():
            click.echo(f"{name:<34} study {known.study:<20} {known.architecture}, preset {known.preset}, {known.mode}")
        return
    if system is None or given["output"] is None:
        raise click.UsageError("give a system (see --list) or `all`, and a folder with -o")
    from mammo_train import presets
    from mammo_train.reproduce import Reproduction, reproduce

    overrides = presets.stored_settings(settings)
    rows = reproduce(system, Reproduction(overrides=overrides, **given), _report(quiet))
    for row in rows:
        numbers = (row["measured"] or {}).get("test", {}).get("metrics", {})
        shown = ", ".join(
            f"{name} {value['value']:.3f}" for name, value in numbers.items() if value["value"] is not None
        )
        click.echo(f"{row['system']}: {row['status']}" + (f": {row['why']}" if row["why"] else f", {shown}"))
    failed = [row for row in rows if row["status"] == "failed"]
    if not failed and all(row["status"] == "not trained" for row in rows):
        sys.exit(ExitCode.USAGE)
    if failed:
        sys.exit(ExitCode.ALL_FAILED if len(failed) == len(rows) else ExitCode.SOME_FAILED)


@main.command("check-index")
@click.argument("index", type=FILE)
@click.option("--root", type=FOLDER, help="Folder its paths start from. [default: the index file's folder]")
@click.option("--near", is_flag=True, help="Also look for re-encoded or resized copies (reads every picture).")
@_command
def check_index(index: Path, root: Path | None, near: bool, quiet: bool) -> None:
    """Check that an index is readable and that no patient and no picture stands in two folds."""
    from mammo_train.grouping import common, counted, disjoint
    from mammo_train.index import check_leaks, read_index

    rows = read_index(index, root or index.parent)
    check_leaks(rows)
    grouped_by = common(row.grouped_by for row in rows)
    if near:
        from mammo_train.index.near import check_near

        check_near(rows)
    for fold in sorted({row.fold for row in rows}) if not quiet else ():
        own = [row for row in rows if row.fold == fold]
        kinds = ", ".join(f"{sum(r.kind == kind for r in own)} {kind}" for kind in sorted({r.kind for r in own}))
        members = counted(len({row.group for row in own}), grouped_by)
        click.echo(f"fold {fold}: {len(own)} pictures of {members} ({kinds})")
    click.echo(f"no leak: {len(rows)} pictures, {disjoint(grouped_by)}")


if __name__ == "__main__":
    main()
