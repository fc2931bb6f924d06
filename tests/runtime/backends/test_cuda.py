from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from mammo_runtime.backends import cuda
from mammo_runtime.backends.cuda import Driver, find_device, open_driver, require_device
from mammo_runtime.backends.cuda_drivers import BindingsDriver, CtypesDriver, PycudaDriver
from mammo_runtime.errors import InferenceFailed, ModelRefused

FAKE_RUNTIME = """
#include <stdlib.h>
#include <string.h>
int cudaSetDevice(int d){return 0;}
int cudaMalloc(void**p,size_t n){if(n>1000000)return 2;*p=malloc(n);return 0;}
int cudaFree(void*p){free(p);return 0;}
int cudaStreamCreate(void**s){*s=malloc(1);return 0;}
int cudaStreamDestroy(void*s){free(s);return 0;}
int cudaStreamSynchronize(void*s){return s?0:400;}
int cudaMemcpyAsync(void*t,const void*f,size_t n,int kind,void*s){if(kind!=1&&kind!=2)return 21;memcpy(t,f,n);return 0;}
int cudaMemGetInfo(size_t*f,size_t*t){*f=5;*t=7;return 0;}
"""
FAKE_LIBCUDA = """
#include <string.h>
int cuInit(int f){return 0;} int cuDeviceGetCount(int*n){*n=COUNT;return 0;}
int cuDeviceGet(int*d,int k){*d=k;return 0;}
int cuDeviceGetName(char*n,int size,int d){strcpy(n,"Orin");return 0;}
int cuDeviceTotalMem_v2(size_t*m,int d){*m=8000;return 0;} int cuDriverGetVersion(int*v){*v=12060;return 0;}
int cuDeviceGetAttribute(int*v,int a,int d){*v=a==75?8:a==76?7:a==18;return 0;}
"""


def compiled(folder: Path, name: str, source: str, *options: str) -> str:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None or sys.platform == "win32":
        pytest.skip("no C compiler here to build the fake library with")
    path = folder / name
    (folder / "source.c").write_text(source)
    subprocess.run([compiler, "-shared", "-fPIC", *options, "-o", path, folder / "source.c"], check=True)
    return str(path)


class FakeBindings(ModuleType):
    """`cuda.bindings.runtime` over numpy's memory: every call returns (error, values…)."""

    def __init__(self) -> None:
        super().__init__("cuda.bindings.runtime")
        self.blocks: dict[int, np.ndarray] = {}
        self.cudaMemcpyKind = type("Kind", (), {"cudaMemcpyHostToDevice": 1, "cudaMemcpyDeviceToHost": 2})
        self.cudaSetDevice = lambda device: (0,)
        self.cudaStreamCreate = lambda: (0, 5)
        self.cudaStreamDestroy = self.cudaStreamSynchronize = lambda stream: (0 if stream == 5 else 400,)
        self.cudaMemGetInfo = lambda: (0, 5, 7)
        self.cudaFree = lambda address: (0 if self.blocks.pop(address, None) is not None else 1,)

    def cudaMalloc(self, size: int) -> tuple[int, int]:
        if size > 1_000_000:
            return 2, 0
        block = np.zeros(size, np.uint8)
        self.blocks[block.ctypes.data] = block
        return 0, block.ctypes.data

    def cudaMemcpyAsync(self, target: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:
        import ctypes

        ctypes.memmove(target, source, size)
        return (0,)


class FakePycuda(ModuleType):
    """`pycuda.driver`, which refuses every call without a current context, as in another thread."""

    class Error(Exception):
        pass

    def __init__(self) -> None:
        super().__init__("pycuda.driver")
        self.current, self.blocks = 0, FakeBindings()

    def init(self) -> None: ...

    def Device(self, number: int) -> FakePycuda:
        return self

    def retain_primary_context(self) -> FakePycuda:
        return self

    def push(self) -> None:
        self.current += 1

    def pop(self) -> None:
        self.current -= 1

    def _need(self) -> None:
        if not self.current:
            raise self.Error("invalid device context")

    def mem_alloc(self, size: int) -> Any:
        self._need()
        error, address = self.blocks.cudaMalloc(size)
        if error:
            raise self.Error("out of memory")
        made = type("Allocation", (), {"__int__": lambda s: address, "free": lambda s: self.blocks.cudaFree(address)})
        return made()

    def Stream(self) -> Any:
        self._need()
        return type("Stream", (), {"handle": 5, "synchronize": lambda s: self._need()})()

    def memcpy_htod_async(self, address: int, array: np.ndarray, stream: Any) -> None:
        self._need()
        self.blocks.cudaMemcpyAsync(address, array.ctypes.data, array.nbytes, 1, 5)

    def memcpy_dtoh_async(self, array: np.ndarray, address: int, stream: Any) -> None:
        self._need()
        self.blocks.cudaMemcpyAsync(array.ctypes.data, address, array.nbytes, 2, 5)

    def mem_get_info(self) -> tuple[int, int]:
        return 5, 7


def with_bindings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Driver:
    package, module = ModuleType("cuda.bindings"), FakeBindings()
    package.__version__ = "13.0.0"  # type: ignore[attr-defined]
    for name, one in {"cuda": ModuleType("cuda"), "cuda.bindings": package, "cuda.bindings.runtime": module}.items():
        monkeypatch.setitem(sys.modules, name, one)
    return BindingsDriver()


def with_ctypes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Driver:
    return CtypesDriver(["libnothing.so", compiled(tmp_path, "libcudart.so.12", FAKE_RUNTIME)])


def with_pycuda(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Driver:
    package = ModuleType("pycuda")
    package.VERSION = (2026, 1)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pycuda", package)
    monkeypatch.setitem(sys.modules, "pycuda.driver", FakePycuda())
    return PycudaDriver()


MAKERS = {"cuda-bindings": with_bindings, "libcudart": with_ctypes, "pycuda": with_pycuda}


@pytest.mark.parametrize("name", MAKERS)
def test_every_driver_keeps_the_same_contract(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    make: Callable[..., Driver] = MAKERS[name]
    driver = make(monkeypatch, tmp_path)
    assert driver.name.startswith(name)
    assert driver.memory() == (5, 7)
    sent = np.arange(100, dtype=np.float32)
    stream, address = driver.make_stream(), driver.allocate(sent.nbytes)
    driver.to_device(address, sent, stream)
    received = np.zeros_like(sent)
    driver.to_host(received, address, stream)
    driver.wait(stream)
    assert np.array_equal(received, sent)
    with pytest.raises(InferenceFailed, match="allocate 2000000 bytes"):
        driver.allocate(2_000_000)
    driver.free(address)
    driver.destroy_stream(stream)


def test_a_gpu_is_found_through_the_drivers_library(tmp_path: Path) -> None:
    device = find_device(compiled(tmp_path, "libcuda.so.1", FAKE_LIBCUDA, "-DCOUNT=1"))
    assert device == cuda.Device("Orin", (8, 7), 8000, True, 12060)
    assert device.architecture == "sm_87"


def test_no_gpu_is_no_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_device(str(tmp_path / "libcuda.so.1")) is None
    assert find_device(compiled(tmp_path, "libcuda_empty.so", FAKE_LIBCUDA, "-DCOUNT=0")) is None
    monkeypatch.setattr(cuda, "find_device", lambda: None)
    with pytest.raises(ModelRefused, match="no usable NVIDIA GPU"):
        require_device()


def test_without_any_library_every_one_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mammo_runtime.backends.cuda_drivers._runtime_libraries", lambda: ["libnothing.so"])
    for name in ("cuda.bindings.runtime", "pycuda.driver"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelRefused, match=r"cuda-bindings: .*ctypes: .*pycuda: .*pip install cuda-bindings"):
        open_driver()


def test_the_first_that_loads_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with_bindings(monkeypatch, tmp_path)
    assert open_driver().name == "cuda-bindings 13.0.0"
