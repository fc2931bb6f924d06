"""What a bundle tells people, and what a site checks it with: report, model card, acceptance inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from mammo_export.bundle import MODEL_CARD, Extras, decoder_name, file_name, files_from_run, toolchain
from mammo_export.card import HEADING, precision_section
from mammo_export.examples import examples
from mammo_export.files import opened
from mammo_export.outcome import Outcome
from mammo_export.report import write_report
from mammo_export.source import Source
from mammo_export.speed import Speed
from mammo_export.workshop import Workshop
from mammo_runtime.acceptance_make import Graph, make_acceptance
from mammo_runtime.spec import ModelSpec

REPORT = "report.html"


def extras_of(
    source: Source, outcomes: Sequence[Outcome], shop: Workshop | None, speed: Speed | None, pictures: bool
) -> Extras:
    """Return what a bundle holds beside its graphs and the files of its run; `pictures`: worst cases in the report."""
    shipped = {one.key: one for one in outcomes if one.ships}
    acceptance = _acceptance(source.spec, shipped)
    manifest: dict[str, Any] = {
        "not_shipped": {one.key: one.entry() for one in outcomes if not one.ships},
        "acceptance": sorted(acceptance),
        "calibration": None if shop is None else shop.calibration.manifest(),
        "timing": None if speed is None else speed.to_dict(),
    }
    entries = {key: _entry(one) for key, one in shipped.items()}
    told = {"spec": source.spec.to_dict(), "precisions": entries, "toolchain": toolchain(), **manifest}
    cases = examples(shop, outcomes) if pictures else []
    files = {**acceptance, REPORT: write_report({**told, "cases": cases}).encode()}
    card = files_from_run(source.folder, source.spec).get(MODEL_CARD)
    if card is not None:
        # Of a bundle that is made anew, the section of before goes.
        kept = card.decode().split(f"\n{HEADING}\n")[0].rstrip()
        files[MODEL_CARD] = f"{kept}\n\n{precision_section(told).strip()}\n".encode()
    return Extras(manifest, files)


def _entry(outcome: Outcome) -> Mapping[str, Any]:
    """Return the entry of bundle.json, with sizes for the report."""
    names = [file_name(outcome.key), decoder_name(outcome.key)]
    sizes = {name: graph.ByteSize() for name, graph in zip(names, outcome.graphs, strict=False)}
    return {"file": names[0], **outcome.entry(), "bytes": sum(sizes.values())}


def _acceptance(spec: ModelSpec, shipped: Mapping[str, Outcome]) -> dict[str, bytes]:
    """Return phantoms with what every graph says of them; for "int8" speaks the graph that accuracy was judged on."""
    with ExitStack() as stack:
        graphs = {
            key: Graph(*(stack.enter_context(opened(graph)) for graph in (one.judged if key == "int8" else one.graphs)))
            for key, one in shipped.items()
        }
        return make_acceptance(spec, graphs)
