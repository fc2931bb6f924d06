"""What makes an island: each reason planted in a graph by hand, and nothing found where there is none."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hand_graphs import SHAPE, graph_of, node, spec_of, three_logits, two_convolutions
from mammo_export.activation import add_activation
from mammo_export.hazards import MOST_TERMS
from mammo_export.islands import Island, find_islands, scan_not_finite
from mammo_export.terms import terms_of
from mammo_export.to_fp16 import to_fp16
from mammo_runtime.errors import GateMissed
from mammo_runtime.spec import Task

ONES = np.ones(SHAPE, np.float32)


def islands(graph: onnx.ModelProto, *batches: np.ndarray) -> tuple[Island, ...]:
    return find_islands(graph, [(batch,) for batch in batches or (ONES,)])


def names(found: tuple[Island, ...]) -> list[str]:
    return [island.node for island in found]


def named(*outputs: str) -> list[str]:
    return [f"make_{output}" for output in outputs]


def test_values_near_the_end_of_half_precision() -> None:
    """Maker and readers of the tensor stay; the largest picture decides."""
    graph = two_convolutions(300, 1 / 300)
    assert islands(graph, ONES) == ()
    found = islands(graph, ONES, 20 * ONES, ONES)
    assert names(found) == named("middle", "logits")
    assert found[0].why == "values reach 1.2e+04 on real images; half precision ends at 65504"
    assert asdict(found[1]) == {"node": "make_logits", "operator": "Conv", "why": found[0].why}
    half = to_fp16(graph, names(found))
    assert scan_not_finite(half, [(200 * ONES,)]) == ()


def test_tiny_values_that_are_made_large_again() -> None:
    found = islands(two_convolutions(1e-7, 1e7), ONES)
    assert names(found) == named("middle", "logits")
    assert "few digits left" in found[0].why


def test_tiny_values_that_do_not_matter() -> None:
    graph = graph_of([node("Mul", "image small", "middle"), node("Add", "middle one", "logits")],
                     {"small": np.full((1, 2, 1, 1), 1e-7, np.float32), "one": 1.0})  # fmt: skip
    assert islands(graph, 0.7 * ONES) == ()


REASONS: Mapping[str, tuple[Callable[[], onnx.ModelProto], str]] = {
    "epsilon": (lambda: graph_of([node("Add", "image e", "logits")], {"e": 1e-6}), "constant 1e-06 would become"),
    "mask": (
        lambda: graph_of([node("Add", "image m", "logits")], {"m": np.full((2, 4, 4), -3e38, np.float32)}),
        "ends at 65504",
    ),
    "one channel's small weights": (
        lambda: graph_of(
            [node("Conv", "image w", "middle"), node("Mul", "middle far", "logits")],
            {"w": np.full((2, 2, 3, 3), 6.3e-6, np.float32), "far": np.full((1, 2, 1, 1), 1000, np.float32)},
        ),
        "so small that half would",
    ),
    "long sum": (
        lambda: graph_of(
            [node("Tile", "image often", "wide"), node("GlobalAveragePool", "wide", "logits")],
            {"often": np.array([1, 1, 16, 16])},
        ),
        f"sums {16 * 16 * 16} terms",
    ),
    "squares": (
        lambda: graph_of(
            [node("Mul", "image fifty", "large"), node("ReduceL2", "large axes", "logits")],
            {"fifty": 50.0, "axes": np.array([2, 3])},
        ),
        "sum of 16 squares up to 50 could pass 65504",
    ),
    "norm": (
        lambda: graph_of(
            [node("Mul", "image fifty", "large"), node("LayerNormalization", "large scale", "logits", axis=1)],
            {"fifty": 50.0, "scale": np.ones(SHAPE[1:], np.float32)},
        ),
        "sum of 32 squares",
    ),
    "attention": (
        lambda: graph_of([node("Mul", "image c", "scores"), node("Softmax", "scores", "logits")], {"c": 40.0}),
        "Softmax is steep for values up to 40",
    ),
    "batch norm": (
        lambda: graph_of(
            [node("BatchNormalization", "image s b m v", "logits", epsilon=1e-10)],
            {k: np.full(2, v, np.float32) for k, v in {"s": 1e-3, "b": 0.0, "m": 0.0, "v": 1e-7}.items()},
        ),
        "rounding its parameters",
    ),
    "whole numbers": (
        lambda: graph_of(
            [
                node("Cast", "image", "ones", to=TensorProto.INT64),
                node("Mul", "ones many", "counts"),
                node("Cast", "counts", "counted", to=TensorProto.FLOAT),
                node("Mul", "counted less", "logits"),
            ],
            {"many": np.array(3001), "less": 1e-3},
        ),
        "whole numbers up to 3001",
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_is_found_and_said(reason: str) -> None:
    make, words = REASONS[reason]
    found = islands(make())
    assert any(words in island.why for island in found), found
    to_fp16(make(), names(found))


@pytest.mark.parametrize(
    "graph",
    [
        graph_of([node("Add", "image e", "logits")], {"e": 1e-5}),
        graph_of([node("BatchNormalization", "image s b m v", "logits")],
                 {k: np.full(2, v, np.float32) for k, v in {"s": 1.3, "b": 0.1, "m": 0.3, "v": 0.7}.items()}),
        graph_of([node("Softmax", "image", "logits")], {}),
        graph_of([node("GlobalAveragePool", "image", "logits")], {}),
        graph_of([node("Conv", "image w", "logits")],
                 {"w": np.array([1e-9, 0.5, 0.5, 1e-9], np.float32).reshape(2, 2, 1, 1)}),
    ],
)  # fmt: skip
def test_ordinary_nodes_are_no_islands(graph: onnx.ModelProto) -> None:
    assert islands(graph) == ()


def test_the_ending_is_not_listed() -> None:
    """It stays FP32 anyway."""
    graph = add_activation(two_convolutions(3000, 0.5), spec_of(Task.SEGMENTATION))
    assert names(islands(graph, ONES)) == []
    assert names(islands(graph, 3 * ONES)) == named("middle", "logits")


def test_a_nan_layer_is_found_where_it_begins() -> None:
    graph = graph_of(
        [node("Relu", "image", "before"), node("Sub", "before one", "shifted"), node("Log", "shifted", "spoilt"),
         node("Add", "spoilt one", "logits")],
        {"one": 1.0},
    )  # fmt: skip
    assert scan_not_finite(graph, [(3 * ONES,)]) == ()
    assert scan_not_finite(graph, [(3 * ONES,), (ONES * 0.5,)]) == ("spoilt", "logits")
    assert scan_not_finite(to_fp16(graph), [(ONES * 0.5,)])[0] == "spoilt"
    with pytest.raises(GateMissed, match="the FP32 graph gives NaN or infinity in spoilt, logits"):
        islands(graph, ONES * 0.5)


def test_corners_of_boxes_stay_exact_until_they_are_phases() -> None:
    graph = graph_of(
        [node("Div", "boxes side", "unit"), node("Mul", "unit turns", "phase"), node("Sin", "phase", "wave"),
         node("Add", "wave one", "logits")],
        {"side": 256.0, "turns": 6.0, "one": 1.0}, 3,
    )  # fmt: skip
    graph.graph.input[0].CopyFrom(helper.make_tensor_value_info("boxes", TensorProto.FLOAT, [1, "boxes", 4]))
    assert find_islands(graph, [(np.full((1, 2, 4), 200, np.float32),)]) == ()
    found = find_islands(graph, [(np.full((1, 2, 4), 600, np.float32),)])
    assert names(found) == named("unit", "phase", "wave")
    assert found[0].why == "it turns corners up to 600 pixels into phases; half has steps of 0.5 there"


@pytest.mark.parametrize(
    ("made", "shape", "terms"),
    [
        (node("ReduceMean", "image axes", "out"), {"image": (1, 2, 4, 4), "out": (1, 2, 1, 1)}, (16, False)),
        (node("AveragePool", "image", "out", kernel_shape=[3, 2]), {"image": (1, 2, 4, 4)}, (6, False)),
        (node("Softmax", "image", "out", axis=1), {"image": (1, 5, 4)}, (5, False)),
        (node("LayerNormalization", "image s", "out", axis=-1), {"image": (1, 5, 7)}, (7, True)),
        (node("LayerNormalization", "image s", "out", axis=1), {"image": (1, 5, 7)}, (35, True)),
        (node("InstanceNormalization", "image s b", "out"), {"image": (1, 5, 7, 3)}, (21, True)),
        (node("GroupNormalization", "image s b", "out", num_groups=2), {"image": (1, 6, 4, 4)}, (48, True)),
        (node("Conv", "image w", "out"), {"image": (1, 5, 7, 3)}, (1, False)),
        (node("ReduceMean", "unknown", "out"), {}, (1, False)),
    ],
)
def test_terms_of_a_sum(made: onnx.NodeProto, shape: dict[str, tuple[int, ...]], terms: tuple[int, bool]) -> None:
    assert terms_of(made, shape) == terms
    assert MOST_TERMS == 1024


def test_three_logits_need_no_island() -> None:
    for task in (Task.MULTICLASS, Task.CLASSIFICATION):
        spec = spec_of(task)
        graph = add_activation(three_logits(spec), spec)
        assert find_islands(graph, [(np.ones((1, 3, 8, 8), np.float32),)]) == ()
