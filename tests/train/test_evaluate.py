"""Evaluation and operating point, with a session whose answers are known: the picture is its own probability map."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fake_sessions import EchoSession, echo_spec
from mammo_runtime.errors import InferenceFailed, UsageError
from mammo_runtime.mammogram import Box
from mammo_runtime.spec import CleaningStep, InputMode
from mammo_train.evaluate import evaluate
from mammo_train.evaluate_masks import SIZES, jittered, size_class
from mammo_train.index import IndexRow
from mammo_train.judge import Model
from mammo_train.operating_point import MIN_AREAS_CELLS, choose_operating_point

SIDE = 128
MASS, TISSUE = 200, 60


class Drawing:
    """A square picture with discs, and its row."""

    def __init__(self, name: str, group: str, spacing_mm: float | None = 0.5) -> None:
        self.picture, self.mask = np.full((SIDE, SIDE), TISSUE, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
        self.name, self.group, self.spacing_mm = name, group, spacing_mm

    def disc(self, x: int, y: int, radius: int, grey: int = MASS, true: bool = True, seen: bool = True) -> Drawing:
        if seen:
            cv2.circle(self.picture, (x, y), radius, grey, -1)
        if true:
            cv2.circle(self.mask, (x, y), radius, 255, -1)
        return self

    def row(self, folder: Path, kind: str = "mass") -> IndexRow:
        image, mask = folder / f"{self.name}.png", folder / f"{self.name}_mask.png"
        cv2.imwrite(str(image), self.picture)
        cv2.imwrite(str(mask), self.mask)
        return IndexRow(image, mask if self.mask.any() else None, self.group, 0, kind, self.spacing_mm)


def echo() -> Model:
    """A model that answers the picture itself."""
    return Model(EchoSession(), echo_spec())


def kinds(result: dict[str, Any]) -> dict[str, Any]:
    assert json.dumps(result, allow_nan=False)
    blocks: dict[str, Any] = result["kinds"]
    return blocks


def test_a_perfect_model_is_measured_as_perfect(tmp_path: Path) -> None:
    rows = [Drawing(f"i{k}", f"p{k}").disc(40 + k, 60, 12).row(tmp_path) for k in range(3)]
    block = kinds(evaluate(echo(), rows))["mass"]
    for aggregation in ("per_image", "pooled"):
        for metric in ("dice", "iou", "sensitivity", "specificity", "precision", "accuracy", "g_mean"):
            assert block[aggregation][metric]["value"] == 1.0
    assert (block["n"], block["n_images"], block["n_patients"], block["item"]) == (3, 3, 3, "image")
    assert block["lesion_sensitivity"]["value"] == 1.0
    assert block["false_findings_per_image"]["value"] == 0.0


def test_full_mode_counts_lesions_and_false_findings(tmp_path: Path) -> None:
    rows = [
        Drawing("two", "a").disc(30, 30, 10).disc(90, 90, 6, seen=False).row(tmp_path),
        Drawing("clutter", "b").disc(30, 30, 10).disc(90, 30, 5, true=False).disc(90, 90, 5, true=False).row(tmp_path),
        Drawing("missed", "c").disc(60, 60, 10, seen=False).row(tmp_path),
    ]
    block = kinds(evaluate(echo(), rows))["mass"]
    two, clutter, missed = block["items"]
    assert [lesion["hit"] for lesion in two["lesions"]] == [True, False]
    assert (clutter["findings"], clutter["false_findings"]) == (3, 2)
    assert (missed["dice"], missed["findings"], missed["mask_px"]) == (0.0, 0, 0)
    assert block["n_empty_mask"] == 1
    assert block["lesion_sensitivity"]["value"] == pytest.approx(2 / 4)
    assert block["lesion_sensitivity"]["n"] == 4
    assert block["false_findings_per_image"]["value"] == pytest.approx(2 / 3)
    areas = [int(cv2.countNonZero(cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (64, 64), r, 1, -1))) for r in (10, 5)]
    assert clutter["dice"] == pytest.approx(2 * areas[0] / (2 * areas[0] + 2 * areas[1]))
    assert block["per_image"]["dice"]["value"] == pytest.approx(np.mean([r["dice"] for r in block["items"]]))


def test_kinds_are_never_mixed(tmp_path: Path) -> None:
    rows = [
        Drawing("m", "a").disc(40, 40, 10).row(tmp_path),
        Drawing("f", "b").disc(40, 40, 10, seen=False).row(tmp_path, "findings"),
        Drawing("quiet", "c").row(tmp_path, "normal"),
        Drawing("loud", "d").disc(40, 40, 4, true=False).disc(80, 80, 4, true=False).row(tmp_path, "normal"),
        Drawing("other", "e").disc(40, 40, 10).row(tmp_path, "non_mass_findings"),
    ]
    blocks = kinds(evaluate(echo(), rows))
    assert list(blocks) == ["mass", "findings", "normal"]
    assert blocks["mass"]["per_image"]["dice"]["value"] == 1.0
    assert blocks["findings"]["per_image"]["dice"]["value"] == 0.0
    normal = blocks["normal"]
    assert "per_image" not in normal
    assert (normal["images_with_finding"]["value"], normal["findings_per_image"]["value"]) == (0.5, 1.0)
    assert [(row["image"], row["findings"]) for row in normal["items"]] == [("quiet", 0), ("loud", 2)]


def test_sizes_are_fixed_classes_of_the_equivalent_diameter(tmp_path: Path) -> None:
    assert [size_class(d) for d in (9.99, 10.0, 20.0, 20.01, None)] == [SIZES[k] for k in (0, 1, 1, 2, 3)]
    rows = [
        Drawing("small", "a").disc(40, 40, 7).row(tmp_path),
        Drawing("medium", "b").disc(40, 40, 15).row(tmp_path),
        Drawing("large", "c").disc(64, 64, 25, seen=False).row(tmp_path),
        Drawing("unknown", "d", None).disc(40, 40, 15).row(tmp_path),
    ]
    block = kinds(evaluate(echo(), rows))["mass"]
    assert [row["diameter_mm"] for row in block["items"]] == pytest.approx([7, 15, 25, None], abs=0.4)
    assert list(block["by_size"]) == list(SIZES)
    assert [own["dice"]["value"] for own in block["by_size"].values()] == [1.0, 1.0, 0.0, 1.0]
    assert [own["lesion_sensitivity"]["value"] for own in block["by_size"].values()] == [1.0, 1.0, 0.0, 1.0]


def test_roi_mode_judges_each_lesion_in_its_window(tmp_path: Path) -> None:
    far_clutter = Drawing("i", "a").disc(30, 30, 10).disc(95, 95, 14).disc(30, 110, 8, true=False)
    rows = [far_clutter.row(tmp_path), Drawing("n", "b").row(tmp_path, "normal")]
    spec = echo_spec(InputMode.ROI)
    blocks = kinds(evaluate(Model(EchoSession(), spec), rows))
    assert list(blocks) == ["mass"]
    block = blocks["mass"]
    assert (block["item"], block["n"], block["n_images"]) == ("lesion", 2, 1)
    assert [row["lesion"] for row in block["items"]] == [1, 2]
    # Scaled up and down again, an edge may move by a pixel.
    assert block["per_image"]["dice"]["value"] > 0.97
    assert block["items"][0]["truth_px"] > block["items"][1]["truth_px"] > 250
    window_px = [round(2 * side) ** 2 for side in (29, 21)]
    assert block["pooled"]["accuracy"]["value"] > 1 - 40 / sum(window_px)


def test_roi_mode_compares_with_the_whole_mask_of_the_window(tmp_path: Path) -> None:
    # The neighbour lies in the window but does not touch the box: it is not segmented, and so it is missed.
    row = Drawing("i", "a").disc(50, 64, 12).disc(80, 64, 4).row(tmp_path)
    first = kinds(evaluate(Model(EchoSession(), echo_spec(InputMode.ROI)), [row]))["mass"]["items"][0]
    neighbour_px = int(cv2.countNonZero(cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (64, 64), 4, 1, -1)))
    # The window ends at x = 75: 13 pixels round the disc's 25.
    assert first["dice"] > 0.97
    nearer = Drawing("j", "a").disc(50, 64, 12).disc(69, 64, 4).row(tmp_path)
    first = kinds(evaluate(Model(EchoSession(), echo_spec(InputMode.ROI)), [nearer]))["mass"]["items"][0]
    disc_px = first["truth_px"] - neighbour_px
    assert first["dice"] == pytest.approx(2 * disc_px / (2 * disc_px + neighbour_px), abs=0.02)


def test_jittered_boxes_are_a_row_of_their_own_and_deterministic(tmp_path: Path) -> None:
    box = Box(40, 50, 20, 10)
    moved = jittered(box, "mdb001 1")
    assert moved == jittered(box, "mdb001 1")
    assert {jittered(box, f"i{k}") for k in range(40)} == {
        Box(40 + 10 - 10 * s + dx, 50 + 5 - 5 * s + dy, 20 * s, 10 * s)
        for s in (0.9, 1.1) for dx in (-2.0, 2.0) for dy in (-2.0, 2.0)
    }  # fmt: skip
    row = Drawing("i", "a").disc(64, 64, 12).row(tmp_path)
    block = kinds(evaluate(Model(EchoSession(), echo_spec(InputMode.ROI)), [row]))["mass"]
    tight, loose = block["items"][0], block["jittered_boxes"]["items"][0]
    assert tight["diameter_mm"] == loose["diameter_mm"]
    assert loose["dice"] > 0.95


def test_threshold_and_smallest_finding_of_the_spec_count(tmp_path: Path) -> None:
    row = Drawing("i", "a").disc(40, 40, 10).disc(100, 100, 2, true=False).row(tmp_path)
    clean = evaluate(Model(EchoSession(), echo_spec(min_area_cells=30.0)), [row])
    assert (clean["threshold"], clean["min_area_cells"]) == (0.5, 30.0)
    assert kinds(clean)["mass"]["items"][0]["findings"] == 1
    assert kinds(evaluate(echo(), [row]))["mass"]["items"][0]["findings"] == 2
    assert kinds(evaluate(Model(EchoSession(), echo_spec(threshold=0.9)), [row]))["mass"]["items"][0]["findings"] == 0


def test_machine_and_backend_stand_beside_the_numbers(tmp_path: Path) -> None:
    lines: list[str] = []
    result = evaluate(echo(), [Drawing("i", "a").disc(40, 40, 9).row(tmp_path)], report=lines.append)
    assert result["backend"] == "echo"
    assert "numpy" in result["machine"]["packages"]
    assert result["mode"] == "full"
    assert lines == ["mass: 1 pictures"]


def test_nothing_to_evaluate_is_refused(tmp_path: Path) -> None:
    normal = Drawing("n", "a").row(tmp_path, "normal")
    with pytest.raises(UsageError, match="no picture of the kinds mass, findings, normal"):
        evaluate(Model(EchoSession(), echo_spec(InputMode.ROI)), [normal])
    with pytest.raises(UsageError, match="kinds benign"):
        evaluate(echo(), [normal], kinds=["benign"])


def test_nonsense_from_a_model_is_no_result(tmp_path: Path) -> None:
    class Broken(EchoSession):
        def run(self, batch: np.ndarray) -> np.ndarray:
            return np.full_like(super().run(batch), np.nan)

    with pytest.raises(InferenceFailed):
        evaluate(Model(Broken(), echo_spec()), [Drawing("i", "a").disc(40, 40, 9).row(tmp_path)])


def test_operating_point_finds_threshold_and_least_area_with_one_inference_each(tmp_path: Path) -> None:
    # Mass at 0.78, a film label at 0.59, and a bright speck of 13 pixels that no threshold removes.
    rows = [
        Drawing(f"i{k}", f"p{k}").disc(40, 40, 10).disc(90, 40, 8, 150, true=False).disc(90, 100, 2, true=False)
        .row(tmp_path) for k in range(3)
    ]  # fmt: skip
    rows.append(Drawing("n", "z").disc(40, 40, 20, true=False).row(tmp_path, "normal"))
    session = EchoSession()
    choice = choose_operating_point(Model(session, echo_spec()), rows)
    assert choice.threshold == 0.6
    assert choice.min_area_cells == 36.0, "the largest that costs nothing"
    assert session.calls == 3
    assert choice.record["n"] == 3
    assert choice.record["dice"] == 1.0
    assert choice.record["dice_by_min_area_cells"]["36"] == 1.0
    assert choice.record["dice_by_threshold"]["0.55"] < choice.record["dice_by_threshold"]["0.60"] < 1
    assert json.dumps(choice.record, allow_nan=False)


def test_without_specks_the_largest_harmless_least_area_is_taken(tmp_path: Path) -> None:
    choice = choose_operating_point(echo(), [Drawing("i", "a").disc(40, 40, 10).row(tmp_path)])
    assert (choice.threshold, choice.min_area_cells) == (0.5, 36.0)
    assert len(choice.record["dice_by_min_area_cells"]) == len(MIN_AREAS_CELLS)


def test_least_area_is_measured_in_cells_not_pixels(tmp_path: Path) -> None:
    # On a grid of 32 cells a cell covers 16 pixels: the speck of 13 pixels is less than one cell, the mass about 20.
    row = Drawing("i", "a").disc(40, 40, 10).disc(90, 100, 4, true=False).row(tmp_path)
    choice = choose_operating_point(Model(EchoSession(), echo_spec(side=32)), [row])
    assert choice.min_area_cells == 16.0, "20 cells of mass stay"


def test_the_choice_is_what_the_runtime_then_does(tmp_path: Path) -> None:
    for mode in (InputMode.FULL, InputMode.ROI):
        rows = [
            Drawing(f"{mode.value}{k}", f"p{k}").disc(30, 30, 10).disc(95, 90, 9 + k, 150).row(tmp_path) for k in (0, 1)
        ]
        choice = choose_operating_point(Model(EchoSession(), echo_spec(mode)), rows)
        frozen = replace(echo_spec(mode), threshold=choice.threshold, min_area_cells=choice.min_area_cells)
        measured = kinds(evaluate(Model(EchoSession(), frozen), rows))["mass"]["per_image"]["dice"]["value"]
        assert measured == pytest.approx(choice.record["dice"], abs=1e-3)


def test_no_picture_to_choose_on_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="kind 'mass' to choose an operating point"):
        choose_operating_point(echo(), [Drawing("n", "a").row(tmp_path, "normal")])


BREAST = replace(echo_spec().input, cleaning=(CleaningStep("keep_breast", {"opening_px": 9.0, "blacken": 0.0}),))


def breast_row(folder: Path, name: str, group: str, grey: int = 200) -> IndexRow:
    """Write a breast on the left with a mass in it; outside it a bright label, and a lesion that cannot be seen."""
    drawing = Drawing(name, group)
    drawing.picture[:] = 0
    drawing.disc(50, 64, 40, TISSUE, true=False).disc(40, 64, 8, grey)
    return drawing.disc(120, 6, 4, 220, true=False).disc(120, 120, 3, seen=False).row(folder)


def test_breast_pixels_are_pooled_apart(tmp_path: Path) -> None:
    rows = [breast_row(tmp_path, f"i{k}", f"p{k}") for k in range(2)]
    assert "breast_area" not in kinds(evaluate(echo(), rows))["mass"]
    block = kinds(evaluate(Model(EchoSession(), echo_spec(input=BREAST)), rows))["mass"]
    breast = block["breast_area"]
    # Outside lie a false finding and a missed lesion; inside everything is right.
    assert block["pooled"]["dice"]["value"] < 0.9
    assert breast["pooled"]["dice"]["value"] == 1.0
    assert breast["pooled"]["specificity"]["value"] == 1.0
    outside = int(cv2.countNonZero(cv2.circle(np.zeros((SIDE, SIDE), np.uint8), (64, 64), 3, 1, -1)))
    assert (breast["truth_px_outside"], breast["n_without_breast"]) == (2 * outside, 0)
    assert "counts" not in json.dumps(block["items"])


def test_where_no_breast_is_found_the_whole_picture_counts(tmp_path: Path) -> None:
    flat = Drawing("flat", "a").disc(40, 40, 10)
    flat.picture[:] = 255
    row = flat.row(tmp_path)
    block = kinds(evaluate(Model(EchoSession(), echo_spec(input=BREAST)), [row]))["mass"]
    assert block["breast_area"]["n_without_breast"] == 1
    assert block["breast_area"]["pooled"] == block["pooled"]


@pytest.mark.parametrize("metric", ["iou", "gmean"])
def test_pooled_thresholds_are_fine_and_over_breast_pixels(tmp_path: Path, metric: str) -> None:
    # The mass at 220/255 = 0.863 and tissue at 0.24; outside the breast a label at the mass's own brightness.
    rows = [breast_row(tmp_path, f"i{k}", f"p{k}", 220) for k in range(2)]
    session = EchoSession()
    choice = choose_operating_point(Model(session, echo_spec(input=BREAST)), rows, metric=metric)
    assert (choice.record["value"], choice.threshold, choice.min_area_cells) == (1.0, 0.5, 0.0)
    assert session.calls == 2
    scores = choice.record[f"{metric}_by_threshold"]
    assert (len(scores), scores["0.86"], scores["0.87"]) == (99, 1.0, 0.0)
    assert choice.record["score"].endswith("over breast pixels")
    assert "not chosen" in choice.record["least_area"]
    assert json.dumps(choice.record, allow_nan=False)


def test_an_unknown_metric_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="unknown metric 'auc'"):
        choose_operating_point(echo(), [Drawing("i", "a").disc(40, 40, 9).row(tmp_path)], metric="auc")
