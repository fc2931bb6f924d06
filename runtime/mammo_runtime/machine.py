"""What a run ran on: recorded with every result."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "mammo-edge", "numpy", "opencv-python-headless", "onnxruntime", "onnxruntime-gpu", "pydicom", "python-gdcm",
    "pyjpegls", "pylibjpeg-openjpeg",
)  # fmt: skip


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
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "packages": versions,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
