"""The card says what was measured and nothing else; data and licences come from the run's own record."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_sessions import EchoSession, echo_spec
from mammo_runtime.spec import InputMode, ModelSpec
from mammo_train import checkpoint, results
from mammo_train.config import TrainConfig
from mammo_train.data_notes import DATA_NOTES, data_record, encoder_note, weights_licence
from mammo_train.evaluate import evaluate
from mammo_train.index import IndexRow
from mammo_train.judge import Model
from mammo_train.model_card import model_card
from mammo_train.operating_point import choose_operating_point
from task_sessions import box_model, class_model, ellipse_row, grey_row, label_model, label_row
from training_phantoms import PhantomSet, tiny_spec


@pytest.fixture
def measured(finished_run: Path) -> tuple[ModelSpec, dict[str, Any], TrainConfig]:
    _, spec = checkpoint.load_model(finished_run)
    return spec, json.loads((finished_run / "metrics.json").read_text()), results.read_config(finished_run)


def test_the_card_holds_the_measured_numbers(measured: tuple[ModelSpec, dict[str, Any], TrainConfig]) -> None:
    spec, metrics, config = measured
    card = model_card(spec, metrics, config)
    for phrase in (
        "Research use only. **Not a medical device**",
        "Trained on 12 pictures of 6 patients (folds 2, 3, 4; fold 1 for validation, fold 0 for testing",
        "| Synthetic phantoms (`phantoms`) | 12 | CC0 | - |",
        f"Threshold {spec.threshold:g} on the probability",
        f"Chosen by mean Dice per picture on 2 items (mass pictures of the validation fold), "
        f"{spec.training['operating_point']['dice']:.3f} there",
        "**mass**: 2 images of 2 patients",
        "Encoder: none (random start)",
        "## Known failure modes (measured)",
        f"Weights sha256 `{checkpoint_sha(metrics)}`",
        "## Licence of the weights\n\nPublic domain.",
    ):
        assert phrase in card
    for kind in ("mass", "findings"):
        for metric, estimate in metrics["validation"]["kinds"][kind]["pooled"].items():
            shown = "undefined" if estimate["value"] is None else f"{estimate['value']:.3f}"
            assert any(line.startswith(f"| {metric} ") and shown in line for line in card.splitlines())
    assert "mias" not in card.lower()
    assert "unknown" not in card.replace("unknown spacing", "")


def checkpoint_sha(metrics: dict[str, Any]) -> str:
    return str(metrics["validation"]["weights_sha256"])


def test_a_changed_number_changes_the_card(measured: tuple[ModelSpec, dict[str, Any], TrainConfig]) -> None:
    spec, metrics, config = measured
    metrics["validation"]["kinds"]["mass"]["per_image"]["dice"] = {"value": 0.87654, "low": 0.8, "high": 0.9, "n": 2}
    assert "| dice | 0.877 (0.800-0.900) |" in model_card(spec, metrics, config)


def test_failures_are_counted(measured: tuple[ModelSpec, dict[str, Any], TrainConfig]) -> None:
    spec, metrics, config = measured
    items = metrics["validation"]["kinds"]["mass"]["items"]
    items[0]["dice"], items[1]["dice"], items[1]["false_findings"] = 0.0, 0.4, 3
    metrics["validation"]["kinds"]["normal"]["items"][0]["findings"] = 2
    card = model_card(spec, metrics, config)
    assert "- validation, mass: 1 of 2 images missed completely (Dice 0), 1 more below Dice 0.5" in card
    assert "- validation, normal: 1 of 1 pictures without a mass get a false finding" in card


def test_without_measurements_the_card_says_so() -> None:
    card = model_card(tiny_spec(), {}, TrainConfig())
    assert "Not evaluated yet" in card
    assert "they were not chosen on data" in card
    assert "None measured yet." in card
    assert "The collections were not recorded." in card
    assert "Not stated: treat as research use only." in card


def test_box_models_are_described_as_such(
    measured: tuple[ModelSpec, dict[str, Any], TrainConfig], phantoms: PhantomSet
) -> None:
    spec, _, config = measured
    rows = [row for row in phantoms.rows() if row.fold == 0]
    block = evaluate(Model(EchoSession(), echo_spec(InputMode.ROI)), rows)
    roi = replace(spec, input=replace(spec.input, mode=InputMode.ROI))
    card = model_card(roi, {"fold_0": {"fold": 0, "role": "test", **block}}, config)
    assert "it does not search" in card
    assert "**mass**: 3 lesions in 2 images of 2 patients" in card
    assert "| dice with boxes moved by 10 % | " in card
    assert "boxes moved by 10 % change the mean Dice by " in card


def card_of(model: Model, rows: list[IndexRow], kinds: list[str], **training: Any) -> str:
    """Return the card of a model of another task, with its operating point and a test block."""
    choice = choose_operating_point(model, rows, kinds)
    spec = replace(model.spec, network={"width": "S"}, training={"operating_point": choice.record, **training})
    block = evaluate(model, rows, kinds)
    return model_card(spec, {"fold_0": {"fold": 0, "role": "test", **block}}, TrainConfig())


def test_a_multi_class_card(tmp_path: Path) -> None:
    codes = np.full((64, 64), 1, np.uint8)
    codes[:, 20:] = 3
    card = card_of(label_model(), [label_row(tmp_path, "a", codes, 0 * codes)], ["tissue"])
    for phrase in (
        "`none` gives every pixel one of 3 classes (tumor, stroma, fat) in histopathology pictures; input is the whole",
        "gives every pixel the likeliest of the classes above",
        "Threshold and least area: none: every pixel gets its likeliest class.",
        "**tissue**: 1 image of 1 patient",
        "| pixel accuracy | 0.312 |",
        "never found: fat",
        "fat taken for tumor: 2,816 of 2,816 pixels (100 %)",
        "- Network options: width S",
        "- What is none of the classes gets one of them nevertheless.",
    ):
        assert phrase in card
    assert "Dice 0)" not in card


def test_a_classifiers_card(tmp_path: Path) -> None:
    rows = [grey_row(tmp_path, f"i{k}", 60 * k, kind) for k, kind in enumerate(("normal", "benign", "malignant"))]
    card = card_of(class_model(), rows, ["normal", "benign", "malignant"])
    for phrase in (
        "`none` gives a picture one of 3 classes (normal, benign, malignant) in ultrasound pictures",
        "it shows no place",
        "**all kinds**: 3 images of 3 patients",
        "| expected calibration error | ",
        "- A picture that shows none of the classes gets one of them nevertheless.",
    ):
        assert phrase in card
    assert "region" not in card


def test_a_prompted_card(tmp_path: Path) -> None:
    rows = [ellipse_row(tmp_path, f"i{k}", [(60, 60, 20 + k)], f"p{k}") for k in range(2)]
    card = card_of(box_model(), rows, ["benign"])
    for phrase in (
        "`none` outlines mass in the boxes it is given in ultrasound pictures",
        "input is the whole picture and a box round each mass",
        "The predicted IoU is a regression without bounds",
        "| dice of filling the box (no model) | ",
        "it does not search",
        "there (boxes drawn round the truth: an upper bound",
        "| predicted IoU: mean absolute error | ",
        "- A box without a mass still gets an outline: no test measured that.",
    ):
        assert phrase in card


def test_a_split_that_leaks_is_named_first(tmp_path: Path) -> None:
    rows = [ellipse_row(tmp_path, "i", [(60, 60, 20)], "p")]
    card = card_of(box_model(), rows, ["benign"], leaking_split=True)
    assert "**Not patient-disjoint: numbers are not comparable.**" in card
    assert "folds share no patient" not in card
    assert "held-out pictures, not patients," in card
    assert "Not patient-disjoint" not in card_of(box_model(), rows, ["benign"])


def rows_in(*folders: str) -> list[IndexRow]:
    return [IndexRow(Path("/data") / folder / "images/a.png", None, "p", 2, "mass", None) for folder in folders]


def test_collections_are_known_by_their_folder() -> None:
    record = data_record(rows_in("cdd_cesm", "mias_full", "mias_full"), Path("/data"), {})
    assert [(entry["name"], entry["images"]) for entry in record] == [("mias_full", 2), ("cdd_cesm", 1)]
    assert record[0]["licence"] == DATA_NOTES["mias_full"].licence
    assert json.loads(json.dumps(record)) == record
    licence = weights_licence(record, "mobilenet_v2_imagenet_from_quant_fp16.pt")
    assert licence.startswith("Research use only, because of the training data: mini-MIAS")
    assert "CESM" not in licence
    assert "google-coral" in licence
    assert "Apache-2.0" in licence


def test_a_note_of_the_user_wins() -> None:
    record = data_record(rows_in("ours", "busi"), Path("/data"), {"ours": "ethics vote 1/26", "busi": "permission"})
    assert {entry["name"]: entry["licence"] for entry in record} == {"ours": "ethics vote 1/26", "busi": "permission"}
    assert weights_licence(record[:1], "none") == "Research use only. Not a medical device."
    assert "licence of the training data is not stated: ours" in weights_licence(
        data_record(rows_in("ours"), Path("/data"), {}), "none"
    )


def test_images_beside_the_index_are_named_by_their_own_folder() -> None:
    row = IndexRow(Path("/data/a.png"), None, "p", 2, "mass", None)
    assert data_record([row], Path("/data"), {})[0]["name"] == "data"
    assert data_record([row], Path("/elsewhere"), {})[0]["name"] == "data"


def test_encoders_are_known_by_their_file() -> None:
    assert "torchvision" in encoder_note("mobilenet_v2-7ebf99e0.pth")
    assert encoder_note("mine.pt") == "mine.pt (origin not stated)"
