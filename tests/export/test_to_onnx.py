"""The graph: form, behaviour and what `check_form` refuses."""

from __future__ import annotations

import logging
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from mammo_export.activation import without_activation
from mammo_export.files import opened
from mammo_export.form import MAX_IR_VERSION, OPSET, check_form
from mammo_export.to_onnx import logits_graph_from_network
from mammo_runtime.errors import GateMissed
from mammo_runtime.spec import ModelSpec
from mammo_train.torch_session import TorchSession
from tiny_export import Exported, changed_weight


def test_form_is_what_old_engines_read(exported: Exported) -> None:
    check_form(exported.model)
    assert {(o.domain, o.version) for o in exported.model.opset_import} == {("", OPSET)}
    assert 17 <= OPSET <= 18
    assert exported.model.ir_version <= MAX_IR_VERSION <= 10
    operators = Counter(node.op_type for node in exported.model.graph.node)
    assert operators["BatchNormalization"] == 0, "batch norms are folded into the convolutions"
    assert operators["Sigmoid"] == 1
    assert operators["Conv"] == 67


def test_names_and_shapes_of_input_and_output(exported: Exported) -> None:
    def described(value: onnx.ValueInfoProto) -> tuple[str, list[str | int]]:
        return value.name, [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]

    assert [described(v) for v in exported.model.graph.input] == [("image", ["batch", 3, 64, 64])]
    assert [described(v) for v in exported.model.graph.output] == [("probability", ["batch", 1, 64, 64])]
    assert [described(v) for v in exported.logits.graph.output] == [("logits", ["batch", 1, 64, 64])]


@pytest.mark.parametrize("count", [1, 2, 5])
def test_any_batch_size_gives_what_torch_gives(exported: Exported, count: int) -> None:
    batch = np.random.default_rng(count).normal(size=(count, 3, 64, 64)).astype(np.float32)
    expected = TorchSession(exported.network, exported.spec).run(batch)
    with opened(exported.model) as session:
        np.testing.assert_allclose(session.run(batch), expected, atol=1e-5)


def test_spec_survives_the_way_through_onnxruntime(exported: Exported) -> None:
    with opened(exported.model) as session:
        assert ModelSpec.from_metadata(session.metadata) == exported.spec


def test_logits_graph_comes_back_out_of_the_model(exported: Exported) -> None:
    batch = np.random.default_rng(0).normal(size=(1, 3, 64, 64)).astype(np.float32)
    with opened(exported.logits) as before, opened(without_activation(exported.model, exported.spec)) as after:
        np.testing.assert_array_equal(before.run(batch), after.run(batch))
    with pytest.raises(GateMissed, match="activation"):
        without_activation(exported.logits, exported.spec)


def test_nothing_in_the_graph_names_the_exporting_machine(exported: Exported) -> None:
    content = exported.model.SerializeToString()
    for trace in (str(Path(torch.__file__).parent), "stack_trace", str(Path.cwd())):
        assert trace.encode() not in content


def test_export_is_silent_and_leaves_the_network_as_it_was(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def talkative_export(network: torch.nn.Module, *args: object, **options: object) -> None:
        warnings.warn("chatter", FutureWarning, stacklevel=1)
        for name in ("torch.onnx", "onnxscript.optimizer", "onnx_ir.passes"):
            logging.getLogger(name).warning("chatter")
        network.double()

    monkeypatch.setattr(torch.onnx, "export", talkative_export)
    network = torch.nn.Conv2d(3, 1, 1).train()
    with warnings.catch_warnings(record=True) as caught, pytest.raises(AssertionError):
        logits_graph_from_network(network, exported.spec)
    assert not caught
    assert "chatter" not in caplog.text
    assert network.training
    assert network.weight.dtype == torch.float32
    logging.getLogger("onnxscript.optimizer").warning("heard again")
    assert "heard again" in caplog.text


def test_an_error_of_the_torch_exporter_is_not_hidden(exported: Exported) -> None:
    class Refuses(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            raise ArithmeticError("no such network")

    with pytest.raises(Exception, match="no such network"):
        logits_graph_from_network(Refuses(), exported.spec)


def _opset_too_new(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 23


def _foreign_opset(model: onnx.ModelProto) -> None:
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def _ir_version_too_new(model: onnx.ModelProto) -> None:
    model.ir_version = 11


def _shape_chain(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, onnx.helper.make_node("Shape", ["image"], ["size"]))


def _external_weight(model: onnx.ModelProto) -> None:
    onnx.external_data_helper.set_external_data(model.graph.initializer[0], "weights.bin")


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (_opset_too_new, "opsets"),
        (_foreign_opset, "com.microsoft"),
        (_ir_version_too_new, "IR version 11"),
        (_shape_chain, "Shape"),
        (_external_weight, "another file"),
    ],
)
def test_check_form_refuses(exported: Exported, fault: Callable[[onnx.ModelProto], None], words: str) -> None:
    model = onnx.ModelProto()
    model.CopyFrom(exported.model)
    fault(model)
    with pytest.raises(GateMissed, match=words):
        check_form(model)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_check_form_refuses_a_weight_that_is_no_number(exported: Exported, value: float) -> None:
    with pytest.raises(GateMissed, match="NaN or infinite"):
        check_form(changed_weight(exported.model, value))
