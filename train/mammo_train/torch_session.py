"""PyTorch behind the runtime's `Session` protocol: the reference that exports are proved against."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import nn

from mammo_runtime.errors import ModelRefused
from mammo_runtime.spec import METADATA_KEY, NOT_FINITE, Activation, ModelSpec, Task
from mammo_train.checkpoint import load_model


class TorchSession:
    """A network in eval mode that answers as its exported graph does; of a prompted model, one of its two graphs."""

    def __init__(self, network: nn.Module, spec: ModelSpec, decodes: bool = False) -> None:
        """Wrap a network where it is. `decodes`: the decoder's graph of a prompted model instead of the encoder's."""
        self._network: nn.Module | None = network.eval()
        self._spec, self._decodes = spec, decodes
        self._device = next(network.parameters()).device

    @classmethod
    def from_run(cls, run: Path) -> TorchSession:
        """Load a finished run of `mammo-train fit` (on the GPU if there is one)."""
        network, spec = load_model(run)
        return cls(network.to("cuda" if torch.cuda.is_available() else "cpu"), spec)

    @property
    def decoder(self) -> TorchSession | None:
        """The session of the same network's decoder; None unless the model is prompted."""
        if self._spec.task is not Task.PROMPTED or self._decodes:
            return None
        return TorchSession(self._opened(), self._spec, decodes=True)

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

    def logits(self, *inputs: np.ndarray) -> np.ndarray:
        """Map the graph's float32 inputs to its first output before the activation, float32.

        Image [N, C, H, W] → [N, classes, H, W], of classifiers [N, classes], of a prompted model's encoder the
        embedding [N, c, h, w]; decoder: embedding and boxes → [N, boxes, 1, side, side].
        """
        return self._forward(*inputs)[0]

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Map float32 inputs to all outputs in the exported graph's order and types (`spec.Activation`).

        Decoder of a prompted model: (probability [N, boxes, 1, side, side], predicted IoU [N, boxes]).
        """
        first, *others = self._forward(*inputs)
        if self._spec.task is Task.PROMPTED and not self._decodes:
            return (first,)
        return (_ACTIVATIONS[self._spec.activation](first), *others)

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Map float32 [N, C, H, W] to the graph's only output."""
        return self.run_all(batch)[0]

    def close(self) -> None:
        """Free the network."""
        self._network = None

    def _opened(self) -> nn.Module:
        if self._network is None:
            raise ModelRefused("the session is closed")
        return self._network

    @torch.no_grad()
    def _forward(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        network = self._opened()
        graph: Callable[..., torch.Tensor | tuple[torch.Tensor, ...]] = network
        if self._spec.task is Task.PROMPTED:
            graph = network.decode if self._decodes else network.encode  # type: ignore[assignment]
        found = graph(*(torch.from_numpy(np.ascontiguousarray(i)).to(self._device) for i in inputs))
        outputs = found if isinstance(found, tuple) else (found,)
        return tuple(output.float().cpu().numpy() for output in outputs)

    def __enter__(self) -> TorchSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    probability: np.ndarray = torch.sigmoid(torch.from_numpy(logits)).numpy()
    return probability


def _softmax(logits: np.ndarray) -> np.ndarray:
    probability: np.ndarray = torch.softmax(torch.from_numpy(logits), dim=1).numpy()
    return probability


def _labels(logits: np.ndarray) -> np.ndarray:
    """Map float32 [N, classes, H, W] to uint8 [N, 1, H, W]; `NOT_FINITE` where a logit is NaN or infinite."""
    labels = logits.argmax(axis=1).astype(np.uint8)
    return np.where(np.isfinite(logits).all(axis=1), labels, np.uint8(NOT_FINITE))[:, None]


_ACTIVATIONS: Mapping[Activation, Callable[[np.ndarray], np.ndarray]] = {
    Activation.SIGMOID: _sigmoid,
    Activation.SOFTMAX: _softmax,
    Activation.ARGMAX: _labels,
}
