"""A bundle as a model repository for NVIDIA Triton: one server, many clients. Written without protobuf.

Layout (Triton's own, docs "Model Repository"): REPOSITORY/MODEL/config.pbtxt, REPOSITORY/MODEL/VERSION/model.onnx or
model.plan. Every graph of the bundle is a model of its own, a prompted model two.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mammo_export.triton_text import Word, check_config, config_text
from mammo_runtime.atomic import write_text
from mammo_runtime.backends.engine_files import EngineRecord, Tensor, read_engine
from mammo_runtime.bundle import Bundle, read_bundle, vouched_for
from mammo_runtime.errors import ModelRefused, OutputError, UsageError
from mammo_runtime.spec import METADATA_KEY, Task
from mammo_runtime.tasks import MAX_BATCH

CONFIG, LABELS = "config.pbtxt", "labels.txt"
ONNX, TENSORRT = "onnxruntime_onnx", "tensorrt_plan"
FILES: Mapping[str, str] = {ONNX: "model.onnx", TENSORRT: "model.plan"}
"""Platform → the file name that Triton looks for."""
TYPES: Mapping[str, str] = {"tensor(float)": "TYPE_FP32", "tensor(uint8)": "TYPE_UINT8", "FLOAT": "TYPE_FP32",
                            "UINT8": "TYPE_UINT8"}  # fmt: skip
FOR_ENGINES = "int8"
"""Key whose ONNX file no server may run: ONNX Runtime computes it wrongly on a CPU, to which it falls back unsaid."""
FOR_CPUS = "int8-cpu"
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
PROBABILITY = "probability"


@dataclass(frozen=True)
class Wish:
    """What a user asked for."""

    version: int = 1
    max_batch: int = MAX_BATCH
    """Inputs that one call may hold, where the graph takes any number."""
    queue_delay_us: int = 2000
    """How long a request waits for others to be computed with, in microseconds."""
    name: str = ""
    """In place of the bundle's, in the names of the models."""


@dataclass(frozen=True)
class Served:
    """One model of the repository."""

    name: str
    key: str
    platform: str
    source: Path
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    max_batch: int
    """0: the sides in the configuration are all of them, the first included."""
    part: str = ""
    """Of a prompted model: "encoder" or "decoder"."""
    sha256: str = ""
    labels: tuple[str, ...] = field(default=())


def write_repository(folder: Path, target: Path, plans: Sequence[Path] = (), wish: Wish = Wish()) -> dict[str, Any]:
    """Write the models of a bundle, and of engines built from it, into a model repository.

    Returns {"models": names, "left_out": key → why, "readme": path, "validated": whether tritonclient's protobuf read
    every configuration}. A model that is there already gets another version; nothing is ever overwritten.

    Raises ModelRefused (a changed file, an engine of another bundle), UsageError (a version that is there, another
    shape than the versions before, an engine that Triton cannot run), OutputError.
    """
    bundle = read_bundle(folder)
    name = wish.name or bundle.spec.name
    if not SAFE_NAME.fullmatch(name):
        raise UsageError(f"{name!r} is no name for a model of Triton: give letters, digits, . _ - with --name")
    models, left_out = _models(bundle, name, wish)
    models += [_engine(bundle, name, plan) for plan in plans]
    if any(one.key == FOR_ENGINES for one in models):
        left_out.pop(FOR_ENGINES, None)
    texts = {one.name: config_text(_config(bundle, one, wish)) for one in models}
    validated = [check_config(text, model) for model, text in texts.items()]
    for one in models:
        _check_place(target, one, texts[one.name], wish.version)
    try:
        for one in models:
            _write(target, one, texts[one.name], wish.version)
    except OSError as error:
        raise OutputError(f"cannot write the repository {target}: {error.strerror or error}") from error
    readme = target / f"README-{name}.md"
    from mammo_export.triton_readme import readme_text

    write_text(readme, readme_text(bundle, models, left_out, wish.version))
    return {
        "models": [one.name for one in models],
        "left_out": left_out,
        "readme": str(readme),
        "validated": all(validated),
    }


def _models(bundle: Bundle, name: str, wish: Wish) -> tuple[list[Served], dict[str, str]]:
    """Return what ONNX Runtime can serve, and why the rest is left out."""
    found: list[Served] = []
    left_out = {}
    for key, entry in bundle.precisions.items():
        if key == FOR_ENGINES:
            left_out[key] = (
                "only TensorRT computes this graph rightly: build it (mammo-export engine BUNDLE --precision int8) and "
                "give the engine with --plan"
            )
            continue
        model = bundle.model_path(key)
        prompted = bundle.spec.task is Task.PROMPTED
        found.append(_onnx(bundle, f"{name}-{key}", key, model, "encoder" if prompted else "", wish))
        if entry.get("prompt_decoder"):
            found.append(_onnx(bundle, f"{name}-{key}", key, bundle.folder / entry["prompt_decoder"], "decoder", wish))
    return found, left_out


def _onnx(bundle: Bundle, name: str, key: str, path: Path, part: str, wish: Wish) -> Served:
    """Return a graph as a model; its tensors are read from the file."""
    digest = vouched_for(bundle, path)
    inputs, outputs = _tensors(path)
    dynamic = all(one.shape[0] < 0 for one in (*inputs, *outputs))
    full = f"{name}-{part}" if part else name
    return Served(
        full, key, ONNX, path, inputs, outputs, wish.max_batch if dynamic else 0, part, digest, _labels(bundle)
    )


def _tensors(path: Path) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # The shapes are wanted, not an optimised graph.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])

    def read(values: Any) -> tuple[Tensor, ...]:
        sides = [tuple(side if isinstance(side, int) else -1 for side in one.shape) for one in values]
        return tuple(Tensor(one.name, one.type, shape) for one, shape in zip(values, sides))

    return read(session.get_inputs()), read(session.get_outputs())


def _engine(bundle: Bundle, name: str, plan: Path) -> Served:
    """Return an engine as a model. Raises as `write_repository` does."""
    _, record = read_engine(plan)
    _check_engine(bundle, plan, record)
    decoders = {entry.get("prompt_decoder") for entry in bundle.precisions.values()}
    part = "" if bundle.spec.task is not Task.PROMPTED else "decoder" if record.onnx["file"] in decoders else "encoder"
    dynamic = all(one.shape[0] < 0 for one in (*record.inputs, *record.outputs))
    most = min((one.most[0] for one in record.inputs if one.most), default=1) if dynamic else 0
    full = "-".join(filter(None, (name, record.key, "tensorrt", part)))
    sha256 = record.plan_sha256
    return Served(full, record.key, TENSORRT, plan, record.inputs, record.outputs, most, part, sha256, _labels(bundle))


def _check_engine(bundle: Bundle, plan: Path, record: EngineRecord) -> None:
    if record.module != "tensorrt":
        raise UsageError(
            f"{plan.name} was built with {record.module}, which Triton does not run: build it with tensorrt"
        )
    if bundle.files.get(record.onnx["file"]) != record.onnx["sha256"]:
        raise ModelRefused(
            f"{plan.name} was built from another {record.onnx['file']} than this bundle's. Build it again: "
            f"mammo-export engine {bundle.folder} --precision {record.precision}"
        )


def _labels(bundle: Bundle) -> tuple[str, ...]:
    return bundle.spec.classes if bundle.spec.task is Task.CLASSIFICATION else ()


def _config(bundle: Bundle, one: Served, wish: Wish) -> dict[str, Any]:
    """Return the fields of a ModelConfig in their order; what differs between versions comes last."""
    config: dict[str, Any] = {
        "name": one.name,
        "platform": one.platform,
        "max_batch_size": one.max_batch,
        "input": [_io(tensor, one) for tensor in one.inputs],
        "output": [_io(tensor, one) | _label_file(tensor, one) for tensor in one.outputs],
        "version_policy": {"latest": {"num_versions": 1}},
    }
    if one.max_batch > 0:
        config["dynamic_batching"] = {"max_queue_delay_microseconds": wish.queue_delay_us}
    if one.platform == TENSORRT or one.key == FOR_CPUS:
        config["instance_group"] = [{"kind": Word("KIND_GPU" if one.platform == TENSORRT else "KIND_CPU"), "count": 1}]
    told = {
        METADATA_KEY: bundle.spec_of(one.key).to_json(),
        "mammo_edge_key": one.key,
        "mammo_edge_sha256": one.sha256,
        "mammo_edge_verdict": str(bundle.precisions[one.key].get("verdict", "")),
    }
    config["parameters"] = [{"key": name, "value": {"string_value": text}} for name, text in told.items()]
    return config


def _label_file(tensor: Tensor, one: Served) -> dict[str, Any]:
    return {"label_filename": LABELS} if one.labels and tensor.name == PROBABILITY else {}


def _io(tensor: Tensor, one: Served) -> dict[str, Any]:
    sides = tensor.shape[1:] if one.max_batch > 0 else tensor.shape
    return {"name": tensor.name, "data_type": Word(TYPES[tensor.element]), "dims": list(sides)}


def _check_place(target: Path, one: Served, text: str, version: int) -> None:
    """Refuse to replace anything, or to put a version beside others that clients would have to talk to otherwise."""
    place = target / one.name
    if not place.exists():
        return
    if (place / str(version)).exists():
        raise UsageError(f"{place} has a version {version} already; give the new one a higher --version")
    try:
        before = (place / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"{place} is no model of a repository: cannot read {CONFIG}; give another folder to -o"
        ) from error
    if _lasting(before) != _lasting(text):
        raise UsageError(f"{place} holds a model of other inputs or outputs; give this one another name with --name")


def _lasting(text: str) -> str:
    """Return the part of a configuration that all versions of a model share."""
    return text.split("version_policy", 1)[0]


def _write(target: Path, one: Served, text: str, version: int) -> None:
    """Put one version in its place, whole or not at all; staged beside the repository, which a server may watch."""
    stage = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    place = target / one.name
    try:
        target.mkdir(parents=True, exist_ok=True)
        (stage / str(version)).mkdir(parents=True)
        shutil.copyfile(one.source, stage / str(version) / FILES[one.platform])
        if place.exists():
            (stage / str(version)).rename(place / str(version))
            write_text(place / CONFIG, text)
            return
        (stage / CONFIG).write_text(text, encoding="utf-8")
        if one.labels:
            (stage / LABELS).write_text("".join(f"{label}\n" for label in one.labels), encoding="utf-8")
        stage.rename(place)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
