"""Bundles of the tiny models of the other tasks, and pictures for them; runtime/make_tiny_onnx.py says what they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mammo_runtime.hashing import file_sha256
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import METADATA_KEY, Activation, Fit, InputSpec, ModelSpec, PromptSpec, Task
from tiny_model import TINY, with_metadata

GRID = InputSpec(height=64, width=64)
SPECS = {
    Task.MULTICLASS: ModelSpec(
        "tiny-map",
        "nearest grey",
        task=Task.MULTICLASS,
        activation=Activation.ARGMAX,
        modality=Modality.HISTOPATHOLOGY,
        classes=("gland", "stroma", "tumour", "fat"),
        input=InputSpec(height=64, width=64, colour=True),
    ),
    Task.CLASSIFICATION: ModelSpec(
        "tiny-classifier",
        "mean grey",
        task=Task.CLASSIFICATION,
        activation=Activation.SOFTMAX,
        modality=Modality.ULTRASOUND,
        classes=("normal", "benign", "malignant"),
        input=GRID,
    ),
    Task.PROMPTED: ModelSpec(
        "tiny-prompted",
        "cells",
        task=Task.PROMPTED,
        modality=Modality.ULTRASOUND,
        prompt=PromptSpec((3, 16, 16), 16),
        input=InputSpec(height=64, width=64, fit=Fit.CORNER),
    ),
}
GRAPHS = {
    Task.MULTICLASS: {"file": "tiny_multiclass.onnx"},
    Task.CLASSIFICATION: {"file": "tiny_classifier.onnx"},
    Task.PROMPTED: {"file": "tiny_encoder.onnx", "prompt_decoder": "tiny_decoder.onnx"},
}
NAMES = {"file": "model.fp32.onnx", "prompt_decoder": "model.fp32.decoder.onnx"}


def write_task_bundle(folder: Path, spec: ModelSpec, **manifest: Any) -> Path:
    """Write the bundle of a task's tiny model with this spec; `manifest` replaces entries of bundle.json."""
    folder.mkdir(parents=True, exist_ok=True)
    entry = {part: NAMES[part] for part in GRAPHS[spec.task]}
    for part, graph in GRAPHS[spec.task].items():
        content = with_metadata((TINY.parent / graph).read_bytes(), {METADATA_KEY: spec.to_json()})
        (folder / NAMES[part]).write_bytes(content)
    described = {
        "schema_version": 1,
        "spec": spec.to_dict(),
        "files": {name: {"sha256": file_sha256(folder / name)} for name in entry.values()},
        "precisions": {"fp32": entry},
    }
    (folder / "bundle.json").write_text(json.dumps(described | manifest), encoding="utf-8")
    return folder


def quarters(*greys: int, rows: int = 128, columns: int = 128) -> np.ndarray:
    """Return uint8 [rows, columns] of four quarters: top left, top right, bottom left, bottom right."""
    pixels = np.empty((rows, columns), np.uint8)
    for k, grey in enumerate(greys):
        top, left = (k // 2) * rows // 2, (k % 2) * columns // 2
        pixels[top : top + rows // 2, left : left + columns // 2] = grey
    return pixels


def spotted(*discs: tuple[int, int, int], rows: int = 96, columns: int = 128, grey: int = 40) -> np.ndarray:
    """Return uint8 [rows, columns] of bright discs (row, column, radius) on dark grey."""
    pixels = np.full((rows, columns), grey, np.uint8)
    for row, column, radius in discs:
        cv2.circle(pixels, (column, row), radius, 220, -1)
    return pixels
