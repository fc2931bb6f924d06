"""Phantom data sets, spec and settings for the trainer's tests: small, synthetic, with known answers."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mammo_runtime.spec import CleaningStep, InputMode, InputSpec, ModelSpec
from mammo_train.config import TrainConfig
from mammo_train.index import IndexRow, read_index

ROWS, COLUMNS, SPACING_MM = 128, 96, 0.5


@dataclass(frozen=True)
class PhantomSet:
    """An index on disk with its root."""

    index: Path
    root: Path

    def rows(self) -> tuple[IndexRow, ...]:
        return read_index(self.index, self.root)


def breast(seed: int, masses: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture uint8 and its mass mask bool: half an ellipse of noisy tissue with bright discs in it."""
    rng = np.random.default_rng(seed)
    picture, mask = np.zeros((ROWS, COLUMNS), np.uint8), np.zeros((ROWS, COLUMNS), np.uint8)
    cv2.ellipse(picture, (0, ROWS // 2), (COLUMNS - 16, ROWS // 2 - 8), 0, -90, 90, 90, -1)
    for number in range(masses):
        centre = (int(rng.integers(20, 45)), 40 + 48 * number + int(rng.integers(-6, 6)))
        cv2.circle(mask, centre, int(rng.integers(6, 13)), 1, -1)
    noise = rng.normal(0, 8, picture.shape)
    values = np.where(picture > 0, picture + noise + 110.0 * mask, 0)
    return np.clip(values, 0, 255).astype(np.uint8), mask.astype(bool)


def write_phantoms(root: Path, folder: str = "phantoms") -> PhantomSet:
    """Write five folds of two mass pictures, one with other findings and one normal; two pictures per patient."""
    lines = []
    for fold in range(5):
        for number, kind in enumerate(("mass", "mass", "findings", "normal")):
            name = f"f{fold}_{number}_{kind}.png"
            picture, mask = breast(10 * fold + number, {"mass": 1 + number, "findings": 1, "normal": 0}[kind])
            for part in ("images", "masks"):
                (root / folder / part).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(root / folder / "images" / name), picture)
            cv2.imwrite(str(root / folder / "masks" / name), mask.astype(np.uint8) * 255)
            lines.append(
                {
                    "image": f"{folder}/images/{name}",
                    "mask": "" if kind == "normal" else f"{folder}/masks/{name}",
                    "patient": f"p{fold}_{number % 2}",
                    "fold": fold,
                    "kind": kind,
                    "pixel_spacing_mm": "" if kind == "findings" else SPACING_MM,
                }
            )
    index = root / "index.csv"
    with index.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return PhantomSet(index, root)


def tiny_spec(mode: InputMode = InputMode.FULL, **changes: object) -> ModelSpec:
    """Return the real network on a 64 x 64 grid."""
    cleaning = (CleaningStep("stretch"),)
    return ModelSpec(
        "tiny", "mobilenetv2_resunet", input=InputSpec(mode, height=64, width=64, cleaning=cleaning), **changes
    )  # type: ignore[arg-type]


def tiny_config(**changes: object) -> TrainConfig:
    """Return settings for a run of seconds."""
    return TrainConfig(**{"epochs": 2, "frozen_epochs": 1, "batch_size": 4, "ema_decay": 0.5, "rate": 5e-4, **changes})  # type: ignore[arg-type]
