"""Trainer → checkpoint → ONNX bundle → `mammo-infer`, by the four commands, on phantoms."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

pytest.importorskip("torch", reason="the whole path needs the training environment")

ROOT = Path(__file__).parents[1]
FOLDS = 5
IMAGES_PER_FOLD = 2
SIDE = 160


def run(*command: str) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join(str(ROOT / room) for room in ("runtime", "train", "export"))
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "2"}
    module, *arguments = command
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, env=environment, timeout=600
    )


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of bright discs on noisy breasts, in five folds."""
    root = tmp_path_factory.mktemp("collection")
    (root / "images").mkdir()
    (root / "masks").mkdir()
    rows = []
    rng = np.random.default_rng(5)
    for number in range(FOLDS * IMAGES_PER_FOLD):
        picture = np.zeros((SIDE, SIDE), np.float32)
        cv2.ellipse(picture, (0, SIDE // 2), (SIDE * 3 // 4, SIDE // 2 - 8), 0, 0, 360, 0.4, -1)
        mask = np.zeros((SIDE, SIDE), np.uint8)
        centre = (int(rng.integers(30, 80)), int(rng.integers(50, 110)))
        cv2.circle(mask, centre, int(rng.integers(12, 20)), 255, -1)
        picture = np.where(picture > 0, picture + 0.4 * (mask > 0) + rng.normal(0, 0.02, picture.shape), 0)
        cv2.imwrite(str(root / f"images/p{number}.png"), np.clip(picture * 255, 0, 255).astype(np.uint8))
        cv2.imwrite(str(root / f"masks/p{number}.png"), mask)
        rows.append(
            {"image": f"images/p{number}.png", "mask": f"masks/p{number}.png", "kind": "mass",
             "patient": f"patient{number}", "pixel_spacing_mm": "0.2", "fold": str(number % FOLDS)}
        )  # fmt: skip
    with (root / "index.csv").open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


@pytest.mark.parametrize("mode", ["full", "roi"])
def test_from_images_to_findings(collection: Path, tmp_path: Path, mode: str) -> None:
    trained, bundle, out = tmp_path / "run", tmp_path / "bundle", tmp_path / "out"
    index = ("--index", str(collection / "index.csv"), "--root", str(collection))
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"frozen_epochs": 0, "repeats": 4, "ema_decay": 0.0, "rate": 1e-3}))
    fit = run(
        "mammo_train.cli", "fit", *index, "--input", mode, "--size", "64x64", "--epochs", "2", "--batch", "4",
        "--encoder-weights", "none", "--config", str(settings), "-o", str(trained),
    )  # fmt: skip
    assert fit.returncode == 0, fit.stderr
    evaluation = run("mammo_train.cli", "evaluate", str(trained), *index, "--fold", "0")
    assert evaluation.returncode == 0, evaluation.stderr
    metrics = json.loads((trained / "metrics.json").read_text())
    assert {"validation", "fold_0"} <= set(metrics)
    export = run("mammo_export.cli", str(trained), "-o", str(bundle), "--precision", "fp32")
    assert export.returncode == 0, export.stderr
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["precisions"]["fp32"]["verdict"] == "passed"

    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x,y,width,height\n" + "".join(f"p{k}.png,20,40,60,60\n" for k in range(10)))
    extra = ("--boxes", str(boxes)) if mode == "roi" else ()
    infer = run("mammo_runtime.cli", str(collection / "images"), "-o", str(out), "--model", str(bundle), *extra)
    assert infer.returncode == 0, infer.stderr
    records = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert [r["status"] for r in records] == ["ok"] * 10
    for record in records:
        mask = cv2.imread(str(out / record["outputs"]["mask"]), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (SIDE, SIDE)
        assert set(np.unique(mask)) <= {0, 255}
        assert (record["findings"] == []) == (not mask.any())
    assert (out / "report.html").stat().st_size > 10_000
