"""An engine on disk: a plan as TensorRT wrote it, byte for byte, and beside it a JSON file that says all about it.

The pair is written plan first. Should that be interrupted, the JSON file names another plan's hash, and the pair is
refused until it is built again: an engine without a proof never runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mammo_runtime.atomic import write_bytes, write_text
from mammo_runtime.errors import ModelRefused

SUFFIX = ".engine"
SCHEMA_VERSION = 1
MAX_PLAN_BYTES = 4_000_000_000
AGAIN = "Build it again: mammo-export engine BUNDLE --precision PRECISION"


@dataclass(frozen=True)
class Tensor:
    """An input or output of an engine."""

    name: str
    element: str
    """"FLOAT" or "UINT8"."""
    shape: tuple[int, ...]
    """-1 for a side that may vary."""
    least: tuple[int, ...] = ()
    """Of inputs: the smallest shape, the one that kernels were chosen for, and the largest."""
    best: tuple[int, ...] = ()
    most: tuple[int, ...] = ()


@dataclass(frozen=True)
class EngineRecord:
    """What the JSON file beside a plan says."""

    plan: str
    """File name."""
    plan_sha256: str
    plan_version: str
    """Who built it and with which version, as the plan's own header says."""
    module: str
    """The Python module that built it and runs it."""
    module_version: str
    precision: str
    key: str
    onnx: Mapping[str, str]
    """"file", "sha256" and "bundle" (its name)."""
    metadata: Mapping[str, str]
    """Of the ONNX file: the spec."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    built_on: Mapping[str, Any]
    """The GPU, or the words "built without a GPU for …"."""
    settings: Mapping[str, Any]
    flags: Mapping[str, str] = field(default_factory=dict)
    """Builder flag → what it costs, in words."""
    proof: Mapping[str, Any] = field(default_factory=dict)
    ladder: Mapping[str, Any] | None = None
    """None: the engine has not run yet."""
    warnings: tuple[str, ...] = ()
    """Of the builder."""
    build_seconds: float = 0.0
    toolkit_version: str = ""
    schema_version: int = SCHEMA_VERSION

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary; `from_dict` is its inverse."""
        return dict(json.loads(json.dumps(asdict(self))))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EngineRecord:
        """Build from `to_dict`'s form. Raises KeyError, TypeError, ValueError."""
        if values["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"schema version {values['schema_version']!r}, this runtime reads {SCHEMA_VERSION}")
        known = dict(values)
        for name in ("inputs", "outputs"):
            known[name] = tuple(_tensor(one) for one in known[name])
        known["warnings"] = tuple(map(str, known["warnings"]))
        record = cls(**known)
        texts = (record.plan, record.plan_sha256, record.plan_version, record.module, record.module_version)
        if not all(isinstance(text, str) for text in texts) or not record.inputs or not record.outputs:
            raise ValueError("a field has the wrong type, or there are no tensors")
        return cls(**{**known, "metadata": {str(k): str(v) for k, v in dict(record.metadata).items()}})


def record_path(plan: Path) -> Path:
    """Return the JSON file's path."""
    return plan.with_name(plan.name + ".json")


def sha256_of(content: bytes) -> str:
    """Return the sha256 of bytes in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def write_engine(folder: Path, plan: bytes, record: EngineRecord) -> Path:
    """Write a plan and its record; both appear whole or not at all. Returns the plan's path. Raises OutputError."""
    path = folder / record.plan
    write_bytes(path, plan)
    write_text(record_path(path), json.dumps(record.to_dict(), indent=1, sort_keys=True) + "\n")
    return path


def read_engine(path: Path) -> tuple[bytes, EngineRecord]:
    """Return a plan and what is said of it. Raises ModelRefused: no such pair, damaged, one of another build."""
    try:
        if path.stat().st_size > MAX_PLAN_BYTES:
            raise ModelRefused(f"{path.name} is larger than {MAX_PLAN_BYTES / 1e9:.0f} GB")
        plan = path.read_bytes()
    except OSError as error:
        raise ModelRefused(f"cannot read the model {path}: {error.strerror}") from error
    beside = record_path(path)
    if not plan or not beside.is_file():
        raise ModelRefused(
            f"{path.name} is no engine of mammo-edge: there is no {beside.name} beside it, which says what it was made "
            f"from. {AGAIN}"
        )
    try:
        record = EngineRecord.from_dict(json.loads(beside.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{beside} is not valid ({type(error).__name__}: {error}). {AGAIN}") from error
    if record.plan_sha256 != sha256_of(plan):
        raise ModelRefused(f"{path.name} is not the engine that {beside.name} speaks of, or it was changed. {AGAIN}")
    return plan, record


def _tensor(values: Mapping[str, Any]) -> Tensor:
    sides = {name: _sides(values[name]) for name in ("shape", "least", "best", "most")}
    if values["element"] not in ("FLOAT", "UINT8"):
        raise ValueError(f"tensors are FLOAT or UINT8, not {values['element']!r}")
    return Tensor(str(values["name"]), str(values["element"]), **sides)


def _sides(values: Sequence[int]) -> tuple[int, ...]:
    if not all(isinstance(side, int) and side >= -1 for side in values):
        raise ValueError("shapes are whole numbers")
    return tuple(values)
