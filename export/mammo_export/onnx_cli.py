"""`mammo-export onnx`: one ONNX file for other software, with the ending and the freedom it wants."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

ENDINGS = ("probability", "logits", "arg-max")


@click.command("onnx")
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", "-o", required=True, type=click.Path(path_type=Path), help="The ONNX file to write.")
@click.option("--ending", type=click.Choice(ENDINGS), default=ENDINGS[0], show_default=True, help="What it answers.")
@click.option("--any-size", is_flag=True, help="Height and width stay open, where the network allows; needs the run.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on standard output.")
@click.option("--verbose", "-v", is_flag=True, help="A traceback with an error.")
def onnx_command(source: Path, output: Path, ending: str, any_size: bool, as_json: bool, verbose: bool) -> None:
    """Write the model of SOURCE (a run or a bundle) as one ONNX file for other software.

    No bundle, no gates: mammo-infer runs bundles.
    """
    from mammo_export.output_forms import Output, graph_from_source
    from mammo_runtime.atomic import write_bytes

    graph = graph_from_source(source, Output(ending), any_size)
    write_bytes(output, graph.SerializeToString())
    described = {
        "path": str(output),
        "ending": ending,
        "inputs": {v.name: _sides(v) for v in graph.graph.input},
        "outputs": {v.name: _sides(v) for v in graph.graph.output},
    }
    if as_json:
        click.echo(json.dumps(described, sort_keys=True))
    else:
        click.echo(f"wrote {output}: {described['inputs']} → {described['outputs']}", err=True)


def _sides(value: Any) -> list[str | int]:
    shape = value.type.tensor_type.shape.dim
    return [d.dim_param or d.dim_value for d in shape]
