"""The cast graph on hand-made graphs and on a tiny network: types, islands, constants, bytes, and its twin."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from hand_graphs import SHAPE, answer, graph_of, node, spec_of, three_logits, two_convolutions
from mammo_export.activation import add_activation, kept_tail
from mammo_export.element_types import computed_in, element_types, inferred
from mammo_export.files import opened
from mammo_export.form import check_form
from mammo_export.half_twin import half_twin
from mammo_export.islands import find_islands, scan_not_finite
from mammo_export.to_fp16 import to_fp16
from mammo_runtime.errors import GateMissed, UsageError
from mammo_runtime.spec import NOT_FINITE, ModelSpec, Task
from tiny_export import Exported


def casts(graph: onnx.ModelProto) -> int:
    return sum(n.op_type == "Cast" for n in graph.graph.node)


@pytest.fixture(scope="module")
def batch(exported: Exported) -> np.ndarray:
    size = exported.spec.input
    return np.random.default_rng(0).normal(size=(2, 3, size.height, size.width)).astype(np.float32)


def test_a_network_in_half_precision(exported: Exported, batch: np.ndarray) -> None:
    half = to_fp16(exported.model)
    check_form(half, "fp16")
    convolutions = sum(n.op_type == "Conv" for n in half.graph.node)
    assert computed_in(half) == {"fp16": convolutions}
    assert computed_in(exported.model) == {"fp32": convolutions}
    assert half.ByteSize() < 0.6 * exported.model.ByteSize()
    assert casts(half) == 2
    assert half.metadata_props == exported.model.metadata_props
    assert half.graph.input == exported.model.graph.input
    assert half.graph.output == exported.model.graph.output
    for graph in (half, half_twin(half)):
        np.testing.assert_allclose(answer(graph, batch), answer(exported.model, batch), atol=5e-3)
    np.testing.assert_allclose(answer(half, batch[:1]), answer(half, batch)[:1], atol=1e-6)


def test_the_same_graph_gives_the_same_bytes(exported: Exported) -> None:
    names = [n.name for n in exported.model.graph.node][20:40:3]
    first, second = (to_fp16(exported.model, keep).SerializeToString() for keep in (names, set(names[::-1])))
    assert first == second


def test_a_network_without_islands_is_left_as_it_was(exported: Exported, batch: np.ndarray) -> None:
    """Untrained, its values die away: tiny, and of no account beside the last bias."""
    before = exported.model.SerializeToString()
    assert find_islands(exported.model, [(batch,)]) == ()
    half_twin(to_fp16(exported.model))
    assert exported.model.SerializeToString() == before


def test_islands_stay_fp32_and_pass_float_on_between_them(exported: Exported) -> None:
    nodes = [n for n in exported.model.graph.node if n.op_type == "Conv"]
    following = {n.name for n in exported.model.graph.node if set(n.input) & set(nodes[3].output)}
    half = to_fp16(exported.model, {nodes[3].name, *following})
    types = element_types(inferred(half))
    kept = [n for n in half.graph.node if n.name in {nodes[3].name, *following}]
    assert {types[name] for n in kept for name in n.input if name} == {TensorProto.FLOAT}
    check_form(half, "fp16")
    assert computed_in(half)["fp32"] == sum(n.op_type == "Conv" for n in kept)
    assert casts(half) == 4, "one more pair, none between the two"


def test_everything_kept_is_the_fp32_graph(exported: Exported, batch: np.ndarray) -> None:
    same = to_fp16(exported.model, [n.name for n in exported.model.graph.node])
    assert casts(same) == 0
    np.testing.assert_array_equal(answer(same, batch), answer(exported.model, batch))


def test_an_unknown_island_is_an_error(exported: Exported) -> None:
    with pytest.raises(UsageError, match="no node of_another_network"):
        to_fp16(exported.model, ["of_another_network"])


def test_a_graph_labelled_fp16_that_is_fp32_is_refused(exported: Exported) -> None:
    with pytest.raises(GateMissed, match=r"called fp16, but .* in fp32: 0% keep the promise"):
        check_form(exported.model, "fp16")
    with pytest.raises(GateMissed, match="called fp32"):
        check_form(to_fp16(exported.model), "fp32")
    convolutions = [n.name for n in exported.model.graph.node if n.op_type == "Conv"]
    with pytest.raises(GateMissed, match="limit 90%"):
        check_form(to_fp16(exported.model, convolutions[: len(convolutions) // 5]), "fp16")


def test_the_ending_stays_fp32() -> None:
    for task in (Task.SEGMENTATION, Task.CLASSIFICATION, Task.MULTICLASS):
        spec = spec_of(task)
        half = to_fp16(add_activation(three_logits(spec), spec))
        types = element_types(inferred(half))
        tail = kept_tail(half)
        assert tail
        read = {types[name] for n in half.graph.node if n.name in tail for name in n.input}
        assert TensorProto.FLOAT16 not in read


def test_labels_in_half_precision_mark_what_is_not_finite() -> None:
    spec = spec_of(Task.MULTICLASS)
    half = to_fp16(add_activation(three_logits(spec), spec))
    picture = np.random.default_rng(0).normal(0, 3, (2, 3, 8, 8)).astype(np.float32)
    expected = picture.astype(np.float16).argmax(1)[:, None]
    picture[0, 1, 2, 3], picture[1, 0, 0, 0], picture[0, 2, 5, 5] = np.nan, np.inf, -1e6
    for position in ((0, 0, 2, 3), (1, 0, 0, 0), (0, 0, 5, 5)):
        expected[position] = NOT_FINITE
    found = answer(half_twin(half), picture)
    np.testing.assert_array_equal(found, expected)


def test_resize_keeps_float_scales_even_shared_ones() -> None:
    nodes = [
        node("Resize", "image  scales".replace("  ", " none "), "large", mode="nearest"),
        node("Mul", "large factors", "logits"),
    ]
    nodes[0].input[1] = ""
    factors = np.array([1, 1, 2, 2], np.float32)
    nodes[1].input[1] = "scales"
    graph = graph_of(nodes, {"scales": factors})
    graph.graph.node[1].CopyFrom(node("Add", "large shift", "logits"))
    graph.graph.initializer.append(numpy_helper.from_array(np.float32(1), "shift"))
    graph.graph.value_info.append(helper.make_tensor_value_info("scales", TensorProto.FLOAT, [4]))
    half = to_fp16(graph)
    resize = next(n for n in half.graph.node if n.op_type == "Resize")
    types = element_types(inferred(half))
    assert [types[resize.input[0]], types[resize.input[2]]] == [TensorProto.FLOAT16, TensorProto.FLOAT]
    assert resize.input[2] in {t.name for t in half.graph.initializer}, "a constant, not a cast of one"
    assert answer(half, np.ones(SHAPE, np.float32)).shape == (1, 2, 8, 8)


def test_a_constant_shared_with_an_island_stays_exact_there() -> None:
    graph = graph_of([node("Mul", "image third", "middle"), node("Mul", "middle third", "logits")], {"third": 1 / 3})
    half = to_fp16(graph, ["make_logits"])
    found = {t.name: numpy_helper.to_array(t) for t in half.graph.initializer}
    assert found["third"].dtype == np.float16
    assert found["third_fp32"] == np.float32(1 / 3)


def test_constants_inside_nodes_are_cast_too() -> None:
    inside = helper.make_node("Constant", [], ["half"], "constant", value_float=0.5)
    graph = graph_of([inside, node("Mul", "image half", "logits")], {})
    half = to_fp16(graph)
    assert "Constant" not in {n.op_type for n in half.graph.node}
    np.testing.assert_array_equal(answer(half, np.ones(SHAPE, np.float32)), 0.5)


def test_weights_are_rounded_to_the_nearest_half() -> None:
    weights = np.array([1e-9, -(2.0**-25), 4e-8, 1 / 3, 65504, 0, 3e-5, -7], np.float32).reshape(2, 2, 2, 1)
    graph = graph_of([node("Conv", "image w", "logits")], {"w": weights})
    stored = numpy_helper.to_array(to_fp16(graph).graph.initializer[0])
    np.testing.assert_array_equal(stored, weights.astype(np.float16))


def test_a_constant_beyond_half_precision_is_refused_unless_kept() -> None:
    graph = graph_of([node("Add", "image mask", "logits")], {"mask": np.full((2, 4, 4), -3e38, np.float32)})
    with pytest.raises(UsageError, match=r"make_logits holds 3e\+38"):
        to_fp16(graph)
    (island,) = find_islands(graph, [(np.ones(SHAPE, np.float32),)])
    assert to_fp16(graph, [island.node]) is not None


def test_nodes_need_no_names() -> None:
    graph = two_convolutions(0.5, 2)
    for one in graph.graph.node:
        one.name = ""
    half = to_fp16(graph, ["middle"])
    assert computed_in(half) == {"fp16": 1, "fp32": 1}


def test_on_a_cpu_only_the_twin_overflows() -> None:
    """Why there is a twin: ONNX Runtime hands on what a device could not store."""
    half = to_fp16(two_convolutions(300, 1 / 300))
    bright = np.full(SHAPE, 200, np.float32)
    assert np.isfinite(answer(half, bright)).all()
    assert np.isinf(answer(half_twin(half), bright)).all()
    found = scan_not_finite(half, [(bright,)])
    assert (found[0], found[-1]) == ("middle", "logits")
    assert scan_not_finite(half, [(bright / 100,)]) == ()


def test_the_twin_rounds_every_tensor() -> None:
    graph = graph_of([node("Mul", "image third", "middle"), node("Mul", "middle three", "logits")],
                     {"third": 1 / 3, "three": 3})  # fmt: skip
    picture = np.random.default_rng(0).normal(size=SHAPE).astype(np.float32)
    third, three = np.float32(np.float16(1 / 3)), np.float32(3)
    expected = picture.astype(np.float16).astype(np.float32) * third
    expected = (expected.astype(np.float16).astype(np.float32) * three).astype(np.float16)
    np.testing.assert_array_equal(answer(half_twin(to_fp16(graph)), picture), expected.astype(np.float32))


def test_the_twin_of_an_fp32_graph_is_itself(exported: Exported, batch: np.ndarray) -> None:
    twin = half_twin(exported.model)
    assert [n.name for n in twin.graph.node] == [n.name for n in exported.model.graph.node]
    np.testing.assert_array_equal(answer(twin, batch), answer(exported.model, batch))


def test_the_spec_can_be_read_back(exported: Exported) -> None:
    with opened(to_fp16(exported.model)) as session:
        assert ModelSpec.from_metadata(session.metadata) == exported.spec
