"""What half precision may harm in a graph, node by node, from what its tensors hold on real inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, numpy_helper

from mammo_export.activation import BOXES, kept_tail
from mammo_export.element_types import name_of, sides_of
from mammo_export.terms import terms_of

LARGEST = 65504.0
SMALLEST_NORMAL = 2.0**-14
LARGEST_STEP = 2.0**-11
"""Half precision's rounding error as a fraction of the value."""
HEADROOM = 8
"""The images of a site may drive a value this many times further than the measured ones did."""
MOST_TERMS = 1024
"""A sum in half precision stops growing where the next term is 2048 times smaller; half of that is asked for."""
LOST = 2.0**-8
"""Largest relative change of a single constant: half's own step is at most 2^-11 of a value, unless that is tiny."""
EXACT_WHOLE = 2048
"""Whole numbers are exact in half precision up to this."""
STEEP: Mapping[str, float] = {"Softmax": 32.0, "Exp": 8.0, "Sin": 16.0, "Cos": 16.0}
"""Operator → largest input for which half's step does not change the result by more than about 1 %."""
EXACT_CORNER = 256.0
"""Corners of boxes are exact to an eighth of a pixel up to this."""
FINE = frozenset({"Sin", "Cos"})
"""Where the corners of a box end as pixels and go on as phases."""


@dataclass(frozen=True)
class Hazard:
    """A node that half precision may harm."""

    node: str
    operator: str
    why: str
    """One sentence."""
    tiny: bool = False
    """Values too small rather than too large: digits are lost, which may or may not matter for what comes out."""


def hazards_of(model: onnx.ModelProto, largest: Mapping[str, float]) -> tuple[Hazard, ...]:
    """Return what half precision may harm, in the graph's order.

    `model`: an FP32 graph as `inferred` returns it; `largest`: tensor → largest |value| on real inputs.
    """
    constants = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    facts = Facts(constants, largest, sides_of(model), _integers(model))
    tensors = _delicate_tensors(model, facts)
    tail = kept_tail(model)
    corner = largest.get(BOXES, 0.0)
    boxed = _between_boxes_and_phases(model) if corner > EXACT_CORNER else frozenset()
    found = []
    for node in model.graph.node:
        if node.name in tail or node.op_type == "Constant":
            continue
        reasons = [tensors[name] for name in (*node.input, *node.output) if name in tensors]
        reasons += [why for why in (_constants(node, facts), _reduction(node, facts)) if why is not None]
        # What is too large comes before what is too small: it needs no second look.
        reason = min(reasons, key=lambda why: why.tiny, default=None)
        if name_of(node) in boxed and (reason is None or reason.tiny):
            step = np.spacing(np.float16(corner))
            reason = Reason(f"it turns corners up to {corner:.0f} pixels into phases; half has steps of {step:g} there")
        if reason is not None:
            found.append(Hazard(name_of(node), node.op_type, reason.words, reason.tiny))
    return tuple(found)


@dataclass(frozen=True)
class Reason:
    """Why a tensor or a node should not be half."""

    words: str
    tiny: bool = False


@dataclass(frozen=True)
class Facts:
    """What is known about the tensors of a graph."""

    constants: Mapping[str, np.ndarray]
    largest: Mapping[str, float]
    """|value| on real inputs."""
    sides: Mapping[str, tuple[int, ...]]
    integers: frozenset[str]

    def largest_of(self, names: Sequence[str]) -> float:
        """Return the largest |value| of the named tensors that were measured."""
        return max((self.largest[name] for name in names if name in self.largest), default=0.0)


def _integers(model: onnx.ModelProto) -> frozenset[str]:
    values = (*model.graph.input, *model.graph.value_info, *model.graph.output)
    whole = (TensorProto.INT32, TensorProto.INT64)
    return frozenset(v.name for v in values if v.type.tensor_type.elem_type in whole)


def _delicate_tensors(model: onnx.ModelProto, facts: Facts) -> dict[str, Reason]:
    """Return tensor → why it must not be stored in half precision; its maker and its readers then stay FP32."""
    found: dict[str, Reason] = {}
    for name, largest in facts.largest.items():
        if name in facts.integers:
            continue
        if largest * HEADROOM > LARGEST:
            found[name] = Reason(f"values reach {largest:.3g} on real images; half precision ends at 65504")
        elif 0 < largest < SMALLEST_NORMAL:
            found[name] = Reason(f"values stay below {largest:.2g}, where half precision has few digits left", True)
    for node in model.graph.node:
        if not node.input:
            continue
        largest = facts.largest.get(node.input[0], 0.0)
        if largest > STEEP.get(node.op_type, np.inf):
            found[node.input[0]] = Reason(f"{node.op_type} is steep for values up to {largest:.3g}, which half rounds")
        if node.op_type == "Cast" and node.input[0] in facts.integers and largest > EXACT_WHOLE:
            found[node.output[0]] = Reason(f"whole numbers up to {largest:.0f}; half is exact to {EXACT_WHOLE}")
    return found


def _constants(node: NodeProto, facts: Facts) -> Reason | None:
    """Return why a node's constants must not be rounded to half, or None."""
    for name in () if node.op_type == "Resize" else node.input:  # whose scales are float32 in every precision
        values = facts.constants.get(name)
        if values is None or values.dtype != np.float32 or not values.size:
            continue
        most = float(np.abs(values).max())
        if most > LARGEST:
            return Reason(f"its constant {name} reaches {most:.3g}; half precision ends at 65504")
        if values.size == 1 and most and abs(float(np.float16(most)) - most) > LOST * most:
            return Reason(f"its constant {most:.3g} would become {float(np.float16(most)):.3g} in half precision")
    if node.op_type == "BatchNormalization":
        return _batch_norm(node, facts)
    return _weights(node, facts)


def _weights(node: NodeProto, facts: Facts) -> Reason | None:
    """Return why tiny weights must not be rounded, or None: their loss would show in the output's last digit."""
    weights = facts.constants.get(node.input[1]) if len(node.input) > 1 else None
    if weights is None or weights.dtype != np.float32 or weights.ndim < 2:
        return None
    tiny = np.where(np.abs(weights) < SMALLEST_NORMAL, np.abs(weights - weights.astype(np.float16)), 0)
    axis = 1 if node.op_type == "ConvTranspose" else 0
    lost = float(np.moveaxis(tiny, axis, 0).reshape(weights.shape[axis], -1).sum(1).max())
    lost *= facts.largest_of(node.input[:1])
    if lost > LARGEST_STEP * facts.largest_of(node.output):
        return Reason(f"its weights are so small that half would change its output by up to {lost:.2g}", True)
    return None


def _batch_norm(node: NodeProto, facts: Facts) -> Reason | None:
    """Return why a batch norm that no convolution took in must stay FP32, or None."""
    epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
    exact = [facts.constants[name].astype(np.float64) for name in node.input[1:5]]
    rounded = [v.astype(np.float16).astype(np.float64) for v in exact]
    (factor, offset), (half_factor, half_offset) = (
        (s / np.sqrt(v + epsilon), b - m * s / np.sqrt(v + epsilon)) for s, b, m, v in (exact, rounded)
    )
    changed = np.abs(half_factor - factor) * facts.largest_of(node.input[:1]) + np.abs(half_offset - offset)
    share = float(changed.max()) / max(facts.largest_of(node.output), SMALLEST_NORMAL)
    if share > 16 * LARGEST_STEP:
        return Reason(f"rounding its parameters would change its output by up to {share:.1%}")
    return None


def _reduction(node: NodeProto, facts: Facts) -> Reason | None:
    """Return why a sum must be added up in FP32, or None."""
    terms, squares = terms_of(node, facts.sides)
    if terms > MOST_TERMS:
        return Reason(f"it sums {terms} terms; a sum in half precision stops growing long before")
    largest = facts.largest_of(node.input[:1])
    total = terms * (largest**2 if squares else largest)
    if terms > 1 and total * HEADROOM > LARGEST:
        kind = "squares" if squares else "values"
        return Reason(f"its sum of {terms} {kind} up to {largest:.3g} could pass 65504")
    return None


def _between_boxes_and_phases(model: onnx.ModelProto) -> frozenset[str]:
    """Return the names of the nodes on a way from the boxes of a prompt to a sine or cosine."""
    after: set[str] = set()
    reached = {BOXES}
    for node in model.graph.node:
        if reached & set(node.input):
            after.add(name_of(node))
            if node.op_type not in FINE:
                reached |= set(node.output)
    needed: set[str] = set()
    chosen: set[str] = set()
    for node in reversed(model.graph.node):
        if name_of(node) in after and (node.op_type in FINE or needed & set(node.output)):
            chosen.add(name_of(node))
            needed |= set(node.input)
    return frozenset(chosen)
