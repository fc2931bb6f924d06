"""What became of one precision: its graphs if it passed, and the entry of bundle.json either way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mammo_export.bundle import ProvenGraph
from mammo_export.difference import Difference
from mammo_export.workshop import Graphs
from mammo_runtime.spec import Precision

BACKENDS: Mapping[str, tuple[str, ...]] = {
    "fp32": ("cpu", "cuda", "tensorrt"),
    "fp16": ("cpu", "cuda", "tensorrt"),
    "int8": ("tensorrt",),
    "int8-cpu": ("cpu",),
}
"""Key → what the runtime may open its file with: what TensorRT takes as INT8 is slow and wrong elsewhere, and the
other way round."""
PRECISION: Mapping[str, Precision] = {
    "fp32": Precision.FP32,
    "fp16": Precision.FP16,
    "int8": Precision.INT8,
    "int8-cpu": Precision.INT8,
}
PASSED = "passed"
NOT_FASTER = "passes accuracy but not speed here"
NOT_TIMED = "passes accuracy, speed not measured"
WAIVED = "waived"
MISSED = "missed"
NOT_MADE = "not made"


@dataclass(frozen=True)
class Outcome:
    """One key, made and judged."""

    key: str
    graphs: Graphs
    """As they would ship."""
    judged: Graphs
    """Those that accuracy was measured on: the same, but for "int8" (see `quantize.with_fp16`)."""
    difference: Difference | None
    gates: Mapping[str, Any]
    made: Mapping[str, Any] = field(default_factory=dict)
    misses: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    speed: tuple[Mapping[str, Any], ...] = ()
    waived_by: str | None = None
    offered: bool = True
    """False: this precision is not made for such a network; `misses` says why. No gate was missed."""

    @property
    def ships(self) -> bool:
        """Whether its files go into the bundle."""
        return bool(self.graphs) and self.offered and (not self.misses or self.waived_by is not None)

    @property
    def verdict(self) -> str:
        """In the words of bundle.json."""
        if not self.offered:
            return NOT_MADE
        if self.misses:
            return MISSED if self.waived_by is None else WAIVED
        if PRECISION[self.key] is not Precision.INT8:
            return PASSED  # only eight bits, which cost accuracy, must pay for it with speed
        if not self.speed:
            return NOT_TIMED
        return PASSED if all(one["passed"] for one in self.speed) else NOT_FASTER

    def entry(self) -> dict[str, Any]:
        """Return what bundle.json says of it besides file names."""
        waived = None if self.waived_by is None else {"by": self.waived_by, "misses": list(self.misses)}
        return {
            "precision": PRECISION[self.key].value,
            "backends": list(BACKENDS[self.key]),
            "verdict": self.verdict,
            "why": [*self.misses, *self.advice],
            "waived": waived,
            "gates": dict(self.gates),
            "speed": [dict(one) for one in self.speed],
            "made": dict(self.made),
        }

    def proven(self) -> ProvenGraph:
        """Return what the bundle writer takes."""
        model, *decoders = (graph.SerializeToString() for graph in self.graphs)
        about = {k: v for k, v in self.entry().items() if k not in ("verdict", "gates")}
        return ProvenGraph(model, self.verdict, dict(self.gates), decoders[0] if decoders else None, about)

    def waived(self, by: str) -> Outcome:
        """Return it shipped in spite of what it missed, with the name of who decided that."""
        return replace(self, waived_by=by) if self.misses and self.offered else self
