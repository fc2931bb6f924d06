"""Every network's graphs, in every precision, before a judge: ONNX Runtime for the answers, real TensorRT for the form.

TensorRT-RTX parses and builds without a GPU: 1.7 has the API of TensorRT 11, 1.4 that of 10.16. Both are found below
`PLACE`; without them only the answers are looked at. No engine runs here, so nothing is said of its speed.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from mammo_export.activation import add_activation, with_spec
from mammo_export.form import check_form
from mammo_export.half_twin import half_twin
from mammo_export.islands import find_islands
from mammo_export.probe import outputs_of
from mammo_export.quantize import Form, measured_ranges, prepared, quantised, with_fp16
from mammo_export.to_fp16 import to_fp16
from mammo_runtime.spec import METADATA_KEY, ModelSpec, Task
from mammo_train import models
from network_cases import CASES, EXTRA_NAMES, Graph, learned
from tiny_model import ROOT

PLACE = Path(os.environ.get("MAMMO_TRT_DIR", ROOT / ".trt"))
RTX = ("1.7", "1.4")
CHILD = Path(__file__).parents[1] / "trt_child.py"
ENTRIES = [(name, models.known(name)) for name in (*models.ARCHITECTURES, *EXTRA_NAMES)]
NAMES = tuple({(id(e.build), *e.widths.items(), *e.options): n for n, e in reversed(ENTRIES)}.values())[::-1]
"""Without the second name of a network (msanet is unet, medsam_box is sam_box): an export takes seconds."""
COMPUTED_SHAPES = {"Shape", "Size", "If", "Loop", "Scan"}
NORMS_LEFT: Mapping[str, int] = {"resunet": 6}
"""Batch norms that no exporter can fold, since no convolution stands before them."""
BUILT_BY_OLD = ("mobilenetv2_resunet", "unet", "bcss_unet_resnet34", "vgg16_busi")
"""Networks that 1.4 builds too, one of each task with one graph; it parses all."""
LEAST_INT8 = 0.75
"""Of the convolutions of a tiny network: four of 23 are transposed and stay in half, with the last one."""


@dataclass(frozen=True)
class Job:
    """A graph for TensorRT."""

    name: str
    """Network, number of its graph, key."""
    label: str
    graph: onnx.ModelProto


class Network:
    """A trained small network with its graphs; an export takes seconds, so each is made once."""

    def __init__(self, name: str) -> None:
        self.name, self.made = name, learned(name)

    @cached_property
    def graphs(self) -> list[Graph]:
        """As the exporter proves them: without the activation."""
        return CASES[self.made.spec.task].graphs(self.made.network, self.made.spec, self.made.inputs)

    @cached_property
    def jobs(self) -> list[Job]:
        """As a bundle has them: FP32, FP16, and INT8 but for prompted ones."""
        spec, found = self.made.spec, []
        shipped = [with_spec(graph.model, spec) for graph in self.graphs[:-1]]
        shipped.append(add_activation(self.graphs[-1].model, spec))
        for number, graph in enumerate(shipped):
            found.append(Job(f"{self.name} {number} fp32", "fp32", graph))
            found.append(Job(f"{self.name} {number} fp16", "fp16", to_fp16(graph)))
            if spec.task is not Task.PROMPTED:
                found.append(Job(f"{self.name} {number} int8", "int8", int8_of(graph, self.made.inputs[0].numpy())))
        return found


def int8_of(graph: onnx.ModelProto, batch: np.ndarray) -> onnx.ModelProto:
    """Return TensorRT's form; its ranges are those of two phantoms, which is enough for its types."""
    ready = prepared(graph)
    ranges = measured_ranges(ready, lambda: iter((batch,)), ("minmax",))["minmax"]
    return with_fp16(quantised(ready, ranges, Form.TENSORRT))


class Judge:
    """A TensorRT-RTX in a process of its own."""

    def __init__(self, version: str, folder: Path) -> None:
        self.version, self._folder, self._count = version, folder, 0
        paths = os.pathsep.join(str(p) for p in (PLACE / f"rtx-{version}", ROOT / "runtime"))
        # Not through a pipe for its errors: TensorRT writes there as much as it likes.
        self._process = subprocess.Popen(
            [sys.executable, str(CHILD)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
        )

    def see(self, graph: onnx.ModelProto, label: str, build: bool) -> dict[str, Any]:
        """Return what became of a graph, see trt_child.py."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._count += 1
        path = self._folder / f"{self.version}.{self._count}.onnx"
        path.write_bytes(graph.SerializeToString())
        self._process.stdin.write(json.dumps({"name": "", "path": str(path), "label": label, "build": build}) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        path.unlink()
        assert line, f"TensorRT-RTX {self.version} ended with code {self._process.wait(timeout=30)}"
        return dict(json.loads(line))

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture(scope="module", params=NAMES)
def network(request: pytest.FixtureRequest) -> Network:
    return Network(request.param)


@pytest.fixture(scope="module")
def judges(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Judge]]:
    here = [version for version in RTX if (PLACE / f"rtx-{version}" / "tensorrt_rtx").is_dir()]
    started = {version: Judge(version, tmp_path_factory.mktemp("judge")) for version in here}
    yield started
    for one in started.values():
        one.close()


@pytest.fixture(params=RTX)
def judge(request: pytest.FixtureRequest, judges: Mapping[str, Judge]) -> Judge:
    if request.param not in judges:
        pytest.skip(f"TensorRT-RTX {request.param} is not here: {PLACE / f'rtx-{request.param}'} (make trt)")
    return judges[request.param]


def test_exported_graph_answers_as_the_network(network: Network) -> None:
    norms = 0
    for graph in network.graphs:
        operators = [node.op_type for node in graph.model.graph.node if "boxes" not in node.input]
        assert not COMPUTED_SHAPES & set(operators)
        norms += operators.count("BatchNormalization")
        check_answers(graph)
        check_half(graph)
    assert norms == NORMS_LEFT.get(network.name, 0)


def check_answers(graph: Graph) -> None:
    """Compare ONNX Runtime's answers with torch's, relative to the largest value."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.model.SerializeToString(), options, ["CPUExecutionProvider"])
    fed = {i.name: tensor.numpy() for i, tensor in zip(session.get_inputs(), graph.inputs, strict=True)}
    for answer, expected in zip(session.run(None, fed), graph.outputs, strict=True):
        assert answer.shape == tuple(expected.shape)
        worst = float((torch.from_numpy(answer) - expected).abs().max())
        assert worst <= 1e-4 * max(float(expected.abs().max()), 1e-3)


def check_half(graph: Graph) -> None:
    """Compare the half-precision form, as a device rounds, with torch's answers; a mean error of 1 % is allowed.

    Nearly untrained networks are no measure of accuracy: what is proved is that each network has the form, and that
    its islands are few enough for the label.
    """
    batch = tuple(tensor.numpy() for tensor in graph.inputs)
    islands = find_islands(graph.model, [batch])
    half = to_fp16(graph.model, [island.node for island in islands])
    check_form(half, "fp16")
    for answer, expected in zip(outputs_of(half_twin(half), [batch]), graph.outputs, strict=True):
        worst = float((torch.from_numpy(answer) - expected).abs().mean())
        assert worst <= 1e-2 * max(float(expected.abs().mean()), 1e-3)


def test_tensorrt_takes_every_graph_in_its_own_precision(judge: Judge, network: Network) -> None:
    """Parsed, and built; what each layer computes in is read back from TensorRT's own network."""
    new = judge.version == "1.7"
    for job in network.jobs:
        # 1.4 parses INT8 convolutions, but has no kernels for them.
        build = new or (network.name in BUILT_BY_OLD and job.label == "fp16")
        seen = judge.see(job.graph, job.label, build)
        assert "error" not in seen, f"{job.name}: {seen['said']}"
        counts, types = seen["proof"]["counts"], seen["types"]
        total = sum(counts.values())
        if job.label == "fp32":
            assert counts == {"fp32": total}, job.name
            assert not {"HALF", "INT8"} & set(types)
        elif job.label == "fp16":
            assert counts == {"fp16": total}, job.name
            assert types["HALF"] > types.get("FLOAT", 0)
        else:
            assert counts["int8"] >= LEAST_INT8 * total, job.name
            assert set(counts) <= {"int8", "fp16"}
            assert types["INT8"] >= counts["int8"], "every quantised tensor is a layer's output of eight bits"
        assert (seen["plan"] is not None) is build
        if build:
            family, version, size = seen["plan"]
            assert (family, version.startswith(judge.version)) == ("TensorRT-RTX", True)
            assert size > 50_000


def convolution(
    zero_point: int = 0,
    bias: str = "float",
    element: int = TensorProto.INT8,
    scale: float = 0.02,
    half_weights: bool = False,
    plain: bool = False,
) -> onnx.ModelProto:
    """Return a 3 x 3 convolution with Q/DQ on its data and weights (but `plain`), and what a test makes wrong."""
    weights, channels = np.ones((4, 3, 3, 3), np.int8), np.full(4, 0.01, np.float32)
    signed = element == TensorProto.INT8
    constants = {
        "scale": np.float32(scale),
        "zero": np.array(zero_point, np.int8 if signed else np.uint8),
        "weights": weights,
        "floats": weights.astype(np.float32),
        "channels": channels,
        "zeros": np.zeros(4, np.int8),
        "bias": np.zeros(4, np.float32),
        "bias_whole": np.zeros(4, np.int32),
        "bias_scale": np.float32(1e-4),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["image", "scale", "zero"], ["quantised"]),
        helper.make_node("DequantizeLinear", ["quantised", "scale", "zero"], ["data"]),
        helper.make_node("DequantizeLinear", ["weights", "channels", "zeros"], ["kernel"], axis=0),
    ]
    names = ["data", "kernel", "bias"]
    if bias == "int32":
        nodes.append(helper.make_node("DequantizeLinear", ["bias_whole", "bias_scale"], ["bias_made"]))
        names[2] = "bias_made"
    if half_weights:
        nodes.append(helper.make_node("Cast", ["kernel"], ["half"], to=TensorProto.FLOAT16))
        names[1] = "half"
    if plain:
        nodes, names = [], ["image", "floats", "bias"]
    nodes.append(helper.make_node("Conv", names, ["probability"], "convolution", pads=[1] * 4))
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, 16, 16])],
        [helper.make_tensor_value_info("probability", TensorProto.FLOAT, [1, 4, 16, 16])],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    helper.set_model_props(made, {METADATA_KEY: ModelSpec("one", "hand").to_json()})
    return made


WRONG: Mapping[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "int32 bias": (lambda: convolution(bias="int32"), "has type Int32 but must have type"),
    "zero point not 0": (lambda: convolution(zero_point=3), "Non-zero zero point"),
    "uint8": (lambda: convolution(element=TensorProto.UINT8), "compute something else.*UINT8.*Defaulting to INT8"),
    "uint8 round 128": (lambda: convolution(128, element=TensorProto.UINT8), "Non-zero zero point"),
    "mixed types": (lambda: convolution(half_weights=True), "type"),
}
"""What ONNX allows and TensorRT does not → how it is made, what TensorRT's own words must hold."""


@pytest.mark.parametrize("wrong", WRONG)
def test_tensorrt_refuses_a_wrong_graph_in_its_own_words(judge: Judge, wrong: str) -> None:
    make, words = WRONG[wrong]
    seen = judge.see(make(), "int8", build=True)
    assert seen["error"] == "ModelRefused", seen
    assert f"tensorrt_rtx {judge.version}" in seen["said"]
    assert re.search(words, seen["said"]), seen["said"]


def test_a_graph_that_is_not_what_it_is_called_is_refused(judge: Judge) -> None:
    seen = judge.see(convolution(plain=True), "fp16", build=True)
    assert seen["error"] == "GateMissed"
    assert "fp32 100%" in seen["said"]


def test_the_right_graph_passes_where_the_wrong_ones_fail(judge: Judge) -> None:
    """The same convolution without the faults: quantised, its rest in FP32, which no label covers."""
    seen = judge.see(convolution(), "int8", build=judge.version == "1.7")
    assert "error" not in seen, seen
    assert seen["proof"]["counts"] == {"int8": 1}


def test_a_broken_file_is_refused(judge: Judge, tmp_path: Path) -> None:
    graph = convolution()
    graph.graph.node[-1].op_type = "NoSuchOperator"
    seen = judge.see(graph, "int8", build=True)
    assert seen["error"] == "ModelRefused"
    assert "NoSuchOperator" in seen["said"]
