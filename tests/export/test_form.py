"""The form of graphs, on hand-made ones: what is put in order, what is counted, what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

from mammo_export.files import opened
from mammo_export.form import MAX_IR_VERSION, OPSET, PROMISES, SIZES, check_form, form_line, form_of, tidied
from mammo_runtime.errors import GateMissed


def model_of(
    nodes: Sequence[NodeProto], constants: dict[str, np.ndarray], sides: tuple[int, int] = (4, 6), name: str = "image"
) -> onnx.ModelProto:
    """Return a graph from float32 [batch, 2, 4, 6] to "logits" [batch, 2, *sides]."""
    graph = helper.make_graph(
        list(nodes),
        "hand",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2, 4, 6])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2, *sides])],
        [numpy_helper.from_array(value, key) for key, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=MAX_IR_VERSION)


def resize_to(sides: tuple[int, int], **attributes: str) -> onnx.ModelProto:
    """Return what torch makes of `interpolate(size=…)` with a dynamic batch."""
    nodes = [
        helper.make_node("Shape", ["image"], ["count"], start=0, end=1),
        helper.make_node("Concat", ["count", "rest"], ["sizes"], axis=0),
        helper.make_node("Resize", ["image", "", "", "sizes"], ["logits"], **attributes),
    ]
    return model_of(nodes, {"rest": np.array([2, *sides])}, sides)


def batch_norm(outputs: Sequence[str] = ("logits",), **attributes: int) -> onnx.ModelProto:
    values = {key: np.array([0.5, 2.0], np.float32) for key in ("scale", "shift", "mean", "variance")}
    node = helper.make_node("BatchNormalization", ["image", *values], list(outputs), **attributes)
    return model_of([node], values)


@pytest.mark.parametrize(
    "attributes",
    [
        {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
        {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"},
        {"mode": "linear", "coordinate_transformation_mode": "align_corners"},
    ],
)
def test_sizes_computed_while_running_become_scales(attributes: dict[str, str]) -> None:
    before = resize_to((8, 24), **attributes)
    with pytest.raises(GateMissed, match="Shape"):
        check_form(before)
    after = tidied(before)
    check_form(after)
    assert [node.op_type for node in after.graph.node] == ["Resize"]
    assert len(after.graph.node[0].input) == SIZES
    assert [tensor.name for tensor in after.graph.initializer] == ["resize_scales_0"]
    batch = np.random.default_rng(0).normal(size=(3, 2, 4, 6)).astype(np.float32)
    with opened(before) as one, opened(after) as two:
        np.testing.assert_array_equal(one.run(batch), two.run(batch))


def test_sizes_that_are_no_multiple_stay_and_are_refused() -> None:
    graph = tidied(resize_to((6, 9), mode="linear"))
    with pytest.raises(GateMissed, match="Shape nodes"):
        check_form(graph)


def test_a_resize_with_known_sizes_is_left_alone() -> None:
    node = helper.make_node("Resize", ["image", "", "scales"], ["logits"], mode="nearest")
    graph = model_of([node], {"scales": np.array([1, 1, 2, 2], np.float32)}, (8, 12))
    assert list(tidied(graph).graph.node[0].input) == ["image", "", "scales"]


def test_a_batch_norm_before_its_convolution_is_legal_and_counted() -> None:
    graph = batch_norm()
    check_form(graph)
    assert form_of(graph) == {
        "opset": OPSET,
        "ir_version": MAX_IR_VERSION,
        "nodes": 1,
        "operators": {"BatchNormalization": 1},
        "batch_norms_left": 1,
        "computed_in": {},
    }
    assert "1 batch norms that no convolution precedes" in form_line(graph)


@pytest.mark.parametrize("outputs", [("logits",), ("logits", "new_mean", "new_variance")])
def test_a_batch_norm_in_training_form_is_refused(outputs: tuple[str, ...]) -> None:
    graph = batch_norm(outputs, training_mode=1)
    with pytest.raises(GateMissed, match="training form"):
        check_form(graph)


@pytest.mark.parametrize(("name", "allowed"), [("boxes", True), ("image", False)])
def test_only_the_number_of_boxes_may_be_read_while_running(name: str, allowed: bool) -> None:
    nodes = [
        helper.make_node("Shape", [name], ["sides"]),
        helper.make_node("Expand", [name, "sides"], ["logits"]),
    ]
    graph = model_of(nodes, {}, name=name)
    if allowed:
        check_form(graph)
    else:
        with pytest.raises(GateMissed, match="Shape"):
            check_form(graph)


@pytest.mark.parametrize("operator", ["If", "Loop", "Scan", "NonZero", "GatherND"])
def test_control_flow_and_results_of_unknown_size_are_refused(operator: str) -> None:
    graph = model_of([helper.make_node(operator, ["image"], ["logits"])], {})
    with pytest.raises(GateMissed, match=operator):
        check_form(graph)


def test_a_constant_inside_a_node_is_looked_at_too() -> None:
    wrong = numpy_helper.from_array(np.array([np.inf], np.float32), "inside")
    nodes = [
        helper.make_node("Constant", [], ["factor"], value=wrong),
        helper.make_node("Mul", ["image", "factor"], ["logits"]),
    ]
    with pytest.raises(GateMissed, match="inside holds NaN or infinite"):
        check_form(model_of(nodes, {}))


def test_nothing_that_varies_stays() -> None:
    graph = model_of([helper.make_node("Identity", ["image"], ["logits"], doc_string="/home/somebody")], {})
    graph.producer_name, graph.producer_version = "pytorch", "2.14"
    graph.graph.doc_string = "made today"
    graph.opset_import.append(helper.make_opsetid("pkg.torch", 1))
    unused = numpy_helper.from_array(np.zeros(1, np.float32), "unused")
    graph.graph.initializer.append(unused)
    tidy = tidied(graph)
    for trace in (b"somebody", b"pytorch", b"made today", b"pkg.torch", b"unused"):
        assert trace in graph.SerializeToString()
        assert trace not in tidy.SerializeToString()


def products(*types: str) -> onnx.ModelProto:
    """Return a graph with one matrix product of each named type."""
    nodes: list[NodeProto] = []
    constants: dict[str, np.ndarray] = {"scale": np.float32(0.5).reshape(()), "eye": np.eye(6, dtype=np.float32)}
    constants |= {"half_eye": np.eye(6, dtype=np.float16), "byte_eye": np.eye(6, dtype=np.int8)}
    constants["zero"] = np.int8(0).reshape(())
    before = "image"
    for number, element in enumerate(types):
        after = "logits" if number == len(types) - 1 else f"after_{number}"
        make = helper.make_node
        half, product, quantised, data, weight = (f"{word}_{number}" for word in ("half", "out", "q", "data", "weight"))
        nodes += {
            "fp32": [make("MatMul", [before, "eye"], [after])],
            "fp16": [
                make("Cast", [before], [half], to=TensorProto.FLOAT16),
                make("MatMul", [half, "half_eye"], [product]),
                make("Cast", [product], [data], to=TensorProto.FLOAT),
                make("Relu", [data], [after]),
            ],
            "int8": [
                make("QuantizeLinear", [before, "scale", "zero"], [quantised]),
                make("DequantizeLinear", [quantised, "scale", "zero"], [data]),
                make("DequantizeLinear", ["byte_eye", "scale", "zero"], [weight]),
                make("MatMul", [data, weight], [after]),
            ],
        }[element]
        before = after
    used = {name for node in nodes for name in node.input}
    return model_of(nodes, {name: value for name, value in constants.items() if name in used})


@pytest.mark.parametrize(
    ("key", "types", "refused"),
    [
        ("fp32", ["fp32"], None),
        ("fp32", ["fp16"], "0% keep"),
        ("fp16", ["fp16"] * 9 + ["fp32"], None),
        ("fp16", ["fp16"] * 8 + ["fp32"], "1 in fp32: 89% keep"),
        ("int8-twin", ["int8", "fp32"], None),
        ("int8-cpu", ["int8", "fp32"], None),
        ("int8-cpu", ["fp32", "fp32"], "called int8-cpu"),
        ("int8", ["int8"] + ["fp16"] * 9, None),
        ("int8", ["int8"] + ["fp32"] * 2, "33% keep"),
        ("int8", ["fp16"] * 4, "called int8, but of its 4 .* 4 in fp16"),
    ],
)
def test_a_label_is_a_promise(key: str, types: list[str], refused: str | None) -> None:
    graph = products(*types)
    # The nodes as such are those of opset 18; half scales are another matter.
    graph.opset_import[0].version = PROMISES[key].opset
    if refused is None:
        check_form(graph, key)
        return
    with pytest.raises(GateMissed, match=refused):
        check_form(graph, key)


def test_int8_needs_the_opset_with_half_scales() -> None:
    with pytest.raises(GateMissed, match="opsets"):
        check_form(products("int8"), "int8")


def test_halves_outside_and_casts_of_casts_are_refused() -> None:
    graph = model_of([helper.make_node("Identity", ["image"], ["logits"])], {})
    for value in (graph.graph.input[0], graph.graph.output[0]):
        value.type.tensor_type.elem_type = TensorProto.FLOAT16
    with pytest.raises(GateMissed, match="image is fp16; inputs and outputs are float32"):
        check_form(graph, "fp16")
    casts = [
        helper.make_node("Cast", ["image"], ["half"], to=TensorProto.FLOAT16),
        helper.make_node("Cast", ["half"], ["logits"], "back", to=TensorProto.FLOAT),
    ]
    with pytest.raises(GateMissed, match="back casts what a cast has made"):
        check_form(model_of(casts, {}))


def test_types_that_do_not_fit_are_refused() -> None:
    node = helper.make_node("MatMul", ["image", "weight"], ["logits"])
    with pytest.raises(GateMissed, match="do not fit together"):
        check_form(model_of([node], {"weight": np.eye(6, dtype=np.float16)}))
