"""Fine-tuning rounds what the exporter quantises: the same layers, and with the same ranges the same numbers."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from mammo_export import quantize
from mammo_export.files import opened
from mammo_export.quantize import Form, Group, groups, kept_float, prepared, quantised
from mammo_export.simulate import simulated as as_floats
from mammo_export.to_onnx import logits_graph_from_network
from mammo_runtime.spec import ACTIVATION_OF, InputSpec, ModelSpec, Task
from mammo_train import models
from mammo_train.config import QatConfig
from mammo_train.qat import Simulation

GRID = InputSpec(height=64, width=64)
CLASSES = ("normal", "benign", "malignant")
SPECS = {
    "unet": ModelSpec("tiny", "unet", {"width": "tiny"}, input=GRID),
    "resunet": ModelSpec("tiny", "resunet", {"width": "tiny"}, input=GRID),
    "vgg16_busi": ModelSpec(
        "tiny", "vgg16_busi", {"width": "tiny", "head": "pool"}, Task.CLASSIFICATION, input=GRID, classes=CLASSES,
        activation=ACTIVATION_OF[Task.CLASSIFICATION],
    ),
}  # fmt: skip


def a_network(network: nn.Module) -> nn.Module:
    """Return the network in eval mode, its batch norms such that they do something."""
    torch.manual_seed(11)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 3)
            nn.init.normal_(module.bias)
            nn.init.uniform_(module.running_var, 0.5, 2)  # type: ignore[arg-type]
    return network.eval()


def quantised_groups(graph: onnx.ModelProto) -> list[Group]:
    return [group for group in groups(graph) if group.name not in kept_float(graph, Form.TENSORRT)]


def twin(graph: onnx.ModelProto, simulation: Simulation) -> onnx.ModelProto:
    """Quantise as for TensorRT, with the ranges that fine-tuning has: layer by layer in the order of their calls."""
    nodes = {node.name: node for node in graph.graph.node}
    ranges = {}
    for group, name in zip(quantised_groups(graph), simulation.layers, strict=True):
        below, above = simulation.state()[f"ranges/{name}"].tolist()
        ranges[nodes[group.name].input[0]] = -below, above
    return quantised(graph, ranges, Form.TENSORRT)


@pytest.mark.parametrize("name", SPECS)
def test_the_same_layers(name: str) -> None:
    network = a_network(models.build_for(SPECS[name]))
    simulation = Simulation(network, QatConfig(), torch.zeros(1, 3, 64, 64))
    graph = prepared(logits_graph_from_network(network, SPECS[name]))
    assert len(quantised_groups(graph)) == len(simulation.layers)


def test_the_same_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    # The exporter turns some roundings round, so that a kernel's errors cancel; fine-tuning knows the nearest only.
    monkeypatch.setattr(quantize, "round_anew", lambda *_given: None)
    # Two layers deep: further down, values halfway between two integers, which may fall to either side, are everywhere.
    network = a_network(
        nn.Sequential(
            *(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.ReLU()),
            *(nn.ConvTranspose2d(6, 6, 2, stride=2), nn.ReLU(), nn.Conv2d(6, 1, 1)),
        )
    )
    images = torch.rand(2, 3, 64, 64)
    simulation = Simulation(network, QatConfig(), images[:1])
    assert simulation.layers == ("0.weight", "3.weight")
    simulation.calibrate(network, [images])
    with torch.no_grad(), simulation.of(network):
        ours = network(images).numpy()
    exact = network(images).detach().numpy()
    graph = prepared(logits_graph_from_network(network, SPECS["unet"]))
    with opened(as_floats(twin(graph, simulation))) as session:
        exported = session.run(images.numpy())
    assert np.abs(ours - exact).mean() > 20 * np.abs(ours - exported).mean() > 0
