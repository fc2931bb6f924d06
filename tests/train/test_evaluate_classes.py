"""Multi-class maps, classifiers and prompted models judged, with sessions whose answers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mammo_runtime.errors import InferenceFailed, UsageError
from mammo_train.evaluate import evaluate, primary_block
from mammo_train.evaluate_classes import ALL
from mammo_train.judge import Model
from mammo_train.operating_point import choose_operating_point
from task_sessions import (
    BoxEncoder,
    HueLabels,
    box_model,
    class_model,
    ellipse_row,
    grey_row,
    label_model,
    label_row,
)


def block_of(result: dict[str, Any], name: str) -> dict[str, Any]:
    assert json.dumps(result, allow_nan=False)
    found: dict[str, Any] = result["kinds"][name]
    return found


def test_a_map_is_counted_against_codes_and_code_0_is_ignored(tmp_path: Path) -> None:
    # Left half class 0, right half class 2 in truth; the model sees brightness, which says 0 and 1 in the upper rows.
    codes, seen = np.full((64, 64), 1, np.uint8), np.zeros((64, 64), np.uint8)
    codes[:, 32:], codes[60:] = 3, 0
    seen[:, 32:] = 2
    seen[:16, 32:] = 1
    row = label_row(tmp_path, "tile", codes, seen)
    block = block_of(evaluate(label_model(), [row], ["tissue"]), "tissue")
    assert block["measures"] == "labels"
    assert block["confusion"] == [[60 * 32, 0, 0], [0, 0, 0], [0, 16 * 32, 44 * 32]]
    assert block["accuracy"]["value"] == pytest.approx((60 + 44) * 32 / (60 * 64))
    assert (block["ignored_px"], block["pixels"]) == (4 * 64, 60 * 64)
    assert [c["recall"]["value"] for c in block["classes"]] == [1.0, None, pytest.approx(44 / 60)]
    assert block["items"][0]["accuracy"] == pytest.approx(104 / 120)


def test_further_codes_can_be_ignored(tmp_path: Path) -> None:
    codes = np.full((64, 64), 1, np.uint8)
    codes[:, 32:] = 3
    row = label_row(tmp_path, "tile", codes, codes - 1)
    model = label_model()
    model = Model(model.session, model.spec, ignore_codes=(0, 3))
    assert block_of(evaluate(model, [row], ["tissue"]), "tissue")["pixels"] == 32 * 64


def test_a_wholly_ignored_tile_has_no_accuracy_and_breaks_nothing(tmp_path: Path) -> None:
    codes = np.zeros((64, 64), np.uint8)
    rows = [label_row(tmp_path, "void", codes, codes), label_row(tmp_path, "full", codes + 2, codes + 1)]
    block = block_of(evaluate(label_model(), rows, ["tissue"]), "tissue")
    assert [item["accuracy"] for item in block["items"]] == [None, 1.0]
    assert block["per_image"]["accuracy"]["n"] == 1


def test_a_code_beyond_the_classes_or_an_alien_mask_is_refused(tmp_path: Path) -> None:
    codes = np.full((64, 64), 9, np.uint8)
    with pytest.raises(UsageError, match="truth holds the class 8"):
        evaluate(label_model(), [label_row(tmp_path, "tile", codes, 0 * codes)], ["tissue"])
    row = label_row(tmp_path, "other", codes, 0 * codes)
    cv2.imwrite(str(row.mask), np.zeros((32, 32), np.uint8))
    with pytest.raises(UsageError, match="size of its image"):
        evaluate(label_model(), [row], ["tissue"])


def test_labels_that_are_not_finite_are_no_result(tmp_path: Path) -> None:
    class Broken(HueLabels):
        def run(self, batch: np.ndarray) -> np.ndarray:
            return np.full_like(super().run(batch), 255)

    row = label_row(tmp_path, "tile", np.ones((64, 64), np.uint8), np.zeros((64, 64), np.uint8))
    with pytest.raises(InferenceFailed, match="not finite"):
        evaluate(Model(Broken(), label_model().spec), [row], ["tissue"])


def test_a_classifier_is_judged_over_all_kinds_at_once(tmp_path: Path) -> None:
    rows = [grey_row(tmp_path, f"i{k}", grey, kind) for k, (grey, kind) in enumerate(
        [(20, "normal"), (30, "normal"), (130, "benign"), (140, "benign"), (240, "malignant"), (120, "malignant")]
    )]  # fmt: skip
    result = evaluate(class_model(), rows, ["benign", "malignant", "normal"], together=("benign", "malignant"))
    assert list(result["kinds"]) == [ALL]
    block = block_of(result, ALL)
    assert (block["measures"], block["n"], block["n_patients"]) == ("classes", 6, 6)
    assert block["accuracy"]["value"] == pytest.approx(5 / 6)
    assert block["confusion"] == [[2, 0, 0], [0, 2, 0], [0, 1, 1]]
    assert block["auc"]["one_vs_rest"]["normal"]["value"] == 1.0
    last = block["items"][-1]
    assert (last["kind"], last["predicted"]) == ("malignant", "benign")
    assert sum(last["probabilities"]) == pytest.approx(1, abs=1e-5)
    only = evaluate(class_model(), rows, ["benign", "normal"])
    assert block_of(only, ALL)["n"] == 4


def test_a_kind_that_is_no_class_is_refused(tmp_path: Path) -> None:
    row = grey_row(tmp_path, "i", 100, "findings")
    with pytest.raises(UsageError, match="findings: no class of this model, which knows normal, benign, malignant"):
        evaluate(class_model(), [row], ["findings"])
    with pytest.raises(UsageError, match="no picture of the kinds benign"):
        evaluate(class_model(), [row], ["benign"])


def test_prompted_models_are_judged_by_the_lesion_they_are_pointed_at(tmp_path: Path) -> None:
    rows = [ellipse_row(tmp_path, f"i{k}", [(40, 40, 12), (90, 80, 20)], f"p{k}") for k in range(2)]
    model = box_model()
    result = evaluate(model, rows, ["benign"])
    block = block_of(result, "benign")
    assert (block["item"], block["n"], block["n_images"], block["n_patients"]) == ("lesion", 4, 2, 2)
    # The decoder fills the ellipse of the box it is given: right for the tight box, larger or smaller for a moved one.
    assert block["per_image"]["dice"]["value"] > 0.95
    assert block["jittered_boxes"]["per_image"]["dice"]["value"] < block["per_image"]["dice"]["value"] - 0.05
    assert "upper bound" in block["boxes"]
    assert isinstance(model.session, BoxEncoder)
    assert model.session.calls == 2, "one run of the encoder for each picture"
    said = block["predicted_iou"]
    assert said["mean_predicted"]["value"] == pytest.approx(0.8)
    assert said["mean_absolute_error"]["value"] == pytest.approx(block["per_image"]["iou"]["value"] - 0.8, abs=1e-6)
    assert said["bias"]["value"] == pytest.approx(-said["mean_absolute_error"]["value"], abs=1e-6)
    assert said["correlation"]["value"] is None, "the model says the same of every mask"


def test_correlation_of_predicted_and_real_iou(tmp_path: Path) -> None:
    # The decoder predicts the box's width / 100: larger lesions are also better hit on the coarse map.
    rows = [ellipse_row(tmp_path, f"i{k}", [(64, 64, r)], f"p{k}") for k, r in enumerate((4, 8, 16, 32))]
    model = box_model(by_width=True)
    items = block_of(evaluate(model, rows, ["benign"]), "benign")
    expected = np.corrcoef(*[[row[n] for row in items["items"]] for n in ("predicted_iou", "iou")])[0, 1]
    assert items["predicted_iou"]["correlation"]["value"] == pytest.approx(expected, abs=1e-6)


def test_kinds_are_united_on_request(tmp_path: Path) -> None:
    rows = [
        ellipse_row(tmp_path, "a", [(40, 40, 12)], "p0"),
        replace(ellipse_row(tmp_path, "b", [(60, 60, 20), (20, 20, 9)], "p1"), kind="malignant"),
    ]
    blocks = evaluate(box_model(), rows, ["benign", "malignant"], together=("benign", "malignant"))["kinds"]
    assert list(blocks) == ["benign", "malignant", "benign+malignant"]
    assert [block["n"] for block in blocks.values()] == [1, 2, 3]
    assert primary_block(blocks, ("benign", "malignant")) == "benign+malignant"
    assert primary_block({"mass": {}, "normal": {}}, ("mass",)) == "mass"
    assert primary_block({ALL: {}}, ("benign", "malignant")) == ALL


def test_the_threshold_of_a_prompted_model_is_chosen_on_its_lesions(tmp_path: Path) -> None:
    rows = [ellipse_row(tmp_path, f"i{k}", [(40, 40, 12), (90, 80, 20)], f"p{k}") for k in range(2)]
    # Inside the ellipse 0.9, in the rest of the box 0.7: only thresholds above 0.7 give the lesion.
    choice = choose_operating_point(box_model(halo=0.7), rows, ("benign",))
    assert choice.threshold == 0.75
    assert choice.record["n"] == 4
    assert choice.record["score"] == "mean Dice per lesion"
    assert "upper bound" in choice.record["boxes"]
    by_iou = choose_operating_point(box_model(halo=0.7), rows, ("benign",), "iou")
    assert by_iou.threshold == pytest.approx(0.71, abs=0.011)
    assert by_iou.record["iou_by_threshold"]["0.60"] < by_iou.record["value"]


def test_tasks_without_a_threshold_say_so(tmp_path: Path) -> None:
    for model, word in ((label_model(), "pixel"), (class_model(), "picture")):
        choice = choose_operating_point(model, [], ("benign",))
        assert (choice.threshold, choice.min_area_cells, choice.record["n"]) == (0.5, 0.0, 0)
        assert word in choice.record["score"]
