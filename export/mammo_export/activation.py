"""The last nodes of every graph: from logits to what `Session` promises. Appended, and taken off again, exactly."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from mammo_runtime.errors import GateMissed
from mammo_runtime.spec import METADATA_KEY, NOT_FINITE, Activation, ModelSpec

INPUT = "image"
LOGITS, PROBABILITY, LABELS = "logits", "probability", "labels"
EMBEDDING, BOXES, IOU = "embedding", "boxes", "iou"
"""Names of inputs and outputs, the same in every graph: engines and tools find tensors by them."""
MARK = "activation_"
"""Prefix of the names of what is appended."""
SIGMOID_NODE = "probability_sigmoid"
"""The one name without it: the bundled models' graphs have it."""

Tail = tuple[list[NodeProto], list[TensorProto], str, int]
"""Nodes, their constants, the output's name and its element type."""


def _sigmoid() -> Tail:
    return (
        [helper.make_node("Sigmoid", [LOGITS], [PROBABILITY], SIGMOID_NODE)],
        [],
        PROBABILITY,
        TensorProto.FLOAT,
    )


def _softmax() -> Tail:
    node = helper.make_node("Softmax", [LOGITS], [PROBABILITY], MARK + "softmax", axis=1)
    return [node], [], PROBABILITY, TensorProto.FLOAT


def _argmax() -> Tail:
    """Labels, and `NOT_FINITE` where the classes' |logits| have no finite sum.

    The sum of absolute values keeps every NaN and infinity of a pixel (ReduceMax may lose a NaN), and no optimiser
    folds it to a constant as x·0 may be. Less is false for NaN, and in half precision, where the limit rounds to
    infinity, for infinity too. The last cast starts from float because TensorRT makes uint8 from float32 and
    float16 only, and only at an output.
    """
    names = {k: MARK + k for k in ("size", "sum", "finite", "index", "label", "marked")}
    constants = {"axis": np.array([1]), "limit": np.finfo(np.float32).max, "not_finite": np.float32(NOT_FINITE)}
    tensors = [numpy_helper.from_array(np.asarray(value), MARK + name) for name, value in constants.items()]
    axis, limit, not_finite = (tensor.name for tensor in tensors)
    steps: tuple[tuple[str, list[str], str, dict[str, Any]], ...] = (
        ("Abs", [LOGITS], names["size"], {}),
        ("ReduceSum", [names["size"], axis], names["sum"], {"keepdims": 1}),
        ("Less", [names["sum"], limit], names["finite"], {}),
        ("ArgMax", [LOGITS], names["index"], {"axis": 1, "keepdims": 1}),
        ("Cast", [names["index"]], names["label"], {"to": TensorProto.FLOAT}),
        ("Where", [names["finite"], names["label"], not_finite], names["marked"], {}),
        ("Cast", [names["marked"]], LABELS, {"to": TensorProto.UINT8}),
    )
    nodes = [helper.make_node(op, inputs, [output], f"{MARK}{k}", **more) for k, (op, inputs, output, more) in
             enumerate(steps)]  # fmt: skip
    return nodes, tensors, LABELS, TensorProto.UINT8


TAILS: Mapping[Activation, Callable[[], Tail]] = {
    Activation.SIGMOID: _sigmoid,
    Activation.SOFTMAX: _softmax,
    Activation.ARGMAX: _argmax,
}


def add_activation(graph: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Return a copy in which the spec's activation takes the place of the output `LOGITS`, spec in its metadata.

    Sigmoid and softmax answer float32 `PROBABILITY` in the logits' shape, arg-max uint8 `LABELS` [batch, 1, H, W].
    Other outputs (a decoder's `IOU`) stay as they are.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    nodes, constants, name, element = TAILS[spec.activation]()
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(constants)
    shape = _shape(model.graph.output[0])
    if spec.activation is Activation.ARGMAX:
        shape[1] = 1
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info(name, element, shape))
    return with_spec(model, spec)


def with_spec(graph: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Return a checked copy with the spec in its metadata: all that an encoder needs."""
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def without_activation(model: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Return the logits graph inside a model that `add_activation` made. Raises GateMissed when it ends otherwise."""
    nodes, constants, name, _ = TAILS[spec.activation]()
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    if list(graph.graph.node)[-len(nodes) :] != nodes or [o.name for o in graph.graph.output][:1] != [name]:
        raise GateMissed("the graph does not end in the activation that the exporter appends; export the model again")
    del graph.graph.node[-len(nodes) :]
    added = {tensor.name for tensor in constants}
    kept = [tensor for tensor in graph.graph.initializer if tensor.name not in added]
    if len(kept) + len(constants) != len(graph.graph.initializer):
        raise GateMissed("the graph's activation lacks its constants; export the model again")
    del graph.graph.initializer[:]
    graph.graph.initializer.extend(kept)
    # The number of classes was lost with arg-max; the spec has it.
    shape = _shape(graph.graph.output[0])
    if spec.activation is Activation.ARGMAX:
        shape[1] = len(spec.classes)
    graph.graph.output[0].CopyFrom(helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape))
    del graph.metadata_props[:]
    return graph


def kept_tail(graph: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the nodes that were appended here: they stay FP32 in every precision."""
    return frozenset(n.name for n in graph.graph.node if n.name == SIGMOID_NODE or n.name.startswith(MARK))


def _shape(value: ValueInfoProto) -> list[str | int]:
    return [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
