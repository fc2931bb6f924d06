"""A graph for pictures of any size, where the network allows it: made from the one for the fixed grid, and proved."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx

from mammo_export.element_types import inferred
from mammo_export.gates import MAX_LOGIT_ERROR
from mammo_runtime.errors import MammoError, UsageError
from mammo_runtime.session import open_session

SIDES = {2: "height", 3: "width"}
"""Axis → name of what becomes free."""
WIDER = ((1, 2), (0, 1))
"""By how many multiples rows and columns are changed for the two grids that prove it; the second is transposed."""


def with_free_sides(
    graph: onnx.ModelProto, answer: Callable[[np.ndarray], np.ndarray], multiple: int
) -> onnx.ModelProto:
    """Return the graph with height and width left open (multiples of `multiple`), proved on two other grids.

    A fully convolutional network whose resizes have constant scales computes the same on any grid, so its clean graph
    needs no Shape chain. Whether it is one is measured: `answer` (the network: float32 [N, C, H, W] → its logits) must
    give what the graph gives. Raises UsageError where something in the network is tied to its grid.
    """
    model = onnx.ModelProto()
    model.CopyFrom(graph)
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        dims = value.type.tensor_type.shape.dim
        for axis, name in SIDES.items():
            if axis < len(dims):
                dims[axis].dim_param = name
    shape = [d.dim_value for d in graph.graph.input[0].type.tensor_type.shape.dim]
    try:
        model = inferred(model)
        worst = max(_difference(model, answer, shape[1], grid) for grid in _other_grids(shape, multiple))
    except (MammoError, RuntimeError, ValueError, onnx.shape_inference.InferenceError) as error:
        raise UsageError(f"this network is tied to its grid: {' '.join(str(error).split())[:200]}") from error
    if not worst <= MAX_LOGIT_ERROR:
        raise UsageError(
            f"this network is tied to its grid: on another one its graph differs by {worst:.2g} of the largest logit"
        )
    return model


def _other_grids(shape: list[int], multiple: int) -> list[tuple[int, int]]:
    rows, columns = shape[2:4]
    (a, b), (c, d) = ((rows + r * multiple, columns + k * multiple) for r, k in WIDER)
    return [(a, b), (d, c)]


def _difference(
    model: onnx.ModelProto, answer: Callable[[np.ndarray], np.ndarray], channels: int, grid: tuple[int, int]
) -> float:
    """Return the largest difference of two random pictures' logits, as a fraction of the largest."""
    batch = np.random.default_rng(0).uniform(-1, 1, (2, channels, *grid)).astype(np.float32)
    expected = answer(batch)
    with tempfile.TemporaryDirectory(prefix="mammo-export-") as folder:
        path = Path(folder) / "free.onnx"
        path.write_bytes(model.SerializeToString())
        with open_session(path, "cpu") as session:
            found = session.run_all(batch)[0]
    if found.shape != expected.shape:
        raise ValueError(f"the graph answers {found.shape}, the network {expected.shape}")
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), np.finfo(np.float32).tiny))
