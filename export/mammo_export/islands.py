"""Which nodes of a graph stay FP32 in its FP16 form: found by measurement on real images, each with the reason."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from mammo_export.element_types import inferred
from mammo_export.half_twin import half_twin
from mammo_export.hazards import hazards_of
from mammo_export.probe import largest_values, outputs_of
from mammo_export.to_fp16 import to_fp16
from mammo_runtime.errors import GateMissed

Batch = tuple[np.ndarray, ...]
SECOND_LOOK = 4
"""Inputs on which it is measured whether tiny values matter."""
HARMLESS = 2.0**-10
"""Change of an output, as a fraction of its largest value, that is half's own rounding and no loss."""


@dataclass(frozen=True)
class Island:
    """A node that stays FP32. JSON-ready with `asdict`."""

    node: str
    operator: str
    why: str
    """One sentence."""


def find_islands(graph: onnx.ModelProto, batches: Iterable[Batch]) -> tuple[Island, ...]:
    """Return the nodes of an FP32 graph that must stay FP32, in the graph's order, measured on real inputs.

    `batches`: one float32 array for each input of the graph, as `Session.run_all` takes them; they are streamed.
    Careful rather than greedy: values are given headroom, reductions are judged by what a half-precision sum could
    lose. Only nodes with tiny values are looked at twice: they stay FP32 where that brings the outputs nearer to
    those of the FP32 graph. What the exporter appended stays FP32 anyway and is not listed. Raises GateMissed when the
    FP32 graph itself is not finite.
    """
    first: list[Batch] = []
    largest = largest_values(graph, _remembering(batches, first))
    broken = [name for name, value in largest.items() if np.isnan(value)]
    if broken:
        raise GateMissed(f"the FP32 graph gives NaN or infinity in {', '.join(broken[:3])}; no precision is made of it")
    hazards = hazards_of(inferred(graph), largest)
    sure = frozenset(hazard.node for hazard in hazards if not hazard.tiny)
    kept = frozenset(hazard.node for hazard in hazards)
    if kept != sure and _harmless(graph, sure, kept, first):
        kept = sure
    return tuple(Island(h.node, h.operator, h.why) for h in hazards if h.node in kept)


def scan_not_finite(graph: onnx.ModelProto, batches: Iterable[Batch]) -> tuple[str, ...]:
    """Return the tensors of a graph of any precision that are NaN or infinite somewhere on real inputs.

    In the graph's order: the first one is where it begins. An FP16 graph is looked at through its `half_twin`,
    because a CPU would not overflow.
    """
    own = {name for node in graph.graph.node for name in node.output} | {v.name for v in graph.graph.input}
    values = largest_values(half_twin(graph), batches)
    return tuple(name for name, value in values.items() if np.isnan(value) and name in own)


def _remembering(batches: Iterable[Batch], first: list[Batch]) -> Iterator[Batch]:
    for batch in batches:
        if len(first) < SECOND_LOOK:
            first.append(batch)
        yield batch


def _harmless(graph: onnx.ModelProto, fewer: frozenset[str], more: frozenset[str], batches: Sequence[Batch]) -> bool:
    """Tell whether the outputs with fewer islands are as near to the FP32 graph's as those with more."""
    exact, *rounded = (
        outputs_of(one, batches) for one in (graph, *(half_twin(to_fp16(graph, keep)) for keep in (fewer, more)))
    )
    for expected, with_fewer, with_more in zip(exact, *rounded, strict=True):
        allowed = max(2 * _change(expected, with_more), HARMLESS)
        if not _change(expected, with_fewer) <= allowed:
            return False
    return True


def _change(expected: np.ndarray, found: np.ndarray) -> float:
    """Return the largest difference as a fraction of the largest value; of labels, the fraction that differ."""
    if expected.dtype == np.uint8:
        return float((expected != found).mean())
    return float(np.abs(expected - found).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
