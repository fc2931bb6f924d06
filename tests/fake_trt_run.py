"""The running half of the fake TensorRT: its engines ask ONNX Runtime, through addresses as on a GPU."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from fake_trt_parts import HEADER, MARK, Knobs, Member, Recorded, tensors


class EngineInspector(Recorded):
    def __init__(self, knobs: Knobs) -> None:
        self._knobs = knobs

    def get_engine_information(self, form: Member) -> str:
        reads = [{"Name": "grey", "Format/Datatype": self._knobs.engine_type}]
        layer = {"Name": "conv", "LayerType": "CaskConvolution", "Inputs": reads, "Metadata": "[ONNX Layer: conv]"}
        return json.dumps({"Layers": [layer], "Bindings": []})


class IExecutionContext(Recorded):
    profiler: Any = None

    def __init__(self, engine: ICudaEngine) -> None:
        self._engine = engine
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._shapes[name] = tuple(shape)
        limits = self._engine._profiles.get(name)
        return limits is None or all(a <= b <= c for a, b, c in zip(limits[0], shape, limits[2]))

    def infer_shapes(self) -> list[str]:
        return [t._name for t in self._engine._inputs if t._name not in self._shapes]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        """Like the tiny models: batch, boxes, height and width are the inputs' own."""
        have = next(iter(self._shapes.values()))
        tensor = next(t for t in self._engine._outputs if t._name == name)
        boxes = self._shapes.get("boxes", (0, 0))[1]
        known = {0: have[0], 1: boxes, 2: have[2], 3: have[3]}
        return tuple(known[axis] if side == -1 else side for axis, side in enumerate(tensor._shape))

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        engine = self._engine
        feeds = {n: _view(self._addresses[n], s, np.float32).copy() for n, s in self._shapes.items()}
        try:
            outputs = engine._session.run(None, feeds)
        except Exception as error:
            engine._log.log(Member("ERROR"), str(error))
            return False
        for tensor, array in zip(engine._outputs, outputs):
            _view(self._addresses[tensor._name], array.shape, array.dtype)[...] = engine._knobs.answer(array)
        if self.profiler is not None:
            self.profiler.report_layer_time("conv", 0.5)
        return True


def _view(address: int, shape: Sequence[int], dtype: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


class ICudaEngine(Recorded):
    def __init__(self, onnx: bytes, profiles: Mapping[str, Any], knobs: Knobs, log: Any) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        self._session = ort.InferenceSession(onnx, options, providers=["CPUExecutionProvider"])
        self._inputs, self._outputs = tensors(self._session.get_inputs()), tensors(self._session.get_outputs())
        self._profiles, self._knobs, self._log = profiles, knobs, log

    num_io_tensors = property(lambda self: len(self._inputs) + len(self._outputs))

    def get_tensor_name(self, index: int) -> str:
        return (*self._inputs, *self._outputs)[index]._name

    def get_tensor_mode(self, name: str) -> Member:
        return Member("INPUT" if name in {t._name for t in self._inputs} else "OUTPUT")

    def get_tensor_dtype(self, name: str) -> Member:
        return Member(next(t._element for t in (*self._inputs, *self._outputs) if t._name == name))

    def create_execution_context(self) -> IExecutionContext:
        return IExecutionContext(self)

    def create_engine_inspector(self) -> EngineInspector:
        return EngineInspector(self._knobs)


class Runtime(Recorded):
    engine_host_code_allowed = False

    def __init__(self, knobs: Knobs, log: Any) -> None:
        self._knobs, self._log = knobs, log

    def deserialize_cuda_engine(self, plan: bytes) -> ICudaEngine | None:
        knobs = self._knobs
        if not knobs.accepts:
            self._log.log(Member("ERROR"), "the engine plan file is generated on an incompatible device")
            return None
        profiles, onnx = plan[len(HEADER) + 4 :].split(MARK, 1)
        return ICudaEngine(onnx, json.loads(profiles), knobs, self._log)
