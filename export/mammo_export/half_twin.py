"""An FP16 graph's twin: computes in FP32 and rounds every tensor to half, which a CPU otherwise does not do.

ONNX Runtime's CPU has no half-precision kernels for most operators: it casts to FP32 and drops the casts between two
such nodes, and with them every rounding and every overflow (measured with 1.32: a convolution that reaches 120000
hands 120000 on, where a GPU has infinity). Accuracy and overflow of FP16 are therefore judged on this twin: what a
device computes that stores halves and adds up in FP32, as tensor cores do.
"""

from __future__ import annotations

import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mammo_export.element_types import element_types, inferred

EXACT = frozenset({
    "Abs", "Concat", "Expand", "Flatten", "Gather", "Identity", "Max", "MaxPool", "Min", "Neg", "Relu", "Reshape",
    "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze",
})  # fmt: skip
"""Of halves they make halves: nothing to round."""


def half_twin(graph: onnx.ModelProto) -> onnx.ModelProto:
    """Return the twin of a graph with half-precision tensors, checked; any other graph's twin is the graph itself.

    Same inputs, outputs and metadata. Tensors keep their names; what they are before rounding is called NAME_exact.
    """
    types = element_types(inferred(graph))
    half = {name for name, element in types.items() if element == TensorProto.FLOAT16}
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.value_info[:]
    for tensor in (t for t in model.graph.initializer if t.name in half):
        _widen(tensor)
    nodes: list[NodeProto] = []
    for node in model.graph.node:
        for attribute in node.attribute:
            if attribute.name == "to" and node.op_type == "Cast" and attribute.i == TensorProto.FLOAT16:
                attribute.i = TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == TensorProto.FLOAT16:
                _widen(attribute.t)
        nodes.append(node)
        for number, name in enumerate(node.output):
            if name in half and node.op_type not in EXACT:
                node.output[number] = f"{name}_exact"
                nodes.append(helper.make_node("Cast", [f"{name}_exact"], [f"{name}_half"], to=TensorProto.FLOAT16))
                nodes.append(helper.make_node("Cast", [f"{name}_half"], [name], to=TensorProto.FLOAT))
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)
    onnx.checker.check_model(model, full_check=True)
    return model


def _widen(tensor: TensorProto) -> None:
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
