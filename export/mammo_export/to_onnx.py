"""Checkpoint → ONNX: the logits graph first, proved against torch; `activation` and spec are added to it."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import onnx
import torch
from torch import nn

from mammo_export.activation import BOXES, EMBEDDING, INPUT, IOU, LOGITS
from mammo_export.form import OPSET, tidied
from mammo_runtime.spec import ModelSpec

MOST = 1024
"""Images, or boxes, that one call may hold: the exporter wants a bound."""
TALKATIVE_LOGGERS = ("torch", "torch.onnx", "onnxscript", "onnx_ir")
"""They report every rewrite of the graph; errors are raised, not logged."""


def logits_graph_from_network(network: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    """Return the network as ONNX: float32 image [batch, C, H, W] → its logits, batch dynamic.

    Logits are [batch, classes, H, W], of a classifier [batch, classes]. Opset 18, IR version at most 10, checked by
    the ONNX checker. The same network gives the same bytes.
    """
    example = torch.zeros(2, spec.input.channels, spec.input.height, spec.input.width)
    batch = {0: torch.export.Dim("batch", min=1, max=MOST)}
    return _graph(network, (example,), (INPUT,), (LOGITS,), (batch,))


def encoder_graph_from_network(network: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    """Return a prompted network's first graph: float32 image [1, C, H, W] → embedding [1, c, h, w]."""
    example = torch.zeros(1, spec.input.channels, spec.input.height, spec.input.width)
    return _graph(network.get_submodule("encoder"), (example,), (INPUT,), (EMBEDDING,), (None,))


def decoder_graph_from_network(network: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    """Return a prompted network's second graph, number of boxes B dynamic.

    embedding [1, c, h, w] and boxes float32 [1, B, 4] (x0, y0, x1, y1 in pixels of the input grid) → logits
    [1, B, 1, S, S] and predicted IoU [1, B].
    """
    assert spec.prompt is not None
    embedding = torch.zeros(1, *spec.prompt.embedding)
    corners = [[0.0, 0.0, float(spec.input.width), float(spec.input.height)]]
    boxes = {1: torch.export.Dim("boxes", min=1, max=MOST)}
    # Three boxes: a number that no size of the network equals by chance, and that is not special like 0 and 1.
    example = torch.tensor([corners * 3])
    return _graph(
        network.get_submodule("decoder"), (embedding, example), (EMBEDDING, BOXES), (LOGITS, IOU), (None, boxes)
    )


def with_parent(spec: ModelSpec, weights_sha256: str) -> ModelSpec:
    """Return the spec naming the checkpoint it was exported from."""
    return replace(spec, parent_sha256=weights_sha256)


def _graph(
    network: nn.Module,
    examples: tuple[torch.Tensor, ...],
    inputs: Sequence[str],
    outputs: Sequence[str],
    dynamic: tuple[Any, ...],
) -> onnx.ModelProto:
    # A copy: the caller's network keeps its device, mode and memory format.
    network = copy.deepcopy(network).eval().cpu().to(memory_format=torch.contiguous_format).requires_grad_(False)
    for module in network.modules():
        if hasattr(module, "inplace"):
            setattr(module, "inplace", False)  # noqa: B010 - with the line above: a third less time, the same graph
    with _quiet():
        program = torch.onnx.export(
            network,
            examples,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return tidied(program.model_proto)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hold back warnings and log lines of the libraries that build the graph."""
    loggers = [logging.getLogger(name) for name in TALKATIVE_LOGGERS]
    before = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, before, strict=True):
                logger.setLevel(level)
