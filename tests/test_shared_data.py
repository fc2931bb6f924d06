"""`mammo-infer` with the bundled models over the real images beside the project, where they are at hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import cv2
import numpy as np

ROOT = Path(__file__).parents[1]


def infer(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "runtime")}
    command = [sys.executable, "-m", "mammo_runtime.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)


def records_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "results.jsonl").read_text(encoding="utf-8").splitlines()]


def test_film_mammograms(shared_data: Path, tmp_path: Path) -> None:
    folder = shared_data / "mias_full" / "images"
    done = infer(str(folder), "-o", str(tmp_path / "out"), "--pixel-spacing", "0.2", "--limit", "12")
    assert done.returncode == 0, done.stderr
    records = records_of(tmp_path / "out")
    assert len(records) == 12
    for record in records:
        assert record["spacing_mm"] == [0.2, 0.2]
        assert record["spacing_source"] == "user"
        mask = cv2.imread(str(tmp_path / "out" / record["outputs"]["mask"]), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (1024, 1024)
        assert int((mask > 0).sum()) == sum(f["area_px"] for f in record["findings"])


def test_16_bit_detector_images(shared_data: Path, tmp_path: Path) -> None:
    done = infer(str(shared_data / "ffdm_16bit" / "images"), "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    rules = [record["intensity_rule"] for record in records_of(tmp_path / "out")]
    assert any("12" in rule for rule in rules)


def test_every_dicom_file_is_accounted_for(shared_data: Path, tmp_path: Path) -> None:
    done = infer(str(shared_data / "dicom"), "-o", str(tmp_path / "out"))
    assert done.returncode == 3, done.stderr
    assert "Traceback" not in done.stderr
    records = [r for r in records_of(tmp_path / "out") if r["image"].endswith(".dcm")]
    assert len(records) == 32
    counts = Counter(record["status"] for record in records)
    assert set(counts) == {"ok", "skipped", "failed"}
    for record in records:
        assert (record["error"] is None) == (record["status"] == "ok")
        assert record["status"] == "ok" or len(record["error"].split()) >= 3
    ok = {Path(record["image"]).name for record in records if record["status"] == "ok"}
    assert {"MG1_J2KI.dcm", "MG_Explicit_Little.dcm"} <= ok


def test_box_mode_on_real_lesions(shared_data: Path, tmp_path: Path) -> None:
    truth = shared_data / "mias_full" / "masks" / "mdb005.png"
    x, y, width, height = cv2.boundingRect(cv2.imread(str(truth), cv2.IMREAD_GRAYSCALE))
    boxes = tmp_path / "boxes.csv"
    boxes.write_text(f"image,x,y,width,height\nmdb005.png,{x},{y},{width},{height}\n")
    image = shared_data / "mias_full" / "images" / "mdb005.png"
    done = infer(str(image), "-o", str(tmp_path / "out"), "--boxes", str(boxes))
    assert done.returncode == 0, done.stderr
    (record,) = records_of(tmp_path / "out")
    assert record["model"] == "mass-roi"
    mask = cv2.imread(str(tmp_path / "out" / record["outputs"]["mask"]), cv2.IMREAD_UNCHANGED) > 0
    real = cv2.imread(str(truth), cv2.IMREAD_GRAYSCALE) > 127
    assert 2 * np.count_nonzero(mask & real) / (mask.sum() + real.sum()) > 0.5
