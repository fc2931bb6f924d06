"""Weights → integers: rounded so that the errors of a kernel and of a channel cancel where the input is flat."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache

import numpy as np
from onnx import ModelProto, numpy_helper

WIDEST = 1.5
"""Largest scale that is tried, next to the one that just holds the largest weight."""
TRIED = 101
SUM_WEIGHT = 500.0
"""How much more the square of a kernel's summed error counts than the sum of its squared errors (tried: 0, 5, 50,
500; mass-full's first depthwise layer alone, dB from FP32 in the logits: 29.4, 30.7, 30.7, 32.9; unsearched 28.3)."""


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


def depthwise_weights(prepared: ModelProto) -> Mapping[str, np.ndarray]:
    """Return the weights of convolutions in which each channel has one kernel of its own, float [C, 1, h, w]."""
    tensors = {tensor.name: tensor for tensor in prepared.graph.initializer}
    names = [n.input[1] for n in prepared.graph.node if n.op_type == "Conv" and n.input[1] in tensors]
    return {
        name: numpy_helper.to_array(tensors[name])
        for name in names
        if len(tensors[name].dims) == 4 and tensors[name].dims[1] == 1 < tensors[name].dims[0]
    }


def searched_scales(weight: np.ndarray, limit: int) -> np.ndarray:
    """Return the scale of each depthwise kernel, float32 [C], that lets its rounding errors cancel best.

    A kernel like [-2.766, 2.764] in front of a flat picture answers 0; rounded to the nearest of 127 steps it answers a
    grey value. A scale up to `WIDEST` times as large often holds both weights exactly.
    """
    return np.frombuffer(_searched(weight.astype(np.float32).tobytes(), weight.shape[0], limit), np.float32)


@lru_cache(maxsize=512)
def _searched(content: bytes, channels: int, limit: int) -> bytes:
    """Cached, because a search for groups to revert quantises the same weights many times."""
    kernels = np.frombuffer(content, np.float32).reshape(channels, -1)
    top = np.abs(kernels).max(axis=1)
    top[top == 0] = limit
    best, least = top / np.float32(limit), np.full(channels, np.inf)
    for factor in np.linspace(1, WIDEST, TRIED):
        scale = (top * np.float32(factor) / np.float32(limit)).astype(np.float32)
        real = kernels.astype(np.float64) / scale.astype(np.float64)[:, None]
        error = (_balanced(real, np.clip(np.rint(real), -limit, limit), limit) - real) * scale[:, None]
        loss = (error**2).sum(axis=1) + SUM_WEIGHT * error.sum(axis=1) ** 2
        better = loss < least
        least[better], best[better] = loss[better], scale[better]
    return bytes(best.astype(np.float32).tobytes())


def round_anew(model: ModelProto, prepared: ModelProto, limits: Mapping[str, int], min_scale: float = 0.0) -> None:
    """Replace a Q/DQ graph's integer weights, in place; scales below `min_scale` are raised to it first.

    `prepared` holds the weights as floats under the same names; `limits`: weight → largest integer it may have.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    floats = {tensor.name: tensor for tensor in prepared.graph.initializer}
    for node in model.graph.node:
        name = node.input[0].removesuffix("_quantized")
        if node.op_type != "DequantizeLinear" or node.input[0] not in tensors or name not in limits:
            continue
        scale = np.array(numpy_helper.to_array(tensors[node.input[1]]), np.float32)
        axis = next(a.i for a in node.attribute if a.name == "axis")
        scale = np.maximum(scale, np.float32(min_scale))
        made = rounded_weights(numpy_helper.to_array(floats[name]), scale, axis, limits[name])
        tensors[node.input[0]].CopyFrom(numpy_helper.from_array(made, node.input[0]))
        tensors[node.input[1]].CopyFrom(numpy_helper.from_array(scale, node.input[1]))
