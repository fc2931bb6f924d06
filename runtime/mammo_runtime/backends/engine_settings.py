"""How an engine is built: what is asked for, what it costs, which shapes it takes, what it was built for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mammo_runtime.backends.cuda import Device
from mammo_runtime.backends.trt_library import LIBRARIES
from mammo_runtime.errors import ModelRefused, UsageError
from mammo_runtime.spec import ModelSpec
from mammo_runtime.tasks import MAX_BATCH, MAX_PROMPTS

MEGABYTE = 1 << 20
BOXES = "boxes"
"""Name of the decoder's input whose second side is the number of boxes (`mammo_export.activation`)."""
MEMINFO = Path("/proc/meminfo")
HOST_NEED_MB: Mapping[str, int] = {"tensorrt": 1000, "tensorrt_rtx": 300}
"""Host memory that a build takes beside the weights. TensorRT-RTX: 190 MB measured for the bundled models (27 MB), on a
CPU; TensorRT: libraries and CUDA context, an estimate that lies rather low, so that nobody is turned away who could."""
COPIES_OF_WEIGHTS = 4
"""The file, the parsed network, the optimiser's copy, the plan."""
FLAG_COSTS: Mapping[str, str] = {
    "VERSION_COMPATIBLE": "runs on later releases of the same major version too; about 100 MB larger, some kernels are "
    "not used, and the plan holds code of its own that is run: load it only from a source you trust",
    "AMPERE_PLUS": "runs on every GPU from Ampere on, but only kernels that all of them have are used: slower",
}
"""What a portable engine costs (NVIDIA's developer guide; not measured here)."""


@dataclass(frozen=True)
class EngineSettings:
    """How to build."""

    workspace_mb: int = 1024
    """Most device memory a kernel may use beside its inputs and outputs."""
    level: int = 3
    """0 builds fastest, 5 searches longest."""
    timing_cache: Path | None = None
    """Measured times of kernels are kept here and used again; of one GPU model and TensorRT version."""
    batch: tuple[int, int, int] = (1, 1, MAX_BATCH)
    """Fewest images at once, the number that kernels are chosen for, most; where the graph leaves it open."""
    version_compatible: bool = False
    hardware_compatible: bool = False
    compute_capability: str | None = None
    """E.g. "sm_86": the GPU that TensorRT-RTX builds for; None: the one here, without one Ampere and later."""

    def __post_init__(self) -> None:
        if self.workspace_mb < 1 or not 0 <= self.level <= 5:
            raise UsageError("the workspace must be at least 1 MB, the level from 0 to 5")
        least, best, most = self.batch
        if not 1 <= least <= best <= most <= 1024:
            raise UsageError(f"--batch must be min,opt,max with 1 <= min <= opt <= max <= 1024, got {self.batch}")


def check_settings(library: str, settings: EngineSettings) -> None:
    """Raise UsageError for what a library cannot do, ModelRefused for one that cannot build."""
    if not LIBRARIES[library].builds:
        raise ModelRefused(f"{library} only runs engines; build with tensorrt or tensorrt_rtx")
    rtx = library == "tensorrt_rtx"
    if rtx and settings.version_compatible:
        raise UsageError("TensorRT-RTX builds no version-compatible engines; leave --version-compatible out")
    if rtx and settings.timing_cache is not None:
        raise UsageError("TensorRT-RTX measures no kernels, so it has no timing cache; leave --timing-cache out")
    if settings.compute_capability is not None and not rtx:
        raise UsageError(f"{library} builds for the GPU that is here; only tensorrt_rtx takes --compute-capability")


def check_memory(
    library: str,
    onnx_bytes: int,
    settings: EngineSettings,
    device: Device | None = None,
    free_on_device: int | None = None,
) -> None:
    """Raise UsageError where memory cannot suffice, before the build is killed half-way; what is unknown is no reason.

    A GPU that shares the host's memory (Jetson) takes its workspace from there too.
    """
    shared = device is not None and device.integrated
    need = HOST_NEED_MB.get(library, 0) + COPIES_OF_WEIGHTS * onnx_bytes // MEGABYTE
    need += settings.workspace_mb if shared else 0
    there = _available_mb()
    if there is not None and there < need:
        workspace = f", of which {settings.workspace_mb} MB are workspace (--workspace)" if shared else ""
        raise UsageError(
            f"building takes about {need} MB of memory{workspace}, and {there} MB are free, swap included. Close other "
            "programs, add swap space (a file on disk is enough), or lower --workspace"
        )
    if free_on_device is not None and not shared and free_on_device < settings.workspace_mb * MEGABYTE:
        raise UsageError(
            f"the GPU has {free_on_device // MEGABYTE} MB free, less than the workspace of {settings.workspace_mb} MB. "
            "Close other programs that use it, or lower --workspace"
        )


def _available_mb() -> int | None:
    """Return free memory and swap in MB as Linux estimates it; None elsewhere."""
    try:
        lines = MEMINFO.read_text(encoding="ascii", errors="replace").splitlines()
        values = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines) if rest}
        return (values["MemAvailable"] + values.get("SwapFree", 0)) // 1024
    except (OSError, ValueError, KeyError, IndexError):
        return None


def profile_of(
    name: str, shape: Sequence[int], spec: ModelSpec, settings: EngineSettings
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return an input's smallest, best and largest shape.

    Open sides are the batch (the first), of `BOXES` the number of boxes (the second; the runtime asks for at most
    `MAX_PROMPTS` together), and height and width, for which the spec has one size.
    """
    open_sides: dict[int, tuple[int, int, int]] = {0: settings.batch}
    if name == BOXES:
        open_sides[1] = (1, 1, MAX_PROMPTS)
    elif len(shape) == 4:
        open_sides |= {2: (spec.input.height,) * 3, 3: (spec.input.width,) * 3}
    unknown = [axis for axis, side in enumerate(shape) if side == -1 and axis not in open_sides]
    if unknown:
        raise ModelRefused(
            f"side {unknown[0]} of the input {name} {list(shape)} is open, and nothing says how long it is"
        )
    sides = [open_sides[axis] if side == -1 else (side,) * 3 for axis, side in enumerate(shape)]
    least, best, most = (tuple(int(side[k]) for side in sides) for k in range(3))
    return least, best, most


def flags_of(settings: EngineSettings) -> dict[str, str]:
    """Return the flags that settings ask for, with their cost in words."""
    asked = {"VERSION_COMPATIBLE": settings.version_compatible, "AMPERE_PLUS": settings.hardware_compatible}
    return {name: FLAG_COSTS[name] for name, wanted in asked.items() if wanted}


def built_for(settings: EngineSettings, device: Device | None) -> dict[str, Any]:
    """Return what an engine was built for: the GPU here, or words where there is none."""
    if settings.compute_capability is not None:
        return {"gpu": None, "words": f"built ahead of time for {settings.compute_capability}"}
    if device is None:
        return {"gpu": None, "words": "built without a GPU for Ampere (sm_80) and later"}
    return {
        "gpu": device.name,
        "architecture": device.architecture,
        "memory_bytes": device.memory_bytes,
        "driver_cuda": device.driver,
        "words": f"built on {device.name} ({device.architecture})",
    }
