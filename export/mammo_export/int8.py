"""Ways to make INT8 of one model: each calibrator, with and without equalised channels, in one of the two forms."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import onnx
import onnxruntime as ort

from mammo_export.activation import with_spec
from mammo_export.difference import Difference
from mammo_export.equalise import equalised
from mammo_export.quantize import CALIBRATORS, Form, Ranges, measured_ranges, prepared, quantised, with_fp16
from mammo_export.simulate import simulated
from mammo_export.workshop import Workshop, sha256_of
from mammo_runtime.spec import Precision


@dataclass(frozen=True)
class Candidate:
    """One way, with what it costs on the validation pictures."""

    form: Form
    calibrator: str
    equalised: bool
    prepared: onnx.ModelProto
    ranges: Ranges
    difference: Difference

    def to_dict(self) -> dict[str, Any]:
        """Return what the report shows of it."""
        measured = {name: getattr(self.difference, name) for name in ("mean", "low", "high", "n")}
        return {"calibrator": self.calibrator, "equalised": self.equalised, **measured}

    def graph(self, shop: Workshop, reverted: Collection[str] = ()) -> onnx.ModelProto:
        """Return the graph that accuracy is measured on; `reverted` groups stay float."""
        return _for_judging(shop, quantised(self.prepared, self.ranges, self.form, reverted), self.form)

    def shipped(self, shop: Workshop, reverted: Collection[str] = ()) -> onnx.ModelProto:
        """Return the graph of the bundle: for TensorRT the rest computes in FP16."""
        made = quantised(self.prepared, self.ranges, self.form, reverted)
        return with_spec(with_fp16(made) if self.form is Form.TENSORRT else made, shop.source.spec_of(Precision.INT8))


def candidates(shop: Workshop, form: Form) -> tuple[Candidate, ...]:
    """Return every way with its difference to FP32, in a fixed order."""
    found = []
    for even, graph in _graphs(shop).items():
        for calibrator, ranges in _ranges(shop, graph).items():
            difference = shop.judge((_for_judging(shop, quantised(graph, ranges, form), form),))
            found.append(Candidate(form, calibrator, even, graph, ranges, difference))
            shop.report(f"{form.value}: {calibrator}{', equalised' if even else ''}: {told(difference)}")
    return tuple(found)


def _for_judging(shop: Workshop, made: onnx.ModelProto, form: Form) -> onnx.ModelProto:
    """Return what accuracy is measured on while looking for the best: of TensorRT's form, with its rest in FP32."""
    made = simulated(made) if form is Form.TENSORRT else made
    return with_spec(made, shop.source.spec_of(Precision.INT8))


def told(difference: Difference) -> str:
    """Return a difference in a few words."""
    if difference.mean is None:
        return "no picture has a score"
    return f"score {difference.mean:+.4f} against FP32 (n {difference.n})"


def _graphs(shop: Workshop) -> Mapping[bool, onnx.ModelProto]:
    """Return False → the prepared graph, True → with equalised channels, where that changes anything."""
    plain = prepared(shop.source.files.model)
    even = equalised(plain, shop.calibration.batches)
    return {False: plain} if sha256_of(even) == sha256_of(plain) else {False: plain, True: even}


def _ranges(shop: Workshop, graph: onnx.ModelProto) -> Mapping[str, Ranges]:
    """Return calibrator → tensor → range; the passes over the calibration pictures are remembered."""
    parts = {
        "what": "ranges",
        "graph": sha256_of(graph),
        "calibration": shop.calibration.manifest(),
        "calibrators": list(CALIBRATORS),
        "ort": ort.__version__,
    }
    stored = shop.memory.remembered(
        parts,
        lambda: {
            name: {tensor: list(ends) for tensor, ends in ranges.items()}
            for name, ranges in measured_ranges(graph, shop.calibration.batches).items()
        },
    )
    return {
        name: {tensor: (float(low), float(high)) for tensor, (low, high) in ranges.items()}
        for name, ranges in stored.items()
    }
