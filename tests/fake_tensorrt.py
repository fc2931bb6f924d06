"""A fake of TensorRT and of the GPU, for machines without either: its engines hold the ONNX file and ask ONNX Runtime.

Classes and members carry the real names, and every use of one is noted in `fake_trt_parts.TOUCHED`, so that a test can
hold the list against the real bindings. "Device memory" is the host's: addresses are real, whoever gave them out.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fake_trt_build import Builder, INetworkDefinition, OnnxParser
from fake_trt_parts import TOUCHED, Knobs, enumeration
from fake_trt_run import Runtime
from mammo_runtime.backends.cuda import Device
from mammo_runtime.backends.engine import build_engine
from mammo_runtime.backends.engine_files import EngineRecord, sha256_of
from mammo_runtime.backends.engine_settings import EngineSettings
from mammo_runtime.backends.onnx_wire import metadata_of
from mammo_runtime.backends.trt import TensorRTSession
from mammo_runtime.backends.trt_library import plan_version
from mammo_runtime.errors import InferenceFailed
from mammo_runtime.spec import InputSpec, ModelSpec, Precision

GPU = Device("Fake Orin", (8, 7), 8 << 30, True, 12060)


class ILogger:
    """Subclassed by the code under test."""


class IProgressMonitor:
    """Subclassed by the code under test."""


class IProfiler:
    """Subclassed by the code under test."""


class FakeTensorRT:
    """The module."""

    def __init__(self, knobs: Knobs | None = None) -> None:
        self._knobs = knobs or Knobs()
        self.__name__, self.__version__ = "tensorrt", ".".join(map(str, self._knobs.version[:3]))

    def __getattribute__(self, name: str) -> Any:
        if not name.startswith("_"):
            TOUCHED.add(("module", name))
        return object.__getattribute__(self, name)

    ILogger, IProgressMonitor, IProfiler = ILogger, IProgressMonitor, IProfiler
    BuilderFlag = enumeration("BuilderFlag", TF32=7, VERSION_COMPATIBLE=13)
    MemoryPoolType = enumeration("MemoryPoolType", WORKSPACE=0)
    ProfilingVerbosity = enumeration("ProfilingVerbosity", DETAILED=2)
    HardwareCompatibilityLevel = enumeration("HardwareCompatibilityLevel", AMPERE_PLUS=1)
    LayerInformationFormat = enumeration("LayerInformationFormat", JSON=1)
    NetworkDefinitionCreationFlag = enumeration("NetworkDefinitionCreationFlag", STRONGLY_TYPED=1)

    def Builder(self, log: Any) -> Builder:
        return Builder(self._knobs, log)

    def OnnxParser(self, network: INetworkDefinition, log: Any) -> OnnxParser:
        return OnnxParser(self._knobs, network)

    def Runtime(self, log: Any) -> Runtime:
        return Runtime(self._knobs, log)


@dataclass
class FakeDriver:
    """Device memory in the host's."""

    name: str = "fake CUDA"
    room: int = 1 << 30
    blocks: dict[int, Any] = field(default_factory=dict)
    streams: set[int] = field(default_factory=set)
    waits: int = 0

    def allocate(self, size: int) -> int:
        if size > self.room:
            raise InferenceFailed(f"CUDA could not allocate {size} bytes (error 2)")
        block = ctypes.create_string_buffer(max(1, size))
        self.blocks[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def free(self, address: int) -> None:
        del self.blocks[address]

    def make_stream(self) -> int:
        self.streams.add(len(self.streams) + 1)
        return len(self.streams)

    def destroy_stream(self, stream: int) -> None:
        self.streams.remove(stream)

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        ctypes.memmove(address, array.ctypes.data, array.nbytes)

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        ctypes.memmove(array.ctypes.data, address, array.nbytes)

    def wait(self, stream: int) -> None:
        self.waits += 1

    def memory(self) -> tuple[int, int]:
        return self.room, self.room


def packed(
    onnx: bytes, trt: FakeTensorRT, spec: ModelSpec, settings: EngineSettings | None = None, **changes: Any
) -> tuple[bytes, EngineRecord]:
    """Return a fake engine of an ONNX file with its record; `changes` are fields of the record."""
    engine = build_engine(trt, onnx, spec, Precision.FP32, settings)
    values: dict[str, Any] = {
        "plan": "model.engine",
        "plan_sha256": sha256_of(engine.plan),
        "plan_version": " ".join(plan_version(engine.plan)),
        "module": "tensorrt",
        "module_version": trt.__version__,
        "precision": "fp32",
        "key": "fp32",
        "onnx": {"file": "model.onnx", "sha256": sha256_of(onnx), "bundle": "tiny"},
        "metadata": metadata_of(onnx),
        "inputs": engine.inputs,
        "outputs": engine.outputs,
        "built_on": {"words": "built on a fake"},
        "settings": {},
    }
    return engine.plan, EngineRecord(**{**values, **changes})


def fake_session(model: Path, side: int = 16) -> TensorRTSession:
    """Open an ONNX file as if it were an engine, for pictures of `side` pixels."""
    trt, spec = FakeTensorRT(), ModelSpec("tiny", "blur", input=InputSpec(height=side, width=side))
    return TensorRTSession.from_plan(*packed(model.read_bytes(), trt, spec), trt, FakeDriver())
