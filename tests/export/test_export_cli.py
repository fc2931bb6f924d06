"""`mammo-export` as a user calls it: the real command once, the rest in process with the session's export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from mammo_export import files, steps
from mammo_export.cli import main
from mammo_export.gates import MAX_LOGIT_ERROR
from mammo_runtime import __version__
from mammo_runtime.bundle import load_model
from mammo_runtime.errors import ExitCode
from mammo_runtime.spec import Precision
from mammo_train import checkpoint
from tiny_export import Exported, changed_weight

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]
HEAVY = {"torch", "onnx", "onnxruntime", "numpy", "cv2", "mammo_train"}


@pytest.fixture(scope="session")
def shipped(
    run_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A bundle written by the real command in a process of its own, with what it printed."""
    target = tmp_path_factory.mktemp("bundles") / "tiny"
    paths = os.pathsep.join(str(ROOT / room) for room in ("runtime", "train", "export"))
    # GIT_DIR: the checkout's state, which others may be changing, stays out of the bundle.
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull}
    command = [sys.executable, "-m", "mammo_export.cli", str(run_folder), "-o", str(target), "--json"]
    command += ["--precision", "fp32"]
    return target, subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.fixture
def bundle(shipped: tuple[Path, object], tmp_path: Path) -> Path:
    """A copy of the shipped bundle to spoil."""
    shutil.copytree(shipped[0], tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.fixture
def in_process(exported: Exported, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Call:
    """Run the command with the session's export in place of a new one: (exit code, output, errors)."""

    def call(*arguments: object, logits: onnx.ModelProto = exported.logits) -> tuple[int, str, str]:
        monkeypatch.setattr(files, "logits_graph_from_network", lambda network, spec: logits)
        monkeypatch.setenv("GIT_DIR", os.devnull)  # as in `shipped`
        own = ["--precision", "fp32"] if "-o" in arguments else []  # the others: test_precisions.py
        code = main([*map(str, arguments), *own])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_the_command_writes_a_proven_bundle(shipped: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    target, finished = shipped
    assert finished.returncode == ExitCode.DONE, finished.stderr
    printed = json.loads(finished.stdout)
    assert printed["bundle"] == str(target)
    assert printed["name"] == "tiny"
    parity = printed["precisions"]["fp32"]["gates"]["parity"]
    assert parity["images"] == 4
    assert parity["logit_error"] <= MAX_LOGIT_ERROR
    assert printed["precisions"]["fp32"]["verdict"] == "passed"
    lines = finished.stderr.splitlines()
    assert len(lines) == 4, "four progress lines, and no chatter of the libraries underneath"
    assert "parity on 4 images" in lines[2]
    loaded = load_model(str(target), "cpu", Precision.FP32)
    assert loaded.spec.name == "tiny"


def test_another_process_makes_the_same_graph_byte_for_byte(shipped: tuple[Path, object], exported: Exported) -> None:
    assert (shipped[0] / "model.fp32.onnx").read_bytes() == exported.model.SerializeToString()


def test_the_default_command_may_be_named_or_not_in_any_order(
    in_process: Call, run_folder: Path, tmp_path: Path
) -> None:
    assert in_process(run_folder, "-o", tmp_path / "a", "--limit", 1)[0] == ExitCode.DONE
    assert in_process("-o", tmp_path / "b", "--limit", "1", "-q", run_folder) == (ExitCode.DONE, "", "")
    assert in_process("bundle", run_folder, "-o", tmp_path / "c", "--limit", "1", "-q")[0] == ExitCode.DONE
    contents = [{p.name: p.read_bytes() for p in (tmp_path / name).rglob("*") if p.is_file()} for name in "abc"]
    assert contents[0] == contents[1] == contents[2]


def test_other_images_can_be_chosen(in_process: Call, run_folder: Path, collection: Path, tmp_path: Path) -> None:
    (tmp_path / "index.csv").write_text((collection / "index.csv").read_text().replace("p4.png", "./p4.png"))
    chosen = ("--index", tmp_path / "index.csv", "--root", collection, "--fold", 2, "--json", "-q")
    code, output, errors = in_process(run_folder, "-o", tmp_path / "bundle", *chosen)
    assert (code, errors) == (ExitCode.DONE, "")
    assert json.loads(output)["precisions"]["fp32"]["gates"]["parity"]["images"] == 1


def test_a_changed_weight_misses_the_gate_and_nothing_is_written(
    in_process: Call, exported: Exported, run_folder: Path, tmp_path: Path
) -> None:
    wrong = changed_weight(exported.logits, 0.5)
    code, output, errors = in_process(run_folder, "-o", tmp_path / "bundle", "-q", "--json", logits=wrong)
    assert code == ExitCode.GATE_MISSED == 6
    assert output == ""
    assert errors.count("\n") == 1
    assert "logits differ" in errors
    assert list(tmp_path.iterdir()) == []


def test_a_nan_weight_misses_the_gate_and_nothing_is_written(
    in_process: Call, exported: Exported, run_folder: Path, tmp_path: Path
) -> None:
    wrong = changed_weight(exported.logits, np.nan)
    code, _, errors = in_process(run_folder, "-o", tmp_path / "bundle", "-q", logits=wrong)
    assert (code, errors.count("\n")) == (ExitCode.GATE_MISSED, 1)
    assert "NaN" in errors
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda run: (run / "data.json").unlink(), "--index FILE --root DIR"),
        (lambda run: (run / "data.json").write_text("{}"), "--index FILE --root DIR"),
        (lambda run: _edit(run / "data.json", index_sha256="0"), "was changed since"),
        (lambda run: _edit(run / "data.json", index="/nowhere/index.csv"), "not there any more"),
        (lambda run: (run / "model.safetensors").unlink(), "finished run"),
        (lambda run: (run.parent / "bundle").write_text("in the way"), "exists"),
    ],
)
def test_a_wrong_call_is_told_in_one_line(
    in_process: Call,
    run_folder: Path,
    tmp_path: Path,
    change: Callable[[Path], object],
    words: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    change(run)
    code, _, errors = in_process(run, "-o", tmp_path / "bundle")
    assert (code, errors.count("\n")) == (ExitCode.USAGE, 1), errors
    assert words in errors


@pytest.mark.parametrize(
    "arguments",
    [[], ["/nowhere", "-o", "x"], ["."], [".", "-o", "x", "--limit", "0"], ["verify", "/nowhere"], ["--wat"]],
)
def test_a_misspelt_call_is_told_in_one_line(in_process: Call, arguments: list[str]) -> None:
    code, output, errors = in_process(*arguments)
    assert (code, output, errors.count("\n")) == (ExitCode.USAGE, "", 1)
    assert "mammo-export --help" in errors


def test_a_fold_without_images_is_told(in_process: Call, run_folder: Path, tmp_path: Path) -> None:
    code, _, errors = in_process(run_folder, "-o", tmp_path / "bundle", "--fold", 4)
    assert code == ExitCode.USAGE
    assert "no image of fold 4" in errors


@pytest.mark.parametrize("verbose", [False, True])
def test_an_internal_error_shows_its_traceback_only_when_asked(
    in_process: Call,
    run_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    verbose: bool,
) -> None:
    def broken(*arguments: object) -> None:
        raise ZeroDivisionError("planted")

    monkeypatch.setattr(steps, "prove_parity", broken)
    code, _, errors = in_process(run_folder, "-o", tmp_path / "bundle", "-q", *(["-v"] if verbose else []))
    assert code == ExitCode.INTERNAL
    assert "ZeroDivisionError: planted" in errors
    assert ("Traceback" in errors) == verbose
    assert list(tmp_path.iterdir()) == []


def test_ctrl_c_leaves_nothing(
    in_process: Call, run_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mammo_export.bundle._read_back", interrupted)
    code, _, errors = in_process(run_folder, "-o", tmp_path / "bundle", "-q", "--limit", 1)
    assert code == ExitCode.INTERRUPTED
    assert "interrupted" in errors
    assert list(tmp_path.iterdir()) == []


def test_verify_repeats_everything_with_the_run(in_process: Call, bundle: Path, run_folder: Path) -> None:
    code, output, errors = in_process("verify", bundle, "--run", run_folder, "--json")
    assert code == ExitCode.DONE, errors
    recorded = json.loads((bundle / "bundle.json").read_text())["precisions"]["fp32"]["gates"]["parity"]
    assert json.loads(output)["parity"]["images"] == recorded["images"] == 4


def test_verify_says_what_it_did_not_do(in_process: Call, bundle: Path) -> None:
    code, output, errors = in_process("verify", bundle, "--json")
    assert code == ExitCode.DONE
    assert json.loads(output)["parity"] is None
    assert "not measured again" in errors


@pytest.mark.parametrize("name", ["model.fp32.onnx", "MODEL_CARD.md"])
def test_verify_refuses_a_changed_bit(in_process: Call, bundle: Path, name: str) -> None:
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / name).write_bytes(bytes(content))
    code, _, errors = in_process("verify", bundle)
    assert (code, errors.count("\n")) == (ExitCode.MODEL_REFUSED, 1)
    assert name in errors


def test_verify_refuses_a_missing_file(in_process: Call, bundle: Path) -> None:
    (bundle / "metrics.json").unlink()
    code, _, errors = in_process("verify", bundle)
    assert code == ExitCode.MODEL_REFUSED
    assert "metrics.json" in errors


def test_verify_refuses_the_run_of_another_model(
    in_process: Call, bundle: Path, run_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(run_folder, tmp_path / "other")
    network, spec = checkpoint.load_model(tmp_path / "other")
    state = network.state_dict()
    checkpoint.save_model(tmp_path / "other", {**state, "head.bias": state["head.bias"] + 1})
    own = checkpoint.weights_sha256(tmp_path / "other")
    checkpoint.save_spec(tmp_path / "other", replace(spec, name="other", parent_sha256=own))
    code, _, errors = in_process("verify", bundle, "--run", tmp_path / "other")
    assert code == ExitCode.MODEL_REFUSED
    assert "other weights" in errors


def test_help_and_version_name_everything(in_process: Call) -> None:
    code, output, _ = in_process("--help")
    assert code == ExitCode.DONE
    for word in ("RUN -o BUNDLE", "--index", "--root", "--fold", "--limit", "--overwrite", "--json", "verify"):
        assert word in output
    assert in_process("--version") == (ExitCode.DONE, f"mammo-export, version {__version__}\n", "")


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from mammo_export.cli import main; main(['--help']); main(['verify', '--help']);"
        "print('|', *sys.modules)"
    )
    paths = os.pathsep.join(str(ROOT / room) for room in ("runtime", "train", "export"))
    printed = subprocess.check_output([sys.executable, "-c", code], text=True, env={**os.environ, "PYTHONPATH": paths})
    assert not HEAVY & set(printed.rsplit("|", 1)[1].split())


def _edit(path: Path, **changes: str) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
