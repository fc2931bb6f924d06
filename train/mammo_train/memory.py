"""Out of memory: said in one line, with what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mammo_runtime.errors import MammoError
from mammo_runtime.spec import ModelSpec
from mammo_train import models
from mammo_train.config import TrainConfig

SIGNS = ("not enough memory", "can't allocate memory", "cannot allocate memory", "out of memory")
"""torch reports a failed allocation on a CPU as a plain RuntimeError; these are its words."""


@contextmanager
def memory_advice(config: TrainConfig, spec: ModelSpec) -> Iterator[None]:
    """Turn a failed allocation inside into a MammoError that names the next step."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise MammoError(advice(config, spec)) from error
    except RuntimeError as error:
        if any(sign in str(error).lower() for sign in SIGNS):
            raise MammoError(advice(config, spec)) from error
        raise


def advice(config: TrainConfig, spec: ModelSpec) -> str:
    """Return what to try, the first remedy being the one that changes the result least."""
    tried = f"{spec.architecture} at {spec.input.height}x{spec.input.width}, batch {config.batch_size}"
    remedies = []
    if config.accumulate < config.batch_size:
        parts = min(config.batch_size, 2 * config.accumulate)
        remedies.append(f"--accumulate {parts} (same step, less memory)")
    if config.precision == "fp32":
        remedies.append("--precision auto")
    widths = list(models.known(spec.architecture).widths)
    current = str(spec.network.get("width", widths[0]))
    if current in widths and widths.index(current) + 1 < len(widths):
        remedies.append(f"--width {widths[widths.index(current) + 1]}")
    remedies.append(f"a smaller --size than {spec.input.height}x{spec.input.width}")
    return f"memory ran out while training {tried}; try " + ", or ".join(remedies)
