"""PyTorch behind the runtime's `Session` protocol: the reference that exports are proved against."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import nn

from mammo_runtime.errors import ModelRefused
from mammo_runtime.spec import METADATA_KEY, ModelSpec
from mammo_train.checkpoint import load_model


class TorchSession:
    """A network in eval mode; float32 in, float32 probabilities out."""

    def __init__(self, network: nn.Module, spec: ModelSpec) -> None:
        self._network: nn.Module | None = network.eval()
        self._spec = spec
        self._device = next(network.parameters()).device

    @classmethod
    def from_run(cls, run: Path) -> TorchSession:
        """Load a finished run of `mammo-train fit` (on the GPU if there is one)."""
        network, spec = load_model(run)
        return cls(network.to("cuda" if torch.cuda.is_available() else "cpu"), spec)

    @property
    def spec(self) -> ModelSpec:
        """The spec the network was trained with."""
        return self._spec

    @property
    def metadata(self) -> Mapping[str, str]:
        """The spec, as an exported file would carry it."""
        return {METADATA_KEY: self._spec.to_json()}

    @property
    def backend(self) -> str:
        """Version and device."""
        return f"torch {torch.__version__} {self._device.type}"

    @torch.no_grad()
    def logits(self, batch: np.ndarray) -> np.ndarray:
        """Map float32 [N, C, H, W] to logits float32 [N, classes, H, W]."""
        if self._network is None:
            raise ModelRefused("the session is closed")
        output: np.ndarray = self._network(torch.from_numpy(batch).to(self._device)).float().cpu().numpy()
        return output

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Map float32 [N, C, H, W] to probabilities float32 [N, classes, H, W]."""
        probability: np.ndarray = torch.sigmoid(torch.from_numpy(self.logits(batch))).numpy()
        return probability

    def close(self) -> None:
        """Free the network."""
        self._network = None

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
