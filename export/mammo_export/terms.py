"""How many terms an operator sums up: what decides whether half precision can hold the sum."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, helper

Sides = Mapping[str, tuple[int, ...]]
SQUARES = frozenset({
    "ReduceL2", "ReduceSumSquare", "LpNormalization", "LayerNormalization", "InstanceNormalization",
    "GroupNormalization", "MeanVarianceNormalization",
})  # fmt: skip
"""They sum squares of their input, or of its distance from the mean."""


def terms_of(node: NodeProto, sides: Sides) -> tuple[int, bool]:
    """Return (number of terms, whether they are squared); (1, False) for an operator that sums nothing up.

    Convolutions and matrix products count as 1: engines add them up in FP32.
    """
    count = COUNTS.get(node.op_type)
    if count is None or node.input[0] not in sides:
        return 1, False
    return int(count(node, sides)), node.op_type in SQUARES


def _attribute(node: NodeProto, name: str, otherwise: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), otherwise)


def _reduced(node: NodeProto, sides: Sides) -> int:
    before, after = (int(np.prod(sides.get(n, (1,)))) for n in (node.input[0], node.output[0]))
    return max(1, before // max(1, after))


def _window(node: NodeProto, _: Sides) -> int:
    return int(np.prod(_attribute(node, "kernel_shape", [1])))


def _along_axis(node: NodeProto, sides: Sides) -> int:
    return sides[node.input[0]][int(_attribute(node, "axis", -1))]


def _from_axis(node: NodeProto, sides: Sides) -> int:
    shape = sides[node.input[0]]
    return int(np.prod(shape[_attribute(node, "axis", -1) % len(shape) :]))


def _plane(node: NodeProto, sides: Sides) -> int:
    return int(np.prod(sides[node.input[0]][2:]))


def _group(node: NodeProto, sides: Sides) -> int:
    return int(np.prod(sides[node.input[0]][1:])) // int(_attribute(node, "num_groups", 1))


COUNTS: Mapping[str, Callable[[NodeProto, Sides], int]] = {
    "ReduceSum": _reduced,
    "ReduceMean": _reduced,
    "ReduceL1": _reduced,
    "ReduceL2": _reduced,
    "ReduceSumSquare": _reduced,
    "ReduceLogSumExp": _reduced,
    "GlobalAveragePool": _reduced,
    "AveragePool": _window,
    "Softmax": _along_axis,
    "LogSoftmax": _along_axis,
    "LpNormalization": _along_axis,
    "LayerNormalization": _from_axis,
    "InstanceNormalization": _plane,
    "GroupNormalization": _group,
    "MeanVarianceNormalization": _plane,
}
