"""An engine run by TensorRT (10.3 to 11.x, or lean) or TensorRT-RTX: one GPU, one stream, one call at a time."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from mammo_runtime.backends.cuda import Driver, open_driver, require_device
from mammo_runtime.backends.engine_files import AGAIN, EngineRecord, Tensor, read_engine
from mammo_runtime.backends.trt_library import described, family_of, load_library, make_log, plan_version, same_version
from mammo_runtime.errors import InferenceFailed, ModelRefused
from mammo_runtime.session import SessionOptions

ELEMENTS: Mapping[str, type] = {"FLOAT": np.float32, "UINT8": np.uint8}
NO_RUN = "the model could not be run on this image"


class TensorRTSession:
    """An engine with its record, opened on the first GPU.

    Safe from several threads: calls wait for each other. A batch larger than the engine was built for is run in parts.
    """

    def __init__(self, model: Path, options: SessionOptions) -> None:
        """Open a plan with the record beside it; `options` has nothing for a GPU yet.

        Raises ModelRefused: no engine of ours, changed, another TensorRT version, no GPU, no library, not accepted.
        """
        plan, record = read_engine(model)
        require_device()
        self._open(plan, record, load_library(record.module), open_driver())

    @classmethod
    def from_plan(cls, plan: bytes, record: EngineRecord, trt: Any, driver: Driver) -> TensorRTSession:
        """Open a plan that is not written yet, on a GPU that is there. Raises ModelRefused."""
        session = cls.__new__(cls)
        session._open(plan, record, trt, driver)
        return session

    def _open(self, plan: bytes, record: EngineRecord, trt: Any, driver: Driver) -> None:
        _check_version(plan, record, trt)
        self.record, self._trt, self._driver = record, trt, driver
        self._lock = threading.Lock()
        self._buffers: dict[str, tuple[int, int]] = {}
        self._stream: int | None = None
        log = make_log(trt)
        self._log = log  # TensorRT keeps only a pointer to it
        self._runtime: Any = trt.Runtime(log)
        if "VERSION_COMPATIBLE" in record.flags:
            self._runtime.engine_host_code_allowed = True
        self._engine: Any = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise ModelRefused(
                f"{described(trt)} does not accept the engine {record.plan}, {record.built_on.get('words', '')}: "
                f"{log.said()}. An engine runs on the kind of GPU it was built on. {AGAIN}"
            )
        self._check_tensors()
        self._context: Any = self._engine.create_execution_context()
        if self._context is None:
            raise ModelRefused(f"the GPU has no room for the engine {record.plan} ({log.said()}). Close other programs")
        self._stream = driver.make_stream()

    def _check_tensors(self) -> None:
        """Raise ModelRefused unless the engine has just the tensors that its record says."""
        engine = self._engine
        names = [engine.get_tensor_name(k) for k in range(engine.num_io_tensors)]
        found = {
            name: (engine.get_tensor_mode(name).name, engine.get_tensor_dtype(name).name) for name in sorted(names)
        }
        told = {t.name: ("INPUT", t.element) for t in self.record.inputs}
        told |= {t.name: ("OUTPUT", t.element) for t in self.record.outputs}
        if found != told or any(t.element != "FLOAT" for t in self.record.inputs):
            raise ModelRefused(
                f"the engine {self.record.plan} has the tensors {found}, its record says {told}. {AGAIN}"
            )

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata of the ONNX file that the engine was built from."""
        return dict(self.record.metadata)

    @property
    def backend(self) -> str:
        """Module, version, precision and CUDA library in use."""
        return f"{described(self._trt)} {self.record.precision} engine, {self._driver.name}"

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Map float32 [N, C, H, W] to the graph's one output; see `Session.run`. Raises as `run_all` does."""
        inputs, outputs = self.record.inputs, self.record.outputs
        if self._stream is not None and (len(inputs), len(outputs)) != (1, 1):
            has = f"{len(inputs)} input(s) and {len(outputs)} output(s)"
            raise ModelRefused(f"the model has {has}, where one of each is needed")
        return self.run_all(batch)[0]

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Map float32 tensors to the graph's outputs, in the graph's order.

        Raises ModelRefused on a wrong number, shape or dtype, a shape the engine was not built for, or after close;
        InferenceFailed when the GPU gives up.
        """
        with self._lock:
            self._check_inputs(inputs)
            most = self.record.inputs[0].most[0]
            if len(inputs) == 1 and len(inputs[0]) > most:
                parts = [self._run((inputs[0][k : k + most],)) for k in range(0, len(inputs[0]), most)]
                return tuple(np.concatenate(outputs) for outputs in zip(*parts))
            return self._run(inputs)

    def _check_inputs(self, inputs: Sequence[np.ndarray]) -> None:
        if self._stream is None:
            raise ModelRefused("the session is closed")
        wanted = self.record.inputs
        if len(inputs) != len(wanted):
            names = ", ".join(t.name for t in wanted)
            raise ModelRefused(f"the model takes {len(wanted)} input(s) ({names}), got {len(inputs)}")
        for want, have in zip(wanted, inputs):
            fits = have.ndim == len(want.shape) and all(
                side in (-1, given) for side, given in zip(want.shape, have.shape)
            )
            if have.dtype != np.float32 or not fits:
                raise ModelRefused(
                    f"the model takes float32 {list(want.shape)} as {want.name}, got {have.dtype} {list(have.shape)}"
                )
            if not all(low <= side for low, side in zip(want.least, have.shape)) or not all(
                # Too large a batch of a single input is run in parts.
                side <= high
                for k, (high, side) in enumerate(zip(want.most, have.shape))
                if k or len(wanted) > 1
            ):
                raise ModelRefused(
                    f"the engine takes float32 {list(want.least)} to {list(want.most)} as {want.name}, got "
                    f"{list(have.shape)}. Build it for these shapes (mammo-export engine --batch)"
                )

    def _run(self, inputs: Sequence[np.ndarray]) -> tuple[np.ndarray, ...]:
        context, driver, stream = self._context, self._driver, self._stream
        assert stream is not None
        arrays = [np.ascontiguousarray(tensor) for tensor in inputs]
        for tensor, array in zip(self.record.inputs, arrays):
            if not context.set_input_shape(tensor.name, array.shape):
                raise InferenceFailed(f"{NO_RUN}: the engine does not take {tensor.name} {list(array.shape)}")
        if missing := list(context.infer_shapes()):
            raise InferenceFailed(f"{NO_RUN}: the engine knows no shape for {', '.join(map(str, missing))}")
        results = [self._result_of(tensor) for tensor in self.record.outputs]
        for tensor, array in zip((*self.record.inputs, *self.record.outputs), (*arrays, *results)):
            context.set_tensor_address(tensor.name, self._buffer(tensor.name, array.nbytes))
        for tensor, array in zip(self.record.inputs, arrays):
            driver.to_device(self._buffers[tensor.name][0], array, stream)
        if not context.execute_async_v3(stream):
            raise InferenceFailed(f"{NO_RUN}: {self._log.said()}")
        for tensor, array in zip(self.record.outputs, results):
            driver.to_host(array, self._buffers[tensor.name][0], stream)
        driver.wait(stream)
        return tuple(results)

    def _result_of(self, tensor: Tensor) -> np.ndarray:
        """Return room for an output, in the shape that the context now gives it."""
        shape = tuple(int(side) for side in self._context.get_tensor_shape(tensor.name))
        if min(shape, default=1) < 1:
            raise InferenceFailed(f"{NO_RUN}: the engine gives {tensor.name} the shape {list(shape)}")
        return np.empty(shape, ELEMENTS[tensor.element])

    def _buffer(self, name: str, size: int) -> int:
        """Return the address of device memory for a tensor; it only grows."""
        address, room = self._buffers.get(name, (0, 0))
        if room < size:
            if address:
                del self._buffers[name]
                self._driver.free(address)
            self._buffers[name] = (self._driver.allocate(size), size)
        return self._buffers[name][0]

    def layer_information(self) -> str:
        """Return the inspector's JSON of the engine's layers."""
        return str(self._engine.create_engine_inspector().get_engine_information(self._trt.LayerInformationFormat.JSON))

    def layer_times(self, runs: int = 20) -> dict[str, float]:
        """Return milliseconds of each layer, summed over runs on zeros of the shapes that kernels were chosen for."""
        times: dict[str, float] = {}
        inputs = [np.zeros(tensor.best, np.float32) for tensor in self.record.inputs]
        with self._lock:
            self._run(inputs)  # first runs load kernels
            timed = self._engine.create_execution_context()
            timed.profiler = _profiler(self._trt, times)
            usual, self._context = self._context, timed
            try:
                for _ in range(runs):
                    self._run(inputs)
            finally:
                self._context = usual
        return times

    def close(self) -> None:
        """Free the engine and the GPU's memory."""
        with self._lock:
            if self._stream is None:
                return
            stream, self._stream = self._stream, None
            self._context = self._engine = self._runtime = None
            # What the GPU does not take back now goes with the process.
            with suppress(InferenceFailed):
                for address, _ in self._buffers.values():
                    self._driver.free(address)
                self._driver.destroy_stream(stream)
            self._buffers = {}

    def __enter__(self) -> TensorRTSession:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check_version(plan: bytes, record: EngineRecord, trt: Any) -> None:
    """Raise ModelRefused for a plan of another library or version; both are named."""
    family, version = plan_version(plan)
    portable = "VERSION_COMPATIBLE" in record.flags
    if family != family_of(record.module) or not (same_version(version, str(trt.__version__)) or portable):
        raise ModelRefused(
            f"the engine {record.plan} was built by {family} {version}, here is {described(trt)}: engines run only on "
            f"the version that built them. {AGAIN}"
        )


def _profiler(trt: Any, times: dict[str, float]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            times[layer_name] = times.get(layer_name, 0.0) + ms

    return Profiler()
