"""Rows as the five studies print them, with what our self-check must say about each (shared by tests)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One row of a published table."""

    study: str
    name: str
    values: Mapping[str, float]
    flagged: str = ""
    """Part of the problem that must be found; empty: the row must pass."""


COPY_SLIP = "differs from Dice/(2-Dice)"
ONLY_MEANS = "only means over pictures could give that"
NOT_EVEN_MEANS = "means over pictures cannot give that either"


def _dice_iou(study: str, name: str, dice: float, iou: float, flagged: str = "") -> Row:
    return Row(study, name, {"dice": dice, "iou": iou}, flagged)


def _cobos(name: str, iou: float, f1: float, g_mean: float, sensitivity: float, specificity: float,
           precision: float) -> Row:  # fmt: skip
    values = {"iou": iou, "dice": f1, "g_mean": g_mean, "sensitivity": sensitivity, "specificity": specificity,
              "precision": precision}  # fmt: skip
    return Row("003", name, values)


REPORTED: tuple[Row, ...] = (
    _dice_iou("000", "AUNet", 0.3630, 0.2189),
    _dice_iou("000", "Dense UNet", 0.3665, 0.2239),
    _dice_iou("000", "UNet++", 0.3406, 0.2243),
    _dice_iou("000", "CDUNet", 0.3534, 0.2239),
    _dice_iou("000", "CUNet++", 0.3234, 0.3234, COPY_SLIP),
    _dice_iou("000", "CAUNet", 0.3789, 0.2458),
    _dice_iou("000", "CDUNet (Cropped)", 0.8495, 0.7360),
    _dice_iou("000", "Dense UNet (Cropped)", 0.8179, 0.6901),
    _dice_iou("000", "CAUNet (Cropped)", 0.8663, 0.7620),
    _dice_iou("000", "AUNet (Cropped)", 0.8484, 0.7344),
    _dice_iou("000", "MSANet (Cropped)", 0.8556, 0.7409),
    _dice_iou("000", "CUNet++ (Cropped)", 0.8344, 0.7577, ONLY_MEANS),
    Row("001", "tumour class", {"accuracy": 0.954, "precision": 0.945, "sensitivity": 0.918, "dice": 0.9205},
        "dice 0.9205 differs from 0.9313"),
    _cobos("Exp 1", 0.109, 0.197, 0.49, 0.243, 0.987, 0.165),
    _cobos("Exp 2", 0.117, 0.21, 0.493, 0.246, 0.989, 0.184),
    _cobos("Exp 3, threshold .9", 0.153, 0.266, 0.504, 0.256, 0.993, 0.277),
    _cobos("Exp 3, threshold .1", 0.054, 0.103, 0.842, 0.831, 0.852, 0.055),
    _dice_iou("004", "ResUNet", 0.7667, 0.5856, NOT_EVEN_MEANS),
    _dice_iou("004", "MobileNetV2-UNet", 0.5823, 0.3805, NOT_EVEN_MEANS),
    _dice_iou("004", "MobileNetV2-ResUNet", 0.8704, 0.7741),
)  # fmt: skip
