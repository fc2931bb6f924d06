"""Runs over a folder that holds earlier results: what is taken over, done again, removed."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import pipeline_runs
from mammo_runtime import pipeline
from mammo_runtime.errors import OutputError
from mammo_runtime.plan import RunSettings
from mammo_runtime.result import OperatingPoint
from mammo_runtime.spec import Precision
from pipeline_runs import statuses
from tiny_model import files_below, picture, save, tiny_spec, write_bundle
from tiny_precisions import passed, write_precisions

DONE: list[str] = []


@pytest.fixture(autouse=True)
def segmented(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Note which files are really segmented."""
    DONE.clear()
    real = pipeline._segmented

    def noting(run: Any, file: Any, boxes: Any) -> Any:
        DONE.append(file.relative.as_posix())
        return real(run, file, boxes)

    monkeypatch.setattr(pipeline, "_segmented", noting)
    return DONE


def go(settings: RunSettings) -> dict[str, Any]:
    DONE.clear()
    return pipeline_runs.go(settings)


def test_a_second_run_does_nothing_again_and_writes_the_same(settings: RunSettings) -> None:
    for name in ("a.png", "b.png"):
        save(settings.inputs[0] / name)
    (settings.inputs[0] / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    go(settings)
    before = files_below(settings.output)
    go(settings)
    assert DONE == ["broken.png"], "what failed is tried again"
    after = files_below(settings.output)
    assert set(after) == set(before)
    same = [name for name in before if before[name] == after[name]]
    assert {"results.jsonl", "results.csv", "masks/a.png", "overlays/b.png"} <= set(same)


def test_what_changed_is_done_again_and_nothing_else(settings: RunSettings, tmp_path: Path) -> None:
    a, b = save(settings.inputs[0] / "a.png"), save(settings.inputs[0] / "b.png")
    go(settings)
    save(b, picture(((30, 20, 9),)))
    go(settings)
    assert DONE == ["b.png"]
    go(replace(settings, point=OperatingPoint(threshold=0.6)))
    assert DONE == ["a.png", "b.png"]
    go(replace(settings, point=OperatingPoint(threshold=0.6), save=("mask", "overlay", "probability")))
    assert DONE == ["a.png", "b.png"]
    go(replace(settings, model=str(write_bundle(tmp_path / "other", tiny_spec(threshold=0.7)))))
    assert DONE == ["a.png", "b.png"]
    assert not (settings.output / "probabilities").exists(), "a picture nobody asked for any more does not stay"
    save(settings.inputs[0] / "0.png")
    a.touch()
    go(replace(settings, model=str(tmp_path / "other")))
    assert DONE == ["0.png"]
    (settings.output / "masks" / "a.png").unlink()
    go(replace(settings, model=str(tmp_path / "other")))
    assert DONE == ["a.png"]
    go(replace(settings, model=str(tmp_path / "other"), overwrite=True))
    assert DONE == ["0.png", "a.png", "b.png"]


def test_another_graph_of_the_same_bundle_is_another_model(settings: RunSettings, tmp_path: Path) -> None:
    save(settings.inputs[0] / "a.png")
    several = replace(settings, model=str(write_precisions(tmp_path / "b", {"fp16": passed(), "int8-cpu": passed()})))
    for precision in (None, Precision.FP16, Precision.INT8, Precision.FP32):
        go(replace(several, precision=precision))
        assert DONE == ["a.png"]
    go(several)
    assert DONE == [], "auto is fp32 here, which has just been done"


@pytest.mark.parametrize("how", ["broken", "empty", "unreadable", "pipe"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_an_image_that_fails_later_loses_its_pictures(settings: RunSettings, how: str, overwrite: bool) -> None:
    if how in ("unreadable", "pipe") and sys.platform == "win32":
        pytest.skip("links and pipes are made as on POSIX")
    path = save(settings.inputs[0] / "sub" / "a.png")
    save(settings.inputs[0] / "b.png")
    go(settings)
    assert (settings.output / "masks" / "sub" / "a.png").is_file()
    path.unlink()
    if how == "unreadable":
        path.symlink_to(path)
    elif how == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(b"" if how == "empty" else b"\x89PNG\r\n\x1a\n")
    go(replace(settings, overwrite=overwrite))
    assert statuses(settings) == {"b.png": "ok", "sub/a.png": "failed"}
    assert sorted(n for n in files_below(settings.output) if n.endswith("png")) == ["masks/b.png", "overlays/b.png"]


def test_a_disk_that_fills_up_stops_the_run_and_the_next_one_goes_on(
    settings: RunSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(settings.inputs[0] / name)
    real = pipeline.write_bytes

    def full(path: Path, content: bytes) -> None:
        if path.name == "b.png" and path.parent.name == "overlays":
            raise OutputError(f"cannot write {path}: No space left on device")
        real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_bytes", full)
        with pytest.raises(OutputError, match="No space"):
            go(settings)
    assert not (settings.output / "run.json").exists()
    # The mask of b.png is there, its record is not: with other settings the next run must not leave it behind.
    assert (settings.output / "masks" / "b.png").is_file()
    go(replace(settings, save=("overlay",)))
    assert list(statuses(settings).values()) == ["ok"] * 3
    assert not (settings.output / "masks").exists()


def test_run_json_stands_for_a_finished_run_only(settings: RunSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    save(settings.inputs[0] / "a.png")
    go(settings)
    (settings.output / "masks" / f".a.png.0123abcd{'.part'}").write_bytes(b"half")
    save(settings.inputs[0] / "b.png")

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "write_bytes", interrupted)
        with pytest.raises(KeyboardInterrupt):
            go(settings)
    assert not (settings.output / "run.json").exists()
    assert not list(settings.output.rglob("*.part")), "the rest of a killed run is swept"
    go(settings)
    assert DONE == ["b.png"]
    assert (settings.output / "run.json").is_file()
