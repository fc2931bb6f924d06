"""The libraries that can make CUDA calls, each as a `cuda.Driver`, where their methods are documented."""
# ruff: noqa: D102

from __future__ import annotations

import ctypes
import ctypes.util
import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mammo_runtime.errors import InferenceFailed

_TO_DEVICE, _TO_HOST = 1, 2
"""cudaMemcpyKind."""
_RUNTIME_NAMES = ("libcudart.so.13", "libcudart.so.12", "libcudart.so", "cudart64_13.dll", "cudart64_12.dll")


def _check(code: Any, what: str) -> None:
    if int(code):
        raise InferenceFailed(f"CUDA could not {what} (error {int(code)}); the GPU's memory may be full, or the GPU "
                              "needs a new process")  # fmt: skip


class BindingsDriver:
    """cuda-bindings."""

    def __init__(self) -> None:
        """Load it. Raises ImportError, or InferenceFailed when it finds no device."""
        self._cuda: Any = importlib.import_module("cuda.bindings.runtime")
        version: Any = importlib.import_module("cuda.bindings")
        self._version = str(version.__version__)
        self._call("find a device", self._cuda.cudaSetDevice, 0)

    @property
    def name(self) -> str:
        return f"cuda-bindings {self._version}"

    def _call(self, what: str, function: Callable[..., Any], *arguments: Any) -> Any:
        code, *values = function(*arguments)
        _check(code, what)
        return values[0] if len(values) == 1 else values

    def allocate(self, size: int) -> int:
        return int(self._call(f"allocate {size} bytes", self._cuda.cudaMalloc, size))

    def free(self, address: int) -> None:
        self._call("free memory", self._cuda.cudaFree, address)

    def make_stream(self) -> int:
        return int(self._call("make a stream", self._cuda.cudaStreamCreate))

    def destroy_stream(self, stream: int) -> None:
        self._call("destroy a stream", self._cuda.cudaStreamDestroy, stream)

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call(
            "copy to the GPU", self._cuda.cudaMemcpyAsync, address, array.ctypes.data, array.nbytes, kind, stream
        )

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        given = (array.ctypes.data, address, array.nbytes, kind, stream)
        self._call("copy from the GPU", self._cuda.cudaMemcpyAsync, *given)

    def wait(self, stream: int) -> None:
        self._call("finish the work", self._cuda.cudaStreamSynchronize, stream)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("tell its memory", self._cuda.cudaMemGetInfo)
        return int(free), int(total)


class CtypesDriver:
    """libcudart through ctypes."""

    def __init__(self, names: Sequence[str] | None = None) -> None:
        """Load it. Raises OSError when none of the names can be loaded, InferenceFailed without a device."""
        self._cuda, self.name = _first_library(_runtime_libraries() if names is None else names)
        self._call("find a device", "cudaSetDevice", ctypes.c_int(0))

    def _call(self, what: str, function: str, *arguments: Any) -> None:
        _check(getattr(self._cuda, function)(*arguments), what)

    def allocate(self, size: int) -> int:
        address = ctypes.c_void_p()
        self._call(f"allocate {size} bytes", "cudaMalloc", ctypes.byref(address), ctypes.c_size_t(size))
        return int(address.value or 0)

    def free(self, address: int) -> None:
        self._call("free memory", "cudaFree", ctypes.c_void_p(address))

    def make_stream(self) -> int:
        stream = ctypes.c_void_p()
        self._call("make a stream", "cudaStreamCreate", ctypes.byref(stream))
        return int(stream.value or 0)

    def destroy_stream(self, stream: int) -> None:
        self._call("destroy a stream", "cudaStreamDestroy", ctypes.c_void_p(stream))

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        self._copy("copy to the GPU", address, array.ctypes.data, array.nbytes, _TO_DEVICE, stream)

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        self._copy("copy from the GPU", array.ctypes.data, address, array.nbytes, _TO_HOST, stream)

    def _copy(self, what: str, target: int, source: int, size: int, kind: int, stream: int) -> None:
        ends = (ctypes.c_void_p(target), ctypes.c_void_p(source), ctypes.c_size_t(size))
        self._call(what, "cudaMemcpyAsync", *ends, ctypes.c_int(kind), ctypes.c_void_p(stream))

    def wait(self, stream: int) -> None:
        self._call("finish the work", "cudaStreamSynchronize", ctypes.c_void_p(stream))

    def memory(self) -> tuple[int, int]:
        free, total = ctypes.c_size_t(), ctypes.c_size_t()
        self._call("tell its memory", "cudaMemGetInfo", ctypes.byref(free), ctypes.byref(total))
        return free.value, total.value


class PycudaDriver:
    """pycuda, on the primary context; never through `pycuda.autoinit`, which makes another one for one thread."""

    def __init__(self) -> None:
        """Load it. Raises ImportError where it, or the driver's library, is missing."""
        self._cuda: Any = importlib.import_module("pycuda.driver")
        self._cuda.init()
        self._context = self._cuda.Device(0).retain_primary_context()
        self._memory: dict[int, Any] = {}
        self._streams: dict[int, Any] = {}
        self.name = f"pycuda {'.'.join(map(str, importlib.import_module('pycuda').VERSION))}"

    def _call(self, what: str, function: Callable[[], Any]) -> Any:
        # Threads other than the first have no current context.
        self._context.push()
        try:
            return function()
        except self._cuda.Error as error:
            raise InferenceFailed(f"CUDA could not {what} ({error})") from error
        finally:
            self._context.pop()

    def allocate(self, size: int) -> int:
        memory = self._call(f"allocate {size} bytes", lambda: self._cuda.mem_alloc(size))
        self._memory[int(memory)] = memory
        return int(memory)

    def free(self, address: int) -> None:
        self._call("free memory", self._memory.pop(address).free)

    def make_stream(self) -> int:
        stream = self._call("make a stream", self._cuda.Stream)
        self._streams[int(stream.handle)] = stream
        return int(stream.handle)

    def destroy_stream(self, stream: int) -> None:
        self._call("destroy a stream", lambda: self._streams.pop(stream, None))

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        on = self._streams[stream]
        self._call("copy to the GPU", lambda: self._cuda.memcpy_htod_async(address, array, on))

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        on = self._streams[stream]
        self._call("copy from the GPU", lambda: self._cuda.memcpy_dtoh_async(array, address, on))

    def wait(self, stream: int) -> None:
        self._call("finish the work", self._streams[stream].synchronize)

    def memory(self) -> tuple[int, int]:
        free, total = self._call("tell its memory", self._cuda.mem_get_info)
        return int(free), int(total)


def _runtime_libraries() -> list[str]:
    """Return where libcudart may be: the loader's own places, then what pip's CUDA packages bring."""
    found = ctypes.util.find_library("cudart")
    packaged = (
        str(path)
        for folder in sys.path
        for path in sorted(Path(folder or ".").glob("nvidia/*/lib/libcudart.so.*"), reverse=True)
    )
    return [*_RUNTIME_NAMES, *([found] if found else []), *packaged]


def _first_library(names: Sequence[str]) -> tuple[ctypes.CDLL, str]:
    for name in names:
        try:
            return ctypes.CDLL(name), f"{Path(name).name} through ctypes"
        except OSError:
            continue
    raise OSError("libcudart is not on this machine")
