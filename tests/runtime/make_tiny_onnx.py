"""Makes tiny.onnx, the model of the runtime's own tests. Run by hand; the tests need only its result, not `onnx`.

Channel mean → 3x3 box blur → sigmoid(10·x): with mean and std 0.5, pixels brighter than half of white are mass.
Any batch, height and width; no metadata (tests append their own spec, see tiny_model.py).
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnx import TensorProto, helper


def make() -> onnx.ModelProto:
    """Return the model, checked."""
    picture = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, "height", "width"])
    mask = helper.make_tensor_value_info("probability", TensorProto.FLOAT, ["batch", 1, "height", "width"])
    kernel = helper.make_tensor("kernel", TensorProto.FLOAT, [1, 1, 3, 3], [10 / 9] * 9)
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Conv", ["grey", "kernel"], ["logit"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    graph = helper.make_graph(nodes, "tiny", [picture], [mask], [kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


if __name__ == "__main__":
    (Path(__file__).parent / "tiny.onnx").write_bytes(make().SerializeToString())
