"""What a model says about one picture of the check at a site: as files and JSON, back again, and compared."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from mammo_runtime.errors import ModelRefused
from mammo_runtime.result import ClassScore, Result
from mammo_runtime.writers.pictures import labels_png, mask_png, probability_png

STEP = 4
"""The probability map is kept at every fourth pixel of every fourth row."""
MAX_SIDE = 4096
BORDER_PX = 4
"""Pixels of a mask, or of a finding's area, that may differ without counting: one at each end of both axes."""

TOLERANCES: Mapping[str, Mapping[str, float]] = {
    "fp32": {
        "findings": 0, "probability": 1e-3, "probability_mean": 1e-4, "mask": 0.01, "area": 0.01, "centroid_px": 0.25,
        "labels": 0.005, "classes": 1e-3, "predicted_iou": 1e-3,
    },
    "fp16": {
        "findings": 0, "probability": 0.2, "probability_mean": 0.005, "mask": 0.03, "area": 0.03, "centroid_px": 1,
        "labels": 0.02, "classes": 0.02, "predicted_iou": 0.02,
    },
    "int8-cpu": {
        "findings": 0, "probability": 0.2, "probability_mean": 0.005, "mask": 0.05, "area": 0.05, "centroid_px": 1,
        "labels": 0.05, "classes": 0.05, "predicted_iou": 0.05,
    },
    "int8": {
        "findings": 0, "probability": 0.4, "probability_mean": 0.01, "mask": 0.1, "area": 0.1, "centroid_px": 1.5,
        "labels": 0.08, "classes": 0.1, "predicted_iou": 0.1,
    },
}  # fmt: skip
"""Key of a graph → name of a difference (see `Answer.difference`) → the largest that is accepted.

FP32: processors sum in another order and OpenCV's versions resize in another way; the export's own limit against the
trained network is 1e-4, and ten times that moves no outline. FP16: ONNX Runtime on a CPU computes much of it in single
precision, a GPU all in half (eleven bits, 0.0005 of a value, summed over some fifty layers), seen where the probability
is steep: at outlines. INT8: sums are exact, but a value that falls between two steps may round either way, and one step
is up to 0.01 of a layer's range. "int8" is compared with its twin in FP32 scales on a CPU, the engine computes the rest
in half precision. A finding more or fewer is never accepted.

Measured on the six phantoms of the bundled models, ONNX Runtime 1.32 with OpenCV 5.0 against 1.18 with 4.6: largest
difference of a probability 0.00002 (FP32), 0.005 (FP16) and 0.026 (INT8), of the mask 0, 0 and 0.3 %; between FP16 and
FP32 0.075 and 0.8 %, between INT8 and FP32 0.25 and 4 %.
"""


@dataclass(frozen=True, eq=False)
class Answer:
    """A model's result, reduced to what is kept; what its task does not give is None or empty."""

    mask: np.ndarray | None = None
    """bool [rows, columns] of the picture."""
    probability: np.ndarray | None = None
    """float32, every `STEP`-th pixel and row."""
    labels: np.ndarray | None = None
    """uint8 [rows, columns]."""
    findings: tuple[tuple[int, float, float], ...] = ()
    """(area in pixels, column and row of the centroid), most probable first."""
    classes: tuple[float, ...] = ()
    """A classifier's probabilities."""
    predicted_iou: tuple[float, ...] = ()

    @classmethod
    def from_result(cls, found: Result) -> Answer:
        """Reduce a result."""
        marks = found.mask.size > 0
        return cls(
            mask=found.mask if marks else None,
            probability=_thinned(found.probability) if marks else None,
            labels=found.labels,
            findings=tuple((f.area_px, round(f.centroid_x, 2), round(f.centroid_y, 2)) for f in found.findings),
            classes=tuple(round(c.probability, 6) for c in found.classes if isinstance(c, ClassScore)),
            predicted_iou=tuple(round(value, 6) for value in found.box_predicted_iou or ()),
        )

    def stored(self, stem: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return the JSON-ready record and the pictures it names, all called `stem`."""
        pictures: dict[str, bytes] = {}
        record: dict[str, Any] = {
            "findings": [{"area_px": area, "centroid": [x, y]} for area, x, y in self.findings],
            "classes": list(self.classes),
            "predicted_iou": list(self.predicted_iou),
        }
        if self.mask is not None and self.probability is not None:
            record |= {"mask": f"{stem}.mask.png", "probability": f"{stem}.probability.png"}
            record |= {"mask_sha256": pixels_sha256(self.mask), "mask_area_px": int(self.mask.sum())}
            pictures = {record["mask"]: mask_png(self.mask), record["probability"]: probability_png(self.probability)}
        if self.labels is not None:
            record |= {"labels": f"{stem}.labels.png", "labels_sha256": pixels_sha256(self.labels)}
            pictures[record["labels"]] = labels_png(self.labels)
        return record, pictures

    @classmethod
    def from_stored(cls, record: Mapping[str, Any], pictures: Mapping[str, bytes]) -> Answer:
        """Read back what `stored` gave. Raises KeyError, TypeError, ValueError for what it did not."""
        drawn = {name: _picture(pictures[record[name]], name) for name in PICTURES if name in record}
        probability = drawn.get("probability")
        mask = drawn["mask"] > 0 if "mask" in drawn else None
        if mask is not None and pixels_sha256(mask) != record["mask_sha256"]:
            raise ValueError("a mask is not the one the record was written with")
        return cls(
            mask=mask,
            probability=None if probability is None else _from_levels(probability),
            labels=drawn.get("labels"),
            findings=tuple(map(_finding, record["findings"])),
            classes=tuple(map(float, record["classes"])),
            predicted_iou=tuple(map(float, record["predicted_iou"])),
        )

    def difference(self, other: Answer) -> dict[str, float]:
        """Return by how much two answers differ, each 0 for equal ones, infinite where only one has a part.

        "findings" (how many more or fewer), "probability" and "probability_mean" (largest and mean difference),
        "mask" (pixels of one mask only, of all in either), "area" and "centroid_px" (of the nearest findings, the
        largest), "labels" (share of pixels), "classes" and "predicted_iou" (largest difference).
        """
        found: dict[str, float] = {}
        if self.mask is not None or other.mask is not None:
            found["findings"] = abs(len(self.findings) - len(other.findings))
            found |= _of_maps(self.probability, other.probability)
            found["mask"] = _of_masks(self.mask, other.mask)
            if len(self.findings) == len(other.findings):
                found |= _of_findings(self, other)
        if self.labels is not None or other.labels is not None:
            same = _alike(self.labels, other.labels)
            found["labels"] = float(np.mean(self.labels != other.labels)) if same else float("inf")
        for name, mine, theirs in (
            ("classes", self.classes, other.classes),
            ("predicted_iou", self.predicted_iou, other.predicted_iou),
        ):
            if mine or theirs:
                equal = len(mine) == len(theirs)
                found[name] = max(abs(a - b) for a, b in zip(mine, theirs)) if equal else float("inf")
        return found


PICTURES: Mapping[str, type] = {"mask": np.uint8, "probability": np.uint16, "labels": np.uint8}
"""Kind of a stored picture → type of its pixels."""


def pixels_sha256(pixels: np.ndarray) -> str:
    """Return the sha256 of an array's bytes, whatever file holds it."""
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def _thinned(probability: np.ndarray) -> np.ndarray:
    """Return every `STEP`-th pixel, rounded to the 16 bits that it is stored in."""
    return _from_levels(np.rint(probability[STEP // 2 :: STEP, STEP // 2 :: STEP] * 65535.0))


def _from_levels(levels: np.ndarray) -> np.ndarray:
    return levels.astype(np.float32) / np.float32(65535)


def _picture(content: bytes, kind: str) -> np.ndarray:
    """Decode a stored PNG. Raises ModelRefused: another format, size or kind of pixels."""
    # Width and height stand at fixed places, so that a small file cannot claim gigabytes.
    sides = [int.from_bytes(content[at : at + 4], "big") for at in (16, 20)]
    if content[:8] != b"\x89PNG\r\n\x1a\n" or not all(1 <= side <= MAX_SIDE for side in sides):
        raise ModelRefused(f"a {kind} of the acceptance files is no PNG of at most {MAX_SIDE} pixels a side")
    pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None or pixels.ndim != 2 or pixels.dtype != PICTURES[kind]:
        raise ModelRefused(f"a {kind} of the acceptance files is damaged")
    return np.asarray(pixels)


def _finding(record: Mapping[str, Any]) -> tuple[int, float, float]:
    x, y = record["centroid"]
    return int(record["area_px"]), float(x), float(y)


def _alike(one: np.ndarray | None, other: np.ndarray | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape


def _of_maps(one: np.ndarray | None, other: np.ndarray | None) -> dict[str, float]:
    if one is None or other is None or one.shape != other.shape:
        return {"probability": float("inf"), "probability_mean": float("inf")}
    apart = np.abs(one - other)
    return {"probability": float(apart.max()), "probability_mean": float(apart.mean(dtype=np.float64))}


def _of_masks(one: np.ndarray | None, other: np.ndarray | None) -> float:
    if one is None or other is None or one.shape != other.shape:
        return float("inf")
    apart, either = int((one != other).sum()), int((one | other).sum())
    return max(0, apart - BORDER_PX) / max(1, either)


def _of_findings(one: Answer, other: Answer) -> dict[str, float]:
    """Compare each finding with the nearest that is left."""
    left, area, apart = list(other.findings), 0.0, 0.0
    for size, x, y in one.findings:
        nearest = min(left, key=lambda f: (f[1] - x) ** 2 + (f[2] - y) ** 2)
        left.remove(nearest)
        area = max(area, max(0, abs(size - nearest[0]) - BORDER_PX) / max(1, size, nearest[0]))
        apart = max(apart, float(np.hypot(x - nearest[1], y - nearest[2])))
    return {"area": area, "centroid_px": apart}
