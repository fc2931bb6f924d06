"""bundle.json: what it says of a bundle, checked before anything relies on it, since it may be damaged or hostile."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path, PureWindowsPath
from typing import Any

from mammo_runtime.errors import ModelRefused
from mammo_runtime.spec import ModelSpec, Precision, Task

MANIFEST = "bundle.json"
BUNDLE_SCHEMA_VERSION = 1
KEYS: Mapping[str, Precision] = {
    "fp32": Precision.FP32,
    "fp16": Precision.FP16,
    "int8": Precision.INT8,
    "int8-cpu": Precision.INT8,
}
"""Name of a graph in a bundle → the precision that its own spec carries.

"int8" is the Q/DQ form that TensorRT takes, "int8-cpu" the one that ONNX Runtime runs fast on a CPU.
"""
ORIGIN = "fp32"
"""Key of the graph that all others are made from and judged by."""
PASSED = "passed"
"""The verdict of a graph that passed every gate, speed included."""
_MAX_RATIO = 1e6
_MAX_WORDS = 300
"""Characters of a sentence that are shown."""


@dataclass(frozen=True)
class Bundle:
    """A read and checked manifest."""

    folder: Path
    spec: ModelSpec
    files: Mapping[str, str]
    """File name → sha256."""
    precisions: Mapping[str, Mapping[str, Any]]
    """Key (`KEYS`) → {"file": name, "verdict": …, measured gates and speed}; of prompted models, "file" is
    the encoder and "prompt_decoder" names the decoder."""
    not_shipped: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Key → {"verdict": …, "why": sentences} of what was made, but missed a gate."""
    acceptance: tuple[str, ...] = ()
    """Files of the check at a site (see `mammo_runtime.acceptance`); none in bundles of before."""

    def model_path(self, key: Precision | str) -> Path:
        """Return the graph of a key. Raises ModelRefused when the bundle does not hold it."""
        name = key.value if isinstance(key, Precision) else key
        if name not in self.precisions:
            raise ModelRefused(
                f"the bundle {self.folder.name} holds no {name} model; it has {', '.join(self.precisions)}"
            )
        return self.folder / str(self.precisions[name]["file"])

    def key_of(self, model: Path) -> str:
        """Return the key of a graph of this bundle. Raises ModelRefused when the manifest lists it under none."""
        for key, entry in self.precisions.items():
            if self.folder / str(entry["file"]) == model:
                return key
        raise ModelRefused(
            f"{self.folder / MANIFEST} does not say which precision {model.name} is. Give the bundle's folder as the "
            "model"
        )

    def spec_of(self, key: str) -> ModelSpec:
        """Return the spec that the graph of a key must carry: the bundle's, with its own precision and parent.

        Raises ModelRefused when the FP32 graph it must have been made from is not in the bundle.
        """
        if key == ORIGIN:
            return self.spec
        parent = self.files.get(str(self.precisions.get(ORIGIN, {}).get("file")))
        if parent is None:
            raise ModelRefused(f"the bundle {self.folder.name} holds no FP32 model, so its {key} model has no parent")
        return replace(self.spec, precision=KEYS[key], parent_sha256=parent)

    def decoder_path(self, model: Path) -> Path | None:
        """Return the decoder that belongs to the encoder `model`; None unless the task is prompted.

        Raises ModelRefused when the manifest names none for it.
        """
        if self.spec.task is not Task.PROMPTED:
            return None
        for entry in self.precisions.values():
            if self.folder / str(entry["file"]) == model and entry.get("prompt_decoder"):
                return self.folder / str(entry["prompt_decoder"])
        raise ModelRefused(
            f"{self.folder / MANIFEST} names no decoder for {model.name}: a prompted model is an encoder with its "
            "decoder. Give the bundle's folder as the model, or get the bundle again from its source"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return what `mammo-infer --list-models --json` prints for this bundle."""
        size = self.spec.input
        return {
            "name": self.spec.name,
            "path": str(self.model_path(Precision.FP32)),
            "precisions": list(dict.fromkeys(KEYS[key].value for key in self.precisions)),
            "files": {key: str(entry["file"]) for key, entry in self.precisions.items()},
            "input": {"mode": size.mode.value, "channels": size.channels, "height": size.height, "width": size.width},
            "task": self.spec.task.value,
            "classes": list(self.spec.classes),
            "modality": self.spec.modality.value,
            "architecture": self.spec.architecture,
            "licence": self.spec.licence,
        }


def read_bundle(folder: Path) -> Bundle:
    """Read a bundle's manifest. Raises ModelRefused when it is missing, broken or names files outside the folder."""
    try:
        values = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        if values["schema_version"] != BUNDLE_SCHEMA_VERSION:
            raise ModelRefused(
                f"{folder / MANIFEST} has schema version {values['schema_version']!r}, "
                f"this runtime reads {BUNDLE_SCHEMA_VERSION}; export the model again"
            )
        files = {str(name): str(entry["sha256"]) for name, entry in values["files"].items()}
        bundle = Bundle(
            folder,
            ModelSpec.from_dict(values["spec"]),
            files,
            _checked_entries(values["precisions"]),
            _checked_reasons(values.get("not_shipped", {})),
            _checked_names(values.get("acceptance", []), files),
        )
        if bundle.spec.precision is not Precision.FP32:
            raise ModelRefused(
                f"{folder / MANIFEST} must carry the spec of the FP32 model, not of {bundle.spec.precision.value}"
            )
        named = [*files, *(str(p["file"]) for p in bundle.precisions.values())]
        named += [str(p["prompt_decoder"]) for p in bundle.precisions.values() if p.get("prompt_decoder")]
    except OSError as error:
        if (folder / "model.safetensors").is_file():
            raise ModelRefused(
                f"{folder} is a training run: export it first, mammo-export {folder} -o BUNDLE"
            ) from error
        raise ModelRefused(f"{folder} is no bundle: cannot read {MANIFEST} ({error.strerror})") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelRefused(f"{folder / MANIFEST} is not valid ({type(error).__name__}: {error})") from error
    for name in named:
        # Windows rules see more ways out than POSIX's (drive letters, both slashes), so they are kept everywhere.
        inside = PureWindowsPath(name)
        if inside.anchor or ".." in inside.parts or not inside.parts:
            raise ModelRefused(f"{folder / MANIFEST} names a file outside the bundle: {name}")
    return bundle


def _checked_entries(values: object) -> dict[str, dict[str, Any]]:
    """Return the entries under "precisions" as they are. Raises ValueError in words: no object, wrong types, labels."""
    entries = _entries(values, "precisions")
    for key, entry in entries.items():
        where = f"the entry {key}"
        _text(entry.get("file"), f"{where} names no file")
        for name in ("prompt_decoder", "verdict"):
            if entry.get(name) is not None:
                _text(entry[name], f"{name} of {where} is no text")
        if entry.get("precision", KEYS[key].value) != KEYS[key].value:
            raise ValueError(f"{where} must be {KEYS[key].value}, not {_shown(entry['precision'])}")
        for name in _texts(entry.get("backends", []), f"backends of {where}"):
            _text(name, f"backends of {where} holds no name")
        _texts(entry.get("why", []), f"why of {where}")
        _speeds(entry.get("speed", []), where)
    return entries


def _checked_reasons(values: object) -> dict[str, dict[str, Any]]:
    """Return the entries under "not_shipped", each with a list of sentences "why". Raises ValueError in words."""
    entries = _entries(values, "not_shipped")
    for key, entry in entries.items():
        _texts(entry.get("why", []), f"why of {key} under not_shipped")
    return entries


def reason_of(entry: Mapping[str, Any]) -> str:
    """Return why a graph was not shipped, or shipped with a reserve, in one line; "" where nothing is said."""
    words = "; ".join(" ".join(str(sentence).split()) for sentence in entry.get("why", []))
    # It goes to terminals and reports: nothing that steers them.
    words = "".join(letter if letter.isprintable() else "?" for letter in words)
    return words if len(words) <= _MAX_WORDS else f"{words[:_MAX_WORDS]}…"


def _checked_names(values: object, files: Mapping[str, str]) -> tuple[str, ...]:
    """Return the files under "acceptance", all of which must be among the hashed `files`. Raises ValueError."""
    names = _texts(values, "acceptance")
    for name in names:
        if name not in files:
            raise ValueError(f"acceptance names {_shown(name)}, which is not among the files")
    return names


def _entries(values: object, what: str) -> dict[str, dict[str, Any]]:
    if not isinstance(values, dict):
        raise ValueError(f"{what} is no JSON object")
    for key, entry in values.items():
        if key not in KEYS:
            raise ValueError(f"{what} names {_shown(key)}; this runtime knows {', '.join(KEYS)}")
        if not isinstance(entry, dict):
            raise ValueError(f"{key} under {what} is no JSON object")
    return values


def _speeds(values: object, where: str) -> None:
    """Check the measurements that the choice of a graph rests on."""
    if not isinstance(values, list) or not all(isinstance(one, dict) for one in values):
        raise ValueError(f"speed of {where} is no list of JSON objects")
    for one in values:
        _text(one.get("backend"), f"a speed of {where} names no backend")
        _text(one.get("than"), f"a speed of {where} does not say than what")
        ratio = one.get("ratio")
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio < _MAX_RATIO:
            raise ValueError(f"a speed of {where} has no positive ratio")
        if not isinstance(one.get("passed"), bool):
            raise ValueError(f"a speed of {where} does not say whether it passed")
        machine = one.get("machine", {})
        if not isinstance(machine, dict):
            raise ValueError(f"the machine of a speed of {where} is no JSON object")
        if machine.get("instruction_set") is not None:
            _text(machine["instruction_set"], f"the instruction set of a speed of {where} is no text")


def _text(value: object, complaint: str) -> None:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise ValueError(complaint)


def _texts(values: object, what: str) -> tuple[str, ...]:
    if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
        raise ValueError(f"{what} is no list of texts")
    return tuple(values)


def _shown(value: object) -> str:
    return repr(value)[:80]
