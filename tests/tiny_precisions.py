"""Bundles of the tiny model with a graph for each precision; all compute the same, only their labels differ."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mammo_runtime.hashing import file_sha256
from mammo_runtime.manifest import KEYS
from mammo_runtime.spec import ModelSpec
from tiny_model import tiny_spec, write_model

HERE = "avx2"
"""The processor that the measurements of `timed` are of."""


def timed(
    ratio: float, than: str = "fp32", passed: bool = True, on: str = HERE, backend: str = "cpu"
) -> dict[str, Any]:
    """Return a measurement of speed as bundle.json holds it."""
    return {"backend": backend, "than": than, "ratio": ratio, "passed": passed, "machine": {"instruction_set": on}}


def passed(*speed: Mapping[str, Any], **entry: Any) -> dict[str, Any]:
    """Return an entry that passed every gate."""
    return {"verdict": "passed", "speed": list(speed), **entry}


def write_precisions(folder: Path, entries: Mapping[str, Mapping[str, Any]], /, **manifest: Any) -> Path:
    """Write a bundle with an FP32 graph and one for each key of `entries`; `manifest` replaces parts of bundle.json."""
    spec = tiny_spec()
    origin = write_model(folder / "model.fp32.onnx", spec)
    files, precisions = {origin.name: {"sha256": file_sha256(origin)}}, {"fp32": {"file": origin.name, **passed()}}
    for key, entry in entries.items():
        # A key this runtime does not know is there to be refused.
        own = spec_of(key, spec, origin) if key in KEYS else spec
        path = write_model(folder / f"model.{key}.onnx", own)
        files[path.name] = {"sha256": file_sha256(path)}
        precisions[key] = {"file": path.name, **precisions.get(key, {}), **entry}
    content = {"schema_version": 1, "spec": spec.to_dict(), "files": files, "precisions": precisions}
    (folder / "bundle.json").write_text(json.dumps(content | manifest), encoding="utf-8")
    return folder


def spec_of(key: str, spec: ModelSpec, origin: Path) -> ModelSpec:
    """Return the spec that a key's graph carries."""
    return spec if key == "fp32" else replace(spec, precision=KEYS[key], parent_sha256=file_sha256(origin))


def relabelled(folder: Path, key: str, **changes: Any) -> Path:
    """Write a key's graph again with another spec, vouched for by the manifest."""
    path = folder / f"model.{key}.onnx"
    write_model(path, replace(spec_of(key, tiny_spec(), folder / "model.fp32.onnx"), **changes))
    content = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    content["files"][path.name] = {"sha256": file_sha256(path)}
    (folder / "bundle.json").write_text(json.dumps(content), encoding="utf-8")
    return folder
