"""The form of a graph: what old and new engines read. Put in order after torch's exporter, checked before it ships."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mammo_export.activation import BOXES
from mammo_runtime.errors import GateMissed

OPSET = 18
MAX_IR_VERSION = 10
"""TensorRT 10.3 (JetPack 6) and ONNX Runtime 1.18 read this."""
STRAY = frozenset({"Shape", "Size", "Loop", "If", "Scan", "NonZero", "SequenceAt", "GatherND"})
"""Sizes computed while running, control flow and results of unknown size: engines plan memory ahead. With a fixed
grid none is needed; GatherND is what torch makes of adaptive pooling over a size that does not divide."""
SIZES = 3
"""Position of Resize's input `sizes`."""


def check_form(model: onnx.ModelProto) -> None:
    """Raise GateMissed unless the graph is what old and new engines read, with its weights inside and finite.

    Checked: one opset, IR version, no computed shapes or control flow, no batch norm in training form, no external
    data, no NaN or infinite weight. A batch norm that stands before its convolution cannot be folded; it is legal
    (one pass in ONNX Runtime, one scale layer in TensorRT, where Mul and Add would be two) and counted by `form_of`.
    """
    opsets = {o.domain: o.version for o in model.opset_import}
    if opsets != {"": OPSET} or model.ir_version > MAX_IR_VERSION:
        raise GateMissed(f"the graph has opsets {opsets} and IR version {model.ir_version}")
    stray = STRAY & {node.op_type for node in model.graph.node if not _counts_boxes(node)}
    if stray:
        raise GateMissed(f"the graph holds {', '.join(sorted(stray))} nodes, which engines handle badly")
    if any(a.name == "training_mode" and a.i for node in model.graph.node for a in node.attribute):
        raise GateMissed("a batch norm of the graph is in training form; its output would depend on the other images")
    tensors = list(_tensors(model))
    if any(t.data_location == TensorProto.EXTERNAL for t in tensors):
        raise GateMissed("the graph keeps weights in another file")
    for tensor in tensors:
        weight = numpy_helper.to_array(tensor)
        if weight.dtype.kind == "f" and not np.isfinite(weight).all():
            raise GateMissed(f"the weight {tensor.name} holds NaN or infinite values; the training run is broken")


def form_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what the graph is made of, JSON-ready: nodes, operators with their counts, batch norms left over."""
    operators = Counter(node.op_type for node in model.graph.node)
    return {
        "opset": OPSET,
        "ir_version": model.ir_version,
        "nodes": len(model.graph.node),
        "operators": dict(sorted(operators.items())),
        "batch_norms_left": operators["BatchNormalization"],
    }


def form_line(model: onnx.ModelProto) -> str:
    """Return the form in one line for people."""
    form = form_of(model)
    left = form["batch_norms_left"]
    norms = f", {left} batch norms that no convolution precedes" if left else ""
    return f"{form['nodes']} nodes, {model.ByteSize() / 1e6:.1f} MB{norms}"


def tidied(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy without what varies from run to run, names the machine or computes sizes; checked.

    Removed: stack traces, documentation, foreign opsets. Resize takes constant scales where the sizes are known.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    model.ir_version = min(model.ir_version, MAX_IR_VERSION)
    _strip(model)
    _resize_by_scales(model)
    _remove_unused(model)
    onnx.checker.check_model(model, full_check=True)
    return model


def _counts_boxes(node: NodeProto) -> bool:
    """Tell whether a node reads how many boxes a decoder was given: the one size that is not known ahead."""
    return node.op_type == "Shape" and list(node.input) == [BOXES]


def _tensors(model: onnx.ModelProto) -> Iterator[TensorProto]:
    yield from model.graph.initializer
    for node in model.graph.node:
        yield from (attribute.t for attribute in node.attribute if attribute.type == onnx.AttributeProto.TENSOR)


def _strip(graph: onnx.ModelProto) -> None:
    graph.doc_string, graph.graph.doc_string = "", ""
    graph.producer_name, graph.producer_version = "mammo-edge", ""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    for opset in [o for o in graph.opset_import if o.domain]:
        graph.opset_import.remove(opset)


def _resize_by_scales(model: onnx.ModelProto) -> None:
    """Give every Resize to a whole multiple constant scales instead of sizes computed from another tensor's shape."""
    constants = {tensor.name for tensor in model.graph.initializer}
    computed = [
        node
        for node in model.graph.node
        if node.op_type == "Resize" and len(node.input) > SIZES and node.input[SIZES] not in constants
    ]
    if not computed:
        return
    shapes = _shapes(onnx.shape_inference.infer_shapes(model, data_prop=True))
    for number, node in enumerate(computed):
        before, after = shapes.get(node.input[0], ()), shapes.get(node.output[0], ())
        sides = [(a, b) for a, b in zip(before[2:], after[2:], strict=False) if a and b and b % a == 0]
        if len(sides) != len(before) - 2 or len(before) != len(after):
            continue  # `check_form` refuses what stays
        scales = np.array([1, 1, *(b / a for a, b in sides)], np.float32)
        name = f"resize_scales_{number}"
        model.graph.initializer.append(numpy_helper.from_array(scales, name))
        kept = [a for a in node.attribute if a.name not in ("axes", "keep_aspect_ratio_policy")]
        changed = helper.make_node("Resize", [node.input[0], "", name], list(node.output), node.name)
        changed.attribute.extend(kept)
        node.CopyFrom(changed)


def _shapes(model: onnx.ModelProto) -> Mapping[str, tuple[int, ...]]:
    """Return tensor → sides, 0 for one that is not fixed."""
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    return {v.name: tuple(d.dim_value for d in v.type.tensor_type.shape.dim) for v in values}


def _remove_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and constants whose output nothing reads."""
    needed = {output.name for output in model.graph.output}
    kept: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if needed & set(node.output):
            kept.append(node)
            needed |= set(node.input)
    removed = len(kept) != len(model.graph.node)
    if removed:
        del model.graph.node[:]
        model.graph.node.extend(reversed(kept))
    for field in (model.graph.initializer, model.graph.value_info):
        used = [entry for entry in field if entry.name in needed]
        if len(used) != len(field):
            del field[:]
            field.extend(used)
