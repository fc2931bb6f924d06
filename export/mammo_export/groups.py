"""What of a graph is quantised or reverted together, and what never is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import Enum

from onnx import ModelProto, NodeProto

from mammo_export.graph_walk import consumers, producers


class Form(str, Enum):
    """Two forms, because no graph is both: TensorRT refuses uint8, and its own form is slower than FP32 on a CPU."""

    TENSORRT = "int8"
    CPU = "int8-cpu"


WEIGHTED = ("Conv", "ConvTranspose", "MatMul", "Gemm")
ACTIVATIONS = ("Relu", "Clip")


@dataclass(frozen=True)
class Group:
    """What is quantised, or left in float, together."""

    name: str
    """Of its first node."""
    nodes: tuple[str, ...]
    """The weighted node, and the Add and the activation that are computed in one with it."""
    operator: str
    """Of the weighted node."""


def groups(prepared: ModelProto) -> tuple[Group, ...]:
    """Return the groups of a prepared graph in its order: one for each Conv, ConvTranspose, MatMul, Gemm with weights.

    Each with the activation behind it, and with the Add that can be computed in one with it (and what follows that).
    """
    made, used = producers(prepared), consumers(prepared)
    weights = {tensor.name for tensor in prepared.graph.initializer}
    found = []
    for node in prepared.graph.node:
        if node.op_type in WEIGHTED and node.input[1] in weights:
            nodes = [node]
            after = _only_user(node, used)
            if after is not None and after.op_type == "Add" and main_of(after, made, used, weights) is node:
                nodes.append(after)
                after = _only_user(after, used)
            if after is not None and after.op_type in ACTIVATIONS:
                nodes.append(after)
            found.append(Group(node.name, tuple(n.name for n in nodes), node.op_type))
    return tuple(found)


def kept_float(prepared: ModelProto, form: Form) -> Mapping[str, str]:
    """Return group → why a form never quantises it."""
    weighted = {group.name: group for group in groups(prepared)}
    last = _last(prepared, set(weighted))
    reasons = {}
    for name, group in weighted.items():
        if name in last:
            reasons[name] = "makes the logits: eight bits there would move the threshold"
        elif group.operator == "ConvTranspose":
            reasons[name] = {
                Form.TENSORRT: "TensorRT computes INT8 transposed convolutions slower than FP16 or wrongly "
                "(NVIDIA/TensorRT issues 1694, 1699, 1961, 4366)",
                Form.CPU: "ONNX Runtime has no INT8 transposed convolution",
            }[form]
    return reasons


def _only_user(node: NodeProto, used: Mapping[str, list[NodeProto]]) -> NodeProto | None:
    users = used.get(node.output[0], [])
    return users[0] if len(users) == 1 else None


def main_of(
    add: NodeProto, made: Mapping[str, NodeProto], used: Mapping[str, list[NodeProto]], weights: Collection[str]
) -> NodeProto | None:
    """Return the convolution that an Add is computed in one with: the later of those whose output only it reads."""
    own = [made.get(name) for name in add.input]
    fit = [n for n in own if n is not None and n.op_type in WEIGHTED and n.input[1] in weights and _only_user(n, used)]
    return fit[-1] if fit else None


def _last(prepared: ModelProto, weighted: Collection[str]) -> set[str]:
    """Return the weighted nodes with none behind them."""
    behind: dict[str, bool] = {}
    last = set()
    for node in reversed(prepared.graph.node):
        follows = any(behind.get(name, False) for name in node.output)
        own = node.name in weighted
        if own and not follows:
            last.add(node.name)
        for name in node.input:
            behind[name] = behind.get(name, False) or follows or own
    return last
