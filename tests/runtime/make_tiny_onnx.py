"""Makes the models of the runtime's own tests. Run by hand; the tests need only the files, not `onnx`.

All see the mean of the channels ("grey", -1 black to 1 white with mean and std 0.5) and carry no metadata (tests append
their own spec, see tiny_model.py and tiny_tasks.py). All but the first break on white: above 0.99 grey is NaN.

- tiny.onnx: 3x3 box blur → sigmoid(10·x), so pixels brighter than half of white are mass. Any size and batch.
- tiny_multiclass.onnx: each pixel belongs to the nearest of four greys, -1, -1/3, 1/3, 1. Any size and batch.
- tiny_classifier.onnx: softmax over how near the picture's mean is to -0.8, -0.4, 0. Any size and batch.
- tiny_encoder.onnx: a 64 x 64 picture in 16 x 16 cells, three channels.
- tiny_decoder.onnx: for each box, sigmoid(10·grey) of the cells whose centre lies inside, else 0; the predicted IoU is
  x0 / 64, and NaN for a box at the very left edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

FLOAT = TensorProto.FLOAT
IMAGE = helper.make_tensor_value_info("image", FLOAT, ["batch", 3, "height", "width"])


def made(
    name: str,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    **constants: object,
) -> onnx.ModelProto:
    """Return a model, checked."""
    arrays = {key: np.asarray(value) for key, value in constants.items()}
    values = [
        helper.make_tensor(key, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape, a.ravel().tolist())
        for key, a in arrays.items()
    ]
    graph = helper.make_graph(list(nodes), name, list(inputs), list(outputs), values)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model


def breaking(source: str, result: str) -> list[onnx.NodeProto]:
    """Return nodes that hand a tensor on, NaN where it is above 0.99; they need the constants of `BREAKING`."""
    return [
        helper.make_node("Sub", ["limit", source], [f"{result}_left"]),
        helper.make_node("Sqrt", [f"{result}_left"], [f"{result}_root"]),
        helper.make_node("Mul", [f"{result}_root", "zero"], [f"{result}_nothing"]),
        helper.make_node("Add", [source, f"{result}_nothing"], [result]),
    ]


BREAKING = {"limit": np.float32(0.99), "zero": np.float32(0)}


def segmenter() -> onnx.ModelProto:
    """Return tiny.onnx."""
    mask = helper.make_tensor_value_info("probability", FLOAT, ["batch", 1, "height", "width"])
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Conv", ["grey", "kernel"], ["logit"], pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["logit"], ["probability"]),
    ]
    return made("tiny", nodes, [IMAGE], [mask], kernel=np.full((1, 1, 3, 3), 10 / 9, np.float32))


def nearest(centres: Sequence[float], sharpness: float) -> dict[str, np.ndarray]:
    """Return weights and offsets of logits that are largest for the nearest of the centres."""
    c = np.array(centres, np.float32) * sharpness
    return {"weight": 2 * c, "offset": -(c * np.array(centres, np.float32))}


def multiclass() -> onnx.ModelProto:
    """Return tiny_multiclass.onnx."""
    labels = helper.make_tensor_value_info("labels", TensorProto.UINT8, ["batch", 1, "height", "width"])
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1], keepdims=1),
        *breaking("mean", "grey"),
        helper.make_node("Mul", ["grey", "weight"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["likeliest"], axis=1, keepdims=1),
        helper.make_node("Cast", ["likeliest"], ["classes"], to=TensorProto.UINT8),
        helper.make_node("Mul", ["logits", "zero"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros", "channels"], ["sum"], keepdims=1),
        helper.make_node("Equal", ["sum", "sum"], ["finite"]),
        helper.make_node("Where", ["finite", "classes", "not_finite"], ["labels"]),
    ]
    weights = {k: v.reshape(1, 4, 1, 1) for k, v in nearest((-1, -1 / 3, 1 / 3, 1), 4).items()}
    constants = {"channels": np.array([1]), "not_finite": np.uint8(255)}
    return made("tiny_multiclass", nodes, [IMAGE], [labels], **weights, **constants, **BREAKING)


def classifier() -> onnx.ModelProto:
    """Return tiny_classifier.onnx."""
    scores = helper.make_tensor_value_info("probability", FLOAT, ["batch", 3])
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[1], keepdims=1),
        *breaking("mean", "grey"),
        helper.make_node("ReduceMean", ["grey"], ["level"], axes=[2, 3], keepdims=0),
        helper.make_node("Mul", ["level", "weight"], ["scaled"]),
        helper.make_node("Add", ["scaled", "offset"], ["logits"]),
        helper.make_node("Softmax", ["logits"], ["probability"], axis=1),
    ]
    weights = {k: v.reshape(1, 3) for k, v in nearest((-0.8, -0.4, 0.0), 20).items()}
    return made("tiny_classifier", nodes, [IMAGE], [scores], **weights, **BREAKING)


def encoder() -> onnx.ModelProto:
    """Return tiny_encoder.onnx."""
    image = helper.make_tensor_value_info("image", FLOAT, [1, 3, 64, 64])
    embedding = helper.make_tensor_value_info("embedding", FLOAT, [1, 3, 16, 16])
    nodes = [
        *breaking("image", "seen"),
        helper.make_node("AveragePool", ["seen"], ["embedding"], kernel_shape=[4, 4], strides=[4, 4]),
    ]
    return made("tiny_encoder", nodes, [image], [embedding], **BREAKING)


def decoder() -> onnx.ModelProto:
    """Return tiny_decoder.onnx."""
    embedding = helper.make_tensor_value_info("embedding", FLOAT, [1, 3, 16, 16])
    boxes = helper.make_tensor_value_info("boxes", FLOAT, [1, "boxes", 4])
    maps = helper.make_tensor_value_info("probability", FLOAT, [1, "boxes", 1, 16, 16])
    overlap = helper.make_tensor_value_info("iou", FLOAT, [1, "boxes"])
    nodes = [
        helper.make_node("ReduceMean", ["embedding"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["grey", "ten"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["bright"]),
        helper.make_node("Split", ["boxes", "ones"], ["x0", "y0", "x1", "y1"], axis=2),
    ]
    for axis, low, high, place in (("x", "x0", "x1", 2), ("y", "y0", "y1", 3)):
        nodes += [
            helper.make_node("GreaterOrEqual", ["centres", low], [f"{axis}_after"]),
            helper.make_node("Less", ["centres", high], [f"{axis}_before"]),
            helper.make_node("And", [f"{axis}_after", f"{axis}_before"], [f"{axis}_in"]),
            helper.make_node("Unsqueeze", [f"{axis}_in", f"axis_{place}"], [f"{axis}_inside"]),
        ]
    nodes += [
        helper.make_node("And", ["x_inside", "y_inside"], ["inside"]),
        helper.make_node("Cast", ["inside"], ["factor"], to=FLOAT),
        helper.make_node("Mul", ["factor", "bright"], ["flat"]),
        helper.make_node("Unsqueeze", ["flat", "axis_2"], ["probability"]),
        helper.make_node("Squeeze", ["x0", "axis_2"], ["left"]),
        helper.make_node("Log", ["left"], ["logarithm"]),
        helper.make_node("Mul", ["logarithm", "zero"], ["nothing"]),
        helper.make_node("Mul", ["left", "per_side"], ["share"]),
        helper.make_node("Add", ["share", "nothing"], ["iou"]),
    ]
    constants = {
        "ten": np.float32(10),
        "zero": np.float32(0),
        "per_side": np.float32(1 / 64),
        "centres": ((np.arange(16) + 0.5) * 4).astype(np.float32).reshape(1, 1, 16),
        "ones": np.array([1, 1, 1, 1]),
        "axis_2": np.array([2]),
        "axis_3": np.array([3]),
    }
    return made("tiny_decoder", nodes, [embedding, boxes], [maps, overlap], **constants)


if __name__ == "__main__":
    made_here = {
        "tiny": segmenter, "tiny_multiclass": multiclass, "tiny_classifier": classifier, "tiny_encoder": encoder,
        "tiny_decoder": decoder,
    }  # fmt: skip
    for stem, make in made_here.items():
        (Path(__file__).parent / f"{stem}.onnx").write_bytes(make().SerializeToString())
