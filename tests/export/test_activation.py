"""What is appended to logits, on hand-made graphs: values, NaN and infinity, names, and the way back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from hand_graphs import SIDE, spec_of, three_logits
from mammo_export.activation import add_activation, with_spec, without_activation
from mammo_export.files import opened
from mammo_export.form import check_form
from mammo_runtime.errors import GateMissed, InferenceFailed
from mammo_runtime.mammogram import Mammogram
from mammo_runtime.segmenter import segment
from mammo_runtime.spec import NOT_FINITE, Task


def random_logits(seed: int = 0, count: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (count, 3, SIDE, SIDE)).astype(np.float32)


@pytest.mark.parametrize(
    ("task", "output", "operators"),
    [
        (Task.SEGMENTATION, ("probability", TensorProto.FLOAT, ["batch", 1, SIDE, SIDE]), ["Sigmoid"]),
        (Task.CLASSIFICATION, ("probability", TensorProto.FLOAT, ["batch", 3]), ["Softmax"]),
        (
            Task.MULTICLASS,
            ("labels", TensorProto.UINT8, ["batch", 1, SIDE, SIDE]),
            ["Abs", "ReduceSum", "Less", "ArgMax", "Cast", "Where", "Cast"],
        ),
    ],
)
def test_what_each_task_ends_in(task: Task, output: tuple[str, int, list[object]], operators: list[str]) -> None:
    spec = spec_of(task)
    logits = three_logits(spec)
    model = add_activation(logits, spec)
    check_form(model)
    (found,) = model.graph.output
    sides = [d.dim_param or d.dim_value for d in found.type.tensor_type.shape.dim]
    assert (found.name, found.type.tensor_type.elem_type, sides) == output
    assert [node.op_type for node in model.graph.node][1:] == operators
    assert without_activation(model, spec) == logits


def test_softmax_is_of_the_classes() -> None:
    spec, batch = spec_of(Task.CLASSIFICATION), random_logits()
    with opened(add_activation(three_logits(spec), spec)) as session:
        found = session.run(batch)
    powers = np.exp(batch.mean((2, 3)))
    np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), rtol=1e-5)


def test_labels_are_the_largest_logits_number() -> None:
    spec, batch = spec_of(Task.MULTICLASS), random_logits()
    batch[0, :, 0, 0] = 2.5  # the first of equal ones
    batch[0, :, 0, 1] = (-1e37, 0, 1e37)
    with opened(add_activation(three_logits(spec), spec)) as session:
        found = session.run(batch)
    assert (found.dtype, found.shape) == (np.uint8, (2, 1, SIDE, SIDE))
    np.testing.assert_array_equal(found, batch.argmax(1)[:, None])
    assert found[0, 0, 0, 0] == 0


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_pixel_whose_logits_are_not_finite_is_marked(value: float, channel: int) -> None:
    """Also where it is not the largest: arg-max alone would answer a class."""
    spec, batch = spec_of(Task.MULTICLASS), random_logits()
    expected = batch.argmax(1)[:, None].astype(np.uint8)
    batch[1, channel, 3, 4] = value
    expected[1, 0, 3, 4] = NOT_FINITE
    with opened(add_activation(three_logits(spec), spec)) as session:
        np.testing.assert_array_equal(session.run(batch), expected)


def test_opposite_infinities_do_not_cancel() -> None:
    spec, batch = spec_of(Task.MULTICLASS), random_logits(count=1)
    batch[0, :, 1, 1] = (np.inf, -np.inf, 0)
    with opened(add_activation(three_logits(spec), spec)) as session:
        assert session.run(batch)[0, 0, 1, 1] == NOT_FINITE


@pytest.mark.parametrize("task", [Task.SEGMENTATION, Task.MULTICLASS, Task.CLASSIFICATION])
def test_the_runtime_judges_no_image_on_nan(task: Task) -> None:
    spec = spec_of(task)
    picture = np.random.default_rng(1).integers(0, 255, (SIDE, SIDE)).astype(np.uint8)
    image = Mammogram(picture, 255, "8 bit", "0" * 64)
    broken = three_logits(spec)
    broken.graph.node.insert(0, helper.make_node("Mul", ["image", "wrong"], ["spoilt"]))
    wrong = np.ones((3, SIDE, SIDE), np.float32)
    wrong[0, 2, 2] = np.nan
    broken.graph.initializer.append(onnx.numpy_helper.from_array(wrong, "wrong"))
    broken.graph.node[1].input[0] = "spoilt"
    model = add_activation(broken, spec)
    with opened(model) as session, pytest.raises(InferenceFailed):
        segment(image, session, spec)
    with pytest.raises(GateMissed, match="the weight wrong holds NaN"):
        check_form(model)


def test_the_other_outputs_of_a_decoder_stay() -> None:
    spec = spec_of(Task.SEGMENTATION)
    logits = three_logits(spec)
    logits.graph.node.append(helper.make_node("Identity", ["image"], ["iou"]))
    logits.graph.output.append(helper.make_tensor_value_info("iou", TensorProto.FLOAT, ["batch", 3, SIDE, SIDE]))
    model = add_activation(logits, spec)
    assert [output.name for output in model.graph.output] == ["probability", "iou"]
    assert without_activation(model, spec) == logits


@pytest.mark.parametrize("task", [Task.SEGMENTATION, Task.MULTICLASS, Task.CLASSIFICATION])
def test_another_ending_is_refused(task: Task, tmp_path: Path) -> None:
    spec = spec_of(task)
    logits = three_logits(spec)
    ends_in_logits, other_task = with_spec(logits, spec), Task.SEGMENTATION
    if task is Task.SEGMENTATION:
        other_task = Task.CLASSIFICATION
    no_constants = add_activation(logits, spec)
    del no_constants.graph.initializer[:]
    reordered = add_activation(logits, spec)
    reordered.graph.node[-1].op_type = "HardSigmoid"
    wrong = [ends_in_logits, reordered] + ([no_constants] if task is Task.MULTICLASS else [])
    for model in wrong:
        with pytest.raises(GateMissed, match="activation"):
            without_activation(model, spec)
    with pytest.raises(GateMissed, match="activation"):
        without_activation(add_activation(logits, spec), spec_of(other_task))
