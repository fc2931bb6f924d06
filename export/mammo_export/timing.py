"""How fast each precision runs on the CPU at hand, alternated in one run with FP32 and with the trained network."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch

from mammo_export.files import opened
from mammo_export.outcome import BACKENDS, PRECISION, Outcome
from mammo_export.speed import FASTER, Plan, Speed, compare_speed
from mammo_export.workshop import Graphs, Workshop
from mammo_runtime.spec import Precision
from mammo_train import models
from mammo_train.torch_session import TorchSession

TORCH = "torch"
"""Name of the PyTorch network, run eagerly, among the contestants."""
NO_SLOWER = 1.0
"""FP16 is asked to be faster on no device in particular; on a CPU it is kept for size, and `auto` wants a gain."""
LIMITS = {"fp16": NO_SLOWER, "int8-cpu": FASTER}
"""Key → how many times as fast as its rival it must be here."""


def timed(shop: Workshop, outcomes: Sequence[Outcome], plan: Plan | None = None) -> tuple[Speed, list[Outcome]]:
    """Return the timings of everything that may ship for a CPU, and the outcomes with their own."""
    running = [one for one in outcomes if one.ships and "cpu" in BACKENDS[one.key]]
    # The same number for all: PyTorch and ONNX Runtime count cores differently.
    threads, before = os.cpu_count() or 1, torch.get_num_threads()
    with ExitStack() as stack:
        torch.set_num_threads(threads)
        stack.callback(torch.set_num_threads, before)
        contestants: dict[str, Callable[[], object]] = {TORCH: _torch(shop)}
        for outcome in running:
            contestants[outcome.key] = _graphs(shop, outcome.graphs, stack)
        speed = compare_speed(contestants, threads=threads, plan=plan)
    shop.report("speed: " + ", ".join(f"{name} {speed.median_ms(name):.1f} ms" for name in contestants))
    known = {one.key for one in running} - {Precision.FP32.value}
    return speed, [
        replace(one, speed=(speed.entry(one.key, _rival(one, running, speed), limit=LIMITS[one.key]),))
        if one.key in known
        else one
        for one in outcomes
    ]


def _rival(outcome: Outcome, running: Sequence[Outcome], speed: Speed) -> str:
    """Return what a precision must be faster than here: FP32; INT8, the faster of FP32 and FP16."""
    if PRECISION[outcome.key] is not Precision.INT8:
        return Precision.FP32.value
    higher = [one.key for one in running if PRECISION[one.key] is not Precision.INT8]
    return min(higher, key=speed.median_ms)


def _graphs(shop: Workshop, graphs: Graphs, stack: ExitStack) -> Callable[[], object]:
    """Return one call on one calibration input: of a prompted model, encoder and decoder."""
    sessions = [stack.enter_context(opened(graph)) for graph in graphs]
    inputs = [next(shop.inputs(number, 1)) for number in range(len(graphs))]
    return lambda: [session.run_all(*given) for session, given in zip(sessions, inputs, strict=True)]


def _torch(shop: Workshop) -> Callable[[], object]:
    """Return one call of the trained network; where only a bundle is at hand, of the same network untrained.

    The weights do not matter to the time. A cold clock of a first use does: `compare_speed` warms up.
    """
    spec = shop.source.spec
    session = shop.source.trained or TorchSession(models.build_for(spec), spec)
    inputs = [next(shop.inputs(number, 1)) for number in range(len(shop.source.files.shipped))]
    halves = [session] if session.decoder is None else [session, session.decoder]

    def call() -> list[tuple[np.ndarray, ...]]:
        with torch.inference_mode():
            return [half.run_all(*given) for half, given in zip(halves, inputs, strict=True)]

    return call
