"""The range of values of each tensor that may be quantised, measured on real inputs in two streamed passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import cv2
import numpy as np
import onnx
from onnx import ModelProto, TensorProto, ValueInfoProto

from mammo_export.files import opened
from mammo_export.graph_walk import consumers, producers
from mammo_runtime.errors import UsageError

BINS = 2048
"""Of one sign, from 0 to the largest absolute value: what TensorRT's entropy calibrator uses."""
LEVELS = 128
"""Of one sign in int8."""
PERCENTILE = 99.99
STEP = 16
"""Bins between two thresholds that are tried."""
PASS_BYTES = 256_000_000
"""Of activations that one run of the graph may return; a network with more is run several times per image."""
MEASURED = frozenset(
    {"Conv", "ConvTranspose", "MatMul", "Gemm", "Add", "Mul", "Concat", "Resize", "MaxPool", "AveragePool",
     "GlobalAveragePool", "Clip", "Relu", "LeakyRelu", "Sigmoid", "Reshape", "Flatten", "Transpose", "ReduceMean"}
)  # fmt: skip
"""Operators whose tensors some form may quantise."""

Batch = np.ndarray | tuple[np.ndarray, ...]
Batches = Callable[[], Iterable[Batch]]
"""Called once for each pass; each item is one run's input or inputs, float32."""
Ranges = Mapping[str, tuple[float, float]]
"""Tensor → the smallest and the largest value that its integers are to represent; JSON-ready."""


@dataclass(frozen=True, eq=False)
class Histogram:
    """What one tensor's values were over all inputs, exact zeros apart: every scale represents zero exactly."""

    low: float
    high: float
    negative: np.ndarray
    """int64 [BINS], values from 0 down to -`size`."""
    positive: np.ndarray
    """int64 [BINS], values from 0 up to `size`."""

    @property
    def size(self) -> float:
        """Largest absolute value."""
        return max(-self.low, self.high)

    @property
    def width(self) -> float:
        """Of one bin."""
        return self.size / BINS


def minmax(seen: Histogram) -> tuple[float, float]:
    """Return the smallest and the largest value that was seen: nothing is clipped."""
    return seen.low, seen.high


def percentile(seen: Histogram) -> tuple[float, float]:
    """Return the range that holds `PERCENTILE` of the non-zero absolute values (Wu et al. 2020, arXiv:2004.09602)."""
    both = seen.negative + seen.positive
    if not both.any():
        return seen.low, seen.high
    reached = np.cumsum(both) >= both.sum() * (PERCENTILE / 100)
    return _within(seen, (int(np.argmax(reached)) + 1) * seen.width)


def entropy(seen: Histogram) -> tuple[float, float]:
    """Return the range whose 128 levels lose least information, by Kullback-Leibler divergence (Migacz, GTC 2017)."""
    both = (seen.negative + seen.positive).astype(np.float64)
    if not both.any():
        return seen.low, seen.high
    best, least = BINS, np.inf
    for kept in range(LEVELS, BINS + 1, STEP):
        loss = _divergence(both, kept)
        if loss < least:
            best, least = kept, loss
    return _within(seen, best * seen.width)


def mse(seen: Histogram) -> tuple[float, float]:
    """Return the range of least squared error: clipping beyond it plus rounding within (Δ²/12 for each value).

    A search over the histogram, both ends in turn, for 8 bits (Sung et al. 2015, arXiv:1511.06488; the range setting
    "MSE" of Nagel et al. 2021, arXiv:2106.08295, section 3.1).
    """
    ends = np.arange(BINS // 8, BINS + 1, STEP)
    clipped = [_clipping(counts, ends, seen.width) for counts in (seen.negative, seen.positive)]
    limits = [ends[ends * seen.width <= end + seen.width] if end > 0 else ends[:0] for end in (-seen.low, seen.high)]
    sides = [float(x[-1]) if len(x) else 0.0 for x in limits]
    values = int(seen.negative.sum() + seen.positive.sum())
    if not values or not any(sides):
        return seen.low, seen.high
    for _ in range(4):
        for side in (0, 1):
            if len(limits[side]):
                steps = (limits[side] + sides[1 - side]) * seen.width / (2 * LEVELS - 1)
                loss = clipped[side][: len(limits[side])] + values * steps**2 / 12
                sides[side] = float(limits[side][int(np.argmin(loss))])
    return max(seen.low, -sides[0] * seen.width), min(seen.high, sides[1] * seen.width)


CALIBRATIONS: Mapping[str, Callable[[Histogram], tuple[float, float]]] = {
    "minmax": minmax,
    "entropy": entropy,
    "percentile": percentile,
    "mse": mse,
}
CALIBRATORS: tuple[str, ...] = tuple(CALIBRATIONS)


def measured_ranges(
    prepared: ModelProto, batches: Batches, calibrators: Sequence[str] = CALIBRATORS
) -> Mapping[str, Ranges]:
    """Return calibrator → tensor → range, for every tensor of the graph that a form may quantise.

    Two passes: extremes, then histograms of known width. Held at a time: one input's activations (in parts of
    `PASS_BYTES`) and one histogram per tensor. Raises UsageError when there is no input or a calibrator is unknown.
    """
    unknown = [name for name in calibrators if name not in CALIBRATIONS]
    if unknown:
        raise UsageError(f"there is no calibrator {', '.join(unknown)}; known are {', '.join(CALIBRATORS)}")
    histograms = _histograms(prepared, batches)
    return {
        name: {tensor: _rounded(CALIBRATIONS[name](seen)) for tensor, seen in histograms.items()}
        for name in calibrators
    }


def measured_tensors(prepared: ModelProto) -> tuple[str, ...]:
    """Return the float activations that a form may quantise, in the graph's order.

    Not among them: a convolution's output in front of its ReLU or clip, which every form computes in one.
    """
    floats = {v.name for v in _values(prepared) if v.type.tensor_type.elem_type == TensorProto.FLOAT}
    constants = {tensor.name for tensor in prepared.graph.initializer}
    made, used = producers(prepared), consumers(prepared)
    found: dict[str, None] = {}
    for node in prepared.graph.node:
        if node.op_type in MEASURED:
            found.update(dict.fromkeys((*node.input, *node.output)))
    folded = {
        name
        for name, users in used.items()
        if len(users) == 1 and users[0].op_type in ("Relu", "Clip") and name in made and made[name].op_type == "Conv"
    }
    return tuple(name for name in found if name in floats and name not in constants and name not in folded)


def largest_by_channel(prepared: ModelProto, names: Sequence[str], batches: Batches) -> Mapping[str, np.ndarray]:
    """Return tensor → the largest absolute value of each channel, float64 [C], of tensors [N, C, H, W]; one pass."""
    found: dict[str, np.ndarray] = {}
    for name, values in _activations(prepared, _parts(prepared, names), batches):
        largest = np.abs(values).max(axis=(0, 2, 3)).astype(np.float64)
        found[name] = np.maximum(found[name], largest) if name in found else largest
    return found


def _histograms(prepared: ModelProto, batches: Batches) -> Mapping[str, Histogram]:
    parts = _parts(prepared, measured_tensors(prepared))
    low: dict[str, float] = {}
    high: dict[str, float] = {}
    for name, values in _activations(prepared, parts, batches):
        # Not Python's min and max, which lose a NaN.
        low[name] = float(np.minimum(low.get(name, 0.0), values.min()))
        high[name] = float(np.maximum(high.get(name, 0.0), values.max()))
    broken = [name for name in low if not np.isfinite([low[name], high[name]]).all()]
    if broken:
        raise UsageError(f"the tensor {broken[0]} is NaN or infinite on a calibration image; the model is broken")
    counts = {name: np.zeros((2, BINS), np.int64) for name in low}
    for name, values in _activations(prepared, parts, batches):
        size = max(-low[name], high[name])
        if size > 0:
            counts[name] += _counted(values, size)
    return {name: Histogram(low[name], high[name], *counts[name]) for name in low}


def _activations(
    prepared: ModelProto, parts: Sequence[Sequence[str]], batches: Batches
) -> Iterable[tuple[str, np.ndarray]]:
    empty = True
    for part in parts:
        with opened(_returning(prepared, part)) as session:
            for batch in batches():
                empty = False
                inputs = batch if isinstance(batch, tuple) else (batch,)
                yield from zip(part, session.run_all(*inputs), strict=True)
    if empty:
        raise UsageError("there is no image to calibrate with")


def _returning(prepared: ModelProto, names: Sequence[str]) -> ModelProto:
    """Return a copy of the graph that returns these tensors instead of its outputs."""
    model = ModelProto()
    model.CopyFrom(prepared)
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names)
    return model


def _parts(prepared: ModelProto, names: Sequence[str]) -> list[list[str]]:
    """Return the tensors in runs of at most `PASS_BYTES`, sizes of one image."""
    sides = {v.name: [max(1, d.dim_value) for d in v.type.tensor_type.shape.dim] for v in _values(prepared)}
    parts: list[list[str]] = [[]]
    room = PASS_BYTES
    for name in names:
        size = 4 * prod(sides[name])
        if size > room and parts[-1]:
            parts.append([])
            room = PASS_BYTES
        parts[-1].append(name)
        room -= size
    return [part for part in parts if part]


def _counted(values: np.ndarray, size: float) -> np.ndarray:
    """Return how many values fall into each bin, int64 [2, BINS]: negative ones by size, positive ones."""
    flat = np.ascontiguousarray(values, np.float32).reshape(1, -1)
    end = float(np.nextafter(np.float32(size), np.float32(np.inf)))
    found = np.zeros((2, BINS), np.int64)
    # The histogram counts in float32, which is exact up to 2**24.
    for start in range(0, flat.shape[1], 1 << 23):
        part = flat[:, start : start + (1 << 23)]
        zeros = part.size - int(np.count_nonzero(part))
        both = cv2.calcHist([part], [0], None, [2 * BINS], [-end, end]).ravel().astype(np.int64)
        both[BINS] -= zeros
        found += np.stack([both[:BINS][::-1], both[BINS:]])
    return found


def _values(model: ModelProto) -> Iterable[ValueInfoProto]:
    yield from (*model.graph.input, *model.graph.value_info, *model.graph.output)


def _within(seen: Histogram, size: float) -> tuple[float, float]:
    return max(seen.low, -size), min(seen.high, size)


def _rounded(ends: tuple[float, float]) -> tuple[float, float]:
    """Return the range to six digits: the last ones of float32 differ from processor to processor."""
    low, high = (float(f"{end:.6g}") for end in ends)
    return low, high


def _clipping(counts: np.ndarray, ends: np.ndarray, width: float) -> np.ndarray:
    """Return the summed squared error of clipping one side at each end (in bins), float64 [ends]."""
    centres = (np.arange(BINS) + 0.5) * width
    moments = [np.concatenate([np.cumsum((counts * centres**k)[::-1])[::-1], [0.0]]) for k in range(3)]
    beyond = [moment[ends] for moment in moments]
    limit = ends * width
    return np.asarray(beyond[2] - 2 * limit * beyond[1] + limit**2 * beyond[0])


def _divergence(counts: np.ndarray, kept: int) -> float:
    """Return KL(P ‖ Q): P the first bins with all beyond in the last, Q the same in `LEVELS` levels."""
    p = counts[:kept].copy()
    filled = p > 0
    level = np.arange(kept) * LEVELS // kept
    total = np.bincount(level, p, LEVELS)
    share = np.bincount(level, filled, LEVELS)
    q = np.where(filled, total[level] / np.maximum(share[level], 1), 0.0)
    p[-1] += counts[kept:].sum()
    if not q.any():
        return float("inf")
    p, q = p / p.sum(), q / q.sum()
    here = p > 0
    # An outlier in an empty last bin has no level of its own; the smallest share stands for it, as smoothing does.
    return float(np.sum(p[here] * np.log(p[here] / np.maximum(q[here], 1e-9))))
