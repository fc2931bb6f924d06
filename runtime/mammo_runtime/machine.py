"""What a run ran on: recorded with every result."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "mammo-edge", "numpy", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "pydicom", "python-gdcm",
    "pyjpegls", "pylibjpeg-openjpeg",
)  # fmt: skip
CPUINFO = Path("/proc/cpuinfo")
UNKNOWN = "unknown"
INSTRUCTION_SETS: Mapping[str, frozenset[str]] = {
    "amx_int8": frozenset({"amx_tile", "amx_int8", "avx512_vnni"}),
    "avx512_vnni": frozenset({"avx512_vnni", "avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "avx_vnni_int8": frozenset({"avx_vnni_int8", "avx2"}),
    "avx_vnni": frozenset({"avx_vnni", "avx2"}),
    "avx512": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "avx2": frozenset({"avx2", "fma"}),
    "avx": frozenset({"avx"}),
    "sse2": frozenset({"sse2"}),
    "neon_i8mm": frozenset({"asimd", "i8mm"}),
    "neon_dotprod": frozenset({"asimd", "asimddp"}),
    "neon": frozenset({"asimd"}),
}
"""Name → the kernel's flags that it needs; the first that fits counts, best first.

These are the steps at which ONNX Runtime's matrix kernels (MLAS) change, and with them how fast INT8 is against FP32:
8-bit products summed in 32 bits by one instruction (amx, vnni, i8mm, dotprod) or by several.
"""


def machine_record() -> dict[str, object]:
    """Return operating system, processor, cores, Python and the versions of the packages that touch pixels."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        # Not platform.platform(): it starts a process to ask for the processor.
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "processor": _processor(),
        "instruction_set": instruction_set(),
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": versions,
    }


def instruction_set() -> str:
    """Return what this processor calculates with, a key of `INSTRUCTION_SETS`.

    `UNKNOWN` where the kernel does not tell (Windows, macOS).
    """
    return instruction_set_in(_cpuinfo())


def instruction_set_in(cpuinfo: str) -> str:
    """Return the instruction set named by the text of /proc/cpuinfo; of unlike cores, what all of them have."""
    common: frozenset[str] | None = None
    for line in cpuinfo.splitlines():
        name, _, values = line.partition(":")
        # "flags" on x86, "Features" on ARM.
        if name.strip() in ("flags", "Features"):
            flags = frozenset(values.split())
            common = flags if common is None else common & flags
    return next((name for name, needed in INSTRUCTION_SETS.items() if needed <= (common or frozenset())), UNKNOWN)


def _cpuinfo() -> str:
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _processor() -> str:
    for line in _cpuinfo().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
