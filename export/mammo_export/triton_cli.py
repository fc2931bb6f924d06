"""`mammo-export triton`: a bundle as a model repository for NVIDIA Triton."""

from __future__ import annotations

import json
from pathlib import Path

import click

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command("triton")
@click.argument("bundle", type=FOLDER)
@click.option("--output", "-o", required=True, type=click.Path(file_okay=False, path_type=Path),
              help="The model repository: a new folder, or one with other models.")  # fmt: skip
@click.option("--plan", "plans", multiple=True, type=FILE,
              help="An engine of this bundle (mammo-export engine); may be given several times.")  # fmt: skip
@click.option("--version", type=click.IntRange(min=1), default=1, show_default=True, help="Number of this version.")
@click.option("--max-batch", type=click.IntRange(1, 1024), help="Inputs at most in one call [default: the runtime's].")
@click.option("--queue-delay", type=click.IntRange(min=0), default=2000, show_default=True, metavar="MICROSECONDS",
              help="How long a request waits for others to be computed with.")  # fmt: skip
@click.option("--name", default="", help="In place of the bundle's name, in the names of the models.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--verbose", "-v", is_flag=True, help="A traceback with an error.")
def triton_command(
    bundle: Path,
    output: Path,
    plans: tuple[Path, ...],
    version: int,
    max_batch: int | None,
    queue_delay: int,
    name: str,
    as_json: bool,
    verbose: bool,
) -> None:
    """Write BUNDLE as a model repository for NVIDIA Triton: every graph a model of its own, a prompted model two.

    Nothing is overwritten. A README beside the models says what a client does before, between and after the calls.
    """
    from mammo_export.triton import Wish, write_repository

    wish = Wish(version, max_batch or Wish().max_batch, queue_delay, name)
    written = write_repository(bundle, output, plans, wish)
    if as_json:
        click.echo(json.dumps({"repository": str(output), **written}, sort_keys=True))
        return
    checked = "read back with tritonclient" if written["validated"] else "not read back: tritonclient is not installed"
    click.echo(f"wrote {output}: {', '.join(written['models'])} (configurations {checked})", err=True)
    for key, why in written["left_out"].items():
        click.echo(f"left out {key}: {why}", err=True)
