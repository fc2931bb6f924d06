"""What the tensors of a graph are and what its products compute in, as it follows from inputs and weights alone."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx import NodeProto, TensorProto

COMPUTING = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
"""The operators that cost time: their element type is what a graph computes in."""
TYPES: Mapping[int, str] = {
    TensorProto.FLOAT: "fp32",
    TensorProto.FLOAT16: "fp16",
    TensorProto.BFLOAT16: "bf16",
    TensorProto.DOUBLE: "fp64",
    TensorProto.INT8: "int8",
    TensorProto.UINT8: "int8",
}


def name_of(node: NodeProto) -> str:
    """Return a node's name; of a nameless one, that of its first output."""
    return node.name or next(name for name in node.output if name)


def inferred(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy with the type and shape of every tensor as they follow from inputs and weights.

    What the graph says about its own tensors is not believed: it may be stale. Raises onnx's own errors where types
    do not fit together.
    """
    bare = onnx.ModelProto()
    bare.CopyFrom(graph)
    del bare.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(bare, check_type=True, strict_mode=True, data_prop=True)


def element_types(graph: onnx.ModelProto) -> dict[str, int]:
    """Return tensor → element type, of a graph as `inferred` returns it."""
    values = (*graph.graph.input, *graph.graph.value_info, *graph.graph.output)
    types = {v.name: int(v.type.tensor_type.elem_type) for v in values}
    return types | {t.name: int(t.data_type) for t in graph.graph.initializer}


def sides_of(graph: onnx.ModelProto) -> dict[str, tuple[int, ...]]:
    """Return tensor → sides, 1 for one that is not fixed; of a graph as `inferred` returns it."""
    values = (*graph.graph.input, *graph.graph.value_info, *graph.graph.output)
    known = {v.name: tuple(max(1, d.dim_value) for d in v.type.tensor_type.shape.dim) for v in values}
    return known | {t.name: tuple(t.dims) for t in graph.graph.initializer}


def computed_in(graph: onnx.ModelProto) -> dict[str, int]:
    """Return how many convolutions and matrix products compute in each type: {"fp16": 65, "fp32": 2}.

    A product counts as int8 where its data and weights both come out of DequantizeLinear: that is how an engine is
    told.
    """
    types = element_types(inferred(graph))
    makers = {output: node for node in graph.graph.node for output in node.output}
    counts: dict[str, int] = {}
    for node in (n for n in graph.graph.node if n.op_type in COMPUTING):
        quantised = all(name in makers and makers[name].op_type == "DequantizeLinear" for name in node.input[:2])
        element = "int8" if quantised else TYPES.get(types.get(node.input[0], 0), "other")
        counts[element] = counts.get(element, 0) + 1
    return dict(sorted(counts.items()))
