"""`mammo-infer` with models of every task, as real processes on ONNX Runtime: what stands in each of its outputs."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mammo_runtime.bundle import read_bundle
from mammo_runtime.spec import Task
from pipeline_runs import boxes_csv
from tiny_model import files_below, infer, records, save
from tiny_tasks import SPECS, quarters, spotted, write_task_bundle

SECRET = "Smith^Jane"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Path]:
    root = tmp_path_factory.mktemp("models")
    return {task: write_task_bundle(root / task.value, spec) for task, spec in SPECS.items()}


def table(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def stored(path: Path) -> np.ndarray:
    found = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return np.asarray(found)


def run_of(output: Path) -> dict[str, Any]:
    return dict(json.loads((output / "run.json").read_text(encoding="utf-8")))


def test_a_class_map(tmp_path: Path, models: dict[Task, Path]) -> None:
    grey = quarters(0, 85, 170, 85)
    save(tmp_path / "in" / "a.png", np.repeat(grey[..., None], 3, axis=2))
    save(tmp_path / "in" / "sub" / "white.png", quarters(0, 85, 170, 255))
    (tmp_path / "in" / "broken.png").write_bytes(b"")
    arguments = (tmp_path / "in", "-o", tmp_path / "out", "--model", models[Task.MULTICLASS], "--pixel-spacing", "0.1")
    done = infer(*arguments, "--save", "mask,overlay,probability", "-v")
    assert done.returncode == 3
    assert "note: no probability pictures: multiclass models have none" in done.stdout
    assert "a.png: ok, 3 class(es)" in done.stderr
    found, _, white = records(tmp_path / "out")
    assert found["classes"] == [
        {"name": "gland", "area_px": 4096, "fraction": 0.25, "area_mm2": 40.96},
        {"name": "stroma", "area_px": 8192, "fraction": 0.5, "area_mm2": 81.92},
        {"name": "tumour", "area_px": 4096, "fraction": 0.25, "area_mm2": 40.96},
        {"name": "fat", "area_px": 0, "fraction": 0.0, "area_mm2": 0.0},
    ]
    assert (found["findings"], found["threshold"], found["predicted_class"]) == ([], None, None)
    assert np.array_equal(stored(tmp_path / "out" / "masks" / "a.png"), grey // 85)
    assert stored(tmp_path / "out" / "overlays" / "a.png").shape[0] > 128
    assert (white["status"], white["classes"], white["outputs"]) == ("failed", [], {}), "NaN is never a class"
    assert "NaN" in white["error"]
    assert [row["classes"] for row in table(tmp_path / "out")] == ["gland 0.25; stroma 0.5; tumour 0.25", "", ""]
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for words in ("Tissue class map report", "stroma 50.0 %", "81.9 mm²", "#56b4e9", "Research use only"):
        assert words in report
    before = files_below(tmp_path / "out")
    again = infer(*arguments, "--save", "mask,overlay,probability")
    assert "1 taken over from an earlier run" in again.stdout
    assert files_below(tmp_path / "out")["results.csv"] == before["results.csv"]


def test_a_classifier_in_a_deidentified_run(tmp_path: Path, models: dict[Task, Path]) -> None:
    for name, grey in (("n", 25), ("b", 77), ("m", 128)):
        pixels = np.full((64, 64), grey, np.uint8)
        pixels[0] += 1
        save(tmp_path / SECRET / f"{SECRET}-{name}.png", pixels)
    done = infer(tmp_path / SECRET, "-o", tmp_path / "out", "--model", models[Task.CLASSIFICATION], "--deidentify")
    assert done.returncode == 0
    assert "; benign: 1, malignant: 1, normal: 1" in done.stdout
    found = records(tmp_path / "out")
    assert sorted(r["predicted_class"] for r in found) == ["benign", "malignant", "normal"]
    for record in found:
        assert [c["name"] for c in record["classes"]] == ["normal", "benign", "malignant"]
        assert sum(c["probability"] for c in record["classes"]) == pytest.approx(1, abs=1e-5)
        best = max(record["classes"], key=lambda c: float(c["probability"]))
        assert best["name"] == record["predicted_class"]
        assert set(record["outputs"]) == {"overlay"}
    assert not (tmp_path / "out" / "masks").exists()
    assert {row["predicted_class"] for row in table(tmp_path / "out")} == {"benign", "malignant", "normal"}
    assert run_of(tmp_path / "out")["predicted_classes"] == {"benign": 1, "malignant": 1, "normal": 1}
    assert run_of(tmp_path / "out")["model"]["threshold"] is None
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for words in ("Image classification report", "Likeliest class for the model: malignant", "Research use only"):
        assert words in report
    assert not [n for n, content in files_below(tmp_path / "out").items() if SECRET.encode() in content or SECRET in n]


def test_a_prompted_model_with_mixed_boxes_and_a_picture_that_comes_again(
    tmp_path: Path, models: dict[Task, Path]
) -> None:
    pixels = spotted((32, 32, 9), (65, 95, 12))
    for name in ("a.png", "again.png", "edge.png", "nobox.png", "outside.png", "dark.png"):
        save(tmp_path / "in" / name, pixels)
    white = pixels.copy()
    white[:8, :8] = 255
    save(tmp_path / "in" / "white.png", white)
    two = ("20,20,24,24", "80,50,30,30")
    rows = [f"{name},{box}" for name in ("a.png", "again.png") for box in two]
    rows += ["a.png,50,10,20,15", "edge.png,0,20,40,30", "outside.png,20,20,24,24", "outside.png,500,1,9,9"]
    boxes = boxes_csv(tmp_path, *rows, "white.png,20,20,24,24", "gone.png,1,1,5,5")
    arguments = (tmp_path / "in", "-o", tmp_path / "out", "--model", models[Task.PROMPTED], "--boxes", boxes)
    assert infer(*arguments, "--save", "mask,overlay,probability").returncode == 3
    found = {Path(r["image"]).name: r for r in records(tmp_path / "out")}
    assert {name: r["status"] for name, r in found.items()} == {
        "a.png": "ok", "again.png": "ok", "edge.png": "failed", "nobox.png": "skipped", "outside.png": "failed",
        "dark.png": "skipped", "white.png": "failed", "gone.png": "failed",
    }  # fmt: skip
    assert "IoU" in found["edge.png"]["error"]
    assert "outside" in found["outside.png"]["error"]
    assert "embedding" in found["white.png"]["error"]
    one = found["a.png"]
    assert one["box_predicted_iou"] == pytest.approx([20 / 128, 80 / 128, 50 / 128], abs=1e-4)
    assert {f["prompt_box"]: f["predicted_iou"] for f in one["findings"]} == pytest.approx(
        {1: 0.1562, 2: 0.625}, abs=1e-4
    )
    assert one["prompt_source"] == "boxes file"
    assert any("needs a box" in note for note in one["notes"])
    mask = stored(tmp_path / "out" / "masks" / "a.png") > 0
    assert (mask ^ (pixels > 127)).sum() <= 0.25 * (pixels > 127).sum()
    # a.png, again.png and edge.png are one picture; white.png failed in the encoder.
    assert run_of(tmp_path / "out")["embeddings"] == {"encoder_runs": 2, "encoder_runs_saved": 2, "bytes": 3072}
    rows_of_a = [r for r in table(tmp_path / "out") if r["image"].endswith("/a.png")]
    assert {(r["prompt_box"], r["predicted_iou"]) for r in rows_of_a} == {
        *(("1", "0.1562"), ("2", "0.625"), ("3", "0.3906"))
    }
    assert [r["finding"] for r in rows_of_a if r["prompt_box"] == "3"] == [""]
    report = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    for words in ("from given boxes", "Box 3: no mass marked by the model (predicted IoU 0.39)", "Predicted IoU"):
        assert words in report
    before = files_below(tmp_path / "out")
    again = infer(*arguments, "--save", "mask,overlay,probability")
    assert "2 taken over" in again.stdout
    assert files_below(tmp_path / "out")["results.csv"] == before["results.csv"]


@pytest.mark.parametrize(
    ("task", "more", "code", "said"),
    [
        (Task.PROMPTED, (), 2, "segments inside boxes: give them with --boxes"),
        (Task.MULTICLASS, ("--threshold", "0.4"), 2, "likeliest class"),
        (Task.CLASSIFICATION, ("--min-area", "5"), 2, "likeliest class"),
        (Task.CLASSIFICATION, ("--boxes", "BOXES"), 2, "takes whole images"),
        (Task.PROMPTED, ("--model", "ENCODER", "--boxes", "BOXES"), 5, "one half of the prompted model"),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_is_written(
    tmp_path: Path, models: dict[Task, Path], task: Task, more: tuple[str, ...], code: int, said: str
) -> None:
    save(tmp_path / "in" / "a.png", spotted((32, 32, 9)))
    encoder = tmp_path / "encoder.onnx"
    encoder.write_bytes((models[Task.PROMPTED] / "model.fp32.onnx").read_bytes())
    places = {"BOXES": str(boxes_csv(tmp_path, "a.png,20,20,24,24")), "ENCODER": str(encoder)}
    arguments = ("--model", models[task], *(places.get(a, a) for a in more))
    done = infer(tmp_path / "in", "-o", tmp_path / "out", *arguments)
    assert done.returncode == code
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_bundles_tell_task_and_classes(models: dict[Task, Path]) -> None:
    listed = read_bundle(models[Task.CLASSIFICATION])
    assert listed.to_dict()["task"] == "classification"
    assert listed.to_dict()["classes"] == ["normal", "benign", "malignant"]
