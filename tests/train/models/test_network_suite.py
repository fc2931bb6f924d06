"""One suite for every network of the registry, at its smallest width. A new network takes part by its name alone."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from mammo_export.form import check_form
from mammo_export.half_twin import half_twin
from mammo_export.islands import find_islands
from mammo_export.probe import outputs_of
from mammo_export.to_fp16 import to_fp16
from mammo_runtime.spec import Task
from mammo_train import models
from network_cases import CASES, EXTRA_NAMES, IMAGES, Graph, learned

NAMES = (*models.ARCHITECTURES, *EXTRA_NAMES)
ENTRIES = [(name, models.known(name)) for name in NAMES]
DISTINCT = tuple({(id(e.build), *e.widths.items(), *e.options): n for n, e in reversed(ENTRIES)}.values())[::-1]
"""Without the second name of a network (msanet is unet, medsam_box is sam_box): an export takes seconds."""
COMPUTED_SHAPES = {"Shape", "Size", "If", "Loop", "Scan"}
NORMS_LEFT: Mapping[str, int] = {"resunet": 6}
"""Batch norms that no exporter can fold, since no convolution stands before them."""


@pytest.mark.parametrize("name", NAMES)
def test_output_has_the_tasks_shape(name: str) -> None:
    entry, made = models.known(name), learned(name)
    side = made.spec.input.height
    assert side % entry.multiple == 0
    if entry.task is Task.CLASSIFICATION:
        assert made.shape == (IMAGES, entry.classes)
    elif entry.task is Task.PROMPTED:
        assert made.spec.prompt is not None
        mask_side = made.spec.prompt.mask_side
        assert made.shape == (IMAGES, 2, 1, mask_side, mask_side)
    else:
        assert made.shape == (IMAGES, entry.classes, side, side)


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name: str) -> None:
    idle = CASES[models.known(name).task].idle
    assert [n for n in learned(name).unreached if not any(part in n for part in idle)] == []


@pytest.mark.parametrize("name", NAMES)
def test_two_steps_lower_the_loss(name: str) -> None:
    first, second, third = learned(name).losses
    assert third < second < first


@pytest.mark.parametrize("name", NAMES)
def test_stored_network_is_rebuilt_from_its_spec(name: str, tmp_path: Path) -> None:
    made = learned(name)
    save_file(made.network.state_dict(), tmp_path / "n.safetensors")
    torch.manual_seed(4)
    rebuilt = models.build_for(made.spec).eval()
    with torch.no_grad():
        assert not torch.allclose(first(rebuilt(*made.inputs)), first(made.network(*made.inputs)))
        rebuilt.load_state_dict(load_file(tmp_path / "n.safetensors"))
        assert torch.equal(first(rebuilt(*made.inputs)), first(made.network(*made.inputs)))


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_does_not_mix_pictures(name: str) -> None:
    made = learned(name)
    with torch.no_grad():
        together = first(made.network(*made.inputs))
        alone = torch.cat([first(made.network(*(t[k : k + 1] for t in made.inputs))) for k in range(IMAGES)])
    assert float((alone - together).abs().max()) <= 1e-5 * float(together.abs().max())


@pytest.mark.parametrize("name", DISTINCT)
def test_exported_graph_answers_as_the_network(name: str) -> None:
    made = learned(name)
    graphs = CASES[made.spec.task].graphs(made.network, made.spec, made.inputs)
    norms = 0
    for graph in graphs:
        operators = [node.op_type for node in graph.model.graph.node if "boxes" not in node.input]
        assert not COMPUTED_SHAPES & set(operators)
        norms += operators.count("BatchNormalization")
        check_answers(graph)
        check_half(graph)
    assert norms == NORMS_LEFT.get(name, 0)


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


def first(output: torch.Tensor | tuple[torch.Tensor, ...]) -> torch.Tensor:
    return output[0] if isinstance(output, tuple) else output
