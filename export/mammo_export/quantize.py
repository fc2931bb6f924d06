"""FP32 graph → INT8: Q/DQ for TensorRT, and the form that ONNX Runtime runs fast. Imports onnxruntime.quantization."""

from __future__ import annotations

import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from mammo_export.graph_walk import consumers, drop_unread, producers, sorted_nodes
from mammo_export.groups import ACTIVATIONS, WEIGHTED, Form, Group, groups, kept_float, main_of
from mammo_export.ranges import CALIBRATORS, Ranges, measured_ranges
from mammo_export.rounding import depthwise_weights, round_anew, searched_scales
from mammo_runtime.errors import UsageError

__all__ = [
    "CALIBRATORS",
    "Form",
    "Group",
    "Ranges",
    "groups",
    "kept_float",
    "measured_ranges",
    "prepared",
    "quantised",
    "with_fp16",
]


FP16_OPSET = 19
MIN_SCALE = 2.0**-14
"""Smallest normal number of FP16: a smaller scale would lose digits there, or become zero, which TensorRT refuses."""
EIGHT_BITS, SEVEN_BITS = 127, 64
"""Largest integer of a weight."""
BETWEEN = ("Add", "Concat", "Resize", "MaxPool", "AveragePool", "GlobalAveragePool", "Relu", "Clip")
"""What the CPU form computes in uint8 besides the groups, so that no value goes back to float on the way."""


def prepared(graph: ModelProto) -> ModelProto:
    """Return the graph optimised and with all shapes inferred, its metadata kept, every node named.

    Symbolic shape inference is skipped: it fails on interpolation to another tensor's size (mobilenetv2_resunet,
    connected nets), and what is exported here has no computed sizes left.
    """
    from onnxruntime.quantization import quant_pre_process

    with tempfile.TemporaryDirectory(prefix="mammo-export-") as folder:
        # By files: given a model in memory, it loses the constants that Resize needs (1.32).
        path, result = Path(folder) / "graph.onnx", Path(folder) / "prepared.onnx"
        path.write_bytes(graph.SerializeToString())
        quant_pre_process(path, result, skip_symbolic_shape=True)
        made = onnx.load(result)
    del made.metadata_props[:]
    made.metadata_props.extend(graph.metadata_props)
    return _finished(made, graph)


def quantised(prepared: ModelProto, ranges: Ranges, form: Form, reverted: Collection[str] = ()) -> ModelProto:
    """Return a form of a prepared graph; the same arguments give the same bytes.

    TENSORRT is the twin: FP32 scales, opset 18, everything that is not quantised in FP32. `reverted` groups, and
    those of `kept_float`, stay as they were. Raises UsageError for an unknown group or a tensor without a range.
    """
    known = {group.name for group in groups(prepared)}
    unknown = sorted(set(reverted) - known)
    if unknown:
        raise UsageError(f"there is no group {unknown[0]}; the graph has {len(known)} groups")
    out = set(reverted) | set(kept_float(prepared, form))
    make = {Form.TENSORRT: _for_tensorrt, Form.CPU: _for_cpu}[form]
    return _finished(make(prepared, ranges, [g for g in groups(prepared) if g.name not in out]), prepared)


def with_fp16(twin: ModelProto, islands: Collection[str] = ()) -> ModelProto:
    """Return the TENSORRT form as shipped: opset 19, scales and all that is not quantised in FP16; checked.

    Strongly typed TensorRT wants Q/DQ's scales in the type of what they quantise, and ONNX allows FP16 there from
    opset 19. `islands`: nodes that stay FP32. Never run this on ONNX Runtime's CPU: it computes FP16 QuantizeLinear
    wrongly (microsoft/onnxruntime#22741); the twin is what is judged.
    """
    from mammo_export.to_fp16 import to_fp16

    model = ModelProto()
    model.CopyFrom(twin)
    # What 19 changed in the operators used here are additions: float8, `saturate`, `dilations` of pooling.
    model.opset_import[0].version = FP16_OPSET
    made = to_fp16(model, islands)
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[1] not in {t.name for t in made.graph.initializer}:
            raise UsageError(f"the scale of {node.name} became a computed tensor; TensorRT wants a constant")
    return made


def _for_tensorrt(prepared: ModelProto, ranges: Ranges, chosen: Sequence[Group]) -> ModelProto:
    """Q/DQ on the inputs and weights of the chosen nodes, and on the skip input of their Adds; nowhere else."""
    widened = {name: _symmetric(ends) for name, ends in ranges.items()}
    names = {group.name for group in chosen}
    options = {"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False, "DedicatedQDQPair": True,
               "OpTypesToExcludeOutputQuantization": list(WEIGHTED)}  # fmt: skip
    limits = _limits(prepared, EIGHT_BITS)
    model = _by_onnxruntime(prepared, widened, names, WEIGHTED, "QInt8", limits, options)
    _unread(model, prepared, names, set())
    round_anew(model, prepared, limits, MIN_SCALE)
    made, used = producers(prepared), consumers(prepared)
    weights = {tensor.name for tensor in prepared.graph.initializer}
    for node in prepared.graph.node:
        main = main_of(node, made, used, weights) if node.op_type == "Add" else None
        if main is not None and main.name in names:
            skip = next(name for name in node.input if name != main.output[0])
            if skip not in weights:
                _add_pair(model, node.name, skip, widened)
    return model


def _for_cpu(prepared: ModelProto, ranges: Ranges, chosen: Sequence[Group]) -> ModelProto:
    """Everything from the first to the last quantised node in uint8, weights in seven bits, clips in the scales.

    Without VNNI, ONNX Runtime adds pairs of u8·s8 products in 16 bits with saturation: 2·255·127 does not fit,
    2·255·64 does. With seven bits every processor computes the same numbers (mass-roi, 34 windows: 8 bits lose 0.016
    of Dice here and nothing where they do not saturate). Depthwise kernels are added in 32 bits: they keep eight.
    """
    made, used = producers(prepared), consumers(prepared)
    names = {name for group in chosen for name in group.nodes}
    names |= _between(prepared, names)
    known = dict(ranges)
    for node in prepared.graph.node:
        if node.op_type in ACTIVATIONS and node.input[0] in made and len(used[node.input[0]]) == 1:
            known[node.input[0]] = known[node.output[0]]
    limits = _limits(prepared, SEVEN_BITS)
    model = _by_onnxruntime(prepared, known, names, (*WEIGHTED, *BETWEEN), "QUInt8", limits, {})
    _unread(model, prepared, names, names)
    _shield(model, {node.name for node in prepared.graph.node} - names)
    round_anew(model, prepared, limits)
    return model


def _between(prepared: ModelProto, chosen: Collection[str]) -> set[str]:
    """Return the nodes of `BETWEEN` that integers come to and go on from; others would only be rounded twice."""
    made, used = producers(prepared), consumers(prepared)
    grouped = {name for group in groups(prepared) for name in group.nodes}
    found = {n.name: n for n in prepared.graph.node if n.op_type in BETWEEN and n.name not in grouped}
    while True:
        integers = {*chosen, *found}
        alone = [
            name
            for name, node in found.items()
            if not any(made[x].name in integers for x in node.input if x in made)
            or not any(reader.name in integers for reader in used.get(node.output[0], []))
        ]
        if not alone:
            return set(found)
        for name in alone:
            del found[name]


def _by_onnxruntime(
    prepared: ModelProto,
    ranges: Ranges,
    nodes: Collection[str],
    operators: Sequence[str],
    activations: str,
    limits: Mapping[str, int],
    options: Mapping[str, object],
) -> ModelProto:
    from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData

    model = ModelProto()
    model.CopyFrom(prepared)
    if not nodes:
        return model
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    reduced = SEVEN_BITS in limits.values()
    overrides = _own_scales(prepared, limits)
    quantizer = QDQQuantizer(
        model, True, reduced, QuantType.QInt8, QuantType[activations], TensorsData(CalibrationMethod.MinMax, data),
        sorted(nodes), [], list(operators), {**options, "TensorQuantOverrides": overrides},
    )  # fmt: skip
    try:
        quantizer.quantize_model()
    except ValueError as error:
        raise UsageError(f"{error} Measure the ranges on this graph") from error
    made: ModelProto = quantizer.model.model
    return made


def _limits(prepared: ModelProto, dense: int) -> dict[str, int]:
    """Return weight → largest integer: `dense`, and all of int8 for depthwise convolutions."""
    constants = {tensor.name for tensor in prepared.graph.initializer}
    names = [n.input[1] for n in prepared.graph.node if n.op_type in WEIGHTED and n.input[1] in constants]
    own = depthwise_weights(prepared)
    return {name: EIGHT_BITS if name in own else dense for name in names}


def _own_scales(prepared: ModelProto, limits: Mapping[str, int]) -> dict[str, list[dict[str, object]]]:
    """Return ONNX Runtime's overrides with the scales of all convolutions' weights, depthwise ones searched for.

    The others are what it would find, in half the time: it goes through the channels one by one.
    """
    from onnxruntime.quantization import QuantType

    zero = np.array(0, np.int8)
    own = depthwise_weights(prepared)
    tensors = {tensor.name: tensor for tensor in prepared.graph.initializer}
    scales = {name: searched_scales(weight, limits[name]) for name, weight in own.items()}
    for node in prepared.graph.node:
        if node.op_type == "Conv" and node.input[1] in tensors and node.input[1] not in own:
            weight = numpy_helper.to_array(tensors[node.input[1]])
            largest = np.abs(weight).max(axis=tuple(range(1, weight.ndim))).astype(np.float64)
            scales[node.input[1]] = np.where(largest > 0, largest / limits[node.input[1]], 1.0).astype(np.float32)
    return {
        name: [{"axis": 0, "quant_type": QuantType.QInt8, "scale": scale, "zero_point": zero} for scale in found]
        for name, found in scales.items()
    }


def _unread(model: ModelProto, prepared: ModelProto, quantised: Collection[str], integers: Collection[str]) -> None:
    """Let the float nodes read what they read before, except what only exists as integers; ONNX Runtime rewires all.

    `integers`: nodes whose outputs are computed as integers.
    """
    before = {node.name: node for node in prepared.graph.node}
    only_integers = {name for node in model.graph.node if node.name in integers for name in node.output}
    for node in model.graph.node:
        if node.name in before and node.name not in quantised:
            for k, name in enumerate(before[node.name].input):
                if name not in only_integers:
                    node.input[k] = name


def _shield(model: ModelProto, floats: Collection[str]) -> None:
    """Give the weighted nodes that stay float their input by Cast, Sub and Mul instead of DequantizeLinear.

    Between a DequantizeLinear and a QuantizeLinear, ONNX Runtime (WeightBiasQuantization) quantises the float weights
    by itself, with one scale for all: mass-full with its first depthwise group reverted was noise.
    """
    made = producers(model)
    for node in list(model.graph.node):
        source = made.get(node.input[0]) if node.op_type in WEIGHTED and node.name in floats else None
        if source is None or source.op_type != "DequantizeLinear":
            continue
        parts = [f"{node.name}_input_{part}" for part in ("float", "shifted", "real", "zero")]
        zero = helper.make_node("Cast", [source.input[2]], [parts[3]], f"{parts[3]}_cast", to=TensorProto.FLOAT)
        cast = helper.make_node("Cast", [source.input[0]], [parts[0]], f"{parts[0]}_cast", to=TensorProto.FLOAT)
        shift = helper.make_node("Sub", [parts[0], parts[3]], [parts[1]], f"{parts[1]}_sub")
        scale = helper.make_node("Mul", [parts[1], source.input[1]], [parts[2]], f"{parts[2]}_mul")
        model.graph.node.extend([zero, cast, shift, scale])
        node.input[0] = parts[2]


def _symmetric(ends: tuple[float, float]) -> tuple[float, float]:
    """Return the range made symmetric, wide enough for a scale of `MIN_SCALE`."""
    size = max(-ends[0], ends[1], 127 * MIN_SCALE)
    return -size, size


def _add_pair(model: ModelProto, reader: str, tensor: str, ranges: Ranges) -> None:
    """Put a Q/DQ pair of its own between a tensor and one node that reads it."""
    if tensor not in ranges:
        raise UsageError(f"there is no range for the tensor {tensor}. Measure the ranges on this graph")
    scale, zero = f"{tensor}_{reader}_scale", f"{tensor}_{reader}_zero_point"
    middle, after = f"{tensor}_{reader}_quantized", f"{tensor}_{reader}_dequantized"
    model.graph.initializer.append(numpy_helper.from_array(np.array(ranges[tensor][1] / 127, np.float32), scale))
    model.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int8), zero))
    model.graph.node.append(helper.make_node("QuantizeLinear", [tensor, scale, zero], [middle], f"{middle}_node"))
    model.graph.node.append(helper.make_node("DequantizeLinear", [middle, scale, zero], [after], f"{after}_node"))
    node = next(n for n in model.graph.node if n.name == reader)
    node.input[list(node.input).index(tensor)] = after


def _finished(model: ModelProto, like: ModelProto) -> ModelProto:
    """Return the model in order, checked: nodes sorted and named, one opset, the metadata of `like`, nothing else."""
    nodes = sorted_nodes(model)
    taken = {node.name for node in nodes}
    for number, node in enumerate(nodes):
        if not node.name:
            node.name = next(n for n in (f"{node.op_type}_{number}", f"{node.op_type}_{number}_") if n not in taken)
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    drop_unread(model)
    for opset in [o for o in model.opset_import if o.domain]:
        model.opset_import.remove(opset)
    model.ir_version = like.ir_version
    model.producer_name, model.producer_version = like.producer_name, like.producer_version
    del model.metadata_props[:]
    model.metadata_props.extend(like.metadata_props)
    onnx.checker.check_model(model, full_check=True)
    return model
