"""The few numbers of a table row: which block, which metrics, nothing else."""

from __future__ import annotations

from typing import Any

from mammo_train.headline import headline


def estimate(value: float) -> dict[str, float | None]:
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


def overlap(dice: float) -> dict[str, Any]:
    pair = {"dice": estimate(dice), "iou": estimate(dice / 2)}
    return {"measures": "overlap", "item": "image", "n": 4, "n_patients": 3, "per_image": pair, "pooled": pair}


def test_masks_of_the_kinds_that_select_and_false_findings_elsewhere() -> None:
    normal = {"measures": "findings", "images_with_finding": estimate(0.5)}
    blocks = {"benign": overlap(0.1), "malignant": overlap(0.2), "benign+malignant": overlap(0.6), "normal": normal}
    found = headline({"kinds": blocks}, ("benign", "malignant"))
    assert (found["kind"], found["item"], found["n"], found["n_patients"]) == ("benign+malignant", "image", 4, 3)
    assert found["metrics"]["mean Dice"] == estimate(0.6)
    assert found["metrics"]["normal pictures with a false finding"] == estimate(0.5)
    assert "lesions touched" not in found["metrics"]


def test_the_breast_area_and_moved_boxes_where_they_were_measured() -> None:
    block = overlap(0.4)
    block["breast_area"] = {"pooled": {"iou": estimate(0.2), "g_mean": estimate(0.7)}}
    block["jittered_boxes"] = overlap(0.3)
    block |= {"baseline_dice_everything": 0.2, "baseline_dice_box": 0.8}
    metrics = headline({"kinds": {"mass": block}}, ("mass",))["metrics"]
    assert metrics["pooled G-mean in the breast"] == estimate(0.7)
    assert metrics["mean Dice, boxes moved by 10 %"] == estimate(0.3)
    assert metrics["no model, filling the box: mean Dice"]["value"] == 0.8
    assert not any("everything" in name for name in metrics)


def test_classes() -> None:
    pixels = {"measures": "labels", "item": "image", "n": 2, "n_patients": 2, "accuracy": estimate(0.9),
              "macro": {"dice": estimate(0.5), "iou": estimate(0.4)}}  # fmt: skip
    assert headline({"kinds": {"tissue": pixels}}, ("tissue",))["metrics"]["macro Dice"] == estimate(0.5)
    pictures = {"measures": "classes", "item": "image", "n": 2, "n_patients": 2, "auc": {"macro": estimate(0.8)},
                "accuracy": estimate(0.6), "balanced_accuracy": estimate(0.5),
                "calibration": {"ece": estimate(0.1)}}  # fmt: skip
    assert headline({"kinds": {"all kinds": pictures}}, ("normal",))["metrics"]["AUC (macro)"] == estimate(0.8)
