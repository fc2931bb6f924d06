"""`mammo-export`: a run in, a proven bundle out. A thin skin: parse, call one function, report."""

from __future__ import annotations

import json
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from mammo_export.engine_cli import engine_command
from mammo_export.onnx_cli import onnx_command
from mammo_export.signature_cli import keygen_command, sign_command, verify_signature_command
from mammo_export.triton_cli import triton_command
from mammo_runtime import __version__
from mammo_runtime.errors import EXIT_MEANING, ExitCode, MammoError

DEFAULT_COMMAND = "bundle"
PRECISIONS = ("fp32", "fp16", "int8")
KEYS = ("fp16", "int8", "int8-cpu")
"""What may be shipped in spite of a missed gate; "int8" here means both of its forms."""
Function = TypeVar("Function", bound=Callable[..., Any])
FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


class ExportGroup(click.Group):
    """A group in which a call without a command's name means `DEFAULT_COMMAND`: `mammo-export RUN -o BUNDLE`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put the default command's name in front unless a command or an option of the group comes first."""
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0] not in self.commands and args[0] not in own:
            args = [DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)

    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """Return both forms of a call, the usual one first."""
        return ["RUN -o BUNDLE [OPTIONS]  |  COMMAND [ARGS]..."]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the default command's options, then the commands."""
        self.commands[DEFAULT_COMMAND].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)


def _shared(function: Function) -> Function:
    """Add the options that every command has."""
    for option in reversed(
        (
            click.option("--index", type=FILE, help="Index CSV of the images to prove on [default: the run's own]."),
            click.option("--root", type=FOLDER, help="Folder that the index's paths are relative to."),
            click.option("--fold", type=int, default=1, show_default=True, help="Fold of the index to prove on."),
            click.option("--limit", type=click.IntRange(min=1), help="At most so many images, spread over the fold."),
            click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output."),
            click.option("--quiet", "-q", is_flag=True, help="No progress lines."),
            click.option("--verbose", "-v", is_flag=True, help="A traceback with an error."),
        )
    ):
        function = option(function)
    return function


@click.group(
    cls=ExportGroup,
    no_args_is_help=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: " + " · ".join(f"{int(code)} {meaning}" for code, meaning in EXIT_MEANING.items()) + ".",
)
@click.version_option(__version__, prog_name="mammo-export")
def cli() -> None:
    """Turn a finished run of mammo-train into a bundle for a site, after proving it against the trained network.

    A folder named like a command is given as ./NAME.
    """


def _keys(context: click.Context, parameter: click.Parameter, text: str) -> tuple[str, ...]:
    """Return names of precisions given with commas; an unknown one is a usage error."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    known = PRECISIONS if parameter.name == "precisions" else KEYS
    unknown = [name for name in names if name not in known]
    if unknown:
        raise click.BadParameter(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    return names


@cli.command(DEFAULT_COMMAND)
@click.argument("source", type=FOLDER, metavar="RUN")
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The bundle folder to write.")
@click.option("--overwrite", is_flag=True, help="Replace a bundle that is there already.")
@click.option(
    "--precision",
    "precisions",
    default=",".join(PRECISIONS),
    show_default=True,
    callback=_keys,
    help="What to make besides FP32, which every other one is made from and judged by.",
)
@click.option(
    "--calibrate",
    type=click.IntRange(min=1),
    default=256,
    show_default=True,
    help="Inputs of training folds, at most, that INT8 is calibrated on.",
)
@click.option("--no-ranking", is_flag=True, help="Leave out of the report what each layer costs alone: much faster.")
@click.option(
    "--no-pictures",
    is_flag=True,
    help="No worst cases in report.html: where the validation pictures may not be passed on with the bundle.",
)
@click.option(
    "--allow-miss",
    default="",
    callback=_keys,
    help="Ship these (fp16, int8, int8-cpu) in spite of a missed gate; recorded with --waived-by.",
)
@click.option("--waived-by", default="", help="Who decided to ship what missed a gate.")
@_shared
def bundle_command(
    source: Path,
    output: Path,
    overwrite: bool,
    precisions: tuple[str, ...],
    calibrate: int,
    no_ranking: bool,
    no_pictures: bool,
    allow_miss: tuple[str, ...],
    waived_by: str,
    index: Path | None,
    root: Path | None,
    fold: int,
    limit: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Export RUN and write the bundle: mammo-export RUN -o BUNDLE (the word "bundle" may be left out).

    RUN may also be a bundle with an FP32 model: with --index and --root its other precisions are made anew.
    """
    from mammo_export.images import ImageChoice, chosen_pictures
    from mammo_export.source import open_source
    from mammo_export.steps import Wish, bundle_from, require_all

    wish = Wish(precisions, calibrate, not no_ranking, allow_miss, waived_by, not no_pictures, overwrite)
    opened = open_source(source)
    pictures = chosen_pictures(source, opened.spec, ImageChoice(index, root, fold, limit))
    bundle = bundle_from(opened, pictures, output, wish, _reporter(quiet))
    if as_json:
        told = {"precisions": dict(bundle.precisions), "not_shipped": dict(bundle.not_shipped)}
        click.echo(json.dumps({**bundle.to_dict(), "bundle": str(output), **told}, sort_keys=True))
    require_all(bundle)


@cli.command("verify")
@click.argument("bundle", type=FOLDER)
@click.option("--run", type=FOLDER, help="The run it was exported from: parity is measured again.")
@_shared
def verify_command(
    bundle: Path,
    run: Path | None,
    index: Path | None,
    root: Path | None,
    fold: int,
    limit: int | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Check BUNDLE on this machine: hashes, specs, form, its acceptance inputs; with --run also parity, with --index
    also every precision against FP32 on real images. Needs neither torch nor onnx without these two.
    """
    from mammo_export.verify import verify

    found = verify(bundle, run, index, root, fold, limit, _reporter(quiet))
    if as_json:
        click.echo(json.dumps({"bundle": str(bundle), "verdict": "passed", **found}, sort_keys=True))


for command in (
    engine_command,
    onnx_command,
    triton_command,
    keygen_command,
    sign_command,
    verify_signature_command,
):
    cli.add_command(command)


def _reporter(quiet: bool) -> Callable[[str], None]:
    """Return where progress lines go: standard error, so that --json stays clean."""
    return (lambda line: None) if quiet else (lambda line: click.echo(line, err=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code; every error becomes one line on standard error."""
    given = sys.argv[1:] if arguments is None else list(arguments)
    verbose = bool({"-v", "--verbose"} & set(given))
    try:
        return int(cli.main(given, prog_name="mammo-export", standalone_mode=False) or ExitCode.DONE)
    except click.ClickException as error:
        return _failed(f"{error.format_message()} (see mammo-export --help)", ExitCode.USAGE)
    except MammoError as error:
        if verbose:
            traceback.print_exc()
        return _failed(str(error), error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        return _failed(EXIT_MEANING[ExitCode.INTERRUPTED], ExitCode.INTERRUPTED)
    except Exception as error:
        if verbose:
            traceback.print_exc()
        advice = "" if verbose else "; run it again with -v for the traceback"
        return _failed(f"internal error: {type(error).__name__}: {error}{advice}", ExitCode.INTERNAL)


def _failed(message: str, code: ExitCode) -> int:
    click.echo("mammo-export: " + " ".join(message.split()), err=True)
    return int(code)


if __name__ == "__main__":
    sys.exit(main())
