"""Whole runs of `mammo-infer` in this process, and what they left."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mammo_runtime.pipeline import run_folder
from mammo_runtime.plan import RunSettings
from tiny_model import records


def go(settings: RunSettings) -> dict[str, Any]:
    """Do a run; returns what run.json holds."""
    return run_folder(settings, lambda number, total, path, record: None)


def statuses(settings: RunSettings) -> dict[str, str]:
    """Return the status of each input by its path below the input folder."""
    root = str(settings.inputs[0]) + "/"
    return {r["image"].removeprefix(root): r["status"] for r in records(settings.output)}


def mask(settings: RunSettings, name: str) -> np.ndarray:
    """Return a mask's pixels as stored."""
    found = cv2.imdecode(np.frombuffer((settings.output / "masks" / name).read_bytes(), np.uint8), cv2.IMREAD_UNCHANGED)
    assert found is not None
    return found


def boxes_csv(folder: Path, *rows: str) -> Path:
    """Write a boxes file."""
    path = folder / "boxes.csv"
    path.write_text("\n".join(["image,x,y,width,height", *rows]) + "\n", encoding="utf-8")
    return path
