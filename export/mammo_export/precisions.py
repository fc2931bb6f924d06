"""The lower precisions: each made from the FP32 model, judged against it, and reverted in part until it passes."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import onnx

from mammo_export.accuracy import advice, batch_invariance, misses, preference, repeats
from mammo_export.activation import with_spec
from mammo_export.difference import Difference
from mammo_export.element_types import computed_in
from mammo_export.files import opened
from mammo_export.form import check_form, form_of
from mammo_export.int8 import candidates
from mammo_export.islands import find_islands, scan_not_finite
from mammo_export.judged_as import judged_as
from mammo_export.outcome import BACKENDS, Outcome
from mammo_export.qdq_lint import lint
from mammo_export.quantize import Form, Group, groups, kept_float
from mammo_export.sensitivity import Mix, find_mix, worth_by_share
from mammo_export.to_fp16 import to_fp16
from mammo_export.workload import multiply_adds
from mammo_export.workshop import Graphs, Workshop
from mammo_runtime.errors import GateMissed
from mammo_runtime.spec import Precision, Task

Make = Callable[[frozenset[str]], onnx.ModelProto]
ON_HALF_TWIN = (
    "the same graph with every half-precision tensor rounded on purpose: ONNX Runtime's CPU computes most of FP16 in "
    "FP32 and would hide overflow and rounding"
)
ON_TWIN = (
    "the same graph with FP32 scales, Q/DQ as float operators and every half-precision tensor rounded on purpose: ONNX "
    "Runtime's CPU computes FP16 QuantizeLinear wrongly (microsoft/onnxruntime issue 22741), and its own INT8 kernels "
    "saturate without VNNI"
)
CHOSEN = (
    "; calibrator, equalisation and groups left in float were chosen on the same pictures, so the difference is "
    "somewhat too good"
)
NO_INT8 = (
    "INT8 is not made for prompted models: layer norms, attention and an unbounded embedding lose too much in eight "
    "bits; FP16 serves them"
)


def make_fp16(shop: Workshop) -> Outcome:
    """Return the FP16 graphs: cast, with the islands that measurement asks for, and more where accuracy does."""
    shipped, spec = shop.source.files.shipped, shop.source.spec_of(Precision.FP16)
    islands = [find_islands(graph, shop.inputs(number)) for number, graph in enumerate(shipped)]
    kept = [frozenset(island.node for island in found) for found in islands]

    def cast(more: Collection[str] = ()) -> Graphs:
        casts = (to_fp16(graph, keep | set(more)) for graph, keep in zip(shipped, kept, strict=True))
        return tuple(with_spec(graph, spec) for graph in casts)

    made: dict[str, Any] = {
        "islands": [asdict(island) for found in islands for island in found],
        "judged_on": ON_HALF_TWIN,
    }
    graphs = cast()
    difference = shop.judge(_as_judged("fp16", graphs))
    if len(shipped) == 1 and misses("fp16", difference, shop.source.spec):
        parts = groups(shipped[0])
        mix = _mix(
            shop,
            "fp16",
            parts,
            shipped[0],
            lambda names: judged_as("fp16", cast(_nodes(parts, names))[0]),
            always=False,
        )
        graphs, difference = cast(_nodes(parts, mix.reverted)), mix.difference
        made |= _told(mix)
    return _judged(shop, "fp16", graphs, _as_judged("fp16", graphs), difference, made)


def make_int8(shop: Workshop, form: Form, rank: bool = True) -> Outcome:
    """Return one INT8 form: the best candidate by Dice, with the worst groups in float where that does not pass.

    `rank`: measure every group's effect even where nothing has to go back, for the report.
    """
    key = form.value
    if shop.source.spec.task is Task.PROMPTED:
        return Outcome(key, (), (), None, {}, misses=(NO_INT8,), offered=False)
    tried = candidates(shop, form)
    best = max(tried, key=lambda one: preference(one.difference))
    made: dict[str, Any] = {
        "calibrator": best.calibrator,
        "equalised": best.equalised,
        "candidates": [one.to_dict() for one in tried],
        "kept_float": dict(kept_float(best.prepared, form)),
        "judged_on": (ON_TWIN if form is Form.TENSORRT else "the graph itself") + CHOSEN,
    }
    parts = [group for group in groups(best.prepared) if group.name not in made["kept_float"]]
    mix = _mix(shop, key, parts, best.prepared, lambda names: best.graph(shop, names), always=rank)
    graphs = (best.shipped(shop, mix.reverted),)
    judged = _as_judged(key, graphs)
    return _judged(shop, key, graphs, judged, shop.judge(judged), {**made, **_told(mix)})


def _mix(shop: Workshop, key: str, parts: Sequence[Group], graph: onnx.ModelProto, make: Make, always: bool) -> Mix:
    """Search for the fewest groups in float with which the limits are kept, and rank all by what they cost."""
    shares = multiply_adds(graph, parts)
    return find_mix(
        parts,
        make,
        lambda made: shop.judge((made,)),
        lambda found: not misses(key, found, shop.source.spec),
        shop.memory,
        lambda line: shop.report(f"{key}: {line}"),
        about={"rows": shop.rows_sha256},
        still_worth=worth_by_share(shares),
        rank_always=always,
    )


def _told(mix: Mix) -> dict[str, Any]:
    return {"reverted": list(mix.reverted), "ranking": mix.ranking_record(), "mix": mix.why}


def _nodes(parts: Sequence[Group], reverted: Collection[str]) -> frozenset[str]:
    return frozenset(node for group in parts if group.name in reverted for node in group.nodes)


def _as_judged(key: str, graphs: Graphs) -> Graphs:
    return tuple(judged_as(key, graph) for graph in graphs)


def _judged(
    shop: Workshop, key: str, graphs: Graphs, judged: Graphs, difference: Difference, made: Mapping[str, Any]
) -> Outcome:
    """Measure what is asked of every precision, and say what was missed."""
    spec = shop.source.spec
    not_finite = [name for number, graph in enumerate(judged) for name in scan_not_finite(graph, shop.inputs(number))]
    # What a site's CPU would run, where it may; else what accuracy was judged on.
    steady = graphs if "cpu" in BACKENDS[key] else judged
    repeated, apart = _steadiness(shop, steady)
    gates = {
        "form": form_of(graphs[0]),
        "difference": difference.to_dict(),
        "not_finite": not_finite,
        "repeats": repeated,
        "batch_difference": apart,
    }
    missed = [*misses(key, difference, spec, repeated, apart), *_form_misses(key, graphs, judged)]
    missed += [f"{name} is NaN or infinite on real pictures" for name in not_finite]
    told = advice(key, difference, spec, shop.calibration.count) if missed else ()
    made = {**made, "computed_in": [computed_in(graph) for graph in graphs]}
    return Outcome(key, graphs, judged, difference, gates, made, tuple(missed), tuple(told))


def _form_misses(key: str, graphs: Graphs, judged: Graphs) -> list[str]:
    """Return what is wrong with the graphs themselves."""
    found = []
    for graph in graphs:
        try:
            check_form(graph, key)
        except GateMissed as error:
            found.append(str(error))
    if key == Form.TENSORRT.value:
        found += [sentence for graph in graphs for sentence in lint(graph)]
    return found


def _steadiness(shop: Workshop, graphs: Graphs) -> tuple[dict[str, Any], float]:
    """Return whether every graph gives the same answer again and again, and how far company changes an answer."""
    repeated: dict[str, Any] = {}
    apart = 0.0
    for number, graph in enumerate(graphs):
        given = list(shop.inputs(number, 3 if number == 0 else 1))
        with opened(graph) as session:
            if not repeated or repeated["identical"]:
                repeated = repeats(session, *given[0])
            if len(graphs) == 1:
                batches = [batch for (batch,) in given]
                apart = batch_invariance(session, np.concatenate(batches if len(batches) > 1 else 2 * batches))
            elif number == 1:
                embedding, boxes = given[0]
                apart = batch_invariance(session, embedding, np.concatenate([boxes, boxes[:, ::-1]], axis=1))
    return repeated, apart
