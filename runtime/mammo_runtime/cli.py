"""`mammo-infer`: a thin skin over `pipeline.run_folder`. Heavy imports happen inside the commands."""

from __future__ import annotations

import json
import signal
import sys
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mammo_runtime import __version__
from mammo_runtime.errors import EXIT_MEANING, ExitCode, MammoError, UsageError
from mammo_runtime.terminal import Progress, chosen_line, closing_lines, printable

if TYPE_CHECKING:
    from mammo_runtime.plan import RunSettings

NOTICE = "mammo-edge: research use only, not a medical device"
PICTURES = ("mask", "overlay", "probability")


def _paths(context: click.Context, parameter: click.Parameter, text: str | tuple[str, ...] | None) -> Any:
    """Return paths; an empty one (an unset shell variable) would silently be the current folder."""
    if text == "" or (isinstance(text, tuple) and "" in text):
        raise click.BadParameter("an empty path; is a variable unset?")
    return tuple(map(Path, text)) if isinstance(text, tuple) else text and Path(text)


def _saved(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = sorted(set(names) - set(PICTURES) - {"none"})
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(PICTURES)}, or none")
    return tuple(name for name in PICTURES if name in names)


def _number(context: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse nan and inf, which pass click's range check: a threshold of nan would find nothing in any picture."""
    if value is not None and not isfinite(value):
        raise click.BadParameter(f"{value} is not a number")
    return value


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.argument("inputs", nargs=-1, type=click.Path(), callback=_paths, metavar="INPUT...")
@click.option("-o", "--output", type=click.Path(file_okay=False), callback=_paths, help="Folder for the results.")
@click.option(
    "--model",
    help="Bundled model's name, or path of a bundle or ONNX file. [default: mass-full; mass-roi with --boxes]",
)
@click.option("--list-models", is_flag=True, help="List the bundled models and stop.")
@click.option(
    "--boxes",
    type=click.Path(path_type=Path, dir_okay=False),
    help="CSV image,x,y,width,height (original pixels; "
    "image relative to the input folder): segment the mass inside each box. Prompted models need it, too.",
)
@click.option("--backend", type=click.Choice(["cpu"]), default="cpu", show_default=True, help="What runs the model.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "fp16", "int8"]),
    default="auto",
    show_default=True,
    help="Which graph of the bundle; auto: the fastest that passed every gate and was timed on this kind of "
    "processor, else fp32.",
)
@click.option("--threads", type=click.IntRange(0), default=0, help="Threads of the model. [default: one for each core]")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    callback=_number,
    help="Probability from which a pixel counts; not for class maps and classifiers. [default: the model's own]",
)
@click.option(
    "--min-area",
    type=click.FloatRange(0),
    callback=_number,
    help="Drop findings of fewer original pixels. [default: the model's own]",
)
@click.option(
    "--pixel-spacing",
    type=click.FloatRange(0.001, 5),
    callback=_number,
    help="Millimetres between pixels, for files that do not say.",
)
@click.option(
    "--voi", type=click.IntRange(0), default=0, show_default=True, help="Which VOI window or LUT of a DICOM file."
)
@click.option("--allow-for-processing", is_flag=True, help="Also take raw (For Processing) DICOM images.")
@click.option(
    "--max-pixels",
    type=click.IntRange(1),
    default=50_000_000,
    show_default=True,
    help="Refuse larger images before they are decoded.",
)
@click.option("--recursive/--no-recursive", default=True, show_default=True, help="Search sub-folders.")
@click.option(
    "--save",
    default="mask,overlay",
    show_default=True,
    callback=_saved,
    help="Pictures to write: mask,overlay,probability or none.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, write nothing.")
@click.option("--limit", type=click.IntRange(1), help="Only the first N inputs.")
@click.option("--fail-fast", is_flag=True, help="Stop at the first failed input.")
@click.option("--deidentify", is_flag=True, help="Name outputs by hashes; no input path in any result.")
@click.option("--overwrite", is_flag=True, help="Do everything again, whatever OUT holds.")
@click.option("--json", "as_json", is_flag=True, help="Print the run's record as JSON on standard output.")
@click.option("-q", "--quiet", is_flag=True, help="Print nothing but what stops the run.")
@click.option("-v", "--verbose", is_flag=True, help="Print each input, and tracebacks of internal errors.")
@click.version_option(__version__, prog_name="mammo-infer")
def infer(**options: Any) -> None:
    """Segment breast masses in images and folders (PNG, JPEG, TIFF, BMP, PNM, DICOM), or classify them or their pixels.

    The model's task decides what is said of an image. Writes masks, overlays, results.csv, results.jsonl, report.html
    and run.json into OUT. A run that was interrupted goes on where it stopped. Research use only, not a medical device.

    Exit codes: 0 all done, 1 internal error, 2 wrong call or nothing to do, 3 some inputs failed, 4 all failed,
    5 model refused, 130 interrupted.
    """
    if options["list_models"]:
        _list_models(options["as_json"])
        return
    if not options["inputs"]:
        raise UsageError("give at least one image or folder, as in: mammo-infer FOLDER -o OUT")
    if options["output"] is None and not options["dry_run"]:
        raise UsageError("give a folder for the results with -o OUT")
    settings = _settings(options)
    if options["dry_run"]:
        _dry_run(settings, options["as_json"])
        return
    quiet = options["quiet"] or options["as_json"]
    if not quiet:
        click.echo(NOTICE)
    from mammo_runtime.pipeline import run_folder

    summary = run_folder(settings, Progress(quiet, options["verbose"]))
    if options["as_json"]:
        click.echo(json.dumps(summary))
    elif not options["quiet"]:
        closing_lines(summary, settings.output)
    sys.exit(summary["exit_code"])


def _settings(options: dict[str, Any]) -> RunSettings:
    from mammo_runtime.plan import RunSettings
    from mammo_runtime.readers import ReadOptions
    from mammo_runtime.result import OperatingPoint
    from mammo_runtime.spec import Precision

    return RunSettings(
        inputs=options["inputs"],
        output=options["output"] or Path("dry-run-writes-nothing"),
        model=options["model"],
        backend=options["backend"],
        precision=None if options["precision"] == "auto" else Precision(options["precision"]),
        boxes=options["boxes"],
        point=OperatingPoint(options["threshold"], options["min_area"]),
        reading=ReadOptions(
            pixel_spacing_mm=options["pixel_spacing"],
            voi_index=options["voi"],
            allow_for_processing=options["allow_for_processing"],
            max_pixels=options["max_pixels"],
        ),
        **{k: options[k] for k in ("recursive", "save", "limit", "fail_fast", "deidentify", "overwrite", "threads")},
    )


def _list_models(as_json: bool) -> None:
    from mammo_runtime.bundle import list_bundles

    models = [bundle.to_dict() for bundle in list_bundles()]
    if as_json:
        click.echo(json.dumps(models, indent=1))
        return
    if not models:
        click.echo("no models are bundled here; give one with --model PATH", err=True)
    for model in models:
        size = model["input"]
        click.echo(
            f"{model['name']:<12} {model['task']:<14} {size['mode']:<5} {size['height']}x{size['width']}  "
            f"{','.join(model['precisions'])}  {model['architecture']}"
        )


def _dry_run(settings: RunSettings, as_json: bool) -> None:
    from mammo_runtime.plan import open_model, plan_run

    plan, model = plan_run(settings), open_model(settings)
    model.close()
    looked = [f for f in plan.files if not f.skip]
    if as_json:
        click.echo(json.dumps({
            "model": model.spec.name, "model_file": model.file, "precision": model.spec.precision.value,
            "why": model.why, "backend": model.session.backend, "inputs": [str(f.path) for f in looked],
            "skipped": {str(f.path): f.skip for f in plan.files if f.skip}, "boxes_without_image": plan.unmatched,
            "notes": [*plan.notes, *model.notes],
        }))  # fmt: skip
        return
    for file in plan.files:
        click.echo(printable(f"{file.path}" + (f"  (skipped: {file.skip})" if file.skip else "")))
    for name in plan.unmatched:
        click.echo(printable(f"{name}  (named in the boxes file, but not among the inputs)"))
    click.echo(
        f"would look at {len(looked)} of {len(plan.files)} files with {printable(model.spec.name)}, wrote nothing"
    )
    click.echo(printable(chosen_line(model.file, model.why)))


def main() -> None:
    """Run `mammo-infer`; every error ends in one line and its exit code."""
    # Service managers stop a program with SIGTERM: end as on Ctrl-C, resumable.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verbose = any(argument in ("-v", "--verbose") for argument in sys.argv[1:])
    try:
        infer.main(prog_name="mammo-infer", standalone_mode=False)
    except MammoError as error:
        _fail(str(error), error.exit_code)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(ExitCode.USAGE)
    except (KeyboardInterrupt, click.Abort):
        _fail(EXIT_MEANING[ExitCode.INTERRUPTED], ExitCode.INTERRUPTED)
    except Exception as error:
        if verbose:
            raise
        _fail(f"internal error ({type(error).__name__}: {error}); run again with -v for details", ExitCode.INTERNAL)


def _fail(message: str, code: ExitCode) -> None:
    if "--json" in sys.argv[1:]:
        click.echo(json.dumps({"error": message, "exit_code": int(code)}))
    click.echo(f"mammo-infer: {printable(message)}", err=True)
    sys.exit(int(code))


if __name__ == "__main__":
    main()
