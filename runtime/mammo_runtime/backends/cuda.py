"""The few CUDA calls that running an engine needs, behind one small interface; and whether there is a GPU at all.

Three libraries can make them: cuda-bindings (7 MB, NVIDIA's own), ctypes on libcudart (nothing to install: JetPack and
every CUDA installation have it), pycuda (needs a compiler to install). All use the device's primary context, so that
they share it with each other and with torch. Nothing of CUDA is loaded before it is asked for.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mammo_runtime.errors import InferenceFailed, ModelRefused

_CUDA_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_MAJOR, _MINOR, _INTEGRATED = 75, 76, 18
"""cuDeviceGetAttribute: the two halves of the compute capability, and whether the GPU uses the host's memory."""
DRIVERS: Mapping[str, str] = {
    "cuda-bindings": "mammo_runtime.backends.cuda_drivers:BindingsDriver",
    "ctypes": "mammo_runtime.backends.cuda_drivers:CtypesDriver",
    "pycuda": "mammo_runtime.backends.cuda_drivers:PycudaDriver",
}
"""Name → "module:class" of a driver, in the order they are tried."""
NO_GPU = (
    "there is no usable NVIDIA GPU: the driver's library cannot be loaded or names no device. Run this on the machine "
    "with the GPU (nvidia-smi or, on a Jetson, tegrastats shows it), or use the cpu backend"
)


@dataclass(frozen=True)
class Device:
    """A GPU."""

    name: str
    capability: tuple[int, int]
    """Compute capability, e.g. (8, 7) for the Orin family."""
    memory_bytes: int
    integrated: bool
    """True: it uses the host's memory (Jetson)."""
    driver: int
    """Version of the driver's CUDA, e.g. 12060."""

    @property
    def architecture(self) -> str:
        """The capability as compilers write it, e.g. "sm_87"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"


class Driver(Protocol):
    """Memory and streams of the first GPU, both as plain numbers. Every call may raise InferenceFailed."""

    @property
    def name(self) -> str:
        """Which library it is, with its version."""

    def allocate(self, size: int) -> int:
        """Return the address of `size` bytes of device memory."""

    def free(self, address: int) -> None:
        """Give memory back."""

    def make_stream(self) -> int:
        """Return a new stream."""

    def destroy_stream(self, stream: int) -> None:
        """Give a stream back."""

    def to_device(self, address: int, array: np.ndarray, stream: int) -> None:
        """Copy a C-contiguous array; it must live until the stream was waited for."""

    def to_host(self, array: np.ndarray, address: int, stream: int) -> None:
        """Fill a C-contiguous array; it is complete when the stream was waited for."""

    def wait(self, stream: int) -> None:
        """Wait until everything on the stream is done."""

    def memory(self) -> tuple[int, int]:
        """Return free and total bytes of device memory."""


def find_device(library: str = _CUDA_LIBRARY) -> Device | None:
    """Return the first GPU, None where there is none; through the driver's library alone, which makes no context.

    TensorRT must not be asked instead: without a GPU, its runtime ends the whole process (measured with 10.16, 11.4).
    """
    try:
        cuda = ctypes.CDLL(library)
    except OSError:
        return None
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)) or count.value < 1:
        return None
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    if cuda.cuDeviceGet(ctypes.byref(device), 0) or cuda.cuDeviceGetName(name, len(name), device):
        return None
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    cuda.cuDriverGetVersion(ctypes.byref(version))

    def attribute(number: int) -> int:
        value = ctypes.c_int()
        cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device)
        return value.value

    shown = name.value.decode(errors="replace")
    capability = (attribute(_MAJOR), attribute(_MINOR))
    return Device(shown, capability, memory.value, bool(attribute(_INTEGRATED)), version.value)


def require_device() -> Device:
    """Return the first GPU. Raises ModelRefused where there is none."""
    device = find_device()
    if device is None:
        raise ModelRefused(NO_GPU)
    return device


def open_driver(name: str | None = None) -> Driver:
    """Return the driver of that name; of None, the first that can be loaded. Raises ModelRefused when none can."""
    reasons = []
    for candidate in DRIVERS if name is None else (name,):
        try:
            module, made = DRIVERS[candidate].split(":")
            driver: Driver = getattr(importlib.import_module(module), made)()
            return driver
        except (ImportError, OSError, AttributeError, RuntimeError, InferenceFailed) as error:
            reasons.append(f"{candidate}: {' '.join(str(error).split())[:150]}")
    raise ModelRefused(
        f"no library for CUDA can be used ({'; '.join(reasons)}). Install one: pip install cuda-bindings in the major "
        "version of the driver's CUDA, or the CUDA runtime (libcudart), which JetPack brings"
    )
