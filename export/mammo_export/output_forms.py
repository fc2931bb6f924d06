"""Other endings of a graph, for other software: logits, probabilities or labels, whatever the task ships with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from mammo_export.activation import (
    LABELS,
    LOGITS,
    MARK,
    TAILS,
    Tail,
    add_activation,
)
from mammo_export.form import check_form
from mammo_export.free_sides import with_free_sides
from mammo_export.source import open_source
from mammo_runtime.errors import UsageError
from mammo_runtime.spec import NOT_FINITE, Activation, ModelSpec, Task
from mammo_train import models

OUTPUT_KEY, MADE_FOR_KEY = "mammo_edge_output", "mammo_edge_made_for"
"""Metadata of a graph that ends otherwise: its ending, and the spec that the runtime's own graph would carry. It has
no spec under the runtime's key, so that no session takes logits for probabilities."""


LARGEST = float(np.finfo(np.float32).max)


class Output(str, Enum):
    """What a graph answers."""

    PROBABILITY = "probability"
    """float32: sigmoid of each pixel, softmax over the classes."""
    LOGITS = "logits"
    """float32, nothing appended."""
    ARG_MAX = "arg-max"
    """uint8 labels: the likeliest class; of one class 1 where the probability reaches the frozen threshold, else 0.
    `NOT_FINITE` where a logit is NaN or infinite."""


def with_output(logits: onnx.ModelProto, spec: ModelSpec, output: Output) -> onnx.ModelProto:
    """Return a logits graph with the wanted ending, checked.

    The ending that the task ships with is the shipped graph itself, its spec in the metadata. Any other one carries
    `OUTPUT_KEY` and `MADE_FOR_KEY` instead and is refused by the runtime.
    """
    if SHIPPED[spec.activation] is output:
        return add_activation(logits, spec)
    model = onnx.ModelProto()
    model.CopyFrom(logits)
    if output is not Output.LOGITS:
        nodes, constants, name, element = _tail(spec, output)
        model.graph.node.extend(nodes)
        model.graph.initializer.extend(constants)
        found = model.graph.output[0]
        found.name, found.type.tensor_type.elem_type = name, element
        if output is Output.ARG_MAX and spec.task is Task.CLASSIFICATION:
            found.type.tensor_type.shape.dim[1].dim_value = 1
    helper.set_model_props(model, {OUTPUT_KEY: output.value, MADE_FOR_KEY: spec.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def graph_from_source(folder: Path, output: Output, any_size: bool = False) -> onnx.ModelProto:
    """Return the graph of a run or a bundle with the wanted ending, form checked.

    `any_size`: height and width open, proved against the network. Raises UsageError for a prompted model (two graphs:
    export a bundle), for `any_size` without a run and where the network is tied to its grid.
    """
    source = open_source(folder)
    if source.spec.task is Task.PROMPTED:
        raise UsageError("a prompted model is two graphs; export it as a bundle")
    logits = source.files.logits
    if any_size:
        if source.trained is None:
            raise UsageError("an open size is proved against the trained network; give the run instead of the bundle")
        logits = with_free_sides(logits, source.trained.logits, models.known(source.spec.architecture).multiple)
    graph = with_output(logits, source.spec, output)
    check_form(graph)
    return graph


def _tail(spec: ModelSpec, output: Output) -> Tail:
    if output is Output.PROBABILITY:
        return TAILS[Activation.SOFTMAX]()
    return ARG_MAX[spec.task](spec)


def _likeliest(_: ModelSpec) -> Tail:
    return TAILS[Activation.ARGMAX]()


def _thresholded(spec: ModelSpec) -> Tail:
    """Labels of one class: the threshold is laid on the logits, which spares the sigmoid and its rounding."""
    limits = {"threshold": logit(spec.threshold), "limit": LARGEST, "not_finite": float(NOT_FINITE)}
    tensors = [numpy_helper.from_array(np.asarray(value, np.float32), MARK + name) for name, value in limits.items()]
    threshold, limit, not_finite = (tensor.name for tensor in tensors)
    names = [MARK + name for name in ("above", "label", "size", "finite", "marked")]
    above, label, size, finite, marked = names
    nodes = [
        helper.make_node("GreaterOrEqual", [LOGITS, threshold], [above], f"{MARK}0"),
        helper.make_node("Cast", [above], [label], f"{MARK}1", to=TensorProto.FLOAT),
        helper.make_node("Abs", [LOGITS], [size], f"{MARK}2"),
        # False for NaN and for infinity.
        helper.make_node("LessOrEqual", [size, limit], [finite], f"{MARK}3"),
        helper.make_node("Where", [finite, label, not_finite], [marked], f"{MARK}4"),
        helper.make_node("Cast", [marked], [LABELS], f"{MARK}5", to=TensorProto.UINT8),
    ]
    return nodes, tensors, LABELS, TensorProto.UINT8


def logit(probability: float) -> float:
    """Return the logit of a probability, at 0 and 1 the ends of float32: an infinite constant is no legal weight."""
    if probability in (0.0, 1.0):
        return math.copysign(LARGEST, probability - 0.5)
    return math.log(probability / (1 - probability))


SHIPPED: Mapping[Activation, Output] = {
    Activation.SIGMOID: Output.PROBABILITY,
    Activation.SOFTMAX: Output.PROBABILITY,
    Activation.ARGMAX: Output.ARG_MAX,
}
ARG_MAX: Mapping[Task, Callable[[ModelSpec], Tail]] = {
    Task.SEGMENTATION: _thresholded,
    Task.PROMPTED: _thresholded,
    Task.CLASSIFICATION: _likeliest,
    Task.MULTICLASS: _likeliest,
}
