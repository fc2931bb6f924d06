"""Who makes a tensor of a graph, and who reads it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from onnx import ModelProto, NodeProto


def producers(model: ModelProto) -> Mapping[str, NodeProto]:
    """Return tensor → the node that makes it."""
    return {output: node for node in model.graph.node for output in node.output if output}


def consumers(model: ModelProto) -> Mapping[str, list[NodeProto]]:
    """Return tensor → the nodes that read it, in the graph's order; graph outputs do not count."""
    found: dict[str, list[NodeProto]] = defaultdict(list)
    for node in model.graph.node:
        for name in dict.fromkeys(node.input):
            if name:
                found[name].append(node)
    return found


def sorted_nodes(model: ModelProto) -> list[NodeProto]:
    """Return the nodes in an order in which each comes after what it reads; otherwise as they were."""
    made = producers(model)
    done: set[str] = set()
    order: list[NodeProto] = []

    def visit(first: NodeProto) -> None:
        waiting = [first]
        while waiting:
            node = waiting[-1]
            if node.output[0] in done:
                waiting.pop()
                continue
            missing = [made[name] for name in node.input if name in made and made[name].output[0] not in done]
            if missing:
                waiting.extend(reversed(missing))
                continue
            done.update(node.output)
            order.append(node)
            waiting.pop()

    for node in model.graph.node:
        visit(node)
    return order


def drop_unread(model: ModelProto) -> None:
    """Remove, in place, the nodes and constants that no output depends on, and what is said of tensors now gone.

    The nodes must be in order.
    """
    needed = {output.name for output in model.graph.output}
    kept = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed.update(node.input)
    del model.graph.node[:]
    model.graph.node.extend(reversed(kept))
    constants = [tensor for tensor in model.graph.initializer if tensor.name in needed]
    del model.graph.initializer[:]
    model.graph.initializer.extend(constants)
    made = {name for node in kept for name in node.output}
    values = [value for value in model.graph.value_info if value.name in made]
    del model.graph.value_info[:]
    model.graph.value_info.extend(values)
