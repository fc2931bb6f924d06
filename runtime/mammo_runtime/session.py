"""The seam between a model file and the rest: `Session` runs and closes, `open_session` picks the backend."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol

import numpy as np

from mammo_runtime.errors import ModelRefused


class Session(Protocol):
    """A loaded model. Also a context manager that closes itself."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """The model file's own key-value metadata (holds the spec)."""

    @property
    def backend(self) -> str:
        """What really runs, read back after opening, e.g. "onnxruntime CPUExecutionProvider"."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Map float32 [N, channels, height, width] to the one output of a graph with one input.

        What comes back follows from the spec's task: float32 probabilities [N, classes, height, width]
        (segmentation) or [N, classes] (classification), uint8 labels [N, 1, height, width] (multiclass), a float32
        embedding (the encoder of a prompted model). Raises ModelRefused when shape or dtype do not fit, when the
        graph has more inputs or outputs, or after `close`; InferenceFailed when the graph cannot be run on it.
        """

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Run a graph of any number of float32 inputs and of outputs, both in the graph's own order.

        Raises ModelRefused when their number, a shape or a dtype does not fit, or after `close`; InferenceFailed when
        the graph cannot be run on them.
        """

    def close(self) -> None:
        """Free the model. Closing twice is harmless."""

    def __enter__(self) -> Session: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


@dataclass(frozen=True)
class SessionOptions:
    """How to run a model."""

    threads: int = 0
    """Threads inside one call; 0: one for each core."""


BACKENDS: Mapping[str, str] = {
    "cpu": "mammo_runtime.backends.ort:OrtSession",
    "tensorrt": "mammo_runtime.backends.trt:TensorRTSession",
}
"""Backend name → "module:class"; loaded by name, on use. The class takes (model bytes' path, options)."""


def open_session(model: Path, backend: str, options: SessionOptions | None = None) -> Session:
    """Open a model file whose hash has been checked. Raises ModelRefused when the backend cannot run it."""
    if backend not in BACKENDS:
        raise ModelRefused(f"unknown backend {backend!r}; this runtime knows {', '.join(BACKENDS)}")
    module_name, class_name = BACKENDS[backend].split(":")
    session: Session = getattr(importlib.import_module(module_name), class_name)(model, options or SessionOptions())
    return session
