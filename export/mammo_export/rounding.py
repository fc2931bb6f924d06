"""Weights → integers: rounded so that the errors of a kernel and of a channel cancel where the input is flat."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, numpy_helper


def rounded_weights(weight: np.ndarray, scale: np.ndarray, axis: int, limit: int) -> np.ndarray:
    """Return a weight as int8 within ±limit, scale float32 [channels] along `axis`.

    To the nearest integer, then the fewest roundings turned round so that the errors of each kernel, and then of each
    output channel, sum to at most half a step: SQuant (Guo et al. 2022, arXiv:2202.07471) without its diagonal term.
    Neighbouring inputs are nearly equal, in a breast crop's black background exactly so, and MobileNet's depthwise
    kernels are differences of large weights: there the sum of the errors is what the next layer sees.
    """
    values = np.moveaxis(weight.astype(np.float64), axis, 0)
    shape = values.shape
    real = values.reshape(shape[0], -1) / scale.astype(np.float64)[:, None]
    nearest = np.clip(np.rint(real), -limit, limit)
    if len(shape) > 2:
        kernels = (shape[0] * shape[1], -1)
        nearest = _balanced(real.reshape(kernels), nearest.reshape(kernels), limit).reshape(real.shape)
    if len(shape) < 2 or shape[1] > 1:
        nearest = _balanced(real, nearest, limit)
    return np.ascontiguousarray(np.moveaxis(nearest.reshape(shape), 0, axis)).astype(np.int8)


def _balanced(real: np.ndarray, nearest: np.ndarray, limit: int) -> np.ndarray:
    """Return [rows, values] with as many values moved one step as makes each row's errors sum to at most a half.

    Moved are those that rounding had moved furthest the other way; what is clipped has no say.
    """
    error = np.where(np.abs(real) > limit, 0.0, nearest - real)
    excess = np.rint(error.sum(axis=1))
    sign = np.sign(excess)[:, None]
    gain = error * sign
    gain[(gain <= 0) | (np.abs(nearest - sign) > limit)] = -1.0
    order = np.argsort(-gain, axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.broadcast_to(np.arange(real.shape[1]), real.shape), axis=1)
    moved = (rank < np.abs(excess)[:, None]) & (gain > 0)
    return np.asarray(nearest - sign * moved)


def round_anew(model: ModelProto, prepared: ModelProto, min_scale: float = 0.0) -> None:
    """Replace a Q/DQ graph's integer weights, in place; scales below `min_scale` are raised to it first.

    `prepared` holds the weights as floats under the same names; each channel keeps the largest integer it may have.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = {tensor.name: tensor for tensor in prepared.graph.initializer}
    for node in model.graph.node:
        name = node.input[0].removesuffix("_quantized")
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors or name not in floats:
            continue
        integers = numpy_helper.to_array(tensors[node.input[0]])
        scale = np.array(numpy_helper.to_array(tensors[node.input[1]]), np.float32)
        if integers.dtype != np.int8 or scale.ndim != 1:
            continue
        axis = next(a.i for a in node.attribute if a.name == "axis")
        limit = int(np.abs(integers.astype(np.int32)).max())
        scale = np.maximum(scale, np.float32(min_scale))
        made = rounded_weights(numpy_helper.to_array(floats[name]), scale, axis, limit)
        tensors[node.input[0]].CopyFrom(numpy_helper.from_array(made, node.input[0]))
        tensors[node.input[1]].CopyFrom(numpy_helper.from_array(scale, node.input[1]))
