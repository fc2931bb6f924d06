"""ONNX Runtime on the CPU. The only file that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import onnxruntime as ort

from mammo_runtime.errors import ModelRefused
from mammo_runtime.session import SessionOptions

PROVIDER = "CPUExecutionProvider"


class OrtSession:
    """A model run by ONNX Runtime. Loaded from bytes, so external data files next to it are never opened."""

    def __init__(self, model: Path, options: SessionOptions) -> None:
        """Load the file. Raises ModelRefused when it is no ONNX model ONNX Runtime accepts, or on a wrong provider."""
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads or (os.cpu_count() or 1)
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(model.read_bytes(), settings, providers=[PROVIDER])
        except Exception as error:  # onnxruntime raises a dozen unrelated classes, all meaning "refused"
            raise ModelRefused(f"{model.name} is not a model ONNX Runtime can open: {str(error)[:300]}") from error
        used = self._session.get_providers()
        if used != [PROVIDER]:
            raise ModelRefused(f"{model.name} runs on {used} instead of {PROVIDER}")
        self._input = self._session.get_inputs()[0]
        self._metadata = dict(self._session.get_modelmeta().custom_metadata_map)

    @property
    def metadata(self) -> Mapping[str, str]:
        """The ONNX file's custom metadata."""
        return self._metadata

    @property
    def backend(self) -> str:
        """Version and provider in use."""
        return f"onnxruntime {ort.__version__} {PROVIDER}"

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Map float32 [N, C, H, W] to float32 [N, K, H, W]. Raises ModelRefused on a wrong shape, dtype or after close."""
        if self._session is None:
            raise ModelRefused("the session is closed")
        expected = self._input.shape
        fits = batch.ndim == len(expected) and all(
            not isinstance(want, int) or want == have for want, have in zip(expected, batch.shape)
        )
        if batch.dtype != np.float32 or not fits:
            raise ModelRefused(f"the model takes float32 {expected}, got {batch.dtype} {list(batch.shape)}")
        output: np.ndarray = self._session.run(None, {self._input.name: batch})[0]
        return output

    def close(self) -> None:
        """Free the model."""
        self._session = None

    def __enter__(self) -> OrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
