"""Each task's pictures and tables are made from its results: charts, case sheets, card tables and failure modes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from fake_sessions import EchoSession, echo_spec
from mammo_train import cases
from mammo_train.card_tables import failures, table
from mammo_train.evaluate import evaluate, measures, primary_block
from mammo_train.index import IndexRow
from mammo_train.judge import Model
from mammo_train.results import summary_lines
from task_sessions import box_model, class_model, ellipse_row, grey_row, label_model, label_row


def tissue(folder: Path) -> list[IndexRow]:
    rng = np.random.default_rng(0)
    rows = []
    for k in range(5):
        truth = cv2.resize(rng.integers(0, 3, (4, 4)).astype(np.uint8), (64, 64), interpolation=cv2.INTER_NEAREST)
        seen = truth.copy()
        seen[:, : 12 * k] = 1
        codes = truth + 1
        codes[:6] = 0
        rows.append(label_row(folder, f"tile{k}", codes.astype(np.uint8), seen))
    return rows


def ultrasound(folder: Path) -> list[IndexRow]:
    pairs = [(10, "normal"), (30, "normal"), (125, "benign"), (60, "benign"), (240, "malignant"), (128, "malignant")]
    return [grey_row(folder, f"i{k}", grey, kind) for k, (grey, kind) in enumerate(pairs)]


def lesions(folder: Path) -> list[IndexRow]:
    return [ellipse_row(folder, f"i{k}", [(40, 40, 12), (90, 80, 4 + 5 * k)], f"p{k}") for k in range(3)]


def judged(folder: Path, task: str) -> tuple[Model, list[IndexRow], str, dict[str, Any], dict[str, Any]]:
    """Return model, rows, name of the main block, that block, and the whole result."""
    model, rows, kinds = {
        "labels": (label_model(), tissue, ["tissue"]),
        "classes": (class_model(), ultrasound, ["normal", "benign", "malignant"]),
        "prompted": (box_model(), lesions, ["benign"]),
        "masks": (Model(EchoSession(), echo_spec()), lesions, ["benign"]),
    }[task]
    own = rows(folder)
    result = evaluate(model, own, kinds)
    name = primary_block(result["kinds"], kinds)
    return model, own, name, result["kinds"][name], result


@pytest.mark.parametrize(
    ("task", "names"),
    [
        ("labels", {"confusion_fold_0.png", "cases_fold_0.png"}),
        ("classes", {"confusion_fold_0.png", "reliability_fold_0.png", "cases_fold_0.png"}),
        ("prompted", {"cases_fold_0.png"}),
        ("masks", {"cases_fold_0.png"}),
    ],
)
def test_each_task_draws_its_pictures(tmp_path: Path, task: str, names: set[str]) -> None:
    model, rows, _, block, _ = judged(tmp_path, task)
    run = tmp_path / "run"
    run.mkdir()
    drawn = cases.draw(run, "fold_0", model, rows, block)
    assert {path.name for path in drawn} == names == {path.name for path in run.iterdir()}
    for path in drawn:
        picture = cv2.imread(str(path))
        assert picture is not None
        assert picture.std() > 5


def test_pictures_without_masks_need_no_sheet(tmp_path: Path) -> None:
    assert cases.draw(tmp_path, "fold_0", label_model(), [], {"measures": "findings"}) == []


def test_a_wholly_ignored_fold_has_a_matrix_but_no_cases(tmp_path: Path) -> None:
    empty = np.zeros((64, 64), np.uint8)
    rows = [label_row(tmp_path, "void", empty, empty)]
    block = evaluate(label_model(), rows, ["tissue"])["kinds"]["tissue"]
    assert [p.name for p in cases.draw(tmp_path, "x", label_model(), rows, block)] == ["confusion_x.png"]
    assert "undefined" in table("tissue", block)
    assert failures(block) == []


def test_worst_of_a_classifier_is_surely_wrong() -> None:
    items = [
        {"predicted": "a", "kind": "a", "probabilities": [0.9, 0.1]},
        {"predicted": "a", "kind": "b", "probabilities": [0.97, 0.03]},
        {"predicted": "b", "kind": "b", "probabilities": [0.45, 0.55]},
        {"predicted": "b", "kind": "a", "probabilities": [0.4, 0.6]},
    ]
    worst, best = cases.worst_and_best(items, cases.confidence)
    assert [cases.confidence(item) for item in worst] == [-0.97, -0.6]
    assert [cases.confidence(item) for item in best] == [0.9, 0.55]


def test_no_item_is_among_worst_and_best_at_once() -> None:
    for n in range(1, 16):
        worst, best = cases.worst_and_best([{"dice": k / n} for k in range(n)], lambda item: float(item["dice"]))
        assert len(worst) + len(best) == min(n, 2 * cases.CASES)
        assert max(i["dice"] for i in worst) <= min([i["dice"] for i in best], default=1.0)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("labels", ["5 images of 5 patients", "| pixel accuracy | 0.", "| tumor | ", "mean of the 3 classes"]),
        ("classes", ["6 images of 6 patients", "| AUC, mean of 3 classes", "ECE: 10 equal bins", "| malignant | 2 | "]),
        (
            "prompted",
            ["6 lesions in 3 images", "boxes drawn round the truth: an upper bound", "IoU: bias |"],
        ),
        ("masks", ["3 images of 3 patients", "| dice | ", "| lesions touched by a finding |"]),
    ],
)
def test_tables_hold_what_was_measured(tmp_path: Path, task: str, words: list[str]) -> None:
    _, _, name, block, _ = judged(tmp_path, task)
    text = table(name, block)
    for word in words:
        assert word in text
    # Markdown: within each table every line has the same number of cells.
    for part in text.split("\n\n"):
        assert len({line.count("|") for line in part.splitlines() if line.startswith("|")}) <= 1, part


@pytest.mark.parametrize(
    ("task", "words"),
    [
        ("labels", ["weakest class: ", "taken for stroma: "]),
        (
            "classes",
            ["2 of 6 pictures get a wrong class, 1 of them", "taken for benign: 1 of 2 pictures (50 %)"],
        ),
        ("prompted", ["0 of 6 lesions missed", "boxes moved by 10 % change the mean Dice by -"]),
        ("masks", ["missed completely"]),
    ],
)
def test_failures_are_counted(tmp_path: Path, task: str, words: list[str]) -> None:
    found = "\n".join(failures(judged(tmp_path, task)[3]))
    for word in words:
        assert word in found


@pytest.mark.parametrize(
    ("task", "word"),
    [
        ("labels", "pixel accuracy 0."),
        ("classes", "AUC 0."),
        ("prompted", "IoU off by 0."),
        ("masks", "Dice"),
    ],
)
def test_the_summary_says_the_main_numbers(tmp_path: Path, task: str, word: str) -> None:
    _, _, name, _, result = judged(tmp_path, task)
    (line,) = summary_lines("fold 0", result)
    assert line.startswith(f"fold 0, {name}: ")
    assert word in line


def test_blocks_of_the_first_version_are_understood() -> None:
    assert measures({"per_image": {}}) == "overlap"
    assert measures({"findings_per_image": {}}) == "findings"
    assert measures({"measures": "labels", "per_image": {}}) == "labels"


def test_windowing_leaves_colour_and_spreads_grey() -> None:
    colour = np.full((4, 4, 3), 90, np.uint8)
    assert cases.windowed(colour) is colour
    grey = np.linspace(100, 4000, 1000).astype(np.uint16).reshape(10, 100)
    assert (cases.windowed(grey).min(), cases.windowed(grey).max()) == (0, 255)
    assert cases.windowed(np.zeros((4, 4), np.uint8)).max() == 0
