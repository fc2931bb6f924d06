"""A Q/DQ graph as plain float operators: the numbers that INT8 means, on every processor alike."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, helper, numpy_helper

from mammo_export.graph_walk import drop_unread, producers
from mammo_runtime.errors import UsageError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"


def simulated(twin: ModelProto) -> ModelProto:
    """Return the graph with Q/DQ written as Div, Round, Clip, Mul and its weights as floats; checked.

    For judging TensorRT's form on ONNX Runtime, which must not see Q/DQ there: it turns what it can into its own u8·s8
    kernels, quantises biases besides, and without VNNI those saturate. mass-roi, 12 windows, AVX2: logits 25.1 dB from
    FP32 as defined, 11.5 dB as ONNX Runtime runs the same file. Raises UsageError for a pair that is not INT8's.
    """
    model = ModelProto()
    model.CopyFrom(twin)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    made = producers(model)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        if node.op_type not in (QUANTIZE, DEQUANTIZE):
            nodes.append(node)
            continue
        scale, zero = _parameters(node, constants)
        if node.op_type == DEQUANTIZE and node.input[0] in constants:
            weight = _weight(node, constants[node.input[0]], scale, zero)
            model.graph.initializer.append(numpy_helper.from_array(weight, node.output[0]))
            continue
        if scale.size != 1 or (node.op_type == DEQUANTIZE and made[node.input[0]].op_type != QUANTIZE):
            raise UsageError(f"{node.name} is no pair with one scale; export the model again")
        steps = _quantize(node, zero) if node.op_type == QUANTIZE else _dequantize(node, zero)
        for number, (operator, given) in enumerate(steps):
            name = f"{node.name}_step_{number}"
            source = node.input[0] if number == 0 else f"{node.name}_value_{number - 1}"
            output = node.output[0] if number == len(steps) - 1 else f"{node.name}_value_{number}"
            values = [np.asarray(scale.reshape(()) if value is None else value, np.float32) for value in given]
            extra = [numpy_helper.from_array(value, f"{name}_{k}") for k, value in enumerate(values)]
            model.graph.initializer.extend(extra)
            nodes.append(helper.make_node(operator, [source, *(t.name for t in extra)], [output], name))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model)
    onnx.checker.check_model(model, full_check=True)
    return model


Step = tuple[str, tuple[float | None, ...]]
"""Operator and its constants; None stands for the scale."""


def _quantize(node: NodeProto, zero: np.ndarray) -> list[Step]:
    """Round is to even in both; the integers stay floats, which hold them exactly."""
    limits = np.iinfo(zero.dtype)
    shift: list[Step] = [("Add", (float(zero),))] if zero else []
    return [("Div", (None,)), ("Round", ()), *shift, ("Clip", (float(limits.min), float(limits.max)))]


def _dequantize(node: NodeProto, zero: np.ndarray) -> list[Step]:
    shift: list[Step] = [("Sub", (float(zero),))] if zero else []
    return [*shift, ("Mul", (None,))]


def _parameters(node: NodeProto, constants: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Return scale, float32, and zero point, of one value where it is of an activation."""
    if any(name not in constants for name in node.input[1:3]) or len(node.input) < 3:
        raise UsageError(f"{node.name} has no constant scale and zero point; export the model again")
    scale, zero = constants[node.input[1]].astype(np.float32), constants[node.input[2]]
    return scale, zero if scale.size > 1 else zero.reshape(())


def _weight(node: NodeProto, integers: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> np.ndarray:
    if scale.size > 1:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
        shape = [-1 if k == axis % integers.ndim else 1 for k in range(integers.ndim)]
        scale, zero = scale.reshape(shape), zero.reshape(shape)
    return np.asarray((integers.astype(np.float32) - zero.astype(np.float32)) * scale, np.float32)
