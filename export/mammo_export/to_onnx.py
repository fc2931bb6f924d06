"""Checkpoint → ONNX: logits graph first, proved against torch, then the activation and the spec are added."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from mammo_runtime.errors import GateMissed
from mammo_runtime.spec import METADATA_KEY, Activation, ModelSpec

OPSET = 18
MAX_IR_VERSION = 10
"""TensorRT 10.3 (JetPack 6) and ONNX Runtime 1.18 read this."""
INPUT, LOGITS, OUTPUT = "image", "logits", "probability"
TALKATIVE_LOGGERS = ("torch", "torch.onnx", "onnxscript", "onnx_ir")
"""They report every rewrite of the graph; errors are raised, not logged."""


def logits_graph_from_network(network: nn.Module, spec: ModelSpec) -> onnx.ModelProto:
    """Return the network as ONNX: float32 image [batch, C, H, W] → logits [batch, classes, H, W], batch dynamic.

    Opset 18, IR version at most 10, checked by the ONNX checker. The same network gives the same bytes.
    """
    example = torch.zeros(2, spec.input.channels, spec.input.height, spec.input.width)
    # A copy: the caller's network keeps its device, mode and memory format.
    network = copy.deepcopy(network).eval().cpu().to(memory_format=torch.contiguous_format)
    with _quiet():
        program = torch.onnx.export(
            network,
            (example,),
            input_names=[INPUT],
            output_names=[LOGITS],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    graph = program.model_proto
    graph.ir_version = min(graph.ir_version, MAX_IR_VERSION)
    _strip(graph)
    onnx.checker.check_model(graph, full_check=True)
    return graph


def add_activation(graph: onnx.ModelProto, spec: ModelSpec) -> onnx.ModelProto:
    """Return a copy whose output is the probability, with the spec in its metadata.

    Raises GateMissed on an unknown activation.
    """
    if spec.activation is not Activation.SIGMOID:
        raise GateMissed(f"the exporter cannot append the activation {spec.activation.value}")
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    shape = [d.dim_param or d.dim_value for d in model.graph.output[0].type.tensor_type.shape.dim]
    model.graph.node.append(helper.make_node("Sigmoid", [LOGITS], [OUTPUT], name="probability_sigmoid"))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, shape))
    helper.set_model_props(model, {METADATA_KEY: spec.to_json()})
    onnx.checker.check_model(model, full_check=True)
    return model


def without_activation(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return the logits graph inside a model that `add_activation` made. Raises GateMissed when it ends otherwise."""
    last = model.graph.node[-1] if model.graph.node else None
    if last is None or (last.op_type, list(last.input), list(last.output)) != ("Sigmoid", [LOGITS], [OUTPUT]):
        raise GateMissed("the graph does not end in the activation that the exporter appends; export the model again")
    graph = onnx.ModelProto()
    graph.CopyFrom(model)
    del graph.graph.node[-1]
    graph.graph.output[0].name = LOGITS
    del graph.metadata_props[:]
    return graph


def check_form(model: onnx.ModelProto) -> None:
    """Raise GateMissed unless the graph is what old and new engines read, with its weights inside and finite.

    Checked: one opset, IR version, no stray shape chains, no external data, no NaN or infinite weight.
    """
    opsets = {o.domain: o.version for o in model.opset_import}
    if opsets != {"": OPSET} or model.ir_version > MAX_IR_VERSION:
        raise GateMissed(f"the graph has opsets {opsets} and IR version {model.ir_version}")
    operators = [node.op_type for node in model.graph.node]
    stray = {"Shape", "BatchNormalization", "Loop", "If"} & set(operators)
    if stray:
        raise GateMissed(f"the graph holds {', '.join(sorted(stray))} nodes, which engines handle badly")
    if any(t.data_location == TensorProto.EXTERNAL for t in model.graph.initializer):
        raise GateMissed("the graph keeps weights in another file")
    for tensor in model.graph.initializer:
        weight = numpy_helper.to_array(tensor)
        if weight.dtype.kind == "f" and not np.isfinite(weight).all():
            raise GateMissed(f"the weight {tensor.name} holds NaN or infinite values; the training run is broken")


def with_parent(spec: ModelSpec, weights_sha256: str) -> ModelSpec:
    """Return the spec naming the checkpoint it was exported from."""
    return replace(spec, parent_sha256=weights_sha256)


def _strip(graph: onnx.ModelProto) -> None:
    """Remove what differs from run to run or names the exporting machine: stack traces, docs, foreign opsets."""
    graph.doc_string, graph.graph.doc_string = "", ""
    graph.producer_name, graph.producer_version = "mammo-edge", ""
    del graph.metadata_props[:]
    del graph.graph.metadata_props[:]
    for node in graph.graph.node:
        node.doc_string = ""
        del node.metadata_props[:]
    for value in (*graph.graph.value_info, *graph.graph.input, *graph.graph.output, *graph.graph.initializer):
        value.doc_string = ""
        del value.metadata_props[:]
    foreign = [o for o in graph.opset_import if o.domain]
    for opset in foreign:
        graph.opset_import.remove(opset)


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
