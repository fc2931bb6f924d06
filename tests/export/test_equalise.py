"""Equalised channels: the same answer, weak channels raised, clips and everything that is not linear left alone."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from hand_graphs import answer
from mammo_export import equalise
from mammo_export.equalise import CLIP_ROOM, MOST, equalised
from mammo_export.quantize import prepared
from mammo_export.ranges import largest_by_channel
from qdq_graphs import images, mobile_graph


@cache
def graph() -> onnx.ModelProto:
    return prepared(mobile_graph())


@cache
def even() -> onnx.ModelProto:
    return equalised(graph(), images)


def weight(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(tensor) for tensor in model.graph.initializer if tensor.name == name)


def test_the_answer_stays() -> None:
    for batch in images():
        assert np.abs(answer(even(), batch) - answer(graph(), batch)).max() < 1e-6


def test_the_same_bytes_each_time() -> None:
    assert equalised(graph(), images).SerializeToString() == even().SerializeToString()


def test_channels_come_to_like_size() -> None:
    names = ["depth_clip_out", "expand_clip_out", "sum_out"]
    before, after = (largest_by_channel(model, names, images) for model in (graph(), even()))
    for name in names:
        assert spread(after[name]) < 0.75 * spread(before[name])
        assert (after[name] >= 0.999 * before[name]).all()
        assert after[name].max() <= max(1.001 * before[name].max(), CLIP_ROOM * 6)


def spread(sizes: np.ndarray) -> float:
    alive = sizes[sizes > 1e-3]
    return float(alive.max() / alive.min())


def test_no_raised_channel_meets_its_clip() -> None:
    before, after = (largest_by_channel(model, ["depth_clip_out"], images) for model in (graph(), even()))
    raised = after["depth_clip_out"] > 1.001 * before["depth_clip_out"]
    assert raised.any()
    assert (after["depth_clip_out"][raised] <= CLIP_ROOM * 6 * 1.001).all()


def test_a_channel_at_its_clip_keeps_its_size() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graph())
    tensor = next(t for t in model.graph.initializer if t.name == "stem_b")
    bias = numpy_helper.to_array(tensor).copy()
    bias[2] = 20
    tensor.CopyFrom(numpy_helper.from_array(bias, "stem_b"))
    assert (weight(equalised(model, images), "stem_w")[2] == weight(model, "stem_w")[2]).all()


def test_the_sum_and_its_inputs_share_their_factors() -> None:
    factors = [weight(even(), f"{name}_b") / weight(graph(), f"{name}_b") for name in ("project", "back")]
    assert np.allclose(*factors)
    assert factors[0].max() > 1.1


def test_what_is_not_linear_is_left_alone() -> None:
    """The transposed convolution reads the stem's answer, and the sigmoid the head's: neither may be rescaled."""
    for name in ("wide_w", "head_w", "head_b"):
        changed = weight(even(), name) / weight(graph(), name)
        assert (changed <= 1.0001).all(), name
    assert (weight(even(), "stem_w") == weight(graph(), "stem_w")).all()
    assert (weight(even(), "wide_w") == weight(graph(), "wide_w")).all()


def test_dead_channels_and_limits() -> None:
    classes = equalise._Classes(graph())
    names = classes.tensors()
    largest = {name: np.zeros(12)[: classes._channels[name]] for name in names}
    largest["project_out"] = np.array([1, 1e-9, 0.5, 0, 1, 1], float)
    factors = classes.factors(largest)
    assert all((found >= 1).all() and (found <= MOST).all() for found in factors.values())


def test_shared_weights_and_graphs_without_pairs_stay_as_they_are() -> None:
    model = onnx.ModelProto()
    model.CopyFrom(graph())
    back = next(node for node in model.graph.node if node.name == "back")
    back.input[1] = "project_w"
    back.input[2] = "project_b"
    shared = equalised(model, images)
    assert (weight(shared, "project_w") == weight(model, "project_w")).all()
    for batch in images(2):
        assert np.abs(answer(shared, batch) - answer(model, batch)).max() < 1e-6


@pytest.mark.parametrize("power", [0.0, 1.0])
def test_any_power_gives_the_same_answer(power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(equalise, "DENSE_POWER", power)
    made = equalised(graph(), images)
    for batch in images(2):
        assert np.abs(answer(made, batch) - answer(graph(), batch)).max() < 1e-6
