"""A small network made by hand with everything that quantisation meets: clips, depthwise, residual sums, a decoder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mammo_export.form import MAX_IR_VERSION, OPSET

SIDE = 16
METADATA = {"mammo_edge_spec": "{}"}


def node(operator: str, name: str, inputs: str, **attributes: object) -> NodeProto:
    """Return a node whose output is called `name`_out; "-" stands for an input left out."""
    given = ["" if part == "-" else part for part in inputs.split()]
    return helper.make_node(operator, given, [f"{name}_out"], name, **attributes)


def mobile_graph(seed: int = 0) -> onnx.ModelProto:
    """Return "image" [batch, 2, 16, 16] → "answer" [batch, 1, 32, 32], with channels of very unlike sizes."""
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}

    def weight(name: str, *shape: int) -> str:
        fan = int(np.prod(shape[1:]))
        sizes = np.geomspace(0.1, 1, shape[0]).reshape(-1, *[1] * (len(shape) - 1))
        weights[f"{name}_w"] = (rng.normal(size=shape) * sizes / np.sqrt(fan)).astype(np.float32)
        weights[f"{name}_b"] = rng.normal(0, 0.1, shape[0]).astype(np.float32)
        return f"{name}_w {name}_b"

    same: dict[str, object] = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        node("Conv", "stem", f"image {weight('stem', 8, 2, 3, 3)}", **same),
        node("Clip", "stem_clip", "stem_out zero six"),
        node("Conv", "depth", f"stem_clip_out {weight('depth', 8, 1, 3, 3)}", group=8, **same),
        node("Clip", "depth_clip", "depth_out zero six"),
        node("Conv", "project", f"depth_clip_out {weight('project', 6, 8, 1, 1)}"),
        node("Conv", "expand", f"project_out {weight('expand', 8, 6, 1, 1)}"),
        node("Clip", "expand_clip", "expand_out zero six"),
        node("Conv", "back", f"expand_clip_out {weight('back', 6, 8, 1, 1)}"),
        node("Add", "sum", "project_out back_out"),
        node("Conv", "mix", f"sum_out {weight('mix', 8, 6, 3, 3)}", **same),
        node("Relu", "mix_relu", "mix_out"),
        node("Resize", "grow", "mix_relu_out - scales", mode="linear"),
        node("ConvTranspose", "wide", f"stem_clip_out {weight('wide', 8, 4, 2, 2).split()[0]} wide_bias",
             kernel_shape=[2, 2], strides=[2, 2]),
        node("Concat", "join", "grow_out wide_out", axis=1),
        node("Conv", "decode", f"join_out {weight('decode', 6, 12, 3, 3)}", **same),
        node("Relu", "decode_relu", "decode_out"),
        node("Conv", "head", f"decode_relu_out {weight('head', 1, 6, 1, 1)}"),
        helper.make_node("Sigmoid", ["head_out"], ["answer"], "probability_sigmoid"),
    ]  # fmt: skip
    constants = {"zero": np.float32(0), "six": np.float32(6), "scales": np.array([1, 1, 2, 2], np.float32)}
    del weights["wide_b"]
    weights["wide_bias"] = np.zeros(4, np.float32)
    graph = helper.make_graph(
        nodes,
        "mobile",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 2, SIDE, SIDE])],
        [helper.make_tensor_value_info("answer", TensorProto.FLOAT, ["batch", 1, 2 * SIDE, 2 * SIDE])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in {**weights, **constants}.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=MAX_IR_VERSION)
    helper.set_model_props(model, METADATA)
    return model


def images(count: int = 4) -> Iterator[np.ndarray]:
    """Yield smooth pictures float32 [1, 2, 16, 16], half of each black (-1)."""
    rng = np.random.default_rng(5)
    for _ in range(count):
        picture = np.cumsum(rng.normal(0, 0.3, (1, 2, SIDE, SIDE)), axis=3)
        picture[..., : SIDE // 2] = -1
        yield np.clip(picture, -1, 1).astype(np.float32)
