"""What the shared suite of the networks needs to know of each task: targets, a loss, the exported graphs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import cv2
import numpy as np
import onnx
import torch
import torch.nn.functional as F
from torch import nn

from mammo_export import to_onnx
from mammo_runtime.spec import ACTIVATION_OF, InputSpec, ModelSpec, Task
from mammo_train import models
from training_phantoms import breast

Tensors = tuple[torch.Tensor, ...]
IMAGES = 2
IGNORE = 255
SIDE = 64
"""Of the grid, where the network does not ask for another one."""
SIDES: Mapping[str, int] = {"vgg16_busi": 224}
EXTRA_NAMES = ("smp:Linknet/resnet18",)
"""One of the networks that only their names register."""


@dataclass(frozen=True)
class Graph:
    """An exported graph with inputs and what torch answers to them."""

    model: onnx.ModelProto
    inputs: Tensors
    outputs: Tensors


@dataclass(frozen=True)
class Case:
    """How a task is tried on phantoms."""

    inputs: Callable[[torch.Tensor, torch.Tensor], Tensors]
    """Images float32 [N, C, H, W] and masks float32 [N, 1, H, W] → the network's inputs."""
    target: Callable[[torch.Tensor], torch.Tensor]
    """From the masks."""
    loss: Callable[[Any, torch.Tensor], torch.Tensor]
    """Output of the network and target → scalar."""
    graphs: Callable[[nn.Module, ModelSpec, Tensors], list[Graph]]
    idle: tuple[str, ...] = ()
    """Parts of names of parameters that published weights bring but this use does not reach."""


@dataclass(frozen=True)
class Learned:
    """A small network after two optimiser steps on phantoms."""

    network: nn.Module
    spec: ModelSpec
    inputs: Tensors
    losses: tuple[float, float, float]
    """Before, between and after the steps."""
    unreached: list[str]
    """Parameters that no step gave a gradient."""
    shape: tuple[int, ...]
    """Of the (first) output."""


@torch.no_grad()
def one_graph(network: nn.Module, spec: ModelSpec, inputs: Tensors) -> list[Graph]:
    """Return the graph image → logits."""
    return [Graph(to_onnx.logits_graph_from_network(network, spec), inputs, (network(*inputs),))]


@torch.no_grad()
def two_graphs(network: nn.Module, spec: ModelSpec, inputs: Tensors) -> list[Graph]:
    """Return the graphs image → embedding and embedding, boxes → logits, IoU; for one image, as they are made."""
    prompted: Any = network
    images, boxes = (tensor[:1] for tensor in inputs)
    embedding = prompted.encode(images)
    encoder = Graph(to_onnx.encoder_graph_from_network(network, spec), (images,), (embedding,))
    decoder = to_onnx.decoder_graph_from_network(network, spec)
    return [encoder, Graph(decoder, (embedding, boxes), prompted.decode(embedding, boxes))]


def segmentation_loss(output: torch.Tensor | Tensors, target: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy, mean over the heads of a deeply supervised network."""
    heads = output if isinstance(output, tuple) else (output,)
    return torch.stack([F.binary_cross_entropy_with_logits(head, target) for head in heads]).mean()


def prompted_loss(output: Tensors, target: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy of the masks on the decoder's grid, and squared error of an IoU of a half."""
    logits, iou = output
    small = F.interpolate(target, size=logits.shape[-2:], mode="area").unsqueeze(1).expand_as(logits)
    return F.binary_cross_entropy_with_logits(logits, small) + F.mse_loss(iou, torch.full_like(iou, 0.5))


def boxes_of(masks: torch.Tensor) -> torch.Tensor:
    """Return two boxes for each picture, float32 [N, 2, 4]: that of its mask and the whole grid."""
    height, width = masks.shape[-2:]
    boxes = []
    for mask in masks[:, 0]:
        rows, columns = (mask.amax(axis).nonzero() for axis in (1, 0))
        own = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        boxes.append([[float(v) for v in own], [0.0, 0.0, float(width), float(height)]])
    return torch.tensor(boxes)


CASES: Mapping[Task, Case] = {
    Task.SEGMENTATION: Case(lambda images, _: (images,), lambda masks: masks, segmentation_loss, one_graph),
    Task.MULTICLASS: Case(
        lambda images, _: (images,),
        lambda masks: masks[:, 0].long(),
        lambda output, target: F.cross_entropy(output, target, ignore_index=IGNORE),
        one_graph,
    ),
    Task.CLASSIFICATION: Case(
        lambda images, _: (images,), lambda masks: torch.arange(len(masks)), F.cross_entropy, one_graph
    ),
    # SAM's decoder has four masks; one box asks for the first.
    Task.PROMPTED: Case(
        lambda images, masks: (images, boxes_of(masks)),
        lambda masks: masks,
        prompted_loss,
        two_graphs,
        tuple(f"output_hypernetworks_mlps.{k}." for k in (1, 2, 3)),
    ),
}


def small(name: str, **options: Any) -> nn.Module:
    """Return a fresh network in the smallest width it has."""
    return models.build(name, width=small_width(name), **options)


def small_width(name: str) -> str:
    widths = models.known(name).widths
    return models.TINY if models.TINY in widths else next(iter(widths))


def side_of(name: str, network: nn.Module) -> int:
    """Return the side of the grid that a network is tried on."""
    size = getattr(network, "size", None)
    return int(size.side) if size is not None else SIDES.get(name, SIDE)


def phantom_batch(channels: int, side: int, images: int = IMAGES) -> tuple[torch.Tensor, torch.Tensor]:
    """Return phantoms float32 [N, channels, side, side] in -1..1 with masks float32 [N, 1, side, side]."""
    drawn = [breast(seed, 1) for seed in range(1, images + 1)]
    grid = [(p[16:80, :64], m[16:80, :64].astype(np.uint8)) for p, m in drawn]
    resized = [(cv2.resize(p, (side, side)), cv2.resize(m, (side, side), interpolation=0)) for p, m in grid]
    pictures = np.stack([np.repeat(p[None] / 127.5 - 1, channels, axis=0) for p, _ in resized])
    masks = np.stack([m[None] for _, m in resized])
    assert masks.any(axis=(1, 2, 3)).all()
    return torch.from_numpy(pictures.astype(np.float32)), torch.from_numpy(masks.astype(np.float32))


def spec_of(name: str, network: nn.Module) -> ModelSpec:
    """Return the spec of a network that `small` built."""
    entry, side = models.known(name), side_of(name, network)
    plain = (0.5,) * entry.channels
    prompt = network.prompt_spec() if entry.task is Task.PROMPTED else None  # type: ignore[operator]
    return ModelSpec(
        "small",
        name,
        network={"width": small_width(name)},
        task=entry.task,
        input=InputSpec(channels=entry.channels, height=side, width=side, mean=plain, std=plain),
        classes=tuple(f"class {k}" for k in range(entry.classes)),
        activation=ACTIVATION_OF[entry.task],
        prompt=prompt,
    )


@cache
def learned(name: str) -> Learned:
    """Return the network after two steps of Adam, in eval mode. Made once: do not change it."""
    entry = models.known(name)
    case = CASES[entry.task]
    torch.manual_seed(0)
    network = small(name)
    images, masks = phantom_batch(entry.channels, side_of(name, network))
    inputs, target = case.inputs(images, masks), case.target(masks)
    optimizer = torch.optim.Adam([p for p in network.parameters() if p.requires_grad], lr=1e-3)
    losses: list[float] = []
    unreached = {n for n, p in network.named_parameters() if p.requires_grad}
    for step in range(3):
        torch.manual_seed(1)  # the same units are dropped each time
        output = network(*inputs)
        loss = case.loss(output, target)
        losses.append(float(loss.detach()))
        if step < 2:
            optimizer.zero_grad()
            loss.backward()
            # In both steps: a block that starts with a gain of zero lets gradients through in the second one.
            unreached &= {n for n, p in network.named_parameters() if _still(p)}
            optimizer.step()
    optimizer.zero_grad()
    shape = tuple((output[0] if isinstance(output, tuple) else output).shape)
    before, between, after = losses
    return Learned(network.eval(), spec_of(name, network), inputs, (before, between, after), sorted(unreached), shape)


def _still(parameter: nn.Parameter) -> bool:
    return parameter.grad is None or not bool(parameter.grad.abs().sum() > 0)
