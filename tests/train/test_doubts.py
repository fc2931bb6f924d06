"""A model that learned nothing is called so, in the run's record, at the end of `fit` and on the card."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_sessions import EchoSession, echo_spec
from mammo_runtime.spec import InputMode
from mammo_train import checkpoint, results
from mammo_train.config import TrainConfig
from mammo_train.doubts import doubts_of_block, doubts_of_fine_tuning, doubts_of_training
from mammo_train.evaluate import evaluate
from mammo_train.grouping import GROUP
from mammo_train.index import read_index
from mammo_train.judge import Model
from mammo_train.model_card import model_card
from mammo_train.resume import Progress, ended
from task_sessions import box_model, class_model, ellipse_row, grey_row, label_model, label_row
from training_phantoms import PhantomSet, tiny_spec

KINDS = ("normal", "benign", "malignant")


def block_of(model: Model, rows: list[Any], kinds: tuple[str, ...]) -> dict[str, Any]:
    block = {"fold": 0, "role": "test", **evaluate(model, rows, kinds)}
    return {**block, "warnings": doubts_of_block(block, kinds)}


def test_a_classifier_that_knows_one_class(tmp_path: Path) -> None:
    blind = [grey_row(tmp_path, f"b{k}", 4 * k, kind) for k, kind in enumerate(KINDS)]
    block = block_of(class_model(), blind, KINDS)
    wanted = "Fold 0 (test), all kinds: every picture is called normal: the model does not tell the classes apart."
    assert block["warnings"] == [wanted]
    card = model_card(class_model().spec, {"fold_0": block}, TrainConfig())
    assert f"## Warnings\n\n- **{wanted}**" in card
    assert card.index("## Warnings") < card.index("## Intended use")
    assert "**Every picture is called normal: a low calibration error only says" in card
    seeing = [grey_row(tmp_path, f"s{k}", 120 * k, kind) for k, kind in enumerate(KINDS)]
    block = block_of(class_model(), seeing, KINDS)
    assert block["warnings"] == []
    card = model_card(class_model().spec, {"fold_0": block}, TrainConfig())
    assert "## Warnings" not in card
    assert "is called" not in card
    alike = [row for row in blind if row.kind == "normal"]
    assert block_of(class_model(), alike, KINDS)["warnings"] == []  # the truth has one class only


def test_a_map_of_one_class(tmp_path: Path) -> None:
    codes = np.full((64, 64), 1, np.uint8)
    codes[:, 20:] = 3
    blind, seeing = (label_row(tmp_path, name, codes, seen) for name, seen in (("a", 0 * codes), ("b", codes - 1)))
    assert "every pixel is called tumor" in block_of(label_model(), [blind], ("tissue",))["warnings"][0]
    assert block_of(label_model(), [seeing], ("tissue",))["warnings"] == []


def test_no_better_than_marking_everything(phantoms: PhantomSet) -> None:
    rows = [row for row in phantoms.rows() if row.fold == 0]
    for mode in (InputMode.FULL, InputMode.ROI):
        block = evaluate(Model(EchoSession(), echo_spec(mode)), rows)
        values = block["kinds"]["mass"]
        baseline = values["baseline_dice_everything"]
        assert 0 < baseline < 1
        values["per_image"]["dice"]["value"] = baseline + 0.005
        (text,) = [t for t in doubts_of_block({"fold": 0, "role": "test", **block}, ("mass",)) if "mean Dice" in t]
        assert f"is not better than {baseline:.3f}, which marking every pixel gets without any model" in text
        assert f"(marking everything: {baseline:.3f})" in results.summary_lines("fold 0", block)[0]
        values["per_image"]["dice"]["value"] = baseline + 0.02
        assert not [t for t in doubts_of_block({"fold": 0, "role": "test", **block}, ("mass",)) if "mean Dice" in t]


def test_the_baselines_are_what_marking_everything_scores(tmp_path: Path) -> None:
    values = evaluate(box_model(), [ellipse_row(tmp_path, "i", [(60, 60, 20)], "p")], ["benign"])["kinds"]["benign"]
    area, box, whole = values["items"][0]["truth_px"], 41 * 41, 128 * 128
    assert values["baseline_dice_everything"] == pytest.approx(2 * area / (area + whole), abs=1e-4)
    assert values["baseline_dice_box"] == pytest.approx(2 * area / (area + box), abs=1e-4)
    values["per_image"]["dice"]["value"] = 0.5
    assert "which filling each box gets" in doubts_of_block(
        {"fold": 0, "role": "test", "kinds": {"benign": values}}, ("benign",)
    )[0]  # fmt: skip


def test_normal_pictures_that_get_findings() -> None:
    items = [{"findings": 1}] * 9 + [{"findings": 0}]
    block = {"fold": 1, "role": "validation", "kinds": {"normal": {"measures": "findings", "items": items}}}
    assert doubts_of_block(block, ("mass",)) == [
        "Fold 1 (validation), normal: 9 of 10 pictures without a mass get a false finding: a finding says nothing."
    ]
    items[0] = {"findings": 0}
    assert doubts_of_block(block, ("mass",)) == []


def log(*losses: float) -> list[dict[str, float]]:
    return [{"train_loss": loss} for loss in losses]


def test_a_best_epoch_that_is_hardly_trained() -> None:
    (text,) = doubts_of_training(log(0.9, 0.7, 0.5, 0.4, 0.3), 1)
    assert text.startswith("The best epoch is 1 of 5, while the training loss went on falling (0.9000 to 0.3000)")
    assert doubts_of_training(log(0.9, 0.7, 0.5, 0.4), 1) == []  # too few epochs
    assert doubts_of_training(log(0.9, 0.7, 0.5, 0.4, 0.3), 2) == []
    assert doubts_of_training(log(0.9, 0.9, 0.9, 0.9, 0.9), 1) == []
    assert len(doubts_of_training(log(*np.linspace(1, 0, 20)), 2)) == 1


def test_a_run_keeps_its_warnings(finished_run: Path) -> None:
    _, spec = checkpoint.load_model(finished_run)
    block = json.loads((finished_run / "metrics.json").read_text())["validation"]
    assert spec.training["warnings"] == block["warnings"]
    assert spec.training["baseline_dice_everything"] == block["kinds"]["mass"]["baseline_dice_everything"]
    card = (finished_run / "MODEL_CARD.md").read_text()
    lines = results.summary_lines("validation", block)
    for text in block["warnings"]:
        assert f"- **{text}**" in card
        assert f"warning: {text}" in lines
    assert f"| dice of marking everything (no model) | {spec.training['baseline_dice_everything']:.3f} | |" in card


def test_groups_are_not_called_patients(phantoms: PhantomSet, tmp_path: Path) -> None:
    index = tmp_path / "index.csv"
    index.write_text(phantoms.index.read_text().replace("patient", "group", 1))
    rows = [row for row in read_index(index, phantoms.root) if row.fold == 0]
    assert {row.grouped_by for row in rows} == {GROUP}
    block = {"fold": 0, "role": "test", **evaluate(Model(EchoSession(), echo_spec(InputMode.FULL)), rows)}
    assert results.summary_lines("fold 0", block)[0].startswith("fold 0, mass: 2 images of 2 groups of near-duplicates")
    spec = replace(tiny_spec(), training={"train_images": 12, "train_patients": 6, "grouped_by": GROUP})
    card = model_card(spec, {"fold_0": block}, TrainConfig())
    for phrase in (
        "Trained on 12 pictures of 6 groups of near-duplicates",
        "folds share no group of near-duplicates and no picture; patients are not known: pictures of one patient may",
        "percentile bootstrap over groups of near-duplicates",
        "**mass**: 2 images of 2 groups of near-duplicates",
        "Measured only on held-out groups of near-duplicates (patients are not known",
        "The smallest set above has 1 group of near-duplicates",
    ):
        assert phrase in card
    leaking = replace(spec, training={**spec.training, "leaking_split": True})
    assert "pictures of one patient, and near-duplicates, may stand in several folds" in model_card(
        leaking, {}, TrainConfig()
    )


def test_a_studys_preset_is_named_with_its_note() -> None:
    spec = replace(tiny_spec(), architecture="busi_unet", network={"final": "relu"}, training={"preset": "seed"})
    card = model_card(spec, {}, TrainConfig())
    assert "- Preset: seed. Stated: 128x128 grey input, mean squared error, ReLU after the last convolution" in card
    assert "- Network options: final relu" in card
    default = model_card(replace(spec, training={"preset": "default"}), {}, TrainConfig())
    assert "- Preset: default\n" in default
    assert "Preset" not in model_card(replace(spec, training={}), {}, TrainConfig())


def test_lines_of_epochs_and_of_the_end() -> None:
    row = {"train_loss": 0.5, "validation_loss": 0.6, "validation_score": 0.52}
    progress = Progress(epoch=10, best_epoch=8, best_score=0.6, seconds=600.0, history=[row])
    config = TrainConfig(epochs=50, max_minutes=12.0)
    line = progress.line(config, 60.0, "mean Dice")
    assert "validation loss 0.6000  mean Dice 0.5200 (best 0.6000 at 8)  60 s, at most 2 min left" in line
    assert "at most 40 min left" in progress.line(replace(config, max_minutes=None), 60.0, "mean Dice")
    assert progress.limit(config) == ""
    assert progress.limit(replace(config, max_minutes=10.0)) == "max_minutes (10)"
    training = {"epochs": 10, "best_epoch": 8, "epochs_s": 606.0, "stopped_by": "max_minutes (10)"}
    words = ended(training, replace(config, max_minutes=10.0))
    assert words.startswith(
        "training ended after epoch 10: the limit of 10 minutes is reached (10.1 used in all calls)"
    )
    assert words.endswith("the same command with more --minutes goes on")
    assert "all epochs asked for are done (10)" in ended({**training, "stopped_by": "epochs"}, TrainConfig(epochs=10))
    assert "no better score for 2 epochs (early stop)" in ended({**training, "stopped_by": "early stop"}, config)


def test_fine_tuning_for_int8_that_gained_nothing_or_lost_more_than_a_gate_sees() -> None:
    record = {"validation_score_before": 0.70, "validation_score_of_parent": 0.80}
    assert doubts_of_fine_tuning(record, 0.797) == []
    (lost,) = doubts_of_fine_tuning(record, 0.75)
    assert "scores 0.7500, the one it started from 0.8000 in float" in lost
    nothing, _ = doubts_of_fine_tuning(record, 0.70)
    assert "gained nothing: the simulated score was 0.7000 before and 0.7000" in nothing
