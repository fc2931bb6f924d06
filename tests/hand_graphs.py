"""Small ONNX graphs made by hand, for tests that look at single nodes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mammo_export.files import opened
from mammo_export.form import MAX_IR_VERSION, OPSET
from mammo_runtime.spec import ACTIVATION_OF, InputSpec, ModelSpec, Task

SIDE = 8


def spec_of(task: Task) -> ModelSpec:
    plain = InputSpec(height=SIDE, width=SIDE, mean=(0.0,) * 3, std=(1.0,) * 3)
    classes = ("mass",) if task is Task.SEGMENTATION else ("a", "b", "c")
    return ModelSpec("three", "hand", task=task, activation=ACTIVATION_OF[task], input=plain, classes=classes)


def three_logits(spec: ModelSpec) -> onnx.ModelProto:
    """Return a graph whose logits are its three input channels (of a classifier, their means)."""
    dense = spec.task is not Task.CLASSIFICATION
    classes = len(spec.classes)
    node = helper.make_node("Identity", ["image"], ["logits"])
    if spec.task is Task.CLASSIFICATION:
        node = helper.make_node("ReduceMean", ["image", "axes"], ["logits"], keepdims=0)
    elif spec.task is Task.SEGMENTATION:
        node = helper.make_node("Slice", ["image", "start", "end", "axis"], ["logits"])
    constants = {"axes": [2, 3], "start": [0], "end": [1], "axis": [1]}
    used = [onnx.numpy_helper.from_array(np.array(v), k) for k, v in constants.items() if k in node.input]
    shape = ["batch", classes, SIDE, SIDE] if dense else ["batch", classes]
    graph = helper.make_graph(
        [node],
        "three",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        used,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=MAX_IR_VERSION)


SHAPE = (1, 2, 4, 4)


def graph_of(nodes: Sequence[NodeProto], constants: Mapping[str, Any], rank: int = 4) -> onnx.ModelProto:
    """Return a graph from float32 "image" [batch, 2, 4, 4] to float32 "logits"."""
    graph = helper.make_graph(
        list(nodes),
        "hand",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", *SHAPE[1:]])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [f"side_{k}" for k in range(rank)])],
        [
            numpy_helper.from_array(np.asarray(v, None if isinstance(v, np.ndarray) else np.float32), k)
            for k, v in constants.items()
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=MAX_IR_VERSION)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    """Return a node named after its output."""
    return helper.make_node(operator, inputs.split(), [output], f"make_{output}", **attributes)


def two_convolutions(first: float, second: float) -> onnx.ModelProto:
    """Return two 1 x 1 convolutions that multiply the channels' sum."""
    weights = {"w1": np.full((2, 2, 1, 1), first, np.float32), "w2": np.full((2, 2, 1, 1), second, np.float32)}
    return graph_of([node("Conv", "image w1", "middle"), node("Conv", "middle w2", "logits")], weights)


def answer(graph: onnx.ModelProto, batch: np.ndarray) -> np.ndarray:
    with opened(graph) as session:
        return session.run(batch)
