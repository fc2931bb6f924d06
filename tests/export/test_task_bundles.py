"""`mammo-export RUN -o BUNDLE` for every task: the real command once, then what a site does with its bundles."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from mammo_export.activation import add_activation
from mammo_export.cli import main
from mammo_runtime import cli as runtime_cli
from mammo_runtime.bundle import MANIFEST, load_model
from mammo_runtime.errors import ExitCode, ModelRefused
from mammo_runtime.spec import METADATA_KEY, Precision, Task
from tiny_export import Exported, changed_weight

ROOT = Path(__file__).parents[2]
TASKS = (Task.MULTICLASS, Task.CLASSIFICATION, Task.PROMPTED)
ENCODER, DECODER = "model.fp32.onnx", "model.fp32.decoder.onnx"
FROM_RUN = ["MODEL_CARD.md", "bundle.json", "metrics.json"]
EXPORT_ALL = """
import sys
from mammo_export.cli import main
folder, *runs = sys.argv[1:]
sys.exit(max(main([run, "-o", f"{folder}/{run.rsplit('/', 1)[1]}", "--precision", "fp32"]) for run in runs))
"""


@pytest.fixture(scope="module")
def shipped(task_runs: dict[Task, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    """Bundles of all tasks, written by another process than the one that holds `exported_tasks`."""
    target = tmp_path_factory.mktemp("task_bundles")
    paths = os.pathsep.join(str(ROOT / room) for room in ("runtime", "train", "export"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull}
    command = [sys.executable, "-c", EXPORT_ALL, target.as_posix(), *(task_runs[task].as_posix() for task in TASKS)]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500)
    assert finished.returncode == ExitCode.DONE, finished.stderr
    assert len(finished.stderr.splitlines()) == 4 * len(TASKS), "four progress lines each, and no chatter"
    return {task: target / task_runs[task].name for task in TASKS}


@pytest.fixture
def prompted(shipped: dict[Task, Path], tmp_path: Path) -> Path:
    """A copy of the prompted bundle to spoil."""
    return Path(shutil.copytree(shipped[Task.PROMPTED], tmp_path / "prompted"))


def replaced(bundle: Path, name: str, content: bytes) -> None:
    """Put other content into a bundle and its hash into the manifest, as somebody who means it would."""
    (bundle / name).write_bytes(content)
    edit(bundle, lambda values: values["files"][name].update(sha256=hashlib.sha256(content).hexdigest()))


def edit(bundle: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads((bundle / MANIFEST).read_text())
    change(values)
    (bundle / MANIFEST).write_text(json.dumps(values))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.value)
def test_the_same_run_gives_the_same_files_in_another_process(
    shipped: dict[Task, Path], exported_tasks: dict[Task, Exported], task: Task
) -> None:
    true = exported_tasks[task]
    assert (shipped[task] / ENCODER).read_bytes() == true.model.SerializeToString()
    if true.decoder is not None:
        assert (shipped[task] / DECODER).read_bytes() == true.decoder.SerializeToString()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.value)
def test_a_bundle_holds_what_it_says(shipped: dict[Task, Path], task: Task) -> None:
    graphs = [ENCODER] if task is not Task.PROMPTED else [DECODER, ENCODER]
    names = sorted(p.relative_to(shipped[task]).as_posix() for p in shipped[task].rglob("*") if p.is_file())
    own = [name for name in names if not name.startswith("acceptance/")]
    assert own == sorted([*FROM_RUN, "report.html", *graphs])
    assert "acceptance/expected.json" in names
    manifest = json.loads((shipped[task] / MANIFEST).read_text())
    assert sorted(manifest["files"]) == sorted(set(names) - {MANIFEST})
    entry = manifest["precisions"]["fp32"]
    assert (entry["file"], entry.get("prompt_decoder")) == (ENCODER, DECODER if DECODER in graphs else None)
    assert entry["verdict"] == "passed"
    assert entry["gates"]["form"]["batch_norms_left"] == 0
    assert ("decoder_form" in entry["gates"]) == (task is Task.PROMPTED)
    assert entry["gates"]["parity"]["images"] == (3 if task is Task.PROMPTED else 4)
    assert str(shipped[task].parent) not in (shipped[task] / MANIFEST).read_text()


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.value)
def test_a_site_runs_it(
    shipped: dict[Task, Path], collection: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: Task
) -> None:
    (tmp_path / "boxes.csv").write_text("image,x,y,width,height\np0.png,40,80,20,20\n")
    boxes = ["--boxes", str(tmp_path / "boxes.csv")] if task is Task.PROMPTED else []
    picture, out = str(collection / "p0.png"), str(tmp_path / "out")
    monkeypatch.setattr(sys, "argv", ["mammo-infer", picture, "-o", out, "--model", str(shipped[task]), *boxes])
    with pytest.raises(SystemExit) as ended:
        runtime_cli.main()
    assert ended.value.code == ExitCode.DONE
    (record,) = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert record["status"] == "ok"
    if task is Task.MULTICLASS:
        assert [entry["name"] for entry in record["classes"]] == ["tumour", "stroma", "fat"]
        assert sum(entry["area_px"] for entry in record["classes"]) == 200 * 160
    elif task is Task.CLASSIFICATION:
        likeliest = max(record["classes"], key=lambda entry: entry["probability"])
        assert record["predicted_class"] == likeliest["name"]
    else:
        assert len(record["findings"]) == 1
        assert record["findings"][0]["predicted_iou"] is not None


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.value)
def test_verify_repeats_the_proof(
    shipped: dict[Task, Path], task_runs: dict[Task, Path], task: Task, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(shipped[task]), "--run", str(task_runs[task]), "--json", "-q"]) == ExitCode.DONE
    recorded = json.loads((shipped[task] / MANIFEST).read_text())["precisions"]["fp32"]["gates"]["parity"]
    measured = json.loads(capsys.readouterr().out)["parity"]
    assert set(measured) == set(recorded)
    assert measured["limits"] == recorded["limits"]


@pytest.mark.parametrize("name", [ENCODER, DECODER])
def test_a_changed_byte_of_either_half_is_refused(
    prompted: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = bytearray((prompted / name).read_bytes())
    content[len(content) // 2] ^= 1
    (prompted / name).write_bytes(bytes(content))
    assert main(["verify", str(prompted)]) == ExitCode.MODEL_REFUSED
    assert name in capsys.readouterr().err
    with pytest.raises(ModelRefused, match="was changed"):
        load_model(str(prompted), "cpu", Precision.FP32)


def test_the_decoder_of_another_run_is_refused(prompted: Path, exported_tasks: dict[Task, Exported]) -> None:
    true = exported_tasks[Task.PROMPTED]
    other = add_activation(true.logits, replace(true.spec, parent_sha256="0" * 64))
    replaced(prompted, DECODER, other.SerializeToString())
    with pytest.raises(ModelRefused, match="was made from another model"):
        load_model(str(prompted), "cpu", Precision.FP32)
    assert main(["verify", str(prompted), "-q"]) == ExitCode.MODEL_REFUSED


def test_the_decoder_of_another_run_under_this_runs_spec_misses_the_gate(
    prompted: Path,
    exported_tasks: dict[Task, Exported],
    task_runs: dict[Task, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    decoder = exported_tasks[Task.PROMPTED].decoder
    assert decoder is not None
    replaced(prompted, DECODER, changed_weight(decoder, 0.5).SerializeToString())
    run = str(task_runs[Task.PROMPTED])
    assert main(["verify", str(prompted), "--run", run, "-q"]) == ExitCode.GATE_MISSED
    assert "probabilities differ by" in capsys.readouterr().err


def test_an_encoder_in_the_decoders_place_is_refused(prompted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    replaced(prompted, DECODER, (prompted / ENCODER).read_bytes())
    assert main(["verify", str(prompted), "-q"]) == ExitCode.GATE_MISSED
    assert "activation" in capsys.readouterr().err


def test_a_prompted_bundle_without_its_decoder_is_refused(prompted: Path) -> None:
    edit(prompted, lambda values: values["precisions"]["fp32"].pop("prompt_decoder"))
    with pytest.raises(ModelRefused, match="decoder"):
        load_model(str(prompted), "cpu", Precision.FP32)


def test_a_model_of_another_task_is_refused(shipped: dict[Task, Path], tmp_path: Path) -> None:
    """The spec inside the file decides; a manifest that calls labels probabilities does not get through."""
    bundle = Path(shutil.copytree(shipped[Task.MULTICLASS], tmp_path / "bundle"))
    edit(bundle, lambda values: values["spec"].update(task="classification", activation="softmax"))
    with pytest.raises(ModelRefused, match="different specs"):
        load_model(str(bundle), "cpu", Precision.FP32)


def test_nan_in_a_shipped_decoder_is_refused(prompted: Path, exported_tasks: dict[Task, Exported]) -> None:
    decoder = exported_tasks[Task.PROMPTED].decoder
    assert decoder is not None
    broken = onnx.ModelProto()
    broken.CopyFrom(changed_weight(decoder, float("nan")))
    assert METADATA_KEY in {entry.key for entry in broken.metadata_props}
    replaced(prompted, DECODER, broken.SerializeToString())
    assert main(["verify", str(prompted), "-q"]) == ExitCode.GATE_MISSED
