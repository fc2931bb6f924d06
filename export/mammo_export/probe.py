"""Looks inside a graph: how large every tensor between its nodes gets on real inputs, in one run and little memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
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
    for largest, finite in _answers(probe, batches):
        # A maximum may lose a NaN.
        most = np.maximum(most, np.where(finite == 1, largest, np.nan))
    return dict(zip(names, most.tolist(), strict=True))


def outputs_of(graph: onnx.ModelProto, batches: Iterable[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Return the graph's outputs for every batch, one after the other."""
    return [output for answers in _answers(graph, batches) for output in answers]


def _answers(graph: onnx.ModelProto, batches: Iterable[Sequence[np.ndarray]]) -> Iterator[tuple[np.ndarray, ...]]:
    with tempfile.TemporaryDirectory(prefix="mammo-export-") as folder:
        path = Path(folder) / "probe.onnx"
        path.write_bytes(graph.SerializeToString())
        with open_session(path, "cpu") as session:
            yield from (session.run_all(*batch) for batch in batches)


def _with_maxima(graph: onnx.ModelProto) -> tuple[onnx.ModelProto, list[str]]:
    """Return the graph with two vectors as its only outputs, and the names of the tensors they speak of.

    The vectors: largest |value|; 1 where all values are finite.
    """
    model = inferred(graph)
    constants = {t.name for t in model.graph.initializer}
    names = [k for k, e in element_types(model).items() if e in LOOKED_AT and k not in constants]
    limits = {"flat": np.array([-1]), "end": np.array(np.finfo(np.float32).max)}
    model.graph.initializer.extend(numpy_helper.from_array(value, MARK + word) for word, value in limits.items())
    added: list[NodeProto] = []
    for number, name in enumerate(names):
        real, size, flat, below, finite, most, worst = (
            f"{MARK}{word}_{number}" for word in ("real", "size", "flat", "below", "finite", "most", "worst")
        )
        added += [
            helper.make_node("Cast", [name], [real], to=TensorProto.FLOAT),
            helper.make_node("Abs", [real], [size]),
            helper.make_node("Reshape", [size, f"{MARK}flat"], [flat]),
            helper.make_node("ReduceMax", [flat], [most], keepdims=1),
            helper.make_node("LessOrEqual", [flat, f"{MARK}end"], [below]),
            helper.make_node("Cast", [below], [finite], to=TensorProto.FLOAT),
            helper.make_node("ReduceMin", [finite], [worst], keepdims=1),
        ]
    outputs = {"most": f"{MARK}largest", "worst": f"{MARK}all_finite"}
    for word, output in outputs.items():
        added.append(helper.make_node("Concat", [f"{MARK}{word}_{k}" for k in range(len(names))], [output], axis=0))
    model.graph.node.extend(added)
    del model.graph.output[:]
    for output in outputs.values():
        model.graph.output.append(helper.make_tensor_value_info(output, TensorProto.FLOAT, [len(names)]))
    return model, names
