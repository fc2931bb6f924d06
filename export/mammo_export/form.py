"""The form of a graph: what old and new engines read. Put in order after torch's exporter, checked before it ships."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mammo_export.activation import BOXES
from mammo_export.element_types import TYPES, computed_in
from mammo_runtime.errors import GateMissed

OPSET = 18
MAX_IR_VERSION = 10
"""TensorRT 10.3 (JetPack 6) and ONNX Runtime 1.18 read this."""
STRAY = frozenset({"Shape", "Size", "Loop", "If", "Scan", "NonZero", "SequenceAt", "GatherND"})
"""Sizes computed while running, control flow and results of unknown size: engines plan memory ahead. With a fixed
grid none is needed; GatherND is what torch makes of adaptive pooling over a size that does not divide."""
QUANTISED_OPSET = 19
"""The first whose QuantizeLinear takes half precision: where INT8 and FP16 meet. TensorRT 10.3 reads it."""
LEAST_SHARE = 0.9
"""Of the convolutions and matrix products, what must compute in a precision before a graph may be called by it."""
OUTER_TYPES = frozenset({TensorProto.FLOAT, TensorProto.UINT8})
"""Of inputs and outputs, in every precision: a caller never sees halves."""
SIZES = 3
"""Position of Resize's input `sizes`."""


@dataclass(frozen=True)
class Promise:
    """What a graph's label says of it."""

    opset: int
    types: tuple[str, ...]
    """What its convolutions and matrix products compute in, together `LEAST_SHARE` of them, the first at least once."""


PROMISES: Mapping[str, Promise] = {
    "fp32": Promise(OPSET, ("fp32",)),
    "fp16": Promise(OPSET, ("fp16",)),
    "int8": Promise(QUANTISED_OPSET, ("int8", "fp16")),
    "int8-twin": Promise(OPSET, ("int8", "fp32")),
    "int8-cpu": Promise(OPSET, ("int8", "fp32")),
}
"""Key of a bundle's graph → its promise. The twin is the FP32-scale form of int8 and never shipped."""


def check_form(model: onnx.ModelProto, key: str = "fp32") -> None:
    """Raise GateMissed unless the graph is what old and new engines read, and computes in what its label says.

    Checked: one opset, IR version, no computed shapes or control flow, no batch norm in training form, no external
    data, no NaN or infinite weight, float32 (or uint8 labels) outside, no cast of a cast, `key`'s promise. A batch
    norm that stands before its convolution cannot be folded; it is legal (one pass in ONNX Runtime, one scale layer
    in TensorRT, where Mul and Add would be two) and counted by `form_of`.
    """
    opsets = {o.domain: o.version for o in model.opset_import}
    if opsets != {"": PROMISES[key].opset} or model.ir_version > MAX_IR_VERSION:
        raise GateMissed(f"the graph has opsets {opsets} and IR version {model.ir_version}")
    stray = STRAY & {node.op_type for node in model.graph.node if not _counts_boxes(node)}
    if stray:
        raise GateMissed(f"the graph holds {', '.join(sorted(stray))} nodes, which engines handle badly")
    if any(a.name == "training_mode" and a.i for node in model.graph.node for a in node.attribute):
        raise GateMissed("a batch norm of the graph is in training form; its output would depend on the other images")
    _check_weights(model)
    _check_types(model)
    _check_promise(model, key)


def _check_weights(model: onnx.ModelProto) -> None:
    tensors = list(_tensors(model))
    if any(t.data_location == TensorProto.EXTERNAL for t in tensors):
        raise GateMissed("the graph keeps weights in another file")
    for tensor in tensors:
        weight = numpy_helper.to_array(tensor)
        if weight.dtype.kind == "f" and not np.isfinite(weight).all():
            raise GateMissed(f"the weight {tensor.name} holds NaN or infinite values; the training run is broken")


def _check_types(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        element = value.type.tensor_type.elem_type
        if element not in OUTER_TYPES:
            found = TYPES.get(element, TensorProto.DataType.Name(element).lower())
            raise GateMissed(f"the graph's {value.name} is {found}; inputs and outputs are float32 in every precision")
    casts = {output for node in model.graph.node if node.op_type == "Cast" for output in node.output}
    for node in model.graph.node:
        if node.op_type == "Cast" and casts & set(node.input):
            raise GateMissed(f"{node.name} casts what a cast has made: two passes over the tensor, and lost digits")


def _check_promise(model: onnx.ModelProto, key: str) -> None:
    types = PROMISES[key].types
    try:
        counts = computed_in(model)
    except Exception as error:  # onnx raises a RuntimeError of its own for types that do not fit together
        raise GateMissed(f"the types of the graph do not fit together: {' '.join(str(error).split())[:200]}") from error
    total = sum(counts.values())
    share = sum(counts.get(element, 0) for element in types) / total if total else 1.0
    if share < LEAST_SHARE or (total and not counts.get(types[0])):
        measured = ", ".join(f"{count} in {element}" for element, count in counts.items())
        raise GateMissed(
            f"the graph is called {key}, but of its {total} convolutions and matrix products {measured}: "
            f"{share:.0%} keep the promise (limit {LEAST_SHARE:.0%})"
        )


def form_of(model: onnx.ModelProto) -> dict[str, Any]:
    """Return what the graph is made of, JSON-ready: nodes, operators with their counts, batch norms left over."""
    operators = Counter(node.op_type for node in model.graph.node)
    return {
        "opset": next(o.version for o in model.opset_import if not o.domain),
        "ir_version": model.ir_version,
        "nodes": len(model.graph.node),
        "operators": dict(sorted(operators.items())),
        "batch_norms_left": operators["BatchNormalization"],
        "computed_in": computed_in(model),
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
