"""Looks inside a graph: how large every tensor between its nodes gets on real inputs, in one run and little memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mammo_export.element_types import element_types, inferred
from mammo_runtime.session import open_session

LOOKED_AT = frozenset({TensorProto.FLOAT, TensorProto.INT32, TensorProto.INT64})
MARK = "probe_"


def largest_values(graph: onnx.ModelProto, batches: Iterable[Sequence[np.ndarray]]) -> dict[str, float]:
    """Return tensor → largest |value| over all batches, NaN where a value was NaN or infinite.

    `graph` computes in FP32 (of an FP16 graph: its `half_twin`); a batch holds one array for each input. The maxima
    are taken inside the graph, so that no tensor outlives its use: memory is that of a normal run.
    """
    probe, names = _with_maxima(graph)
    most = np.zeros(len(names))
    with tempfile.TemporaryDirectory(prefix="mammo-export-") as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(probe.SerializeToString())
        with open_session(path, "cpu") as session:
            for batch in batches:
                largest, sums = session.run_all(*batch)
                # A maximum may lose a NaN, a sum does not.
                most = np.maximum(most, np.where(np.isfinite(sums), largest, np.nan))
    return dict(zip(names, most.tolist(), strict=True))


def _with_maxima(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the graph with two vectors as its only outputs (maxima and sums of |values|), and the tensors' names."""
    model = inferred(graph)
    constants = {t.name for t in model.graph.initializer}
    names = [k for k, e in element_types(model).items() if e in LOOKED_AT and k not in constants]
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1]), f"{MARK}flat"))
    added: list[NodeProto] = []
    for number, name in enumerate(names):
        size, flat, most, total = (f"{MARK}{word}_{number}" for word in ("size", "flat", "most", "total"))
        added += [
            helper.make_node("Cast", [name], [f"{size}_raw"], to=TensorProto.FLOAT),
            helper.make_node("Abs", [f"{size}_raw"], [size]),
            helper.make_node("Reshape", [size, f"{MARK}flat"], [flat]),
            helper.make_node("ReduceMax", [flat], [most], keepdims=1),
            helper.make_node("ReduceSum", [flat], [total], keepdims=1),
        ]
    for word, output in (("most", f"{MARK}largest"), ("total", f"{MARK}sums")):
        added.append(helper.make_node("Concat", [f"{MARK}{word}_{k}" for k in range(len(names))], [output], axis=0))
    model.graph.node.extend(added)
    del model.graph.output[:]
    for output in (f"{MARK}largest", f"{MARK}sums"):
        model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [len(names)]))
    return model, names
