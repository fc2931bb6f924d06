"""The tests' model and pictures: tiny.onnx with any spec, as file or bundle, and images it has known answers for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mammo_runtime.hashing import file_sha256
from mammo_runtime.spec import METADATA_KEY, InputMode, InputSpec, ModelSpec

TINY = Path(__file__).parent / "runtime" / "tiny.onnx"
ROOT = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT / "runtime"), "OMP_NUM_THREADS": "1"}


def tiny_spec(mode: InputMode = InputMode.FULL, **changes: Any) -> ModelSpec:
    """Return a spec for tiny.onnx on a 64 x 64 grid without cleaning; `changes` are fields of ModelSpec."""
    plain = ModelSpec("tiny", "blur", input=InputSpec(mode=mode, height=64, width=64))
    return replace(plain, **changes)


def varint(value: int) -> bytes:
    """Return a protobuf variable-length integer."""
    low, rest = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def field(number: int, content: bytes) -> bytes:
    """Return a length-delimited protobuf field."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def with_metadata(model: bytes, metadata: Mapping[str, str]) -> bytes:
    """Append metadata to a serialised ONNX model: concatenated protobuf messages merge (metadata_props is field 14)."""
    entries = (field(1, key.encode()) + field(2, value.encode()) for key, value in metadata.items())
    return model + b"".join(field(14, entry) for entry in entries)


def write_model(path: Path, spec: ModelSpec) -> Path:
    """Write tiny.onnx with a spec in its metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(with_metadata(TINY.read_bytes(), {METADATA_KEY: spec.to_json()}))
    return path


def write_bundle(folder: Path, spec: ModelSpec, /, name: str = "model.fp32.onnx", **manifest: Any) -> Path:
    """Write a valid bundle; `manifest` replaces entries of bundle.json."""
    model = write_model(folder / name, spec)
    content = {
        "schema_version": 1,
        "spec": spec.to_dict(),
        "files": {name: {"sha256": file_sha256(model)}},
        "precisions": {"fp32": {"file": name}},
    }
    (folder / "bundle.json").write_text(json.dumps(content | manifest), encoding="utf-8")
    return folder


def picture(discs: Sequence[tuple[int, int, int]] = ((60, 40, 12),), rows: int = 120, columns: int = 100) -> np.ndarray:
    """Return a uint8 picture: a grey breast at the left with bright discs (row, column, radius), else black."""
    pixels = np.zeros((rows, columns), np.uint8)
    cv2.ellipse(pixels, (0, rows // 2), (columns * 3 // 4, rows * 2 // 5), 0, 0, 360, 70, -1)
    for row, column, radius in discs:
        cv2.circle(pixels, (column, row), radius, 220, -1)
    return pixels


def save(path: Path, pixels: np.ndarray | None = None) -> Path:
    """Write a picture (default: the plain one) in the format of the path's suffix; any file name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower() or ".png", picture() if pixels is None else pixels)[1].tobytes())
    return path


def command(*arguments: object) -> list[str | bytes]:
    """Return the command line of `mammo-infer`."""
    return [
        sys.executable,
        "-m",
        "mammo_runtime.cli",
        *(os.fspath(a) if isinstance(a, os.PathLike) else str(a) for a in arguments),
    ]


def infer(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run `mammo-infer` as its own process; it must never show a traceback."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=ENVIRONMENT, timeout=120, **options)
    assert "Traceback" not in done.stderr, done.stderr
    return done


def records(output: Path) -> list[dict[str, Any]]:
    """Return the lines of results.jsonl."""
    return [json.loads(line) for line in (output / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def files_below(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder with its content."""
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
