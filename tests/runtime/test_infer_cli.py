"""`mammo-infer` as its users meet it: real processes, exit codes, signals, full disks."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tiny_model import ENVIRONMENT, TINY, command, files_below, infer, picture, records, save, tiny_spec, write_bundle
from tiny_precisions import passed, write_precisions

POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, mount or names of any bytes")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("model"), tiny_spec())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return twelve different pictures, large enough for a run to be caught at work."""
    root = tmp_path_factory.mktemp("in")
    for k in range(12):
        discs = ((250 + 5 * k, 130, 40 - k), (160, 100 + 3 * k, 13))
        save(root / ("sub" if k % 3 == 0 else ".") / f"{k:02}.png", picture(discs, 560, 440))
    return root


@pytest.fixture
def small(tmp_path: Path) -> Path:
    save(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "n.txt").write_text("hello")
    return tmp_path / "in"


def untimed(output: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k != "timings_ms"} for r in records(output)]


def results(output: Path) -> dict[str, bytes]:
    """Return what two runs over the same inputs must have in common, byte for byte."""
    kept = {n: c for n, c in files_below(output).items() if n.endswith(".png") or n == "results.csv"}
    return kept | {"records": json.dumps(untimed(output)).encode()}


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
    )


def wait_for_masks(process: subprocess.Popen[str], output: Path, count: int) -> None:
    """Wait until a running process has written so many masks, or has ended."""
    while process.poll() is None and len(list(output.glob("masks/**/*.png"))) < count:
        time.sleep(0.002)


def test_a_run_tells_what_it_did(small: Path, tmp_path: Path, model: Path) -> None:
    done = infer(small, "-o", tmp_path / "out", "--model", model)
    assert done.returncode == 0
    assert done.stdout.startswith("mammo-edge: research use only, not a medical device\n")
    assert "files: 2 = 1 done + 0 failed + 1 skipped; with findings: 1" in done.stdout
    assert done.stdout.endswith("exit code 0: all done\n")
    assert "n.txt: skipped: not an image file" in done.stderr


@pytest.mark.parametrize(
    ("contents", "code"),
    [({"a.png": None, "e.png": b""}, 3), ({"e.png": b"", "n.txt": b"x"}, 4), ({"n.txt": b"x"}, 2)],
)
def test_exit_codes_of_finished_runs(tmp_path: Path, model: Path, contents: dict[str, bytes | None], code: int) -> None:
    for name, content in contents.items():
        if content is None:
            save(tmp_path / "in" / name)
        else:
            (tmp_path / "in").mkdir(exist_ok=True)
            (tmp_path / "in" / name).write_bytes(content)
    done = infer(tmp_path / "in", "-o", tmp_path / "out", "--model", model, "--json")
    assert done.returncode == code
    assert json.loads(done.stdout)["exit_code"] == code, "nothing but JSON on standard output"
    assert done.stderr == ""
    assert json.loads((tmp_path / "out" / "run.json").read_text())["exit_code"] == code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "give at least one image"), (("IN",), "-o OUT"), (("IN/none", "-o", "OUT"), "no file or folder"),
        (("IN", "-o", "OUT", "--threshold", "nan"), "not a number"), (("IN", "-o", "OUT", "--threshold", "2"), "range"),
        (("IN", "-o", "OUT", "--min-area", "inf"), "not a number"), (("IN", "-o", "OUT", "--save", "mesh"), "mask"),
        (("IN", "-o", "OUT", "--pixel-spacing", "nan"), "not a number"), (("IN", "-o", "IN/a.png"), "is a file"),
        (("IN", "-o", "OUT", "--limit", "0"), "range"), (("IN", "-o", "IN/n.txt/sub"), "cannot write"),
        (("IN", "-o", "IN"), "output folder is not an input"), (("IN", "-o", "OUT", "--nonsense"), "No such option"),
        (("IN", "-o", "OUT", "--boxes", "IN/none.csv"), "boxes"),
    ],
)  # fmt: skip
def test_wrong_calls_end_with_2_and_say_why(
    small: Path, tmp_path: Path, model: Path, arguments: tuple[str, ...], said: str
) -> None:
    before = files_below(tmp_path)
    places = [a.replace("IN", str(small), 1).replace("OUT", str(tmp_path / "out"), 1) for a in arguments]
    done = infer(*places, *(("--model", model) if arguments else ()))
    assert done.returncode == 2
    assert said in done.stderr
    assert files_below(tmp_path) == before


def test_refused_models_end_with_5_and_leave_nothing(small: Path, tmp_path: Path) -> None:
    changed = write_bundle(tmp_path / "changed", tiny_spec()) / "model.fp32.onnx"
    changed.write_bytes(changed.read_bytes()[:-1] + b"x")
    for model in (changed, TINY):
        done = infer(small, "-o", tmp_path / "out", "--model", model)
        assert done.returncode == 5, model
        assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


@LINUX
def test_an_output_folder_nobody_can_make(small: Path, model: Path) -> None:
    done = infer(small, "-o", "/proc/mammo-edge", "--model", model)
    assert done.returncode == 2
    assert "cannot write to the output folder" in done.stderr


def test_a_foreign_folder_is_left_alone(small: Path, tmp_path: Path, model: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    done = infer(small, "-o", tmp_path / "out", "--model", model)
    assert (done.returncode, [p.name for p in (tmp_path / "out").iterdir()]) == (2, ["thesis.txt"])
    assert infer(small, "-o", tmp_path / "out", "--model", model, "--overwrite", "-q").returncode == 0
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def test_quiet_is_silent_and_verbose_names_each_input(small: Path, tmp_path: Path, model: Path) -> None:
    quiet = infer(small, "-o", tmp_path / "out", "--model", model, "-q")
    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    verbose = infer(small, "-o", tmp_path / "out", "--model", model, "-v")
    assert "a.png: ok, 1 finding(s)" in verbose.stderr


def test_the_graph_is_chosen_by_precision_and_named_with_the_reason(small: Path, tmp_path: Path) -> None:
    reasons = {"int8-cpu": {"verdict": "missed", "why": ["Dice -0.020, \x1b[31mlimit -0.005"]}}
    folder = write_precisions(tmp_path / "b", {"fp16": passed()}, not_shipped=reasons)
    done = infer(small, "-o", tmp_path / "out", "--model", folder, "--precision", "fp16")
    assert "file: model.fp16.onnx (fp16 was asked for)" in done.stdout
    refused = infer(small, "-o", tmp_path / "none", "--model", folder, "--precision", "int8")
    assert (refused.returncode, refused.stdout.splitlines()[1:]) == (5, [])
    assert "holds no int8-cpu model (Dice -0.020, ?[31mlimit -0.005); it has fp32, fp16" in refused.stderr
    assert not (tmp_path / "none").exists()


def test_a_dry_run_writes_nothing(small: Path, tmp_path: Path, model: Path) -> None:
    before = files_below(tmp_path)
    plain = infer(small, "--dry-run", "--model", model, cwd=tmp_path)
    assert plain.returncode == 0
    assert "would look at 2 of 2 files with tiny, wrote nothing" in plain.stdout
    assert "file: model.fp32.onnx (auto takes fp32: fp16 is not in the bundle, int8-cpu is not in the" in plain.stdout
    told = infer(small, "-o", tmp_path / "out", "--dry-run", "--model", model, "--json")
    assert json.loads(told.stdout)["inputs"] == [str(small / "a.png"), str(small / "n.txt")]
    assert (json.loads(told.stdout)["model_file"], json.loads(told.stdout)["precision"]) == ("model.fp32.onnx", "fp32")
    assert files_below(tmp_path) == before
    assert not (tmp_path / "out").exists()


@LINUX
def test_names_that_cannot_be_printed(tmp_path: Path, model: Path) -> None:
    names = (os.fsdecode(b"\xff.png"), "\x1b[31mred.png", "ü.png")
    for name in names:
        save(tmp_path / "in-ä" / name)
        (tmp_path / "in-ä" / name).with_suffix(".txt").write_bytes(b"")
    plain = {"env": ENVIRONMENT | {"PYTHONIOENCODING": "ascii"}}
    for extra in (("--dry-run",), ("-v", "-o", tmp_path / "out-ö")):
        done = subprocess.run(
            command(tmp_path / "in-ä", "--model", model, *extra), capture_output=True, timeout=120, **plain
        )
        assert done.returncode in (0, 3), done.stderr
        assert b"Traceback" not in done.stderr
        assert b"\x1b" not in done.stdout + done.stderr
    assert len(list((tmp_path / "out-ö" / "masks").iterdir())) == 3


def test_list_models_is_json_for_programs() -> None:
    done = infer("--list-models", "--json")
    assert done.returncode == 0
    for model in json.loads(done.stdout):
        assert {"name", "path", "precisions", "input", "task"} <= set(model)
        assert Path(model["path"]).is_file()
        assert (Path(model["path"]).parent / model["files"]["fp32"]).samefile(model["path"])
        assert set(model["precisions"]) <= {"fp32", "fp16", "int8"}
    assert infer("--list-models").returncode == 0


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys, mammo_runtime.cli as c\nsys.argv[1:] = [sys.argv[1]]\ntry: c.main()\nfinally: print(*sys.modules)"
    )
    for option, said in (("--help", "Usage: mammo-infer"), ("--version", "version")):
        done = subprocess.run(
            [sys.executable, "-c", code, option], capture_output=True, text=True, env=ENVIRONMENT, timeout=60
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert said in done.stdout
        assert not {"numpy", "cv2", "onnxruntime", "pydicom", "jinja2"} & set(done.stdout.split())


def test_a_closed_pipe_is_no_crash(small: Path, tmp_path: Path, model: Path) -> None:
    with start(small, "-o", tmp_path / "out", "--model", model, "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert "Traceback" not in process.stderr.read()
    assert (tmp_path / "out" / "run.json").is_file()


@POSIX
def test_killed_at_any_moment_the_next_run_ends_as_if_nothing_had_been(
    folder: Path, tmp_path: Path, model: Path
) -> None:
    arguments = ("--model", model, "--threads", 1, "-q")
    assert infer(folder, "-o", tmp_path / "whole", *arguments).returncode == 0
    output, chance = tmp_path / "killed", random.Random(0)
    for count in (0, 1, 4, 6, 9):
        with start(folder, "-o", output, *arguments) as process:
            wait_for_masks(process, output, count)
            time.sleep(chance.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
        assert not (output / "run.json").exists()
        for path in output.glob("masks/**/[!.]*"):
            whole = tmp_path / "whole" / path.relative_to(output)
            assert path.is_dir() or path.read_bytes() == whole.read_bytes(), "no picture is ever half there"
    assert infer(folder, "-o", output, *arguments).returncode == 0
    assert results(output) == results(tmp_path / "whole")
    assert set(files_below(output)) == set(files_below(tmp_path / "whole")), "nothing doubled, nothing left behind"


@POSIX
def test_two_runs_at_once_and_ctrl_c(folder: Path, tmp_path: Path, model: Path) -> None:
    arguments = (folder, "-o", tmp_path / "out", "--model", model, "--threads", 1)
    with start(*arguments) as process:
        wait_for_masks(process, tmp_path / "out", 2)
        process.send_signal(signal.SIGSTOP)
        second = infer(*arguments)
        process.send_signal(signal.SIGCONT)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert second.returncode == 2
    assert "another run is writing" in second.stderr
    assert process.returncode == 130
    assert "Traceback" not in said
    assert "run the same command again" in said
    assert not list((tmp_path / "out").rglob("*.part"))
    assert infer(*arguments).returncode == 0
    assert [r["status"] for r in records(tmp_path / "out")] == ["ok"] * 12


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 240 kB; `mount -o remount` changes it."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=240k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True, check=False).returncode != 0:
        pytest.skip("a small disk can only be mounted by root outside a container")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


@LINUX
def test_a_full_disk_and_a_read_only_one(folder: Path, tmp_path: Path, small_disk: Path, model: Path) -> None:
    arguments = (folder, "-o", small_disk / "out", "--model", model, "--save", "mask,overlay,probability")
    full = infer(*arguments)
    assert full.returncode == 1
    assert "cannot write" in full.stderr.splitlines()[-1]
    assert not list(small_disk.rglob("*.part"))
    assert not (small_disk / "out" / "run.json").exists()
    subprocess.run(["mount", "-o", "remount,size=50m,ro", str(small_disk)], check=True)
    assert infer(*arguments).returncode == 2
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert infer(*arguments, "-q").returncode == 0
    assert [r["status"] for r in records(small_disk / "out")] == ["ok"] * 12
