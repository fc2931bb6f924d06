"""How the work of a graph is spread over its groups: multiply-adds of convolutions and matrix products."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx
from onnx import NodeProto

Shapes = Mapping[str, tuple[int, ...]]


class Grouped(Protocol):
    """A group, as `quantize.groups` gives it."""

    @property
    def name(self) -> str:
        """Its first node's."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of its nodes."""


def multiply_adds(graph: onnx.ModelProto, groups: Sequence[Grouped]) -> dict[str, float]:
    """Return group → its multiply-adds for one input of the graph's size.

    `graph`: in floating point, as `groups` were read from it. Sides that are not fixed (the batch) count as 1. A node
    whose shapes cannot be inferred counts as 0.
    """
    shapes = _shapes(graph)
    own = {node.name: _COUNTS[node.op_type](node, shapes) for node in graph.graph.node if node.op_type in _COUNTS}
    return {group.name: float(sum(own.get(name, 0) for name in group.nodes)) for group in groups}


def _shapes(graph: onnx.ModelProto) -> Shapes:
    inferred = onnx.shape_inference.infer_shapes(graph)
    known = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    for value in (*inferred.graph.input, *inferred.graph.value_info, *inferred.graph.output):
        sides = value.type.tensor_type.shape.dim
        known.setdefault(value.name, tuple(side.dim_value if side.dim_value > 0 else 1 for side in sides))
    return known


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _conv(node: NodeProto, shapes: Shapes) -> int:
    """Every weight is used once for each place of the output."""
    weight, output = shapes.get(node.input[1]), shapes.get(node.output[0])
    return 0 if weight is None or output is None else _size(weight) * _size((output[0], *output[2:]))


def _conv_transpose(node: NodeProto, shapes: Shapes) -> int:
    """Every weight is used once for each place of the input."""
    weight, given = shapes.get(node.input[1]), shapes.get(node.input[0])
    return 0 if weight is None or given is None else _size(weight) * _size((given[0], *given[2:]))


def _product(node: NodeProto, shapes: Shapes) -> int:
    """Every value of the output sums up the first factor's last side (Gemm's may be its first)."""
    first, output = shapes.get(node.input[0]), shapes.get(node.output[0])
    if first is None or output is None:
        return 0
    turned = any(a.name == "transA" and a.i for a in node.attribute)
    return _size(output) * (first[0] if turned else first[-1])


_COUNTS: Mapping[str, Callable[[NodeProto, Shapes], int]] = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _product,
    "Gemm": _product,
}
