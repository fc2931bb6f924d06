"""FP32 graph → FP16: half precision inside, float32 outside, and proof of what a graph computes in.

The casting is ONNX Runtime's own (`onnxruntime.transformers.float16`: no torch, no transformers behind it). Put right
around it, because it would: round weights that an FP32 island shares with a half-precision neighbour; raise weights
below half's smallest number to it instead of to zero; cut larger ones to 65504 without a word; cast to half and back
between two islands; append its casts at the end of the graph; leave element types that are no longer true.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mammo_export.activation import kept_tail
from mammo_export.element_types import inferred, name_of
from mammo_runtime.errors import UsageError

LARGEST = float(np.finfo(np.float16).max)
"""65504."""
UNDERFLOW = 2.0**-25
"""Half of half precision's smallest number: what is not larger rounds to zero."""
SCALES = 2
"""Position of Resize's input `scales`, float32 in every precision."""
HALF_TOO = frozenset({"Min", "Max"})
"""On the library's list of operators without half precision, but ONNX, ONNX Runtime and TensorRT have it."""


def to_fp16(graph: onnx.ModelProto, keep: Collection[str] = ()) -> onnx.ModelProto:
    """Return the graph in half precision, checked; inputs and outputs keep their types, metadata stays.

    `keep`: names of nodes that stay FP32 (`find_islands`). What the exporter appended (sigmoid, arg-max) always
    stays FP32: a probability in half precision has steps of 0.0005 where the threshold lies, the logit under it has
    not, and the cast before the sigmoid costs what the one after it would. Resize keeps float32 scales, its data is
    half. The same graph gives the same bytes. Raises UsageError for a name in `keep` that no node has, and for a
    constant beyond 65504 whose node is not kept.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.value_info[:]  # a stale one, or one of a constant, makes the library cast what needs none
    for node in model.graph.node:
        node.name = name_of(node)
    kept = frozenset(keep)
    unknown = kept - {node.name for node in model.graph.node}
    if unknown:
        raise UsageError(f"the graph has no node {', '.join(sorted(unknown))}; islands belong to the graph measured")
    float16 = _library()
    never = set(float16.DEFAULT_OP_BLOCK_LIST) - HALF_TOO
    kept |= kept_tail(graph) | {node.name for node in model.graph.node if node.op_type in never}
    _lift_constants(model)
    _split_shared(model, kept)
    _round_constants(model, kept)
    model = float16.convert_float_to_float16(model, keep_io_types=True, op_block_list=[], node_block_list=sorted(kept))
    _short_circuit(model)
    _sort(model)
    model = inferred(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _lift_constants(model: onnx.ModelProto) -> None:
    """Make every Constant node an initializer: the library looks after those."""
    constants = [node for node in model.graph.node if node.op_type == "Constant"]
    for node in constants:
        (attribute,) = node.attribute
        value = helper.get_attribute_value(attribute)
        if isinstance(value, TensorProto):
            array = numpy_helper.to_array(value)
        else:
            array = np.asarray(value, np.float32 if "float" in attribute.name else np.int64)
        model.graph.initializer.append(numpy_helper.from_array(array, node.output[0]))
        model.graph.node.remove(node)


def _split_shared(model: onnx.ModelProto, kept: frozenset[str]) -> None:
    """Give what stays FP32 (kept nodes, the scales of Resize) its own copy of constants that others use too."""
    floats = {t.name: t for t in model.graph.initializer if t.data_type == TensorProto.FLOAT}
    uses = [(node, number, name) for node in model.graph.node for number, name in enumerate(node.input)]
    stays = [(n.name in kept or (n.op_type == "Resize" and number == SCALES)) for n, number, _ in uses]
    elsewhere = {name for (_, _, name), stay in zip(uses, stays, strict=True) if not stay}
    copied: set[str] = set()
    for (node, number, name), stay in zip(uses, stays, strict=True):
        if not stay or name not in floats or name not in elsewhere:
            continue
        node.input[number] = f"{name}_fp32"
        if name not in copied:
            copied.add(name)
            tensor = model.graph.initializer.add()
            tensor.CopyFrom(floats[name])
            tensor.name = f"{name}_fp32"


def _round_constants(model: onnx.ModelProto, kept: frozenset[str]) -> None:
    """Set weights that half precision cannot hold to zero, and refuse those beyond its largest number.

    Single numbers are left to the library, which raises them to half's smallest: they are divisors and their guards.
    """
    users = {
        name: node
        for node in model.graph.node
        if node.name not in kept
        for number, name in enumerate(node.input)
        if not (node.op_type == "Resize" and number == SCALES)
    }
    for tensor in model.graph.initializer:
        node = users.get(tensor.name)
        if tensor.data_type != TensorProto.FLOAT or node is None:
            continue
        values = numpy_helper.to_array(tensor)
        if (np.isfinite(values) & (np.abs(values) > LARGEST)).any():
            raise UsageError(
                f"the constant {tensor.name} of {node.name} holds {np.abs(values).max():.3g}, beyond half "
                f"precision's {LARGEST:g}; keep that node in FP32 (find_islands names it)"
            )
        lost = (values != 0) & (np.abs(values) <= UNDERFLOW)
        if values.size > 1 and lost.any():
            tensor.CopyFrom(numpy_helper.from_array(np.where(lost, np.float32(0), values), tensor.name))


def _library() -> Any:
    paths = list(sys.path)
    # The second is not used here: onnxruntime.quantization imports it later, and finds it only through that path.
    from onnxruntime.transformers import float16, onnx_utils  # noqa: F401

    # Importing that package appends its folder, whose modules are called `models` or `float16`, to the path.
    sys.path[:] = paths
    return float16


def _short_circuit(model: onnx.ModelProto) -> None:
    """Take out float32 → half → float32: it costs two passes and what half precision cannot hold."""
    makers = {output: node for node in model.graph.node for output in node.output}
    outputs = {value.name for value in model.graph.output}
    for node in (n for n in model.graph.node if n.op_type == "Shape" and n.input[0] in makers):
        if makers[node.input[0]].op_type == "Cast":  # a size is that of the tensor before; no cast is needed for it
            node.input[0] = makers[node.input[0]].input[0]
    same: dict[str, str] = {}
    for node in (n for n in model.graph.node if _casts_to(n, TensorProto.FLOAT)):
        before = makers.get(node.input[0])
        if before is not None and _casts_to(before, TensorProto.FLOAT16):
            same[node.output[0]] = before.input[0]
    for after in [name for name in same if name in outputs and same[name] in makers]:
        # An output's name is a promise: what made the float32 tensor makes it under that name.
        original = same.pop(after)
        maker = makers[original]
        maker.output[list(maker.output).index(original)] = after
        for removed in [n for n in model.graph.node if after in n.output and n is not maker]:
            model.graph.node.remove(removed)
        same[original] = after
    for node in model.graph.node:
        for number, name in enumerate(node.input):
            while name in same:
                name = same[name]
            node.input[number] = name
    _remove_unread(model)


def _remove_unread(model: onnx.ModelProto) -> None:
    """Remove casts that nothing reads any more."""
    while True:
        read = {name for node in model.graph.node for name in node.input} | {v.name for v in model.graph.output}
        idle = [n for n in model.graph.node if n.op_type == "Cast" and not read & set(n.output)]
        if not idle:
            return
        for node in idle:
            model.graph.node.remove(node)


def _casts_to(node: NodeProto, element: int) -> bool:
    return node.op_type == "Cast" and any(a.name == "to" and a.i == element for a in node.attribute)


def _sort(model: onnx.ModelProto) -> None:
    """Put the nodes in an order in which each reads what was made before, the old order where that leaves a choice."""
    made = {output for node in model.graph.node for output in node.output}
    ready = {v.name for v in model.graph.input} | {t.name for t in model.graph.initializer} | {""}
    waiting, ordered = list(model.graph.node), list[NodeProto]()
    while waiting:
        later: list[NodeProto] = []
        for node in waiting:
            if all(name in ready or name not in made for name in node.input):
                ordered.append(node)
                ready |= set(node.output)
            else:
                later.append(node)
        assert len(later) < len(waiting), "a graph has no circles"
        waiting = later
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in ordered]
    del model.graph.node[:]
    model.graph.node.extend(copies)
