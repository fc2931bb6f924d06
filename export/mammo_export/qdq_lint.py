"""Q/DQ placement in words: what TensorRT rejects, and what it takes but runs slowly or wrongly, with the remedy."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from mammo_export.graph_walk import consumers, producers

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
WEIGHT_AXIS = {"Conv": 0, "ConvTranspose": 1}
"""Operator → the axis of its weights that holds the output channels."""
WEIGHTED = frozenset({"Conv", "ConvTranspose", "MatMul", "Gemm"})
ACTIVATIONS = frozenset({"Relu", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "HardSigmoid", "HardSwish", "Elu"})
PROBABILITIES = frozenset({"Sigmoid", "Softmax", "ArgMax"})
ONE_TYPE = WEIGHTED | {"Add", "Sub", "Mul", "Div", "Concat", "Min", "Max"}
"""Operators whose float inputs must all be of one type."""
OPSETS = range(13, 21)
"""Per-channel Q/DQ came with 13; TensorRT 10.0 to 10.3 read up to 20."""
HALF_SCALES = 19
"""Opset from which Q/DQ may have FP16 scales."""
MAX_IR_VERSION = 10
BIAS = 2


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a graph."""

    node: str
    sentence: str
    rejected: bool
    """Whether TensorRT's parser or builder refuses the graph for it; otherwise it builds, but runs badly."""


def lint(model: ModelProto) -> tuple[str, ...]:
    """Return what is wrong with a graph's Q/DQ for TensorRT, a sentence each, in the graph's order; empty: nothing."""
    return tuple(finding.sentence for finding in findings(model))


def findings(model: ModelProto) -> tuple[Finding, ...]:
    """Return the same with the node and whether TensorRT refuses the graph for it."""
    view = _View(model)
    found = list(_whole(view))
    for node in model.graph.node:
        for rule in _RULES:
            found += [Finding(node.name, f"{node.name or node.op_type}: {text}", no) for text, no in rule(view, node)]
    return tuple(found)


class _View:
    """A graph and what the rules ask of it."""

    def __init__(self, model: ModelProto) -> None:
        self.model = model
        self.made, self.used = producers(model), consumers(model)
        self.constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self.constants.update({n.output[0]: n.attribute[0].t for n in model.graph.node if n.op_type == "Constant"})
        self.opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)

    def array(self, name: str) -> np.ndarray | None:
        """Return a constant's values, None when it is computed or absent."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def type(self, name: str) -> int:
        """Return a tensor's element type, 0 when unknown."""
        return self._types.get(name, TensorProto.UNDEFINED)

    def maker(self, name: str) -> str:
        """Return the operator that makes a tensor, "" for inputs and constants."""
        return self.made[name].op_type if name in self.made else ""

    def before_pair(self, name: str) -> str | None:
        """Return what goes into the Q/DQ pair that makes a tensor; None when none does."""
        pair = self.made.get(name)
        if pair is None or pair.op_type != DEQUANTIZE or self.maker(pair.input[0]) != QUANTIZE:
            return None
        return str(self.made[pair.input[0]].input[0])

    def is_weight(self, name: str) -> bool:
        """Tell whether a tensor is constant, directly or behind a Q/DQ pair."""
        node = self.made.get(name)
        while node is not None and node.op_type in (QUANTIZE, DEQUANTIZE):
            name = node.input[0]
            node = self.made.get(name)
        return name in self.constants

    @cached_property
    def _types(self) -> dict[str, int]:
        try:
            graph = onnx.shape_inference.infer_shapes(self.model).graph
        except Exception:  # the inference stops at contradictions, which are what the rules look for
            graph = self.model.graph
        known = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.output, *graph.input)}
        return {**known, **{name: tensor.data_type for name, tensor in self.constants.items()}}


Found = Iterator[tuple[str, bool]]


def _whole(view: _View) -> Iterator[Finding]:
    if view.opset not in OPSETS:
        text = f"the graph has opset {view.opset}; TensorRT 10.3 reads Q/DQ of opsets {OPSETS[0]} to {OPSETS[-1]}"
        yield Finding("", text, False)
    if view.model.ir_version > MAX_IR_VERSION:
        text = f"the graph has IR version {view.model.ir_version}; TensorRT 10.3 reads up to {MAX_IR_VERSION}"
        yield Finding("", text, False)


def _domain(view: _View, node: NodeProto) -> Found:
    if node.domain not in ("", "ai.onnx"):
        # Its parser goes by the operator's name: Q/DQ of ONNX Runtime's domain pass as if they were ONNX's.
        known = node.op_type in (QUANTIZE, DEQUANTIZE)
        yield f"is of the domain {node.domain}, which TensorRT does not know; use ONNX's own operators", not known


def _integers(view: _View, node: NodeProto) -> Found:
    """Type of the integers: int8 only."""
    if node.op_type == QUANTIZE:
        given = view.type(node.input[2]) if len(node.input) > 2 and node.input[2] else TensorProto.UINT8
        missing = len(node.input) < 3 or not node.input[2]
    elif node.op_type == DEQUANTIZE:
        given, missing = view.type(node.input[0]), False
    else:
        return
    if missing:
        yield "has no zero point, which in ONNX means uint8; give it an int8 zero point of 0", False
    elif given == TensorProto.INT32:
        yield ("dequantises int32, as ONNX Runtime quantises biases; TensorRT takes none: keep the bias in float "
               "(QuantizeBias off)", True)  # fmt: skip
    elif given == TensorProto.UINT8:
        yield "works in uint8, which TensorRT takes on its DLA only; quantise symmetrically to int8", True
    elif given not in (TensorProto.INT8, TensorProto.UNDEFINED):
        kind = helper.tensor_dtype_to_string(given).removeprefix("TensorProto.").lower()
        yield f"works in {kind}; what is checked here is int8", False


def _zero_point(view: _View, node: NodeProto) -> Found:
    if node.op_type in (QUANTIZE, DEQUANTIZE) and len(node.input) > 2:
        zero = view.array(node.input[2])
        if zero is not None and zero.any():
            yield "has a zero point other than 0; TensorRT is symmetric only: quantise with ActivationSymmetric", True


def _scale(view: _View, node: NodeProto) -> Found:
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return
    scale = view.array(node.input[1])
    if scale is None:
        yield "has a scale that is computed while running; TensorRT wants a constant", True
        return
    values = scale.astype(np.float64)
    if not np.isfinite(values).all() or (values <= 0).any():
        yield "has a scale that is zero, negative or not finite; a channel of zeros wants any positive scale", True
    elif (values < np.finfo(scale.dtype).tiny).any():
        kind = "FP16" if scale.dtype == np.float16 else "FP32"
        yield f"has a subnormal {kind} scale, which loses digits or becomes zero; raise it to 2^-14", False
    if scale.dtype == np.float16 and view.opset < HALF_SCALES:
        yield f"has an FP16 scale, which ONNX allows from opset {HALF_SCALES}; the graph has {view.opset}", True
    given = view.type(node.input[0])
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    if node.op_type == QUANTIZE and given in floats and given != view.type(node.input[1]):
        yield "quantises one float type with a scale of another; a strongly typed engine wants them equal", True
    if any(a.name == "output_dtype" and a.i for a in node.attribute):
        yield "has output_dtype, which parsers of TensorRT 10 refuse; give the scale the wanted type instead", True


def _axis(view: _View, node: NodeProto) -> Found:
    """Per-channel scales: only of weights, only along the output channels."""
    if node.op_type not in (QUANTIZE, DEQUANTIZE):
        return
    scale = view.array(node.input[1])
    if scale is None or scale.size == 1:
        return
    if not view.is_weight(node.input[0]):
        yield "has a scale per channel on an activation; TensorRT documents one scale for each tensor", False
        return
    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
    for reader in _readers(view, node):
        wanted = WEIGHT_AXIS.get(reader.op_type)
        if wanted is not None and axis != wanted:
            yield (f"scales the weights of the {reader.op_type} {reader.name} along axis {axis}; "
                   f"their output channels lie on axis {wanted}", False)  # fmt: skip


def _pairs(view: _View, node: NodeProto) -> Found:
    """Each Q has its DQ, each DQ something that computes."""
    if node.op_type == QUANTIZE:
        readers = view.used.get(node.output[0], [])
        strange = [reader for reader in readers if reader.op_type != DEQUANTIZE]
        if strange:
            yield f"is read by {strange[0].op_type} without a DequantizeLinear between; quantise in pairs", True
        elif not readers:
            yield "has no DequantizeLinear behind it; quantise in pairs", True
    elif node.op_type == DEQUANTIZE:
        if view.maker(node.input[0]) != QUANTIZE and node.input[0] not in view.constants:
            yield "dequantises what no QuantizeLinear made; quantise in pairs", True
        readers = view.used.get(node.output[0], [])
        computing = WEIGHTED | {"Add", "Concat", "Resize", "MaxPool", "AveragePool", "GlobalAveragePool"}
        if readers and not any(r.op_type in computing | ACTIVATIONS | PROBABILITIES for r in readers):
            yield f"serves only {readers[0].op_type}, which is not computed in INT8: the pair loses digits", False


def _weighted(view: _View, node: NodeProto) -> Found:
    """Both inputs of a convolution or neither; the bias in float; no INT8 transposed convolution."""
    if node.op_type not in WEIGHTED or len(node.input) < 2:
        return
    data, weight = (view.maker(name) == DEQUANTIZE for name in node.input[:2])
    if data != weight:
        part = "input" if data else "weights"
        yield f"has a quantised {part} only, so it runs in float with the loss of INT8; quantise both or none", False
    if len(node.input) > BIAS and view.maker(node.input[BIAS]) == DEQUANTIZE:
        kind = view.type(view.made[node.input[BIAS]].input[0])
        if kind != TensorProto.INT32:
            yield "has a quantised bias; TensorRT adds biases in float: keep it in float", False
    if node.op_type == "ConvTranspose" and data and weight:
        yield ("is an INT8 transposed convolution, in TensorRT slower than FP16 or wrong "
               "(issues 1694, 1699, 1961, 4366); leave it in float", False)  # fmt: skip


def _fusion(view: _View, node: NodeProto) -> Found:
    """What keeps a convolution from being computed in one with what follows."""
    if node.op_type in ACTIVATIONS | PROBABILITIES:
        source = view.before_pair(node.input[0])
        if source is not None and view.maker(source) in WEIGHTED:
            yield (f"has a Q/DQ pair between it and its {view.maker(source)}, which then run apart; "
                   "quantise behind the activation", False)  # fmt: skip
        elif source is not None and node.op_type in PROBABILITIES:
            yield "turns quantised logits into the answer, which moves the threshold; leave the logits in float", False
    if node.op_type == "Add":
        sources = [view.before_pair(name) for name in node.input]
        if None not in sources and any(view.maker(str(source)) in WEIGHTED for source in sources):
            yield (
                "has both inputs quantised, so no convolution is computed in one with it; quantise the skip only",
                False,
            )


def _types(view: _View, node: NodeProto) -> Found:
    if node.op_type in ONE_TYPE:
        floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
        kinds = {view.type(name) for name in node.input if name} & set(floats)
        if len(kinds) > 1:
            names = " and ".join(sorted("FP32" if k == TensorProto.FLOAT else "FP16" for k in kinds))
            yield f"mixes {names} inputs; a strongly typed engine wants one type: cast before it", True


def _readers(view: _View, node: NodeProto) -> Iterator[NodeProto]:
    """Return what reads a tensor behind its DequantizeLinear."""
    for reader in view.used.get(node.output[0], []):
        if node.op_type == QUANTIZE and reader.op_type == DEQUANTIZE:
            yield from view.used.get(reader.output[0], [])
        else:
            yield reader


_RULES: tuple[Callable[[_View, NodeProto], Found], ...] = (
    _domain,
    _integers,
    _zero_point,
    _scale,
    _axis,
    _pairs,
    _weighted,
    _fusion,
    _types,
)
