"""TensorRT as a module that is handed round: loading it by name, its log, and the version a plan was built with.

`tensorrt` 10.3 to 11.x and `tensorrt_rtx` build and run, `tensorrt_lean` only runs; what is used here exists in all of
them (shared facts; checked by the tests against the real bindings). Versions differ in what flags exist, never here.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mammo_runtime.errors import ModelRefused

LEAST_MAJOR = 10
"""TensorRT 8 and 9 have another API."""
LEAST_MINOR = 3
"""Of major version 10: what JetPack 6 brings."""
_TAGS = {b"ftrt": "TensorRT", b"vtrt": "TensorRT-RTX"}
"""First bytes of a plan."""
_VERSION_AT = 24
"""Four bytes: major, minor, patch, build (NVIDIA's trtexec --getPlanVersionOnly reads the same)."""


@dataclass(frozen=True)
class Library:
    """What is known of a module before it is there."""

    builds: bool
    needs_gpu: bool
    """To build: TensorRT measures its kernels on the GPU, TensorRT-RTX compiles ahead of time."""
    install: str
    """What to do where it is missing."""


LIBRARIES: Mapping[str, Library] = {
    "tensorrt": Library(
        True,
        True,
        "On a Jetson it comes with JetPack (apt install python3-libnvinfer, and a venv with --system-site-packages); "
        "elsewhere: pip install mammo-edge[tensorrt]",
    ),
    "tensorrt_rtx": Library(True, False, "pip install mammo-edge[tensorrt-rtx]"),
    "tensorrt_lean": Library(False, True, "pip install tensorrt-lean-cu13"),
}
"""Module → what is known of it."""


def load_library(name: str) -> Any:
    """Return the module. Raises ModelRefused with what to do where it is missing, broken or too old."""
    known = LIBRARIES.get(name)
    if known is None:
        raise ModelRefused(f"unknown library {name!r} for engines; this runtime knows {', '.join(LIBRARIES)}")
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: one of its own libraries cannot be loaded
        reason = " ".join(str(error).split())[:200]
        raise ModelRefused(f"{name} cannot be imported here ({reason}). {known.install}") from error
    version = str(module.__version__)
    if name != "tensorrt_rtx" and _numbers(version)[:2] < (LEAST_MAJOR, LEAST_MINOR):
        raise ModelRefused(f"{name} {version} is too old: {LEAST_MAJOR}.{LEAST_MINOR} or later is needed, which "
                           "JetPack 6.1 and later bring")  # fmt: skip
    return module


def described(trt: Any) -> str:
    """Return module and version, e.g. "tensorrt 10.3.0"."""
    return f"{name_of(trt)} {trt.__version__}"


def name_of(trt: Any) -> str:
    """Return a module's key in `LIBRARIES`: its name without the "_bindings" of the package behind it."""
    return str(trt.__name__).split(".")[0].removesuffix("_bindings")


def make_log(trt: Any) -> Any:
    """Return a logger for the module; `.errors` and `.warnings` collect its lines, the chattier ones are dropped."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.warnings: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            kept = {"INTERNAL_ERROR": self.errors, "ERROR": self.errors, "WARNING": self.warnings}.get(severity.name)
            if kept is not None:
                kept.append(" ".join(str(message).split()))

        def said(self) -> str:
            return "; ".join(dict.fromkeys(self.errors))[:600] or "it gave no reason"

    return Log()


def plan_version(plan: bytes) -> tuple[str, str]:
    """Return who built a plan and with which version, e.g. ("TensorRT", "10.3.0.30"), from its header.

    Raises ModelRefused for what is no plan.
    """
    tag = _TAGS.get(bytes(plan[:4]))
    if tag is None or len(plan) < _VERSION_AT + 4:
        raise ModelRefused(
            "the file is no TensorRT engine (its first bytes are not a plan's). Give the .engine file that "
            "mammo-export engine wrote, or build it again"
        )
    return tag, ".".join(str(byte) for byte in plan[_VERSION_AT : _VERSION_AT + 4])


def family_of(name: str) -> str:
    """Return the name under which `plan_version` knows a module's plans."""
    return "TensorRT-RTX" if name == "tensorrt_rtx" else "TensorRT"


def same_version(plan: str, module: str) -> bool:
    """Tell whether a plan's version is the module's, as far as both tell: TensorRT's modules leave out the build."""
    return all(a == b for a, b in zip(_numbers(plan)[:3], _numbers(module)[:3]))


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())
