"""Planted faults of Q/DQ are told in words, and real TensorRT refuses exactly those that the lint says it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import NodeProto, helper, numpy_helper

from mammo_export.qdq_lint import findings, lint
from mammo_export.quantize import Form, measured_ranges, prepared, quantised, with_fp16
from qdq_graphs import images, mobile_graph
from tiny_model import ROOT

RTX = Path(os.environ.get("MAMMO_TRT_DIR", ROOT / ".trt")) / "1.7"
PARSE = """
import json, sys
import tensorrt_rtx as trt

class Silent(trt.ILogger):
    def __init__(self):
        trt.ILogger.__init__(self)
    def log(self, severity, text):
        pass

log, seen = Silent(), {}
for name, path in json.load(sys.stdin).items():
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    said = None if parser.parse(open(path, "rb").read()) else " ".join(
        parser.get_error(k).desc() for k in range(parser.num_errors))
    if said is None:
        config, profile = builder.create_builder_config(), builder.create_optimization_profile()
        image = network.get_input(0)
        shape = (1, *tuple(image.shape)[1:])
        profile.set_shape(image.name, shape, shape, shape)
        config.add_optimization_profile(profile)
        said = None if builder.build_serialized_network(network, config) is not None else "not built"
    seen[name] = said
print(json.dumps(seen))
"""


@cache
def twin() -> onnx.ModelProto:
    graph = prepared(mobile_graph())
    return quantised(graph, measured_ranges(graph, images, ["minmax"])["minmax"], Form.TENSORRT)


def named(model: onnx.ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def maker(model: onnx.ModelProto, name: str) -> NodeProto:
    return next(node for node in model.graph.node if name in node.output)


def set_constant(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    tensor = next(t for t in model.graph.initializer if t.name == name)
    tensor.CopyFrom(numpy_helper.from_array(value, name))


def constant(model: onnx.ModelProto, name: str) -> np.ndarray:
    return numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name)).copy()


def pair(model: onnx.ModelProto, name: str, which: int = 0) -> tuple[NodeProto, NodeProto]:
    """Return the Q and DQ in front of a node's input."""
    dequantise = maker(model, named(model, name).input[which])
    return maker(model, dequantise.input[0]), dequantise


def zero_point(model: onnx.ModelProto) -> None:
    for node in pair(model, "stem"):
        model.graph.initializer.append(numpy_helper.from_array(np.array(3, np.int8), f"{node.name}_three"))
        node.input[2] = f"{node.name}_three"


def unsigned(model: onnx.ModelProto) -> None:
    for node in pair(model, "stem"):
        model.graph.initializer.append(numpy_helper.from_array(np.array(128, np.uint8), f"{node.name}_middle"))
        node.input[2] = f"{node.name}_middle"


def int32_bias(model: onnx.ModelProto) -> None:
    node = named(model, "stem")
    bias = constant(model, node.input[2])
    for name, value in (("b_int", np.rint(bias / 0.001).astype(np.int32)), ("b_scale", np.float32(0.001))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["b_int", "b_scale"], ["b_float"], "bias_pair"))
    node.input[2] = "b_float"


def zero_scale(model: onnx.ModelProto) -> None:
    name = maker(model, named(model, "stem").input[1]).input[1]
    scale = constant(model, name)
    scale[1] = 0
    set_constant(model, name, scale)


def mixed_types(model: onnx.ModelProto) -> None:
    node = named(model, "head")
    set_constant(model, node.input[1], constant(model, node.input[1]).astype(np.float16))


def half_scale(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19
    for node in pair(model, "stem"):
        value = constant(model, node.input[1]).astype(np.float16)
        model.graph.initializer.append(numpy_helper.from_array(value, f"{node.name}_half"))
        node.input[1] = f"{node.name}_half"


def no_pair(model: onnx.ModelProto) -> None:
    """The integers go to the convolution as they are."""
    named(model, "mix").input[0] = pair(model, "mix")[0].output[0]


def foreign(model: onnx.ModelProto) -> None:
    for node in pair(model, "stem"):
        node.domain = "com.microsoft"
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))


def unknown(model: onnx.ModelProto) -> None:
    node = named(model, "decode_relu")
    node.op_type, node.domain = "Brighten", "org.example"
    model.opset_import.append(helper.make_opsetid("org.example", 1))


def channels_of_activation(model: onnx.ModelProto) -> None:
    quantise, dequantise = pair(model, "mix")
    for node in (quantise, dequantise):
        scale, zero = np.full(6, constant(model, node.input[1]), np.float32), np.zeros(6, np.int8)
        for place, value in ((1, scale), (2, zero)):
            model.graph.initializer.append(numpy_helper.from_array(value, f"{node.name}_{place}"))
            node.input[place] = f"{node.name}_{place}"
        node.attribute.append(helper.make_attribute("axis", 1))


def between(model: onnx.ModelProto) -> None:
    """A pair between a convolution and its clip."""
    add_pair(model, "depth_clip", 0)


def both_of_a_sum(model: onnx.ModelProto) -> None:
    place = next(k for k, name in enumerate(named(model, "sum").input) if maker(model, name).op_type == "Conv")
    add_pair(model, "sum", place)


def quantised_logits(model: onnx.ModelProto) -> None:
    add_pair(model, "probability_sigmoid", 0)


def useless_pair(model: onnx.ModelProto) -> None:
    """In front of nothing that computes in INT8."""
    node = named(model, "head")
    model.graph.node.append(helper.make_node("Abs", ["decode_relu_out"], ["abs_out"], "abs"))
    node.input[0] = "abs_out"
    add_pair(model, "abs", 0)
    order(model)


def input_only(model: onnx.ModelProto) -> None:
    add_pair(model, "head", 0)


def transposed(model: onnx.ModelProto) -> None:
    add_pair(model, "wide", 0)
    quantise_weight(model, "wide", 1)


def transposed_wrong_axis(model: onnx.ModelProto) -> None:
    add_pair(model, "wide", 0)
    quantise_weight(model, "wide", 0)


def subnormal(model: onnx.ModelProto) -> None:
    half = with_fp16(model)
    model.CopyFrom(half)
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == "project_out")
    set_constant(model, node.input[1], np.array(1e-6, np.float16))


def late_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 21


def add_pair(model: onnx.ModelProto, reader: str, place: int) -> None:
    node, stem = named(model, reader), f"{reader}_{place}"
    for name, value in ((f"{stem}_s", np.float32(0.02)), (f"{stem}_z", np.int8(0))):
        model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))
    parameters = [f"{stem}_s", f"{stem}_z"]
    model.graph.node.append(
        helper.make_node("QuantizeLinear", [node.input[place], *parameters], [f"{stem}_q"], f"{stem}_Q")
    )
    model.graph.node.append(
        helper.make_node("DequantizeLinear", [f"{stem}_q", *parameters], [f"{stem}_d"], f"{stem}_DQ")
    )
    node.input[place] = f"{stem}_d"
    order(model)


def quantise_weight(model: onnx.ModelProto, reader: str, axis: int) -> None:
    node = named(model, reader)
    weight = constant(model, node.input[1])
    others = tuple(k for k in range(weight.ndim) if k != axis)
    scale = (np.abs(weight).max(axis=others) / 127).astype(np.float32)
    shape = [-1 if k == axis else 1 for k in range(weight.ndim)]
    values = {"w_q": np.rint(weight / scale.reshape(shape)).astype(np.int8), "w_s": scale,
              "w_z": np.zeros(len(scale), np.int8)}  # fmt: skip
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", list(values), ["w_d"], "w_DQ", axis=axis))
    node.input[1] = "w_d"


def order(model: onnx.ModelProto) -> None:
    from mammo_export.graph_walk import sorted_nodes

    nodes = sorted_nodes(model)
    del model.graph.node[:]
    model.graph.node.extend(nodes)


REFUSED: dict[Callable[[onnx.ModelProto], None], str] = {
    zero_point: "zero point other than 0; TensorRT is symmetric only",
    unsigned: "uint8, which TensorRT takes on its DLA only",
    int32_bias: "bias_pair: dequantises int32",
    zero_scale: "scale that is zero, negative or not finite",
    mixed_types: "head: mixes FP16 and FP32 inputs",
    half_scale: "quantises one float type with a scale of another",
    no_pair: "without a DequantizeLinear between",
    unknown: "domain org.example",
}
"""What the parser or the builder rejects."""
BAD: dict[Callable[[onnx.ModelProto], None], str] = {
    channels_of_activation: "scale per channel on an activation",
    between: "pair between it and its Conv",
    both_of_a_sum: "both inputs quantised",
    quantised_logits: "pair between it and its Conv",
    useless_pair: "serves only Abs",
    input_only: "quantised input only",
    transposed: "INT8 transposed convolution",
    transposed_wrong_axis: "along axis 0; their output channels lie on axis 1",
    subnormal: "subnormal FP16 scale",
    late_opset: "opset 21",
    foreign: "domain com.microsoft",
}
"""What builds, but runs slowly, wrongly, or not on older versions."""
FAULTS = {**REFUSED, **BAD}


@cache
def faulty(plant: Callable[[onnx.ModelProto], None]) -> onnx.ModelProto:
    model = onnx.ModelProto()
    model.CopyFrom(twin())
    plant(model)
    return model


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_a_planted_fault_is_told(plant: Callable[[onnx.ModelProto], None]) -> None:
    said = [finding for finding in findings(faulty(plant)) if FAULTS[plant] in finding.sentence]
    assert said, lint(faulty(plant))
    assert any(finding.rejected for finding in findings(faulty(plant))) is (plant in REFUSED)


def test_what_the_exporter_makes_is_clean() -> None:
    assert lint(twin()) == ()
    assert lint(with_fp16(twin())) == ()
    assert lint(mobile_graph()) == ()


def test_the_cpu_form_is_not_tensorrts() -> None:
    graph = prepared(mobile_graph())
    made = quantised(graph, measured_ranges(graph, images, ["minmax"])["minmax"], Form.CPU)
    assert {"uint8", "int32"} <= {word.strip(",;") for sentence in lint(made) for word in sentence.split()}


@pytest.mark.skipif(not RTX.is_dir(), reason=f"TensorRT-RTX is not at {RTX}")
def test_real_tensorrt_refuses_what_the_lint_says_it_refuses(tmp_path: Path) -> None:
    jobs = {"twin": twin(), "half": with_fp16(twin()), "float": mobile_graph()}
    jobs.update({plant.__name__: faulty(plant) for plant in FAULTS})
    paths = {}
    for name, model in jobs.items():
        paths[name] = str(tmp_path / f"{name}.onnx")
        Path(paths[name]).write_bytes(model.SerializeToString())
    run = subprocess.run(
        [sys.executable, "-c", PARSE], input=json.dumps(paths), env={**os.environ, "PYTHONPATH": str(RTX)},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]
    seen = json.loads(run.stdout.splitlines()[-1])
    refused = {name for name, said in seen.items() if said is not None}
    assert refused == {plant.__name__ for plant in REFUSED}, seen
