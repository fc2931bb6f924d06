"""Channels of like size: weak ones raised by the convolution before, lowered by the one after, the answer unchanged.

Cross-layer equalisation (Nagel et al. 2019, arXiv:1906.04721), aware of clips and residual sums: one scale serves all
channels of a tensor, so a channel that uses a tenth of its tensor's range has a tenth of the levels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from mammo_export.ranges import Batches, largest_by_channel

CLIP_ROOM = 0.6
"""A raised channel fills at most this part of a clip's range: unseen images exceed those calibrated on.

Logits' distance from FP32 on mass-roi's validation windows: 0.9 → 36 dB, 0.6 → 44 dB, 0.4 → 51 dB with 24 windows to
calibrate on; 56, 69 and 82 dB with 100."""
MOST = 16.0
"""Largest factor: what is weaker is noise, or dead."""
DENSE_POWER = 0.5
"""Of the ideal factor where a dense convolution reads the channel: its weights of a raised channel get smaller next to
the others of their row, which share one scale. A depthwise kernel has a scale of its own and takes the whole."""
THROUGH = frozenset({"Relu", "Resize", "MaxPool", "AveragePool", "GlobalAveragePool"})
"""Operators with f(s·x) = s·f(x) for s > 0, channel by channel."""

Channel = tuple[str, int]
"""Tensor and channel."""


def equalised(prepared: ModelProto, batches: Batches) -> ModelProto:
    """Return the graph with weights and biases rescaled so that channels of one tensor are of like size; checked.

    The answer is the same but for rounding, and exactly so where no raised value meets a clip (`CLIP_ROOM`). One pass
    over the inputs. A graph in which nothing can be raised comes back as it was. Weights that
    are no constants, or that several nodes share, are left alone.
    """
    classes = _Classes(prepared)
    names = classes.tensors()
    if not names:
        return prepared
    largest = largest_by_channel(prepared, names, batches)
    factors = classes.factors(largest)
    model = ModelProto()
    model.CopyFrom(prepared)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    changed: dict[str, np.ndarray] = {}
    for node in classes.convolutions:
        before, after = (factors.get(name) for name in (node.input[0], node.output[0]))
        depthwise = _depthwise(node, weights)
        weight = changed.get(node.input[1], weights[node.input[1]]).astype(np.float64)
        if before is not None:
            weight /= before.reshape((-1, 1, 1, 1) if depthwise else (1, -1, 1, 1))
        if after is not None:
            weight *= after.reshape(-1, 1, 1, 1)
            if len(node.input) > 2 and node.input[2]:
                changed[node.input[2]] = weights[node.input[2]].astype(np.float64) * after
        changed[node.input[1]] = weight
    for tensor in model.graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(changed[tensor.name].astype(np.float32), tensor.name))
    onnx.checker.check_model(model, full_check=True)
    return model


class _Classes:
    """Channels that must have one factor, and those that must keep theirs at 1."""

    def __init__(self, prepared: ModelProto) -> None:
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in prepared.graph.initializer}
        self._parent: dict[Channel, Channel] = {}
        self._fixed: set[Channel] = set()
        self._limit: dict[str, float] = {}
        self._dense: set[str] = set()
        values = (*prepared.graph.input, *prepared.graph.value_info, *prepared.graph.output)
        self._channels = {
            v.name: v.type.tensor_type.shape.dim[1].dim_value
            for v in values
            if len(v.type.tensor_type.shape.dim) == 4 and v.type.tensor_type.shape.dim[1].dim_value
        }
        shared = _shared(prepared)
        self.convolutions: list[NodeProto] = []
        for node in prepared.graph.node:
            if self._is_convolution(node) and not shared & set(node.input[1:]):
                self.convolutions.append(node)
                self._convolution(node)
            elif not self._passes(node):
                self._fix([*node.input, *node.output])
        self._fix([v.name for v in (*prepared.graph.input, *prepared.graph.output)])

    def tensors(self) -> tuple[str, ...]:
        """Return the tensors with a channel that may be raised."""
        fixed = {self._root(channel) for channel in self._fixed}
        return tuple(
            name
            for name in sorted(self._channels)
            if any(self._root((name, k)) not in fixed for k in range(self._channels[name]))
        )

    def factors(self, largest: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        """Return tensor → factor of each channel, at least 1; `largest`: tensor → largest absolute value of each."""
        fixed = {self._root(channel) for channel in self._fixed}
        room: dict[Channel, float] = defaultdict(lambda: MOST)
        dense: set[Channel] = set()
        for name, sizes in largest.items():
            top = float(sizes.max())
            limit = self._limit.get(name)
            for channel, size in enumerate(sizes.tolist()):
                root = self._root((name, channel))
                if name in self._dense:
                    dense.add(root)
                ideal = top / size if size > 0 else MOST
                if limit is not None and size > 0:
                    ideal = min(ideal, CLIP_ROOM * limit / size)
                room[root] = min(room[root], ideal)
        found = {}
        for name in largest:
            roots = [self._root((name, channel)) for channel in range(self._channels[name])]
            ideal = np.array([1.0 if root in fixed else max(1.0, room[root]) for root in roots])
            power = np.array([DENSE_POWER if root in dense else 1.0 for root in roots])
            found[name] = ideal**power
        return found

    def _is_convolution(self, node: NodeProto) -> bool:
        if node.op_type != "Conv" or node.input[1] not in self._constants:
            return False
        if len(node.input) > 2 and node.input[2] and node.input[2] not in self._constants:
            return False
        grouped = next((a.i for a in node.attribute if a.name == "group"), 1) > 1
        known = node.input[0] in self._channels and node.output[0] in self._channels
        return known and (not grouped or _depthwise(node, self._constants))

    def _convolution(self, node: NodeProto) -> None:
        if not _depthwise(node, self._constants):
            self._dense.add(node.input[0])

    def _passes(self, node: NodeProto) -> bool:
        """Join the channels that an operator passes on; False when it does something else."""
        data = [name for name in node.input if name in self._channels]
        output = node.output[0]
        if output not in self._channels:
            return False
        if node.op_type in THROUGH and len(data) == 1:
            self._join(data[0], output)
        elif node.op_type == "Clip" and len(data) == 1 and self._from_zero(node):
            self._join(data[0], output)
            limit = float(self._constants[node.input[2]])
            self._limit[output] = min(limit, self._limit.get(output, limit))
        elif node.op_type == "Add" and len(data) == 2 and {self._channels[n] for n in data} == {self._channels[output]}:
            for name in data:
                self._join(name, output)
        elif node.op_type == "Concat" and len(data) == len(node.input) and node.attribute[0].i == 1:
            start = 0
            for name in data:
                self._join(name, output, start)
                start += self._channels[name]
        else:
            return False
        return True

    def _from_zero(self, node: NodeProto) -> bool:
        """Tell whether a clip is a ReLU with a constant upper end."""
        ends = [self._constants.get(name) for name in node.input[1:3]]
        return len(ends) == 2 and ends[0] is not None and ends[1] is not None and float(ends[0]) == 0 < float(ends[1])

    def _join(self, name: str, output: str, start: int = 0) -> None:
        for channel in range(self._channels[name]):
            self._parent[self._root((name, channel))] = self._root((output, channel + start))

    def _fix(self, names: Sequence[str]) -> None:
        self._fixed.update((name, k) for name in names for k in range(self._channels.get(name, 0)))

    def _root(self, channel: Channel) -> Channel:
        while (parent := self._parent.get(channel, channel)) != channel:
            self._parent[channel] = self._parent.get(parent, parent)
            channel = parent
        return channel


def _depthwise(node: NodeProto, constants: Mapping[str, np.ndarray]) -> bool:
    group = next((a.i for a in node.attribute if a.name == "group"), 1)
    return bool(group > 1 and constants[node.input[1]].shape[:2] == (group, 1))


def _shared(prepared: ModelProto) -> set[str]:
    """Return the constants that several nodes read: rescaling one node's would change the other's."""
    seen: set[str] = set()
    twice: set[str] = set()
    for name in _inputs(prepared):
        (twice if name in seen else seen).add(name)
    return twice & {tensor.name for tensor in prepared.graph.initializer}


def _inputs(prepared: ModelProto) -> Iterator[str]:
    for node in prepared.graph.node:
        yield from node.input
