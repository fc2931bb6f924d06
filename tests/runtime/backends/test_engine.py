from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fake_tensorrt import GPU, FakeTensorRT
from fake_trt_parts import Knobs
from mammo_runtime.backends import engine as builder
from mammo_runtime.backends import engine_settings
from mammo_runtime.backends.engine import build_engine
from mammo_runtime.backends.engine_settings import (
    EngineSettings,
    built_for,
    check_memory,
    check_settings,
    flags_of,
    profile_of,
)
from mammo_runtime.backends.trt_library import load_library, plan_version, same_version
from mammo_runtime.errors import GateMissed, MammoError, ModelRefused, UsageError
from mammo_runtime.spec import InputSpec, ModelSpec, Precision
from tiny_model import TINY, field

SPEC = ModelSpec("tiny", "blur", input=InputSpec(height=48, width=32))


def built(knobs: Knobs | None = None, label: Precision = Precision.FP32, **settings: Any) -> Any:
    return build_engine(FakeTensorRT(knobs), TINY.read_bytes(), SPEC, label, EngineSettings(**settings))


def test_a_graph_becomes_a_plan_with_its_profile() -> None:
    engine = built(batch=(1, 2, 8))
    assert plan_version(engine.plan) == ("TensorRT", "10.3.0.26")
    (tensor,) = engine.inputs
    assert (tensor.name, tensor.element, tensor.shape) == ("image", "FLOAT", (-1, 3, -1, -1))
    assert (tensor.least, tensor.best, tensor.most) == ((1, 3, 48, 32), (2, 3, 48, 32), (8, 3, 48, 32))
    assert engine.types == {"FLOAT": 2}


@pytest.mark.parametrize(
    ("name", "shape", "most"),
    [
        ("image", (-1, 3, 48, 32), (4, 3, 48, 32)),
        ("image", (1, 3, 48, 32), (1, 3, 48, 32)),
        ("embedding", (1, 8, 4, 4), (1, 8, 4, 4)),
        ("boxes", (1, -1, 4), (1, 8, 4)),
    ],
)
def test_open_sides_have_the_lengths_that_the_runtime_asks_for(
    name: str, shape: tuple[int, ...], most: tuple[int, ...]
) -> None:
    assert profile_of(name, shape, SPEC, EngineSettings())[2] == most


def test_an_open_side_that_nothing_bounds_is_refused() -> None:
    with pytest.raises(ModelRefused, match="side 1 of the input image"):
        profile_of("image", (1, -1, 48, 32), SPEC, EngineSettings())


@pytest.mark.parametrize(
    ("knobs", "error", "words"),
    [
        (Knobs(no_gpu=True), ModelRefused, "found no usable GPU"),
        (Knobs(parser_error="zero points must be 0"), ModelRefused, r"does not take the graph: conv \(Conv\): zero"),
        (Knobs(build_error="no kernel"), ModelRefused, "could not build the engine: no kernel$"),
        (Knobs(build_error="Out of memory"), ModelRefused, "lower --workspace and --batch, add swap"),
        (Knobs(network_type="HALF"), GateMissed, "is not fp32.*fp16 100%"),
    ],
)
def test_what_cannot_be_built_says_why(knobs: Knobs, error: type[MammoError], words: str) -> None:
    with pytest.raises(error, match=words):
        built(knobs)


def test_a_label_that_the_network_does_not_keep_is_refused_before_the_build() -> None:
    """TensorRT 11 has no FP16 flag: a graph in FP32 stays so, and must not be called FP16."""
    with pytest.raises(GateMissed, match=r"not fp16.*fp32 100%.*90% must be fp16"):
        built(Knobs(build_error="never reached"), Precision.FP16)


def test_external_data_is_refused_before_the_parser(tmp_path: Path) -> None:
    outside = TINY.read_bytes() + field(7, field(5, field(8, b"w") + field(13, field(1, b"location"))))
    with pytest.raises(ModelRefused, match="single file"):
        build_engine(FakeTensorRT(), outside, SPEC, Precision.FP32)


def test_stopping_stops_the_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builder, "TELL_EVERY_S", 0.0)

    def interrupted(line: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_engine(FakeTensorRT(), TINY.read_bytes(), SPEC, Precision.FP32, report=interrupted)
    told: list[str] = []
    build_engine(FakeTensorRT(), TINY.read_bytes(), SPEC, Precision.FP32, report=told.append)
    assert told == ["Building engine: 1 of 2 (0 s)"]


def test_the_timing_cache_is_kept_and_a_foreign_one_refused(tmp_path: Path) -> None:
    path = tmp_path / "timings"
    built(timing_cache=path)
    assert path.read_bytes() == b"timings"
    built(timing_cache=path)
    path.write_bytes(b"of another GPU")
    with pytest.raises(UsageError, match="another GPU or TensorRT version"):
        built(timing_cache=path)


@pytest.mark.parametrize(
    ("library", "settings", "words"),
    [
        ("tensorrt_rtx", {"version_compatible": True}, "no version-compatible engines"),
        ("tensorrt_rtx", {"timing_cache": Path("x")}, "no timing cache"),
        ("tensorrt", {"compute_capability": "sm_86"}, "only tensorrt_rtx"),
        ("tensorrt_lean", {}, "only runs engines"),
    ],
)
def test_settings_that_a_library_has_not_are_refused(library: str, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(MammoError, match=words):
        check_settings(library, EngineSettings(**settings))


@pytest.mark.parametrize("wrong", [{"batch": (1, 3, 2)}, {"batch": (0, 1, 1)}, {"level": 6}, {"workspace_mb": 0}])
def test_settings_that_contradict_themselves_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        EngineSettings(**wrong)


def test_flags_carry_their_cost() -> None:
    assert flags_of(EngineSettings()) == {}
    asked = flags_of(EngineSettings(version_compatible=True, hardware_compatible=True))
    assert list(asked) == ["VERSION_COMPATIBLE", "AMPERE_PLUS"]
    assert all("slower" in cost or "larger" in cost for cost in asked.values())


def test_what_it_was_built_for_is_said() -> None:
    assert built_for(EngineSettings(), GPU)["words"] == "built on Fake Orin (sm_87)"
    assert built_for(EngineSettings(), None)["words"] == "built without a GPU for Ampere (sm_80) and later"
    assert "sm_86" in built_for(EngineSettings(compute_capability="sm_86"), None)["words"]


def meminfo(path: Path, available_mb: int, swap_mb: int) -> Path:
    path.write_text(f"MemTotal: 9 kB\nMemAvailable: {available_mb * 1024} kB\nSwapFree: {swap_mb * 1024} kB\n")
    return path


def test_memory_is_looked_at_before_the_build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_settings, "MEMINFO", meminfo(tmp_path / "meminfo", 1200, 100))
    check_memory("tensorrt", 20 << 20, EngineSettings())
    with pytest.raises(UsageError, match=r"2104 MB.*1024 MB are workspace.*1300 MB are free.*swap"):
        check_memory("tensorrt", 20 << 20, EngineSettings(), GPU)
    check_memory("tensorrt", 20 << 20, EngineSettings(workspace_mb=64), GPU)
    desktop = replace(GPU, integrated=False)
    with pytest.raises(UsageError, match="500 MB free, less than the workspace of 1024 MB"):
        check_memory("tensorrt", 20 << 20, EngineSettings(), desktop, 500 << 20)
    monkeypatch.setattr(engine_settings, "MEMINFO", tmp_path / "none")
    check_memory("tensorrt", 20 << 30, EngineSettings(), GPU)


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx", "tensorrt_lean"])
def test_a_missing_library_says_how_to_get_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModelRefused, match=r"cannot be imported here.*(pip install|JetPack)"):
        load_library(name)


def test_an_unknown_or_old_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelRefused, match="this runtime knows tensorrt"):
        load_library("onnx")
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="8.6.1"))  # type: ignore[arg-type]
    with pytest.raises(ModelRefused, match=r"8\.6\.1 is too old: 10\.3"):
        load_library("tensorrt")


@pytest.mark.parametrize(
    ("plan", "module", "same"),
    [("10.3.0.26", "10.3.0", True), ("1.7.1.116", "1.7.1.116", True), ("10.3.0.26", "10.3.1", False)],
)
def test_versions_are_compared_as_far_as_both_tell(plan: str, module: str, same: bool) -> None:
    assert same_version(plan, module) is same
