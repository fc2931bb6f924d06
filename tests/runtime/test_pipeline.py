"""Whole runs in this process; see test_infer_cli.py for real processes, signals and exit codes."""

from __future__ import annotations

import csv
import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from mammo_runtime import pipeline
from mammo_runtime.errors import ExitCode
from mammo_runtime.hashing import file_sha256
from mammo_runtime.plan import RunSettings
from mammo_runtime.result import OperatingPoint, Result
from mammo_runtime.spec import Precision
from pipeline_runs import go, mask, statuses
from tiny_model import files_below, picture, records, save, tiny_spec, write_model
from tiny_precisions import passed, write_precisions


def test_every_input_is_accounted_for_in_order(settings: RunSettings) -> None:
    folder = settings.inputs[0]
    save(folder / "b.png")
    save(folder / "a" / "c.png", picture(()))
    (folder / "empty.png").write_bytes(b"")
    (folder / "notes.txt").write_text("hello")
    (folder / "cut.png").write_bytes(save(folder / "x.png").read_bytes()[:-40])
    (folder / ".hidden").write_text("x")
    summary = go(settings)
    assert [r["image"] for r in records(settings.output)] == [
        str(folder / n) for n in (".hidden", "a/c.png", "b.png", "cut.png", "empty.png", "notes.txt", "x.png")
    ]
    assert list(statuses(settings).values()) == ["skipped", "ok", "ok", "failed", "failed", "skipped", "ok"]
    assert all(bool(r["error"]) == (r["status"] != "ok") for r in records(settings.output))
    assert summary["exit_code"] == ExitCode.SOME_FAILED
    counts = {"inputs": 7, "ok": 3, "failed": 2, "skipped": 2, "with_findings": 2, "findings": 2, "not_reached": 0} | {
        "reused": 0
    }
    assert summary["counts"] == counts
    assert json.loads((settings.output / "run.json").read_text()) == json.loads(json.dumps(summary))
    with (settings.output / "results.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 7


def test_masks_are_what_the_model_marked(settings: RunSettings) -> None:
    pixels = picture(((60, 40, 12), (30, 20, 5)))
    save(settings.inputs[0] / "a.png", pixels)
    go(settings)
    found = mask(settings, "a.png")
    assert found.dtype == np.uint8
    assert found.shape == pixels.shape
    assert set(np.unique(found)) == {0, 255}
    assert ((found > 0) ^ (pixels > 127)).sum() < 0.15 * (found > 0).sum()
    (record,) = records(settings.output)
    assert sum(f["area_px"] for f in record["findings"]) == (found > 0).sum()
    assert record["findings"][0]["centroid"] == pytest.approx([40, 60], abs=0.5)
    assert record["spacing_mm"] is None
    assert record["findings"][0]["area_mm2"] is None


def test_equal_names_are_all_kept(settings: RunSettings, tmp_path: Path) -> None:
    folder, other = settings.inputs[0], tmp_path / "in2"
    for number, path in enumerate((folder / "a.png", folder / "a.jpg", folder / "A.PNG", other / "a.png")):
        save(path, picture(((40 + 10 * number, 30, 10),)))
    go(replace(settings, inputs=(folder, other)))
    found = records(settings.output)
    names = [r["outputs"]["mask"] for r in found]
    assert len({name.casefold() for name in names}) == len(names) == 4
    for record in found:
        rows = np.nonzero(mask(settings, Path(record["outputs"]["mask"]).name))[0]
        assert rows.mean() == pytest.approx(record["findings"][0]["centroid"][1], abs=0.1), (
            "each mask is its own image's"
        )


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes, pipes and sockets are tried on Linux")
def test_strange_names_and_things_do_not_stop_a_run(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = settings.inputs[0]
    names = [
        os.fsdecode(b"\xff\xfe.png"),
        "new\nline.png",
        "a" * 251 + ".png",
        "ü" * 125 + ".png",
        "a b/ü c.png",
        "-o.png",
    ]
    for name in names:
        save(folder / name)
    monkeypatch.chdir(folder)
    os.mkfifo("pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.png")
        (folder / "loop").symlink_to(folder)
        go(settings)
    found = statuses(settings)
    assert {n for n, status in found.items() if status == "ok"} == set(names)
    assert {n for n, status in found.items() if status == "failed"} == {"pipe.png", "socket.png"}
    assert all((settings.output / r["outputs"]["mask"]).is_file() for r in records(settings.output) if r["outputs"])


def test_a_folder_called_like_a_picture_is_no_obstacle(settings: RunSettings) -> None:
    save(settings.inputs[0] / "a.jpg")
    save(settings.inputs[0] / "a.png" / "b.png")
    assert go(settings)["exit_code"] == ExitCode.DONE


@pytest.mark.parametrize("error", [ValueError("Smith^Jane"), MemoryError(), cv2.error("bad"), RecursionError()])
def test_whatever_goes_wrong_with_one_image_the_run_goes_on(
    settings: RunSettings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(settings.inputs[0] / name)
    real = pipeline.mask_content
    calls: list[int] = []

    def failing(found: Result) -> bytes:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(found)

    monkeypatch.setattr(pipeline, "mask_content", failing)
    summary = go(settings)
    assert statuses(settings) == {"a.png": "ok", "b.png": "failed", "c.png": "ok"}
    assert summary["exit_code"] == ExitCode.SOME_FAILED
    assert "Smith" not in (settings.output / "results.jsonl").read_text()
    assert sorted(n for n in files_below(settings.output) if n.startswith("masks")) == ["masks/a.png", "masks/c.png"]


@pytest.mark.parametrize(
    ("save_these", "expected"),
    [((), set()), (("mask",), {"masks"}), (("probability", "overlay"), {"overlays", "probabilities"})],
)
def test_only_what_was_asked_for_is_saved(
    settings: RunSettings, save_these: tuple[str, ...], expected: set[str]
) -> None:
    save(settings.inputs[0] / "a.png")
    go(replace(settings, save=save_these))
    assert {p.name for p in settings.output.iterdir() if p.is_dir()} == expected
    for folder in expected:
        assert (settings.output / folder / "a.png").is_file()


def test_limit_and_fail_fast(settings: RunSettings) -> None:
    for name in ("a.png", "c.png", "d.png"):
        save(settings.inputs[0] / name)
    (settings.inputs[0] / "b.png").write_bytes(b"")
    assert go(replace(settings, limit=1))["counts"]["inputs"] == 1
    summary = go(replace(settings, fail_fast=True))
    assert list(statuses(settings).values()) == ["ok", "failed"]
    assert summary["counts"]["not_reached"] == 2


@pytest.mark.parametrize(
    ("names", "code"),
    [(("a.png",), 0), (("a.png", "n.txt"), 0), (("a.png", "e.png"), 3), (("e.png", "n.txt"), 4), (("n.txt",), 2)],
)
def test_exit_codes(settings: RunSettings, names: tuple[str, ...], code: int) -> None:
    for name in names:
        if name == "a.png":
            save(settings.inputs[0] / name)
        else:
            (settings.inputs[0] / name).write_text("hello" if name == "n.txt" else "")
    assert go(settings)["exit_code"] == code


def test_run_json_tells_what_ran(settings: RunSettings, tmp_path: Path) -> None:
    save(settings.inputs[0] / "a.png")
    loose = write_model(tmp_path / "loose.onnx", tiny_spec())
    summary = go(replace(settings, model=str(loose)))
    assert summary["model"]["name"] == "tiny"
    assert summary["backend"].startswith("onnxruntime")
    assert summary["settings"]["inputs"] == [str(settings.inputs[0])]
    assert any("could not be checked" in note for note in summary["notes"])
    assert summary["machine"]["python"] == sys.version.split()[0]
    assert (summary["model"]["file"], summary["model"]["why"]) == ("loose.onnx", "this file was given as the model")
    assert summary["settings"]["precision"] == "auto"


def test_every_result_says_which_graph_of_the_bundle_it_is_of(settings: RunSettings, tmp_path: Path) -> None:
    save(settings.inputs[0] / "a.png")
    folder = write_precisions(tmp_path / "several", {"fp16": passed(), "int8-cpu": passed()})
    summary = go(replace(settings, model=str(folder), precision=Precision.INT8))
    (record,) = records(settings.output)
    assert (record["model_file"], record["precision"]) == ("model.int8-cpu.onnx", "int8")
    assert record["model_sha256"] == summary["model"]["sha256"] == file_sha256(folder / "model.int8-cpu.onnx")
    assert (summary["model"]["file"], summary["precision"]) == ("model.int8-cpu.onnx", "int8")
    assert summary["model"]["why"] == "int8 was asked for, which on the cpu backend is int8-cpu"
    assert "int8 was asked for" in (settings.output / "report.html").read_text(encoding="utf-8")


def test_the_threshold_on_record_is_the_one_used(settings: RunSettings) -> None:
    save(settings.inputs[0] / "a.png")
    summary = go(replace(settings, point=OperatingPoint(threshold=0.9)))
    assert summary["model"]["threshold"] == records(settings.output)[0]["threshold"] == 0.9
    assert summary["model"]["own_threshold"] != 0.9


def test_what_no_reader_takes_is_not_read_through(settings: RunSettings) -> None:
    (settings.inputs[0] / "backup.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    save(settings.inputs[0] / "a.png")
    go(settings)
    found = {Path(r["image"]).name: r["file_sha256"] for r in records(settings.output)}
    assert found["backup.zip"] is None
    assert len(found["a.png"]) == 64
