"""Small synthetic data sets in the index's form, for `reproduce --tiny` and for tests: no patient, known truth.

Five folds of six pictures, each of its own synthetic patient. They show that every step works; what a network scores on
them says nothing about real pictures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from mammo_runtime.atomic import write_bytes, write_text
from mammo_runtime.mammogram import Modality
from mammo_runtime.phantom import make_phantom

FOLDS = 5
ROWS, COLUMNS = 128, 96
TISSUES = 21
"""Codes 1 to 21 of a synthetic tissue picture; 0 lies outside."""


@dataclass(frozen=True, eq=False)
class PhantomPicture:
    """A picture with its truth."""

    kind: str
    pixels: np.ndarray
    """uint8 [rows, columns], or [rows, columns, 3] in OpenCV's BGR order."""
    mask: np.ndarray | None
    """uint8 [rows, columns]: 0 and 255, or tissue codes; None: no lesion."""


def write_phantom_set(root: Path, modality: Modality) -> Path:
    """Write pictures, masks and `<modality>.csv` below `root`; returns the index. Same call, same bytes."""
    lines = []
    for fold in range(FOLDS):
        for number, picture in enumerate(_DRAWN[modality](fold)):
            name = f"{modality.value}/{{}}/f{fold}_{number}_{picture.kind}.png"
            image, mask = name.format("images"), "" if picture.mask is None else name.format("masks")
            _write_png(root / image, picture.pixels)
            if picture.mask is not None:
                _write_png(root / mask, picture.mask)
            spacing = "0.5" if modality is Modality.MAMMOGRAPHY else ""
            lines.append([image, mask, picture.kind, f"p{fold}_{number}", str(fold), spacing])
    index = root / f"{modality.value}.csv"
    head = ["image", "mask", "kind", "patient", "fold", "pixel_spacing_mm"]
    write_text(index, "".join(",".join(line) + "\n" for line in [head, *lines]))
    return index


def _mammograms(fold: int) -> Iterator[PhantomPicture]:
    for number in range(6):
        masses = (1, 1, 2, 1, 0, 0)[number]
        phantom = make_phantom(100 * fold + number, ROWS, COLUMNS, lesions=masses)
        mask = phantom.mask.astype(np.uint8) * 255 if masses else None
        yield PhantomPicture("mass" if masses else "normal", (phantom.pixels >> 4).astype(np.uint8), mask)


def _ultrasound(fold: int) -> Iterator[PhantomPicture]:
    """Yield speckle with a dark lesion: smooth and oval (benign), spiky (malignant) or none (normal)."""
    for number in range(6):
        kind = ("benign", "malignant", "normal")[number % 3]
        generator = np.random.default_rng((fold, number))
        depth = np.linspace(1.2, 0.8, 96)[:, None]
        speckle = cv2.GaussianBlur(generator.normal(120, 50, (96, 128)), (0, 0), 1.5) * depth
        mask = np.zeros((96, 128), np.uint8)
        if kind != "normal":
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            spikes = 1 + (0.35 * (-1.0) ** np.arange(24) if kind == "malignant" else 0.0)
            centre, radii = generator.uniform((48, 36), (80, 60)), generator.uniform((20, 12), (30, 18))
            points = centre + radii * np.stack([np.cos(angles), np.sin(angles)], 1) * np.reshape(spikes, (-1, 1))
            cv2.fillPoly(mask, [np.rint(points).astype(np.int32)], 255)
        speckle = np.where(mask > 0, speckle * 0.35, speckle)
        yield PhantomPicture(kind, np.clip(speckle, 0, 255).astype(np.uint8), None if kind == "normal" else mask)


def _tissue(fold: int) -> Iterator[PhantomPicture]:
    """Yield coloured patches, one hue for each code, with a rim outside the region (code 0)."""
    hues = np.linspace(0, 179, TISSUES, endpoint=False)
    for number in range(6):
        generator = np.random.default_rng((fold, number, 7))
        codes = cv2.resize(generator.integers(1, TISSUES + 1, (4, 4)).astype(np.uint8), (96, 96), interpolation=0)
        codes[:6] = 0
        hsv = np.full((96, 96, 3), 170, np.uint8)
        hsv[..., 0] = np.where(codes > 0, hues[np.maximum(codes, 1) - 1], 0).astype(np.uint8)
        hsv[..., 1] = np.where(codes > 0, 170, 0)
        noisy = cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR) + generator.normal(0, 6, (96, 96, 3))
        yield PhantomPicture("tissue", np.clip(noisy, 0, 255).astype(np.uint8), codes)


_DRAWN: Mapping[Modality, Callable[[int], Iterator[PhantomPicture]]] = {
    Modality.MAMMOGRAPHY: _mammograms,
    Modality.ULTRASOUND: _ultrasound,
    Modality.HISTOPATHOLOGY: _tissue,
}


def _write_png(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, cv2.imencode(".png", pixels)[1].tobytes())
