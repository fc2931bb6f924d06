"""Whole runs in this process; see test_infer_cli.py for real processes, signals and exit codes."""

from __future__ import annotations

import csv
import json
import os
import socket
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mammo_runtime import pipeline
from mammo_runtime.errors import ExitCode, OutputError, UsageError
from mammo_runtime.pipeline import RunSettings, run_folder
from mammo_runtime.segmenter import OperatingPoint
from mammo_runtime.spec import InputMode
from tiny_model import files_below, picture, records, save, tiny_spec, write_bundle, write_model

DONE: list[str] = []


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_bundle(tmp_path / "model", tiny_spec())


@pytest.fixture
def settings(tmp_path: Path, model: Path) -> RunSettings:
    (tmp_path / "in").mkdir()
    return RunSettings((tmp_path / "in",), tmp_path / "out", str(model), threads=1)


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
    return run_folder(settings, lambda number, total, path, record: None)


def statuses(settings: RunSettings) -> dict[str, str]:
    root = str(settings.inputs[0]) + "/"
    return {r["image"].removeprefix(root): r["status"] for r in records(settings.output)}


def mask(settings: RunSettings, name: str) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer((settings.output / "masks" / name).read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found


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
    real = pipeline.mask_png
    calls: list[int] = []

    def failing(found: np.ndarray) -> bytes:
        calls.append(1)
        if len(calls) == 2:
            raise error
        return real(found)

    monkeypatch.setattr(pipeline, "mask_png", failing)
    summary = go(settings)
    assert statuses(settings) == {"a.png": "ok", "b.png": "failed", "c.png": "ok"}
    assert summary["exit_code"] == ExitCode.SOME_FAILED
    assert "Smith" not in (settings.output / "results.jsonl").read_text()
    assert sorted(n for n in files_below(settings.output) if n.startswith("masks")) == ["masks/a.png", "masks/c.png"]


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


def boxes_csv(folder: Path, *rows: str) -> Path:
    path = folder / "boxes.csv"
    path.write_text("\n".join(["image,x,y,width,height", *rows]) + "\n", encoding="utf-8")
    return path


def test_boxes(settings: RunSettings, tmp_path: Path) -> None:
    folder = settings.inputs[0]
    pixels = picture(((60, 40, 12), (30, 20, 5), (95, 15, 6)))
    for name in ("a.png", "sub/b.png", "none.png", "outside.png"):
        save(folder / name, pixels)
    boxes = boxes_csv(
        tmp_path, "a.png,26,46,29,29", "a.png,13,23,15,15", "sub\\b.png,26,46,29,29", "outside.png,900,0,5,5",
        "in/a.png,0,0,5,5",
    )  # fmt: skip
    model = write_bundle(tmp_path / "roi", tiny_spec(InputMode.ROI))
    summary = go(replace(settings, model=str(model), boxes=boxes))
    found = {r["image"].removeprefix(f"{folder}/"): r for r in records(settings.output)}
    assert {n: r["status"] for n, r in found.items()} == {
        "a.png": "ok", "none.png": "skipped", "outside.png": "failed", "sub/b.png": "ok", "in/a.png": "failed",
    }  # fmt: skip
    assert "not among the inputs" in found["in/a.png"]["error"]
    assert summary["counts"]["inputs"] == 5
    assert [f["prompt_box"] for f in sorted(found["a.png"]["findings"], key=lambda f: f["prompt_box"])] == [1, 2]
    drawn = mask(settings, "a.png") > 0
    assert drawn[60, 40]
    assert drawn[30, 20]
    assert not drawn[95, 15], "nobody pointed at that one"
    assert not (mask(settings, "sub/b.png") > 0)[30, 20]


def test_a_wrong_name_in_the_boxes_never_replaces_a_result(
    settings: RunSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A boxes file may name an input as the results show it; another input's name must not get its result."""
    save(settings.inputs[0] / "a.png")
    monkeypatch.chdir(tmp_path)
    boxes = boxes_csv(tmp_path, "a.png,26,46,29,29", "in/a.png,26,46,29,29", "in/b.png,1,1,5,5")
    model = write_bundle(tmp_path / "roi", tiny_spec(InputMode.ROI))
    summary = go(replace(settings, inputs=(Path("in"),), model=str(model), boxes=boxes))
    assert [(r["image"], r["status"]) for r in records(settings.output)] == [("in/a.png", "ok"), ("in/b.png", "failed")]
    assert len(records(settings.output)[0]["boxes"]) == 2
    assert (summary["counts"]["ok"], summary["counts"]["failed"]) == (1, 1)


def test_model_and_boxes_must_fit_before_anything_is_written(settings: RunSettings, tmp_path: Path) -> None:
    save(settings.inputs[0] / "a.png")
    with pytest.raises(UsageError, match="whole images"):
        go(replace(settings, boxes=boxes_csv(tmp_path, "a.png,1,1,5,5")))
    roi = write_bundle(tmp_path / "roi", tiny_spec(InputMode.ROI))
    with pytest.raises(UsageError, match="--boxes"):
        go(replace(settings, model=str(roi)))
    assert not settings.output.exists()


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


SECRET = "Smith^Jane_1950"


def leaks(folder: Path) -> list[str]:
    """Return the files below a folder that hold the secret, in their content or their path."""
    secret = SECRET.encode()
    return [n for n, content in files_below(folder).items() if secret in content or SECRET in n] + [
        p.name for p in folder.rglob("*") if SECRET in p.name
    ]


def secret_inputs(settings: RunSettings, tmp_path: Path) -> RunSettings:
    folder = tmp_path / SECRET
    save(folder / f"{SECRET}.png")
    save(folder / SECRET / "a.png")
    (folder / f"{SECRET}.txt").write_text("x")
    (folder / f"{SECRET}.dcm").write_bytes(b"")
    return replace(settings, inputs=(folder,))


def test_a_deidentified_run_names_nobody(settings: RunSettings, tmp_path: Path) -> None:
    settings = replace(secret_inputs(settings, tmp_path), deidentify=True)
    go(settings)
    assert leaks(settings.output) == []
    assert [r["status"] for r in records(settings.output)] == ["ok", "failed", "ok", "skipped"]
    assert len(list((settings.output / "masks").iterdir())) == 2
    go(settings)
    assert len(DONE) == 2, "the results are found again without names"


def test_a_deidentified_run_names_nobody_from_the_boxes_either(settings: RunSettings, tmp_path: Path) -> None:
    settings = secret_inputs(settings, tmp_path)
    boxes = boxes_csv(tmp_path, f"{SECRET}.png,26,46,29,29", f"gone-{SECRET}.png,1,1,5,5")
    model = write_bundle(tmp_path / "roi", tiny_spec(InputMode.ROI))
    go(replace(settings, deidentify=True, boxes=boxes, model=str(model)))
    assert leaks(settings.output) == []


def test_names_in_clear_do_not_stay_in_a_deidentified_folder(settings: RunSettings, tmp_path: Path) -> None:
    settings = secret_inputs(settings, tmp_path)
    go(settings)
    assert leaks(settings.output)
    with pytest.raises(UsageError, match="in clear"):
        go(replace(settings, deidentify=True))
    go(replace(settings, deidentify=True, overwrite=True))
    assert leaks(settings.output) == []


def test_run_json_tells_what_ran(settings: RunSettings, tmp_path: Path) -> None:
    save(settings.inputs[0] / "a.png")
    loose = write_model(tmp_path / "loose.onnx", tiny_spec())
    summary = go(replace(settings, model=str(loose)))
    assert summary["model"]["name"] == "tiny"
    assert summary["backend"].startswith("onnxruntime")
    assert summary["settings"]["inputs"] == [str(settings.inputs[0])]
    assert any("could not be checked" in note for note in summary["notes"])
    assert summary["machine"]["python"] == sys.version.split()[0]


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
