"""Other endings of a graph and graphs of any size: values, metadata, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from hand_graphs import SHAPE, SIDE, answer, graph_of, node, spec_of, three_logits
from mammo_export import output_forms
from mammo_export.activation import add_activation
from mammo_export.files import opened
from mammo_export.form import check_form
from mammo_export.free_sides import with_free_sides
from mammo_export.onnx_cli import ENDINGS, onnx_command
from mammo_export.output_forms import MADE_FOR_KEY, OUTPUT_KEY, Output, graph_from_source, logit, with_output
from mammo_export.source import Source
from mammo_export.to_fp16 import to_fp16
from mammo_runtime.errors import ModelRefused, UsageError
from mammo_runtime.spec import NOT_FINITE, InputMode, InputSpec, ModelSpec, PromptSpec, Task
from mammo_train.torch_session import TorchSession
from tiny_export import Exported

TASKS = (Task.SEGMENTATION, Task.CLASSIFICATION, Task.MULTICLASS)


@pytest.fixture
def batch() -> np.ndarray:
    return np.random.default_rng(0).normal(0, 3, (2, 3, SIDE, SIDE)).astype(np.float32)


def logits_of(task: Task, batch: np.ndarray) -> np.ndarray:
    if task is Task.CLASSIFICATION:
        return np.asarray(batch.mean((2, 3)))
    return batch[:, :1] if task is Task.SEGMENTATION else batch


@pytest.mark.parametrize("task", TASKS)
def test_the_ending_that_ships_is_the_shipped_graph(task: Task) -> None:
    spec = spec_of(task)
    shipped = Output.ARG_MAX if task is Task.MULTICLASS else Output.PROBABILITY
    graph = three_logits(spec)
    assert with_output(graph, spec, shipped) == add_activation(graph, spec)


@pytest.mark.parametrize("task", TASKS)
def test_logits(task: Task, batch: np.ndarray) -> None:
    spec = spec_of(task)
    np.testing.assert_allclose(
        answer(with_output(three_logits(spec), spec, Output.LOGITS), batch),
        logits_of(task, batch),
        rtol=1e-5,
        atol=1e-6,
    )


def test_probabilities_of_all_classes(batch: np.ndarray) -> None:
    spec = spec_of(Task.MULTICLASS)
    powers = np.exp(batch)
    found = answer(with_output(three_logits(spec), spec, Output.PROBABILITY), batch)
    np.testing.assert_allclose(found, powers / powers.sum(1, keepdims=True), rtol=1e-5)


def test_the_likeliest_class_of_a_picture(batch: np.ndarray) -> None:
    spec = spec_of(Task.CLASSIFICATION)
    found = answer(with_output(three_logits(spec), spec, Output.ARG_MAX), batch)
    assert (found.dtype, found.shape) == (np.uint8, (2, 1))
    np.testing.assert_array_equal(found[:, 0], batch.mean((2, 3)).argmax(1))


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 1.0])
@pytest.mark.parametrize("half", [False, True])
def test_a_mask_at_the_frozen_threshold(threshold: float, half: bool, batch: np.ndarray) -> None:
    spec = ModelSpec.from_dict({**spec_of(Task.SEGMENTATION).to_dict(), "threshold": threshold})
    batch = batch.astype(np.float16).astype(np.float32)
    batch[0, 0, 1, 1], batch[1, 0, 2, 2] = np.nan, -np.inf
    graph = with_output(three_logits(spec), spec, Output.ARG_MAX)
    found = answer(to_fp16(graph) if half else graph, batch)
    expected = (1 / (1 + np.exp(-batch[:, :1].astype(np.float64))) >= threshold).astype(np.uint8)
    expected[0, 0, 1, 1] = expected[1, 0, 2, 2] = NOT_FINITE
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


def test_logit_of_the_ends_is_finite() -> None:
    assert (logit(0.5), logit(0.0), logit(1.0)) == (0, -np.finfo(np.float32).max, np.finfo(np.float32).max)


@pytest.mark.parametrize("output", Output)
@pytest.mark.parametrize("task", TASKS)
def test_form_and_metadata(task: Task, output: Output) -> None:
    """What does not answer as the spec says is refused by the runtime: logits would pass for probabilities."""
    spec = spec_of(task)
    graph = with_output(three_logits(spec), spec, output)
    check_form(graph)
    with opened(graph) as session:
        if graph == add_activation(three_logits(spec), spec):
            assert ModelSpec.from_metadata(session.metadata) == spec
            return
        with pytest.raises(ModelRefused, match="no mammo-edge spec"):
            ModelSpec.from_metadata(session.metadata)
        assert session.metadata[OUTPUT_KEY] == output.value
        assert ModelSpec.from_metadata({"mammo_edge_spec": session.metadata[MADE_FOR_KEY]}) == spec


@pytest.fixture
def run(exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for the folder of the exported network's run: it is not exported again."""
    trained = TorchSession(exported.network, exported.spec)
    source = Source(tmp_path, exported.spec, exported.files, "", trained)
    monkeypatch.setattr(output_forms, "open_source", lambda folder: source)
    return tmp_path


def test_the_command_writes_the_file(run: Path, exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(output.value for output in Output) == ENDINGS
    target = run / "model.onnx"
    onnx_command.main([str(run), "-o", str(target), "--ending", "logits", "--json"], standalone_mode=False)
    assert [v.name for v in onnx.load(target).graph.output] == ["logits"]
    told = json.loads(capsys.readouterr().out)
    assert told["outputs"] == {"logits": ["batch", 1, 64, 64]}


def test_any_size_of_a_real_network(run: Path, exported: Exported) -> None:
    graph = graph_from_source(run, Output.PROBABILITY, any_size=True)
    sides = [d.dim_param or d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["batch", 3, "height", "width"]
    check_form(to_fp16(graph), "fp16")
    picture = np.random.default_rng(1).normal(size=(1, 3, 32, 128)).astype(np.float32)
    with torch.no_grad():
        expected = exported.network(torch.from_numpy(picture)).sigmoid().numpy()
    np.testing.assert_allclose(answer(graph, picture), expected, atol=1e-5)


def test_what_one_file_cannot_be(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = output_forms.open_source(run)
    monkeypatch.setattr(output_forms, "open_source", lambda folder: replace(source, trained=None))
    with pytest.raises(UsageError, match="give the run instead"):
        graph_from_source(run, Output.LOGITS, any_size=True)
    prompted = replace(
        source.spec, task=Task.PROMPTED, prompt=PromptSpec((1, 1, 1), 1), input=InputSpec(mode=InputMode.FULL)
    )
    monkeypatch.setattr(output_forms, "open_source", lambda folder: replace(source, spec=prompted))
    with pytest.raises(UsageError, match="two graphs"):
        graph_from_source(run, Output.LOGITS)


@pytest.mark.parametrize(
    ("made", "constant"),
    [
        (node("Add", "image table", "logits"), np.ones(SHAPE, np.float32)),
        (node("Reshape", "image table", "logits"), np.array([-1, *SHAPE[1:]])),
    ],
)
def test_a_network_tied_to_its_grid_is_refused(made: onnx.NodeProto, constant: np.ndarray) -> None:
    with pytest.raises(UsageError, match="tied to its grid"):
        with_free_sides(graph_of([made], {"table": constant}), lambda picture: picture, 4)


def test_a_graph_that_answers_otherwise_on_another_grid_is_refused() -> None:
    spec = spec_of(Task.SEGMENTATION)
    with pytest.raises(UsageError, match="differs by"):
        with_free_sides(three_logits(spec), lambda picture: 2 * picture[:, :1], 8)
    free = with_free_sides(three_logits(spec), lambda picture: picture[:, :1], 8)
    assert free.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
