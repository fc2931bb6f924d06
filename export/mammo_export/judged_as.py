"""What ONNX Runtime's CPU is given in place of a graph, so that it computes what a device would."""

from __future__ import annotations

import onnx

from mammo_export.half_twin import half_twin
from mammo_export.simulate import simulated


def judged_as(key: str, graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the graph that accuracy is measured on for a key of a bundle; "fp32" and "int8-cpu" stand for themselves.

    "fp16": every half-precision tensor rounded on purpose (`half_twin`). "int8", with its rest in FP16: that, and Q/DQ
    as float operators (`simulated`).
    """
    if key == "fp16":
        return half_twin(graph)
    if key == "int8":
        return simulated(half_twin(graph))
    return graph
