"""What the export tests share: the exported network, and ways to falsify it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx
import torch

from mammo_runtime.session import Session
from mammo_runtime.spec import METADATA_KEY, ModelSpec


@dataclass(frozen=True)
class Exported:
    """A network with what the exporter made of it."""

    network: torch.nn.Module
    spec: ModelSpec
    logits: onnx.ModelProto
    model: onnx.ModelProto


class Altered:
    """A session whose answers (and spec) a test falsifies."""

    def __init__(
        self, session: Session, answer: Callable[[np.ndarray], np.ndarray] = lambda p: p, spec: ModelSpec | None = None
    ) -> None:
        self._session, self._answer = session, answer
        self.metadata = session.metadata if spec is None else {METADATA_KEY: spec.to_json()}
        self.backend = session.backend

    def run(self, batch: np.ndarray) -> np.ndarray:
        return self._answer(self._session.run(batch))

    def close(self) -> None:
        self._session.close()

    def __enter__(self) -> Altered:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def changed_weight(model: onnx.ModelProto, value: float) -> onnx.ModelProto:
    """Return a copy with one value of the first convolution's weights set."""
    changed = onnx.ModelProto()
    changed.CopyFrom(model)
    tensor = next(t for t in changed.graph.initializer if len(t.dims) == 4)
    weight = onnx.numpy_helper.to_array(tensor).copy()
    weight.flat[0] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(weight, tensor.name))
    return changed
