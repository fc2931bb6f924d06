"""`mammo-export engine`: a bundle's graph built for the GPU here. Needs the runtime and TensorRT; no torch, no onnx."""

from __future__ import annotations

import json
from pathlib import Path

import click

FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
LIBRARIES = ("tensorrt", "tensorrt_rtx")
DEFAULT_TARGET = "engines"


def _batch(context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, int, int] | None:
    """Return min, opt and max of "min,opt,max"."""
    if text is None:
        return None
    parts = text.split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise click.BadParameter("three whole numbers with commas are needed: min,opt,max")
    least, best, most = (int(part) for part in parts)
    return least, best, most


@click.command("engine")
@click.argument("bundle", type=FOLDER)
@click.option("--precision", required=True, type=click.Choice(["fp32", "fp16", "int8"]), help="Which graph to build.")
@click.option(
    "--output", "-o", type=click.Path(path_type=Path), help="Folder of the engines [default: BUNDLE/engines]."
)
@click.option("--trt", type=click.Choice(LIBRARIES), default=LIBRARIES[0], show_default=True, help="What builds it.")
@click.option("--workspace", type=click.IntRange(min=1), default=1024, show_default=True, metavar="MB",
              help="Most GPU memory that one layer may use for itself; lower it on small boards.")  # fmt: skip
@click.option("--level", type=click.IntRange(0, 5), default=3, show_default=True, help="0 builds fastest, 5 best.")
@click.option("--timing-cache", type=FILE, help="Measured kernel times, kept in this file for the next build.")
@click.option("--batch", callback=_batch, metavar="MIN,OPT,MAX", help="Images at once [default: 1,1,4].")
@click.option("--version-compatible", is_flag=True, help="Also for later releases of this major version: larger, "
              "slower, and the engine file holds code that is run.")  # fmt: skip
@click.option("--hardware-compatible", is_flag=True, help="Also for every other GPU from Ampere on: slower.")
@click.option("--compute-capability", metavar="SM", help="Build ahead of time for this GPU, e.g. sm_86 (tensorrt_rtx).")
@click.option("--images", type=click.Path(exists=True, path_type=Path), help="Pictures to compare the answers on.")
@click.option("--boxes", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Their boxes (CSV).")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True, help="At most so many pictures.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--quiet", "-q", is_flag=True, help="No progress lines.")
@click.option("--verbose", "-v", is_flag=True, help="A traceback with an error.")
def engine_command(
    bundle: Path,
    precision: str,
    output: Path | None,
    trt: str,
    workspace: int,
    level: int,
    timing_cache: Path | None,
    batch: tuple[int, int, int] | None,
    version_compatible: bool,
    hardware_compatible: bool,
    compute_capability: str | None,
    images: Path | None,
    boxes: Path | None,
    limit: int,
    as_json: bool,
    quiet: bool,
    verbose: bool,
) -> None:
    """Build an engine of BUNDLE on the device it shall run on, prove it, and write it with a JSON file that says how.

    Its layers are read back (refused unless 90 % compute in the precision), its answers compared with those stored in
    the bundle and, with --images, with ONNX Runtime's. An engine that fails is not written.
    """
    from mammo_runtime.backends.engine_files import read_engine
    from mammo_runtime.backends.engine_settings import EngineSettings
    from mammo_runtime.engines import engines_from_bundle
    from mammo_runtime.ladder import cases_from_files
    from mammo_runtime.manifest import read_bundle
    from mammo_runtime.spec import Precision

    settings = EngineSettings(
        workspace,
        level,
        timing_cache,
        batch or EngineSettings().batch,
        version_compatible,
        hardware_compatible,
        compute_capability,
    )
    target = output or bundle / DEFAULT_TARGET
    if boxes is not None and images is None:
        raise click.UsageError("--boxes goes with --images")
    spec = read_bundle(bundle).spec
    cases = () if images is None else cases_from_files((images,), boxes, spec, limit, target)

    def report(line: str) -> None:
        if not quiet:
            click.echo(line, err=True)

    paths = engines_from_bundle(bundle, Precision(precision), target, trt, settings, cases, report)
    for path in paths:
        report(f"wrote {path}")
    if as_json:
        records = [read_engine(path)[1].to_dict() for path in paths]
        click.echo(json.dumps({"engines": [str(path) for path in paths], "records": records}, sort_keys=True))
