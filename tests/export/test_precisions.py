"""A whole export: every precision made, judged and shipped or not; the same twice, also when it was killed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from mammo_export import int8, precisions
from mammo_export.cli import main
from mammo_runtime.bundle import load_model, read_bundle
from mammo_runtime.errors import ExitCode
from mammo_runtime.preprocess import preprocess
from mammo_runtime.readers import read_image
from mammo_runtime.spec import InputSpec, ModelSpec, Precision
from mammo_train import models
from tiny_export import finished_run

ROOT = Path(__file__).parents[2]
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Call:
    """Run `mammo-export` in process: (exit code, output, errors)."""
    monkeypatch.setenv("GIT_DIR", os.devnull)

    def run(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def run(collection: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small U-Net that finds the phantoms' blobs, which are brighter than anything else."""
    torch.manual_seed(7)
    spec = ModelSpec("small", "unet", network={"width": "tiny"}, input=InputSpec(height=64, width=64))
    network = models.build_for(spec)
    pictures = torch.from_numpy(
        np.concatenate([preprocess(read_image(collection / f"p{k}.png"), spec.input)[0] for k in range(5)])
    )
    target = (pictures[:, :1] > 0.35).float()
    steps = torch.optim.Adam(network.parameters(), 3e-3)
    for _ in range(60):
        steps.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network(pictures), target).backward()
        steps.step()
    return finished_run(tmp_path_factory.mktemp("runs") / "small", network.eval(), spec, collection)


@pytest.fixture(scope="session")
def made(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with every precision that passes, by the real command in a process of its own."""
    target = tmp_path_factory.mktemp("made") / "small"
    assert export(run, target).wait() == ExitCode.DONE
    return target


def export(run: Path, target: Path) -> subprocess.Popen[bytes]:
    paths = os.pathsep.join(str(ROOT / room) for room in ("runtime", "train", "export"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull}
    command = [sys.executable, "-m", "mammo_export.cli", str(run), "-o", str(target), "-q", "--no-ranking"]
    return subprocess.Popen(command, env=environment)


def graphs(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.glob("*.onnx")}


def manifest(bundle: Path) -> dict[str, Any]:
    return dict(json.loads((bundle / "bundle.json").read_text()))


def test_every_precision_passes_and_ships(made: Path) -> None:
    bundle = read_bundle(made)
    assert (set(bundle.precisions), dict(bundle.not_shipped)) == ({"fp32", "fp16", "int8", "int8-cpu"}, {})
    found = manifest(made)
    for key, entry in found["precisions"].items():
        assert entry["verdict"].startswith("pass"), key
        if key != "fp32":
            assert entry["gates"]["repeats"] == {"runs": 100, "identical": True, "differs_on": None}
            assert entry["gates"]["not_finite"] == []
            assert entry["gates"]["difference"]["n"] == 3
    assert found["precisions"]["int8"]["made"]["computed_in"][0]["int8"] >= 5
    assert "fp32" not in found["precisions"]["fp16"]["made"]["computed_in"][0]
    assert found["calibration"]["inputs"] == 1
    assert set(found["timing"]["median_ms"]) == {"torch", "fp32", "fp16", "int8-cpu"}


def test_report_and_card_tell_of_all_of_them(made: Path) -> None:
    report, card = (made / "report.html").read_text(), (made / "MODEL_CARD.md").read_text()
    assert card.count("## Precisions") == 1
    for words in ("FP16", "INT8 for TensorRT", "INT8 for CPUs"):
        assert words in report
        assert words in card


def test_a_killed_export_goes_on_and_gives_the_same_graphs(made: Path, run: Path, tmp_path: Path) -> None:
    target, work = tmp_path / "small", tmp_path / ".small.work"
    process = export(run, target)
    while process.poll() is None and len(list(work.glob("*.json"))) < 4:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was to be killed at work"
    assert not target.exists()
    known = {path.name for path in work.glob("*.json")}
    assert len(known) >= 4
    assert export(run, target).wait() == ExitCode.DONE
    assert graphs(target) == graphs(made)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["small"]


def test_a_bundle_is_a_source_too(made: Path, collection: Path, call: Call, tmp_path: Path) -> None:
    where = ("--index", collection / "index.csv", "--root", collection)
    code, _, errors = call(made, "-o", tmp_path / "again", "--precision", "fp16", "-q", *where)
    assert (code, errors) == (ExitCode.DONE, "")
    ours, again = graphs(made), graphs(tmp_path / "again")
    assert again == {name: ours[name] for name in ("model.fp32.onnx", "model.fp16.onnx")}
    assert manifest(tmp_path / "again")["precisions"]["fp32"]["gates"]["parity"]["images"] == 4
    assert (tmp_path / "again" / "MODEL_CARD.md").read_text().count("## Precisions") == 1
    code, _, errors = call(made, "-o", tmp_path / "more")
    assert code == ExitCode.USAGE
    assert "--index" in errors


def test_verify_repeats_every_check(made: Path, run: Path, call: Call) -> None:
    code, output, errors = call("verify", made, "--run", run, "--json")
    assert code == ExitCode.DONE, errors
    found = json.loads(output)
    assert set(found["differences"]) == {"fp16", "int8", "int8-cpu"}
    assert [one["key"] for check in found["acceptance"] for one in check["graphs"]] == ["fp32", "fp16", "int8-cpu"]


def test_every_changed_file_is_refused(made: Path, call: Call, tmp_path: Path) -> None:
    for name in manifest(made)["files"]:
        shutil.copytree(made, tmp_path / "bundle", dirs_exist_ok=True)
        content = bytearray((made / name).read_bytes())
        content[len(content) // 2] ^= 1
        (tmp_path / "bundle" / name).write_bytes(bytes(content))
        code, _, errors = call("verify", tmp_path / "bundle", "-q")
        assert code == ExitCode.MODEL_REFUSED, name
        assert name in errors


def test_a_calibration_set_that_leaks_is_refused(run: Path, collection: Path, call: Call, tmp_path: Path) -> None:
    root = tmp_path / "data"
    shutil.copytree(collection, root)
    shutil.copy(root / "p0.png", root / "p4.png")  # a validation picture under a training patient's name
    shutil.copy(root / "p0_mask.png", root / "p4_mask.png")
    where = ("--index", root / "index.csv", "--root", root)
    code, _, errors = call(run, "-o", tmp_path / "bundle", "--precision", "int8", "-q", *where)
    assert code == ExitCode.USAGE
    assert "leak" in errors
    assert not (tmp_path / "bundle").exists()


def test_fp32_under_the_name_of_fp16_is_not_shipped(
    run: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precisions, "to_fp16", lambda graph, keep=(): graph)
    code, _, errors = call(run, "-o", tmp_path / "bundle", "--precision", "fp16", "-q")
    assert code == ExitCode.GATE_MISSED
    assert "called fp16" in errors
    found = manifest(tmp_path / "bundle")
    assert (list(found["precisions"]), list(found["not_shipped"])) == (["fp32"], ["fp16"])
    assert not (tmp_path / "bundle" / "model.fp16.onnx").exists()
    assert "called fp16" in (tmp_path / "bundle" / "report.html").read_text()


def blinded(graph: onnx.ModelProto, *arguments: object) -> onnx.ModelProto:
    """Return the graph with logits so low that nothing is ever found."""
    changed = onnx.ModelProto()
    changed.CopyFrom(graph)
    shift = onnx.numpy_helper.from_array(np.float32(-50), "blind")
    last = next(node for node in changed.graph.node if node.op_type == "Sigmoid" and "probability" in node.output)
    before = last.input[0]
    changed.graph.initializer.append(shift)
    place = list(changed.graph.node).index(last)
    changed.graph.node.insert(place, onnx.helper.make_node("Add", [before, "blind"], ["blind_logits"], "blind_add"))
    last = changed.graph.node[place + 1]
    last.input[0] = "blind_logits"
    return changed


@pytest.mark.parametrize("waived", [False, True])
def test_vanished_masks_keep_int8_out_unless_somebody_answers_for_it(
    run: Path, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waived: bool
) -> None:
    honest = int8.quantised
    monkeypatch.setattr(int8, "quantised", lambda *given: blinded(honest(*given)))
    asked = ("--allow-miss", "int8", "--waived-by", "Dr Test") if waived else ()
    code, _, errors = call(run, "-o", tmp_path / "bundle", "--precision", "int8", "--no-ranking", "-q", *asked)
    found = manifest(tmp_path / "bundle")
    if waived:
        assert code == ExitCode.DONE, errors
        entry = found["precisions"]["int8-cpu"]
        assert (entry["verdict"], entry["waived"]["by"]) == ("waived", "Dr Test")
        assert any("lost" in sentence for sentence in entry["waived"]["misses"])
        assert load_model(str(tmp_path / "bundle"), "cpu").spec.precision is Precision.FP32, "auto leaves it alone"
        return
    assert code == ExitCode.GATE_MISSED
    assert "lost" in errors
    assert set(found["not_shipped"]) == {"int8", "int8-cpu"}
    assert any("--qat" in sentence for sentence in found["not_shipped"]["int8"]["why"])
    assert len(found["not_shipped"]["int8"]["gates"]["difference"]["vanished"]) == 4


def test_a_waiver_needs_a_name(run: Path, call: Call, tmp_path: Path) -> None:
    code, _, errors = call(run, "-o", tmp_path / "bundle", "--allow-miss", "int8")
    assert code == ExitCode.USAGE
    assert "--waived-by" in errors
