"""Models of every task without a network: their answers follow from the picture, so results are known beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from fake_sessions import EchoSession
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import ACTIVATION_OF, InputSpec, ModelSpec, PromptSpec, Task
from mammo_train.index import IndexRow
from mammo_train.judge import Model

SIDE = 128
LEVEL = 80
"""Grey levels between two classes of `HueLabels`."""


def _spec(task: Task, classes: tuple[str, ...], modality: Modality, side: int, **changes: object) -> ModelSpec:
    plain = InputSpec(height=side, width=side, mean=(0.0,) * 3, std=(1.0,) * 3)
    return ModelSpec(
        "known", "none", task=task, classes=classes, activation=ACTIVATION_OF[task], modality=modality, input=plain,
        **changes,  # type: ignore[arg-type]
    )  # fmt: skip


class HueLabels(EchoSession):
    """Labels by brightness: level `LEVEL` · k is class k."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return uint8 [N, 1, height, width]."""
        self.calls += 1
        return np.rint(batch[:, :1] * 255 / LEVEL).astype(np.uint8)


class GreyClassifier(EchoSession):
    """The nearer the mean grey level to 0, 1/2 or 1, the likelier the first, second or third class."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return float32 [N, 3]."""
        self.calls += 1
        grey = batch.mean(axis=(1, 2, 3))[:, None]
        weights = np.exp(-8 * np.abs(grey - np.array([[0.0, 0.5, 1.0]])))
        return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


class BoxEncoder(EchoSession):
    """The embedding is the picture, sixteen times smaller."""

    def run(self, batch: np.ndarray) -> np.ndarray:
        """Return float32 [1, 1, side / 16, side / 16]."""
        self.calls += 1
        return np.ascontiguousarray(batch[:, :1, ::16, ::16])


class BoxDecoder(EchoSession):
    """Fills the ellipse in a box with 0.9, the rest of the box with `halo`, and says an IoU of 0.8 (or by width)."""

    def __init__(self, halo: float, by_width: bool) -> None:
        super().__init__()
        self.halo, self.by_width = halo, by_width

    def run_all(self, *inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        """Map embedding and boxes [1, B, 4] to maps float32 [1, B, 1, side, side] and IoU float32 [1, B]."""
        boxes = inputs[1][0]
        y, x = np.mgrid[:SIDE, :SIDE] + 0.5
        maps = np.zeros((1, len(boxes), 1, SIDE, SIDE), np.float32)
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            across, down = (x - (x0 + x1) / 2) / (x1 - x0), (y - (y0 + y1) / 2) / (y1 - y0)
            maps[0, k, 0][(np.abs(across) <= 0.5) & (np.abs(down) <= 0.5)] = self.halo
            maps[0, k, 0][across**2 + down**2 <= 0.25] = 0.9
        said = (boxes[:, 2] - boxes[:, 0]) / 100 if self.by_width else np.full(len(boxes), 0.8)
        return maps, said[None].astype(np.float32)


def label_model() -> Model:
    """Return a model of three tissues."""
    return Model(HueLabels(), _spec(Task.MULTICLASS, ("tumor", "stroma", "fat"), Modality.HISTOPATHOLOGY, 64))


def class_model() -> Model:
    """Return a classifier of whole pictures."""
    classes = ("normal", "benign", "malignant")
    return Model(GreyClassifier(), _spec(Task.CLASSIFICATION, classes, Modality.ULTRASOUND, 64))


def box_model(halo: float = 0.0, by_width: bool = False) -> Model:
    """Return a prompted model."""
    prompt = PromptSpec((1, SIDE // 16, SIDE // 16), SIDE)
    spec = _spec(Task.PROMPTED, ("mass",), Modality.ULTRASOUND, SIDE, prompt=prompt)
    return Model(BoxEncoder(), spec, BoxDecoder(halo, by_width))


def label_row(folder: Path, name: str, codes: np.ndarray, seen: np.ndarray) -> IndexRow:
    """Write a picture in which `label_model` sees the classes `seen`, with a mask of `codes`."""
    image, mask = folder / f"{name}.png", folder / f"{name}_mask.png"
    cv2.imwrite(str(image), np.dstack([(seen * LEVEL).astype(np.uint8)] * 3))
    cv2.imwrite(str(mask), codes)
    return IndexRow(image, mask, f"patient {name}", 0, "tissue", None)


def grey_row(folder: Path, name: str, grey: int, kind: str) -> IndexRow:
    """Write a flat picture."""
    image = folder / f"{name}.png"
    cv2.imwrite(str(image), np.full((64, 64), grey, np.uint8))
    return IndexRow(image, None, f"patient {name}", 0, kind, None)


def ellipse_row(folder: Path, name: str, discs: Sequence[tuple[int, int, int]], group: str) -> IndexRow:
    """Write a picture with its mask of discs (x, y, radius); the picture itself is what the encoder sees."""
    image, mask = folder / f"{name}.png", folder / f"{name}_mask.png"
    truth = np.zeros((SIDE, SIDE), np.uint8)
    for x, y, radius in discs:
        cv2.circle(truth, (x, y), radius, 255, -1)
    cv2.imwrite(str(image), np.where(truth > 0, 60, 120 + len(name) + ord(name[-1])).astype(np.uint8))
    cv2.imwrite(str(mask), truth)
    return IndexRow(image, mask, group, 0, "benign", None)
