"""A session without a network: what it answers is the picture itself, so that every result is known beforehand."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from mammo_runtime.spec import InputMode, InputSpec, ModelSpec


class EchoSession:
    """Returns its input as the probability: with `echo_spec`, grey value 255 is a certain mass, 0 certainly none."""

    metadata: Mapping[str, str] = {}
    backend = "echo"

    def __init__(self) -> None:
        self.calls = 0

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return float32 [N, 1, height, width]."""
        self.calls += 1
        return np.clip(batch[:, :1], 0, 1)

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Return the one output of the one input."""
        (batch,) = inputs
        return (self.run(batch),)

    def close(self) -> None:
        """Nothing to free."""

    def __enter__(self) -> EchoSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def echo_spec(mode: InputMode = InputMode.FULL, side: int = 128, **changes: object) -> ModelSpec:
    """Return a spec without cleaning or normalisation, for square pictures of `side` pixels."""
    plain = InputSpec(mode, height=side, width=side, mean=(0.0,) * 3, std=(1.0,) * 3)
    return ModelSpec("echo", "none", **{"input": plain, **changes})  # type: ignore[arg-type]
