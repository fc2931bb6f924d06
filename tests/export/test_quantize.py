"""INT8: what is quantised and where, the same bytes each time, the answer near FP32's, real TensorRT's opinion."""

from __future__ import annotations

from collections import Counter
from functools import cache

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper

from hand_graphs import answer
from mammo_export.quantize import (
    CALIBRATORS,
    Form,
    groups,
    kept_float,
    measured_ranges,
    prepared,
    quantised,
    with_fp16,
)
from mammo_export.ranges import BINS, Histogram, entropy, minmax, mse, percentile
from mammo_export.rounding import rounded_weights, searched_scales
from mammo_export.simulate import simulated
from mammo_runtime.errors import UsageError
from qdq_graphs import METADATA, images, mobile_graph


@cache
def graph() -> onnx.ModelProto:
    return prepared(mobile_graph())


@cache
def ranges() -> dict[str, dict[str, tuple[float, float]]]:
    return {name: dict(found) for name, found in measured_ranges(graph(), images).items()}


@cache
def made(form: Form, *reverted: str) -> onnx.ModelProto:
    return quantised(graph(), ranges()["minmax"], form, reverted)


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def makers(model: onnx.ModelProto) -> dict[str, onnx.NodeProto]:
    return {name: node for node in model.graph.node for name in node.output}


def by_name(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def operators(model: onnx.ModelProto) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


def unlike(model: onnx.ModelProto) -> float:
    """Return the largest difference of the answer to FP32's over other pictures than those calibrated on."""
    other = [np.flip(batch, 2).copy() for batch in images()]
    return max(float(np.abs(answer(model, x) - answer(graph(), x)).max()) for x in other)


def test_groups_hold_what_is_computed_in_one() -> None:
    assert [group.nodes for group in groups(graph())] == [
        ("stem", "stem_clip"), ("depth", "depth_clip"), ("project",), ("expand", "expand_clip"), ("back", "sum"),
        ("mix", "mix_relu"), ("wide",), ("decode", "decode_relu"), ("head",),
    ]  # fmt: skip


def test_what_stays_float_says_why() -> None:
    reasons = kept_float(graph(), Form.TENSORRT)
    assert set(reasons) == {"wide", "head"}
    assert "1694" in reasons["wide"]
    assert "logits" in reasons["head"]


@pytest.mark.parametrize("form", Form)
def test_the_same_bytes_each_time_and_nothing_else_in_the_file(form: Form) -> None:
    again = quantised(prepared(mobile_graph()), ranges()["minmax"], form)
    assert again.SerializeToString(deterministic=True) == made(form).SerializeToString(deterministic=True)
    assert {o.domain: o.version for o in again.opset_import} == {"": 18}
    assert again.ir_version <= 10
    assert {p.key: p.value for p in again.metadata_props} == METADATA
    assert again.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert answer(again, np.zeros((3, 2, 16, 16), np.float32)).shape == (3, 1, 32, 32)


def test_tensorrts_form_has_pairs_where_tensorrt_wants_them() -> None:
    model = made(Form.TENSORRT)
    values, made_by = constants(model), makers(model)
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(values[node.input[2]].dtype == np.int8 and not values[node.input[2]].any() for node in pairs)
    for group in ("stem", "depth", "project", "expand", "back", "mix", "decode"):
        convolution = by_name(model, group)
        assert [made_by[name].op_type for name in convolution.input[:2]] == ["DequantizeLinear"] * 2
        assert values[convolution.input[2]].dtype == np.float32
        assert values[made_by[convolution.input[1]].input[1]].shape == (values_channels(model, group),)
    for name in ("wide", "head"):
        assert by_name(model, name).input[:2] == by_name(graph(), name).input[:2]
    # Only the skip of the sum has a pair, so that the other convolution and the sum are computed in one.
    assert [made_by[name].op_type for name in by_name(model, "sum").input] == ["DequantizeLinear", "Conv"]
    assert [makers(model)[n].op_type for n in by_name(model, "stem_clip").input[:1]] == ["Conv"]
    assert by_name(model, "grow").input[0] == "mix_relu_out"
    assert all(values[node.input[1]].min() >= 2.0**-14 for node in pairs)


def values_channels(model: onnx.ModelProto, name: str) -> int:
    weight = constants(graph())[by_name(graph(), name).input[1]]
    return int(weight.shape[0])


def test_the_cpu_form_folds_activations_and_uses_seven_bits() -> None:
    model = made(Form.CPU)
    assert operators(model)["Clip"] == operators(model)["Relu"] == 0
    values = constants(model)
    weights = {name: value for name, value in values.items() if value.dtype == np.int8 and value.ndim == 4}
    assert len(weights) == 7
    limits = {name: int(np.abs(value.astype(int)).max()) for name, value in weights.items()}
    assert limits.pop("depth_w_quantized") > 64
    assert max(limits.values()) == 64
    assert {values[n.input[2]].dtype for n in model.graph.node if n.op_type == "QuantizeLinear"} == {np.dtype("uint8")}


@pytest.mark.parametrize("calibrator", CALIBRATORS)
def test_answers_stay_near_fp32(calibrator: str) -> None:
    assert unlike(quantised(graph(), ranges()[calibrator], Form.CPU)) < 0.06
    assert unlike(simulated(quantised(graph(), ranges()[calibrator], Form.TENSORRT))) < 0.06


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("group", ["depth", "back", "project"])
def test_a_reverted_group_is_float_with_its_own_weights(form: Form, group: str) -> None:
    model = made(form, group)
    node = by_name(model, group)
    assert node.input[1] in constants(graph())
    read = {name for n in model.graph.node for name in n.input} | {"answer"}
    assert all(set(n.output) & read for n in model.graph.node), "a pair that nothing reads"
    tried = simulated(model) if form is Form.TENSORRT else model
    assert unlike(tried) < 0.06


def test_onnxruntime_does_not_quantise_a_reverted_group_by_itself() -> None:
    """Its optimiser gives float weights between DQ and Q one scale for all: the kernels of unlike size would vanish."""
    model = made(Form.CPU, "depth")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for batch in images():
        assert np.abs(plain.run(None, {"image": batch})[0] - answer(model, batch)).max() < 0.02


@pytest.mark.parametrize("form", Form)
def test_everything_reverted_is_fp32(form: Form) -> None:
    names = tuple(group.name for group in groups(graph()))
    assert operators(made(form, *names)) == operators(graph())
    assert unlike(made(form, *names)) == 0


def test_nothing_is_rounded_that_no_integers_come_to() -> None:
    """With the decoder reverted, its resize and concat are float as well."""
    model = made(Form.CPU, "mix", "decode")
    read = {node.name: [makers(model)[name].op_type for name in node.input if name in makers(model)]
            for node in model.graph.node if node.name in ("grow", "join", "decode")}  # fmt: skip
    assert read == {"grow": ["Relu"], "join": ["Resize", "ConvTranspose"], "decode": ["Concat"]}


def test_unknown_groups_and_missing_ranges_are_named() -> None:
    with pytest.raises(UsageError, match="no group nothing"):
        quantised(graph(), ranges()["minmax"], Form.CPU, ["nothing"])
    lacking = {name: ends for name, ends in ranges()["minmax"].items() if name != "sum_out"}
    for form in Form:
        with pytest.raises(UsageError, match=r"sum_out.*Measure the ranges"):
            quantised(graph(), lacking, form)


def test_with_fp16_has_half_scales_above_the_subnormals() -> None:
    model = with_fp16(made(Form.TENSORRT))
    values = constants(model)
    assert model.opset_import[0].version == 19
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    assert all(values[n.input[1]].dtype == np.float16 and values[n.input[1]].min() >= 2.0**-14 for n in pairs)
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_the_simulation_is_what_onnx_defines() -> None:
    """ONNX Runtime without its optimiser computes Q/DQ as defined; with it, it computes something else."""
    model = made(Form.TENSORRT)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    defined = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    floats = simulated(model)
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(operators(floats))
    for batch in images():
        assert np.abs(defined.run(None, {"image": batch})[0] - answer(floats, batch)).max() < 1e-2


def test_errors_of_a_kernel_cancel() -> None:
    rng = np.random.default_rng(1)
    weight = rng.normal(size=(16, 1, 3, 3)).astype(np.float32)
    weight[3] = np.array([[0.3, -2.766, 0.2], [0, 0, 0], [-0.3, 2.764, -0.2]])
    scale = searched_scales(weight, 127)
    plain = np.abs(weight).max(axis=(1, 2, 3)) / 127
    assert (scale >= plain * 0.9999).all()
    assert (scale <= plain * 1.5001).all()
    rounded = rounded_weights(weight, scale, 0, 127).astype(np.float64) * scale.reshape(-1, 1, 1, 1)
    nearest = np.rint(weight / plain.reshape(-1, 1, 1, 1)) * plain.reshape(-1, 1, 1, 1)
    sums = [np.abs((made - weight).sum(axis=(1, 2, 3))).mean() for made in (rounded, nearest)]
    assert sums[0] < 0.1 * sums[1]
    assert (np.abs(rounded - weight).max(axis=(1, 2, 3)) <= 1.01 * scale).all(), "moved by more than a step"


def test_rounding_respects_axis_and_limit() -> None:
    weight = np.random.default_rng(2).normal(size=(6, 4, 2, 2)).astype(np.float32)
    scale = (np.abs(weight).max(axis=(0, 2, 3)) / 64).astype(np.float32)
    integers = rounded_weights(weight, scale, 1, 64)
    assert integers.shape == weight.shape
    assert np.abs(integers.astype(int)).max() == 64
    assert np.abs(integers * scale.reshape(1, -1, 1, 1) - weight).max() <= scale.max()


def histogram(values: np.ndarray) -> Histogram:
    from mammo_export.ranges import _counted

    low, high = float(values.min()), float(values.max())
    return Histogram(min(low, 0.0), max(high, 0.0), *_counted(values, max(-low, high)))


def test_the_histogram_counts_everything_but_zeros() -> None:
    values = np.array([0, 0, 0, -1, 0.5, 1, 1e-9], np.float32)
    seen = histogram(values)
    assert int(seen.negative.sum() + seen.positive.sum()) == 4
    assert seen.negative[BINS - 1] == 1
    assert seen.positive[BINS - 1] == 1


def test_calibrators_clip_what_is_rare() -> None:
    rng = np.random.default_rng(3)
    values = np.concatenate([rng.normal(0, 1, 100_000), [40.0], np.zeros(500_000)]).astype(np.float32)
    seen = histogram(values)
    assert minmax(seen)[1] == pytest.approx(40)
    assert 3 < percentile(seen)[1] < 5
    assert 3 < entropy(seen)[1] < 12
    assert mse(seen)[1] < 39


@pytest.mark.parametrize("rare", [8.0, 40.0, 400.0])
def test_mse_finds_the_range_of_least_error(rare: float) -> None:
    values = np.random.default_rng(3).normal(0, 1, 50_000)
    values = np.concatenate([np.abs(values), [rare], np.zeros(100_000)]).astype(np.float32)
    found = squared_error(values, mse(histogram(values))[1])
    assert found <= 1.02 * min(squared_error(values, end) for end in np.linspace(2, rare, 200))


def squared_error(values: np.ndarray, end: float) -> float:
    step = end / 255
    return float(((np.clip(np.rint(values / step), 0, 255) * step - values) ** 2).sum())


def test_all_zero_tensors_and_no_images() -> None:
    empty = Histogram(0.0, 0.0, np.zeros(BINS, np.int64), np.zeros(BINS, np.int64))
    assert {calibrate(empty) for calibrate in (minmax, percentile, entropy, mse)} == {(0.0, 0.0)}
    with pytest.raises(UsageError, match="no image"):
        measured_ranges(graph(), lambda: [])
    with pytest.raises(UsageError, match="no calibrator best"):
        measured_ranges(graph(), images, ["best"])


def test_a_broken_tensor_is_named() -> None:
    with pytest.raises(UsageError, match="NaN or infinite"):
        measured_ranges(graph(), lambda: [np.full((1, 2, 16, 16), np.nan, np.float32)])


def test_two_passes_at_most_and_one_image_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def counted():  # type: ignore[no-untyped-def]
        calls.append(0)
        yield from images(2)

    measured = measured_ranges(graph(), counted)
    assert len(calls) == 2
    monkeypatch.setattr("mammo_export.ranges.PASS_BYTES", 20_000)
    parts = measured_ranges(graph(), counted)
    assert len(calls) > 4, "with little room the graph is run in parts"
    assert parts["minmax"].keys() == measured["minmax"].keys()
    for name, ends in parts["minmax"].items():
        assert ends == pytest.approx(measured["minmax"][name], rel=1e-5)
