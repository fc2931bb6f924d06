"""ONNX Runtime on the CPU. The only file that imports onnxruntime."""

from __future__ import annotations

import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from types import TracebackType

import numpy as np
import onnxruntime as ort

from mammo_runtime.backends.onnx_wire import has_external_data
from mammo_runtime.errors import InferenceFailed, ModelRefused
from mammo_runtime.session import SessionOptions

PROVIDER = "CPUExecutionProvider"
OUTPUT_TYPES = {"tensor(float)", "tensor(uint8)"}
"""Probabilities, embeddings and logits; and the labels of arg-max."""


def _refuse_two_distributions() -> None:
    """Raise ModelRefused when onnxruntime and onnxruntime-gpu share their folder: whichever came last runs, unsaid."""
    present = []
    for name in ("onnxruntime", "onnxruntime-gpu"):
        try:
            present.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    if len(present) > 1:
        raise ModelRefused(
            f"{' and '.join(present)} are both installed and overwrite each other; uninstall both, then install one"
        )


class OrtSession:
    """A model run by ONNX Runtime; files with external tensor data are refused before ONNX Runtime sees them."""

    def __init__(self, model: Path, options: SessionOptions) -> None:
        """Load the file. Raises ModelRefused: no ONNX model ONNX Runtime accepts, external data, a wrong provider."""
        content = _checked_bytes(model)
        _refuse_two_distributions()
        settings = ort.SessionOptions()
        settings.intra_op_num_threads = options.threads or (os.cpu_count() or 1)
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        # The planned block would come on top of the arena from the second run on: 65 MB more for 512 x 320, no faster.
        settings.enable_mem_pattern = False
        try:
            self._session = ort.InferenceSession(content, settings, providers=[PROVIDER])
        except Exception as error:  # onnxruntime raises a dozen unrelated classes, all meaning "refused"
            reason = " ".join(str(error).split())[:300]
            raise ModelRefused(f"{model.name} is not a model ONNX Runtime can open: {reason}") from error
        # ONNX Runtime's wrapper keeps the file's bytes for a fall-back to other providers, which is not wanted here.
        vars(self._session).pop("_model_bytes", None)
        del content
        used = self._session.get_providers()
        if used != [PROVIDER]:
            raise ModelRefused(f"{model.name} runs on {used} instead of {PROVIDER}")
        self._inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        self._outputs = len(outputs)
        takes, gives = [i.type for i in self._inputs], [o.type for o in outputs]
        if not takes or set(takes) != {"tensor(float)"} or not gives or set(gives) - OUTPUT_TYPES:
            raise ModelRefused(
                f"{model.name} does not map float32 tensors to float32 or uint8 tensors, "
                f"but {', '.join(takes)} → {', '.join(gives)}"
            )
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
        """Map float32 [N, C, H, W] to the graph's one output; see `Session.run`. Raises as `run_all` does."""
        if self._session is not None and (len(self._inputs), self._outputs) != (1, 1):
            has = f"{len(self._inputs)} input(s) and {self._outputs} output(s)"
            raise ModelRefused(f"the model has {has}, where one of each is needed")
        return self.run_all(batch)[0]

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Map float32 tensors to the graph's outputs, in the graph's order.

        Raises ModelRefused on a wrong number, shape, dtype or after close; InferenceFailed when ONNX Runtime gives up.
        """
        if self._session is None:
            raise ModelRefused("the session is closed")
        if len(inputs) != len(self._inputs):
            names = ", ".join(i.name for i in self._inputs)
            raise ModelRefused(f"the model takes {len(self._inputs)} input(s) ({names}), got {len(inputs)}")
        for want, have in zip(self._inputs, inputs):
            fits = have.ndim == len(want.shape) and all(
                not isinstance(side, int) or side == given for side, given in zip(want.shape, have.shape)
            )
            if have.dtype != np.float32 or not fits:
                found = f"{have.dtype} {list(have.shape)}"
                raise ModelRefused(f"the model takes float32 {want.shape} as {want.name}, got {found}")
        try:
            outputs = self._session.run(None, {i.name: tensor for i, tensor in zip(self._inputs, inputs)})
        except Exception as error:  # see above; most often memory
            reason = " ".join(str(error).split())[:300]
            raise InferenceFailed(f"the model could not be run on this image: {reason}") from error
        return tuple(outputs)

    def close(self) -> None:
        """Free the model."""
        self._session = None

    def __enter__(self) -> OrtSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _checked_bytes(model: Path) -> bytes:
    """Return the file's bytes. Raises ModelRefused when it cannot be read, is no ONNX file or has external data."""
    try:
        content = model.read_bytes()
        external = has_external_data(content)
    except OSError as error:
        raise ModelRefused(f"cannot read the model {model}: {error.strerror}") from error
    except ValueError as error:
        raise ModelRefused(f"{model.name} is not an ONNX file, or is damaged ({error}). Get it again") from error
    if external:
        raise ModelRefused(f"{model.name} keeps weights in other files, which could be any file of this computer; "
                           "export it as a single file")  # fmt: skip
    return content
