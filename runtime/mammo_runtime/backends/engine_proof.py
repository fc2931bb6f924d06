"""What an engine really computes in, read back layer by layer; a label that is not kept is no engine.

Three witnesses, the best that is to be had counts: the times of the engine's own layers, the engine's layers, and the
typed network it was built from (the builder may not change a type, so this is binding, but it is not the engine
itself). The engine is compared with that network, so that a graph that is INT8 in part is held to just that part.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mammo_runtime.errors import GateMissed, ModelRefused
from mammo_runtime.spec import Precision

LEAST_SHARE = 0.9
"""Of the convolutions and matrix products, or of their time, what must compute in the claimed precision."""
COMPUTING = frozenset({"CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY", "EINSUM"})
"""Layer types of a network that cost time."""
PASSING_ON = frozenset({"SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE"})
"""Layer types that may stand between a DequantizeLinear and what computes, without touching a value."""
CLAIMS: Mapping[Precision, tuple[str, ...]] = {
    Precision.FP32: ("fp32",),
    Precision.FP16: ("fp16",),
    Precision.INT8: ("int8", "fp16"),
}
"""Label → what its layers compute in: together `LEAST_SHARE`, the first at least once. What an INT8 graph does not
quantise is FP16 (see `mammo_export.form.PROMISES`)."""
_TYPES = {"FLOAT": "fp32", "HALF": "fp16", "BF16": "bf16", "INT8": "int8", "UINT8": "int8", "FP8": "fp8"}
_WORDS = (("int8", "int8"), ("half", "fp16"), ("fp16", "fp16"), ("bf16", "bf16"), ("bfloat", "bf16"), ("fp8", "fp8"),
          ("float", "fp32"), ("fp32", "fp32"))  # fmt: skip
"""Part of the words "Format/Datatype" → type, the first that fits."""
_SOURCE = re.compile(r"\[ONNX Layer: ([^\]]+)\]")
_COMPUTES = re.compile(r"conv|gemm|matrixmultiply|matmul", re.IGNORECASE)
_MOVES = re.compile(r"reformat|reorder|copy|constant|shuffle|quantize|noop|signal|wait|slice|concat", re.IGNORECASE)
_RANK = ("int8", "fp8", "fp16", "bf16", "tf32", "fp32", "other")
"""From the cheapest type to the dearest."""


@dataclass(frozen=True)
class Layer:
    """A layer that computes."""

    name: str
    precision: str
    nodes: tuple[str, ...]
    """Nodes of the graph that it covers."""
    time_ms: float | None = None


@dataclass(frozen=True)
class Proof:
    """What was read back."""

    basis: str
    """"layer times", "engine layers" or "typed network"."""
    shares: Mapping[str, float]
    """Type → share of the layers that compute, or of their time."""
    counts: Mapping[str, int]
    """Type → layers that compute."""
    promised: Mapping[str, int]
    """The same of the typed network."""
    note: str = ""
    """Why no better witness, in words."""

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        shares = {name: round(share, 4) for name, share in self.shares.items()}
        own = {"basis": self.basis, "shares": shares, "counts": dict(self.counts), "promised": dict(self.promised)}
        return {**own, "note": self.note}


def layers_of_network(network: Any) -> tuple[Layer, ...]:
    """Return the computing layers of a parsed, strongly typed network; INT8 where data and weights are dequantised."""
    layers = [network.get_layer(k) for k in range(network.num_layers)]
    makers = {layer.get_output(k).name: layer for layer in layers for k in range(layer.num_outputs)}
    found = []
    for layer in layers:
        if layer.type.name not in COMPUTING:
            continue
        inputs = [layer.get_input(k) for k in range(layer.num_inputs)]
        operands = [tensor for tensor in inputs if tensor is not None][:2]
        types = {_element_of(tensor) for tensor in operands}
        if not types <= set(_TYPES):
            continue  # a product of sizes
        dequantised = len(operands) == 2 and all(_is_dequantised(tensor.name, makers) for tensor in operands)
        precision = "int8" if dequantised else max((_TYPES[t] for t in types), key=_RANK.index)
        found.append(Layer(str(layer.name), precision, (str(layer.name),)))
    return tuple(found)


def types_of_network(network: Any) -> dict[str, int]:
    """Return data type → layers of a network whose first output has it, e.g. {"HALF": 128, "FLOAT": 1}."""
    layers = (network.get_layer(k) for k in range(network.num_layers))
    return dict(sorted(Counter(_element_of(layer.get_output(0)) for layer in layers if layer.num_outputs).items()))


def _element_of(tensor: Any) -> str:
    return str(tensor.dtype.name)


def _is_dequantised(name: str, makers: Mapping[str, Any]) -> bool:
    layer = makers.get(name)
    while layer is not None and layer.type.name in PASSING_ON:
        layer = makers.get(layer.get_input(0).name)
    return layer is not None and layer.type.name == "DEQUANTIZE" and _element_of(layer.get_input(0)) == "INT8"


def layers_of_engine(
    information: str, promised: Sequence[Layer], times: Mapping[str, float] | None = None
) -> tuple[Layer, ...]:
    """Return the computing layers of an engine from its inspector's JSON (built with DETAILED verbosity).

    `times`: layer name → milliseconds. Raises ModelRefused when the text is no such JSON.
    """
    try:
        entries = json.loads(information)["Layers"]
        described = [entry for entry in entries if isinstance(entry, dict)]
    except (ValueError, KeyError, TypeError) as error:
        raise ModelRefused(
            f"the engine's layer information cannot be read ({type(error).__name__}: {error}), so its precision is "
            "not proved. Build it again with this version of mammo-edge"
        ) from error
    known = {layer.name for layer in promised}
    found = []
    for entry in described:
        nodes = tuple(node for node in _nodes_of(entry) if node in known)
        kind = f"{entry.get('LayerType', '')} {entry.get('ParameterType', '')}"
        computes = bool(_COMPUTES.search(kind)) or (bool(nodes) and not _MOVES.search(kind))
        if computes:
            name = str(entry.get("Name", ""))
            time = None if times is None else times.get(name, 0.0)
            found.append(Layer(name, _precision_of(entry), nodes, time))
    return tuple(found)


def _nodes_of(entry: Mapping[str, Any]) -> list[str]:
    """Return the graph's nodes that a layer stands for: as its metadata says, else as its name is put together."""
    named = _SOURCE.findall(str(entry.get("Metadata", "")))
    return named or [part.strip() for part in str(entry.get("Name", "")).split(" + ")]


def _precision_of(entry: Mapping[str, Any]) -> str:
    """Return the dearest of what a layer reads: its first input and its weights; TF32 where the kernel's name says so.

    A kernel that multiplies halves would not read floats.
    """
    inputs = entry.get("Inputs") or []
    weights = entry.get("Weights")
    said = [str(tensor.get("Format/Datatype", "")) for tensor in inputs[:1] if isinstance(tensor, dict)]
    if isinstance(weights, dict) and weights.get("Type"):
        said.append(str(weights["Type"]))
    if not any(said) and entry.get("Precision"):
        said = [str(entry["Precision"])]
    types = [next((name for word, name in _WORDS if word in one.lower()), "other") for one in said if one]
    precision = max(types, key=_RANK.index, default="other")
    return "tf32" if precision == "fp32" and "tf32" in str(entry.get("TacticName", "")).lower() else precision


def proof_of(
    promised: Sequence[Layer], information: str | None = None, times: Mapping[str, float] | None = None
) -> Proof:
    """Return the best proof there is of what an engine computes in.

    `information`: the engine's layers (None where it cannot be loaded, for want of a GPU); `times`: see
    `layers_of_engine`. Where the engine shows fewer than half of the layers that compute (TensorRT-RTX joins them to
    one block), the typed network stands for it.
    """
    counts = _counts(promised)
    if information is None:
        note = "the engine was not loaded, for want of a GPU; the builder may not change the types of a typed network"
        return Proof("typed network", _shares(promised), counts, counts, note)
    shown = layers_of_engine(information, promised, times)
    covered = {node for layer in shown for node in layer.nodes}
    if 2 * len(covered) < len(promised):
        note = (
            f"the engine tells of {len(covered)} of the {len(promised)} layers that compute; the builder may not "
            "change the types of a typed network"
        )
        return Proof("typed network", _shares(promised), counts, counts, note)
    timed = times is not None and sum(layer.time_ms or 0 for layer in shown) > 0
    return Proof("layer times" if timed else "engine layers", _shares(shown), _counts(shown), counts)


def require_precision(proof: Proof, label: Precision) -> None:
    """Raise GateMissed unless the engine computes in what its label says.

    `LEAST_SHARE` of it in the label's types; of an INT8 graph, moreover, as many layers in INT8 as the graph asks for,
    up to that share.
    """
    if not proof.promised:
        return  # nothing computes: there is nothing that a label could mean
    claimed = CLAIMS[label]
    share = sum(proof.shares.get(name, 0.0) for name in claimed)
    told = ", ".join(f"{name} {part:.0%}" for name, part in sorted(proof.shares.items(), key=lambda one: -one[1]))
    of = "of the time of" if proof.basis == "layer times" else "of"
    start = f"the engine is not {label.value}: {of} its layers that compute ({proof.basis}) are"
    if share < LEAST_SHARE:
        raise GateMissed(
            f"{start} {told or 'none'}; {LEAST_SHARE:.0%} must be {' or '.join(claimed)}. No engine was written; "
            "export the bundle again, or build another precision"
        )
    asked, got = _of(proof.promised, claimed[0]), _of(proof.counts, claimed[0])
    # Fused layers are fewer than the graph's nodes: shares are compared, not counts.
    if got == 0 or got < LEAST_SHARE * asked:
        raise GateMissed(
            f"{start} {told}; the graph asks for {claimed[0]} in {asked:.0%} of them, the engine has it in {got:.0%}. "
            "No engine was written; build fp16 instead, or try --level 5"
        )


def _of(counts: Mapping[str, int], name: str) -> float:
    return counts.get(name, 0) / max(1, sum(counts.values()))


def _counts(layers: Iterable[Layer]) -> dict[str, int]:
    return dict(sorted(Counter(layer.precision for layer in layers).items()))


def _shares(layers: Sequence[Layer]) -> dict[str, float]:
    timed = any(layer.time_ms for layer in layers)
    weights: dict[str, float] = {}
    for layer in layers:
        weights[layer.precision] = weights.get(layer.precision, 0.0) + ((layer.time_ms or 0.0) if timed else 1.0)
    total = sum(weights.values())
    return {name: weight / total for name, weight in sorted(weights.items())}
