"""From a bundle to proved engines, on a fake GPU: what ships, and all that must not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_tensorrt import GPU, FakeDriver, FakeTensorRT
from fake_trt_parts import Knobs
from mammo_runtime import engines
from mammo_runtime.acceptance_make import Graph, make_acceptance
from mammo_runtime.atomic import PARTIAL_SUFFIX
from mammo_runtime.backends.engine_files import EngineRecord, read_engine
from mammo_runtime.backends.engine_settings import EngineSettings
from mammo_runtime.bundle import load_key, read_bundle
from mammo_runtime.engines import engines_from_bundle
from mammo_runtime.errors import GateMissed, MammoError, ModelRefused, UsageError
from mammo_runtime.hashing import file_sha256
from mammo_runtime.ladder import FAILED, Case
from mammo_runtime.readers import read_image
from mammo_runtime.spec import Precision, Task
from tiny_model import save, tiny_spec
from tiny_precisions import passed, write_precisions
from tiny_tasks import SPECS, write_task_bundle

Machine = Callable[..., Knobs]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Put a fake TensorRT, and unless told otherwise a fake GPU, into this machine."""

    def put_in(gpu: bool = True, **knobs: Any) -> Knobs:
        made = Knobs(**knobs)
        monkeypatch.setattr(engines, "load_library", lambda name: FakeTensorRT(made))
        monkeypatch.setattr(engines, "find_device", lambda: GPU if gpu else None)
        monkeypatch.setattr(engines, "open_driver", FakeDriver)
        return made

    return put_in


def with_acceptance(folder: Path) -> Path:
    """Add the acceptance files of the FP32 graph, as the exporter does; the other graphs answer the same."""
    bundle = read_bundle(folder)
    models = {key: load_key(bundle, key) for key in bundle.precisions if key in ("fp32", "fp16")}
    files = make_acceptance(bundle.spec, {key: Graph(m.session, m.decoder) for key, m in models.items()})
    manifest = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    for name, content in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(content)
        manifest["files"][name] = {"sha256": file_sha256(folder / name)}
    (folder / "bundle.json").write_text(json.dumps({**manifest, "acceptance": sorted(files)}), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    entries = {key: passed(backends=["tensorrt"]) for key in ("fp16", "int8")}
    entries["fp16"]["backends"] = ["cpu", "tensorrt"]
    folder = write_precisions(tmp_path_factory.mktemp("engines") / "b", entries)
    return with_acceptance(folder)


@pytest.fixture
def case(tmp_path: Path) -> Case:
    return Case("a.png", read_image(save(tmp_path / "a.png")))


def made(bundle: Path, target: Path, precision: str = "fp16", **given: Any) -> tuple[list[EngineRecord], list[str]]:
    told: list[str] = []
    paths = engines_from_bundle(bundle, Precision(precision), target, report=told.append, **given)
    return [read_engine(path)[1] for path in paths], told


def nothing_in(target: Path) -> bool:
    return not target.exists() or not [p for p in target.iterdir() if p.name != FAILED]


def test_an_engine_is_built_proved_and_written(bundle: Path, tmp_path: Path, machine: Machine, case: Case) -> None:
    machine(network_type="HALF", engine_type="Half")
    (record,), told = made(bundle, tmp_path / "out", cases=(case,))
    assert record.plan == "model.fp16.tensorrt-10.3.0.sm_87.engine"
    assert record.plan_version == "TensorRT 10.3.0.26"
    assert record.onnx["sha256"] == file_sha256(bundle / "model.fp16.onnx")
    assert record.built_on["words"] == "built on Fake Orin (sm_87)"
    assert (record.proof["basis"], record.proof["shares"]) == ("layer times", {"fp16": 1.0})
    assert record.ladder is not None
    steps = [(step["rung"], step["than"]) for step in record.ladder["climbed"]["steps"]]
    assert steps == [("ONNX Runtime fp16", "ONNX Runtime fp32"), ("engine", "ONNX Runtime fp16"),
                     ("engine", "ONNX Runtime fp32")]  # fmt: skip
    assert "as expected" in record.ladder["stored_answers"]
    assert any(line.endswith("computes in fp16 100% (layer times)") for line in told)
    assert not list((tmp_path / "out").glob(f"*{PARTIAL_SUFFIX}"))


def test_int8_leaves_out_the_rung_that_cannot_be_trusted(
    bundle: Path, tmp_path: Path, machine: Machine, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_stored_answers", lambda *_: None)
    machine(network_type="HALF", engine_type="Half")
    with pytest.raises(GateMissed, match=r"the engine is not int8.*fp16 100%"):
        made(bundle, tmp_path / "out", "int8", cases=(case,))
    monkeypatch.setattr(engines, "require_precision", lambda *_: None)
    monkeypatch.setattr("mammo_runtime.backends.engine.require_precision", lambda *_: None)
    (record,), _ = made(bundle, tmp_path / "out", "int8", cases=(case,))
    assert record.ladder is not None
    assert "wrongly on a CPU" in record.ladder["climbed"]["left_out"]["ONNX Runtime int8"]


def test_a_prompted_model_becomes_two_engines(tmp_path: Path, machine: Machine) -> None:
    machine()
    folder = with_acceptance(write_task_bundle(tmp_path / "b", SPECS[Task.PROMPTED]))
    records, _ = made(folder, tmp_path / "out", "fp32")
    assert [r.onnx["file"] for r in records] == ["model.fp32.onnx", "model.fp32.decoder.onnx"]
    assert [t.most for t in records[1].inputs] == [(1, 3, 16, 16), (1, 8, 4)]


def test_without_a_gpu_tensorrt_rtx_builds_and_says_what_is_missing(
    bundle: Path, tmp_path: Path, machine: Machine
) -> None:
    machine(gpu=False, network_type="HALF")
    (record,), told = made(bundle, tmp_path / "out", library="tensorrt_rtx")
    assert record.ladder is None
    assert record.proof["basis"] == "typed network"
    assert "without a GPU" in record.built_on["words"]
    assert any("answers are not proved" in line for line in told)
    with pytest.raises(ModelRefused, match=r"builds on the GPU.*no usable NVIDIA GPU.*--trt tensorrt_rtx"):
        made(bundle, tmp_path / "out", library="tensorrt")


def test_an_engine_that_says_something_else_is_not_kept(
    bundle: Path, tmp_path: Path, machine: Machine, case: Case
) -> None:
    machine(network_type="HALF", engine_type="Half", answer=np.zeros_like)
    with pytest.raises(GateMissed, match="does not say what its graph said: fp16, phantom"):
        made(bundle, tmp_path / "out", cases=(case,))
    assert nothing_in(tmp_path / "out")


def test_the_first_failing_picture_is_kept(
    bundle: Path, tmp_path: Path, machine: Machine, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engines, "_stored_answers", lambda *_: None)
    machine(network_type="HALF", engine_type="Half", answer=np.zeros_like)
    with pytest.raises(GateMissed, match=f"engine against ONNX Runtime fp16: a.png: .*See {FAILED}"):
        made(bundle, tmp_path / "out", cases=(case,))
    assert (tmp_path / "out" / FAILED).is_file()
    assert nothing_in(tmp_path / "out")


@pytest.mark.parametrize(
    ("knobs", "words"),
    [
        ({"network_type": "FLOAT"}, r"not fp16: of its layers that compute \(typed network\) are fp32 100%"),
        ({"network_type": "HALF", "engine_type": "Float"}, "not fp16: of the time of its layers.*fp32 100%"),
    ],
)
def test_a_precision_that_is_not_delivered_is_no_engine(
    bundle: Path, tmp_path: Path, machine: Machine, knobs: dict[str, str], words: str
) -> None:
    machine(**knobs)
    with pytest.raises(GateMissed, match=words):
        made(bundle, tmp_path / "out")
    assert nothing_in(tmp_path / "out")


def test_a_changed_graph_is_refused_before_it_is_parsed(tmp_path: Path, machine: Machine) -> None:
    folder = write_precisions(tmp_path / "b", {})
    machine(parser_error="parsed")
    content = bytearray((folder / "model.fp32.onnx").read_bytes())
    content[-1] ^= 1
    (folder / "model.fp32.onnx").write_bytes(bytes(content))
    with pytest.raises(ModelRefused, match="was changed since it was exported"):
        made(folder, tmp_path / "out", "fp32")


def test_a_graph_with_another_spec_is_refused(tmp_path: Path, machine: Machine) -> None:
    machine()
    folder = write_precisions(tmp_path / "b", {}, spec=tiny_spec(threshold=0.4).to_dict())
    with pytest.raises(ModelRefused, match="carry different specs"):
        made(folder, tmp_path / "out", "fp32")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"precision": "int8"}, ModelRefused, r"holds no int8 model \(vanished masks\)"),
        ({"library": "tensorrt_lean"}, ModelRefused, "only runs engines"),
        ({"settings": EngineSettings(compute_capability="sm_86")}, UsageError, "only tensorrt_rtx"),
        ({}, UsageError, "nothing to prove the engine with.*--images"),
    ],
)
def test_what_cannot_be_asked_for_says_why(
    tmp_path: Path, machine: Machine, given: dict[str, Any], error: type[MammoError], words: str
) -> None:
    machine(network_type="FLOAT", engine_type="Float")
    reason = {"int8": {"verdict": "missed", "why": ["vanished masks"]}}
    folder = write_precisions(tmp_path / "b", {}, not_shipped=reason)
    with pytest.raises(error, match=words):
        made(folder, tmp_path / "out", **{"precision": "fp32", **given})
    assert nothing_in(tmp_path / "out")
