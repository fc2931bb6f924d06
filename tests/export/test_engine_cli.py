from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from mammo_export.engine_cli import engine_command
from mammo_runtime import engines
from mammo_runtime.backends.engine_settings import EngineSettings
from mammo_runtime.errors import MammoError
from mammo_runtime.spec import Precision
from tiny_model import ENVIRONMENT, ROOT, save, tiny_spec, write_bundle

LIGHT = f"""
import sys
sys.path[:0] = [{str(ROOT / "export")!r}, {str(ROOT / "runtime")!r}]
from mammo_export.engine_cli import engine_command
before = set(sys.modules)
try:
    engine_command.main(sys.argv[1:], standalone_mode=False)
except Exception as error:
    print(f"{{type(error).__name__}}: {{error}}")
heavy = {{"torch", "onnx", "mammo_train"}} & {{name.split(".")[0] for name in sys.modules}}
early = {{"numpy", "cv2", "onnxruntime"}} & {{name.split(".")[0] for name in before}}
print("heavy:", sorted(heavy), "early:", sorted(early))
"""


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "b", tiny_spec())


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the command asks the runtime for."""
    calls: list[tuple[Any, ...]] = []

    def build(*arguments: Any) -> tuple[Path, ...]:
        calls.append(arguments)
        return ()

    monkeypatch.setattr(engines, "engines_from_bundle", build)
    return calls


def call(*arguments: object) -> None:
    engine_command.main([str(a) for a in arguments], standalone_mode=False)


def test_options_reach_the_builder(bundle: Path, tmp_path: Path, asked: list[tuple[Any, ...]]) -> None:
    call(bundle, "--precision", "int8", "-o", tmp_path / "out", "--trt", "tensorrt_rtx", "--workspace", 64,
         "--level", 5, "--timing-cache", tmp_path / "t", "--batch", "1,2,8", "--version-compatible",
         "--hardware-compatible", "--compute-capability", "sm_86", "-q")  # fmt: skip
    folder, precision, target, library, settings, cases, _ = asked[0]
    assert (folder, precision, target, library) == (bundle, Precision.INT8, tmp_path / "out", "tensorrt_rtx")
    assert settings == EngineSettings(64, 5, tmp_path / "t", (1, 2, 8), True, True, "sm_86")
    assert cases == ()


def test_defaults(bundle: Path, asked: list[tuple[Any, ...]]) -> None:
    call(bundle, "--precision", "fp16")
    assert asked[0][2:5] == (bundle / "engines", "tensorrt", EngineSettings())


def test_pictures_become_cases(bundle: Path, tmp_path: Path, asked: list[tuple[Any, ...]]) -> None:
    for name in ("a.png", "b.png"):
        save(tmp_path / "pictures" / name)
    call(bundle, "--precision", "fp16", "--images", tmp_path / "pictures", "--limit", 1)
    assert [case.name for case in asked[0][5]] == ["a.png"]


@pytest.mark.parametrize(
    "wrong",
    [["--batch", "1,2"], ["--batch", "a,b,c"], ["--level", "6"], ["--workspace", "0"], ["--boxes", "setup.cfg"], []],
)
def test_wrong_calls_are_usage_errors(bundle: Path, wrong: list[str], asked: list[tuple[Any, ...]]) -> None:
    given = wrong if not wrong else ["--precision", "fp16", *wrong]
    with pytest.raises(click.UsageError):
        call(bundle, *given)
    with pytest.raises((MammoError, click.UsageError)):
        call(bundle, "--precision", "fp16", "--batch", "4,2,1")


def test_it_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    """Boards have neither; and help is there at once."""
    for arguments, words in ((["--help"], "Build an engine of BUNDLE"), ([str(bundle), "--precision", "fp32"], "")):
        done = subprocess.run(
            [sys.executable, "-c", LIGHT, *arguments], capture_output=True, text=True, env=ENVIRONMENT, timeout=60,
            check=False,
        )  # fmt: skip
        assert words in done.stdout
        assert "heavy: [] early: []" in done.stdout, done.stdout + done.stderr


def test_without_tensorrt_one_sentence_says_what_to_do(bundle: Path) -> None:
    done = CliRunner().invoke(engine_command, [str(bundle), "--precision", "fp32"])
    assert isinstance(done.exception, MammoError)
    assert "tensorrt cannot be imported here" in str(done.exception)
    assert "JetPack" in str(done.exception)
    assert done.exception.exit_code == 5
    assert not (bundle / "engines").exists()


def test_json_lists_engines_with_their_records(bundle: Path, asked: list[tuple[Any, ...]]) -> None:
    done = CliRunner().invoke(engine_command, [str(bundle), "--precision", "fp32", "--json", "-q"])
    assert json.loads(done.stdout) == {"engines": [], "records": []}
