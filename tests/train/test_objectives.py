"""What the loop asks of each task: a loss, and a score on the network's grid; every task trains and goes on."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Modality
from mammo_runtime.spec import Activation, InputSpec, ModelSpec, Task
from mammo_train import checkpoint, models
from mammo_train.config import TrainConfig
from mammo_train.fit import fit
from mammo_train.index import IndexRow, read_index
from mammo_train.losses import IGNORE
from mammo_train.objectives import OBJECTIVES
from mammo_train.phantom_sets import write_phantom_set
from mammo_train.prompted import prompted_input
from training_phantoms import PhantomSet, tiny_config, tiny_spec

CONFIG = TrainConfig()
TISSUE = ModelSpec(
    "tissue", "smp:Linknet/mobilenet_v2", task=Task.MULTICLASS, modality=Modality.HISTOPATHOLOGY,
    activation=Activation.ARGMAX, classes=tuple(f"c{k}" for k in range(1, 22)),
    input=InputSpec(height=32, width=32, colour=True),
)  # fmt: skip
PICTURE = ModelSpec(
    "picture", "vgg16_busi", {"width": "tiny", "head": "pool"}, Task.CLASSIFICATION, Modality.ULTRASOUND,
    InputSpec(height=32, width=32), ("benign", "malignant", "normal"), Activation.SOFTMAX,
)  # fmt: skip


def boxed() -> ModelSpec:
    network = models.build("lite_medsam", width="tiny")
    return ModelSpec(
        "boxed", "lite_medsam", {"width": "tiny"}, Task.PROMPTED, Modality.ULTRASOUND,
        prompted_input("lite_medsam", "tiny"), prompt=network.prompt_spec(),  # type: ignore[operator]
    )  # fmt: skip


CASES = {
    "multiclass": (lambda: TISSUE, {"loss": "ce_dice", "kinds": ("tissue",), "validation_kinds": ("tissue",)}),
    "classification": (
        lambda: PICTURE,
        {"loss": "cross_entropy", "kinds": PICTURE.classes, "validation_kinds": PICTURE.classes},
    ),
    "prompted": (boxed, {"loss": "dice_ce", "kinds": ("benign", "malignant"), "validation_kinds": ("benign",)}),
}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> dict[Modality, tuple[IndexRow, ...]]:
    root = tmp_path_factory.mktemp("pictures")
    wanted = (Modality.ULTRASOUND, Modality.HISTOPATHOLOGY)
    return {modality: read_index(write_phantom_set(root, modality), root) for modality in wanted}


@pytest.mark.parametrize("name", CASES)
def test_every_task_trains_and_goes_on_to_the_same_weights(
    name: str, pictures: dict[Modality, tuple[IndexRow, ...]], tmp_path: Path
) -> None:
    make, changes = CASES[name]
    spec, config = make(), tiny_config(frozen_epochs=0, train_folds=(2,), **changes)
    rows = pictures[spec.modality]
    for run, epochs in (("whole", 2), ("stopped", 1), ("stopped", 2)):
        done = fit(rows, spec, replace(config, epochs=epochs), tmp_path / run, report=lambda _line: None)
    first, second = (checkpoint.load_state(tmp_path / run) for run in ("whole", "stopped"))
    assert first is not None
    assert second is not None
    assert [key for key in first[0] if not torch.equal(first[0][key], second[0][key])] == []
    assert done.training["validation_score"] == OBJECTIVES[spec.task].score_name
    assert 0 <= done.training["validation_score_grid"] <= 1
    with (tmp_path / "whole" / "log.csv").open(newline="") as stream:
        log = list(csv.DictReader(stream))
    assert list(log[0]) == ["epoch", "phase", "rate", "train_loss", "validation_loss", "validation_score"]
    assert all(np.isfinite(float(row["train_loss"])) for row in log)


def test_masks_score_by_their_mean_dice() -> None:
    objective = OBJECTIVES[Task.SEGMENTATION]
    logits, masks = torch.full((2, 1, 2, 2), -1.0), torch.zeros(2, 1, 2, 2)
    logits[0, 0, 0], masks[0, 0, :, 0] = 1.0, 1.0
    details = objective.details(logits, [masks, masks, masks], CONFIG)
    assert objective.score(details) == pytest.approx((0.5 + 1.0) / 2)


def test_pixel_classes_score_by_the_mean_dice_of_those_in_the_truth() -> None:
    objective = OBJECTIVES[Task.MULTICLASS]
    truth = torch.tensor([[[0, 0, 1, IGNORE]], [[1, 1, 1, IGNORE]]])
    answer = torch.tensor([[[0, 1, 1, 2]], [[1, 1, 0, 2]]])
    logits = torch.nn.functional.one_hot(answer, 3).movedim(-1, 1).float()
    details = objective.details(logits, [truth, truth], CONFIG)
    # Pooled over pictures: class 0 has TP 1, FP 1, FN 1; class 1 has TP 3, FP 1, FN 1; class 2 is in no truth.
    assert objective.score(details) == pytest.approx((0.5 + 0.75) / 2)


def test_pictures_score_by_balanced_accuracy() -> None:
    objective = OBJECTIVES[Task.CLASSIFICATION]
    truth = torch.tensor([0, 0, 0, 1])
    logits = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0], [0, 1.0, 0]])
    assert objective.score(objective.details(logits, [truth, truth], CONFIG)) == pytest.approx((2 / 3 + 1) / 2)


def limited(phantoms: PhantomSet, run: Path, **changes: object) -> tuple[ModelSpec, list[dict[str, str]]]:
    """Train a network without batch norm or dropout."""
    spec = replace(
        tiny_spec(), architecture="busi_unet", network={"width": "tiny", "dropout_down": 0.0, "dropout_up": 0.0}
    )
    config = tiny_config(**{"frozen_epochs": 0, "train_folds": (2, 3), **changes})
    done = fit(phantoms.rows(), spec, config, run, report=lambda _line: None)
    with (run / "log.csv").open(newline="") as stream:
        return done, list(csv.DictReader(stream))


def test_parts_of_a_batch_train_like_the_whole(phantoms: PhantomSet, tmp_path: Path) -> None:
    _, whole = limited(phantoms, tmp_path / "whole")
    _, parts = limited(phantoms, tmp_path / "parts", accumulate=3)
    for one, other in zip(whole, parts, strict=True):
        assert {k: float(v) for k, v in other.items()} == pytest.approx(
            {k: float(v) for k, v in one.items()}, rel=2e-4, abs=1e-5
        )


def test_half_precision_is_recorded(phantoms: PhantomSet, tmp_path: Path) -> None:
    done, log = limited(phantoms, tmp_path, precision="bf16", epochs=1)
    assert done.training["precision"] == "bf16"
    assert np.isfinite(float(log[0]["train_loss"]))


def test_fp16_needs_a_gpu(phantoms: PhantomSet, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(UsageError, match="fp16 needs a GPU"):
        limited(phantoms, tmp_path, precision="fp16")


@pytest.mark.parametrize(
    ("spec", "loss", "words"),
    [
        (TISSUE, "tversky", "'tversky' is not for multiclass; it learns by ce_dice"),
        (PICTURE, "ce_dice", "'ce_dice' is not for classification"),
        (tiny_spec(), "cross_entropy", "'cross_entropy' is not for segmentation; it learns by tversky_bce"),
    ],
)
def test_losses_of_another_task_are_refused(spec: ModelSpec, loss: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        fit([], spec, tiny_config(loss=loss), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_critics_judge_masks_only(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'adv_multiscale' is not for prompted"):
        fit([], boxed(), tiny_config(loss="adv_multiscale"), tmp_path)


def test_class_weights_need_one_for_each_class(tmp_path: Path) -> None:
    config = tiny_config(loss="cross_entropy", class_weights=(1.0, 2.0))
    with pytest.raises(UsageError, match="class_weights has 2 values for 3 classes"):
        fit([], PICTURE, config, tmp_path)


def test_minutes_end_training_and_more_minutes_go_on(phantoms: PhantomSet, tmp_path: Path) -> None:
    short = 1e-6
    done, log = limited(phantoms, tmp_path, max_minutes=short, epochs=3)
    assert (done.training["epochs"], len(log)) == (1, 1)
    assert done.training["stopped_by"].startswith("max_minutes")
    again, _ = limited(phantoms, tmp_path, max_minutes=short, epochs=3)
    assert again.training["epochs"] == 1
    more, log = limited(phantoms, tmp_path, max_minutes=60, epochs=3)
    assert (more.training["epochs"], more.training["stopped_by"], len(log)) == (3, "epochs", 3)
    _, straight = limited(phantoms, tmp_path / "straight", epochs=3)
    assert log == straight


def test_a_cosine_cannot_be_prolonged(phantoms: PhantomSet, tmp_path: Path) -> None:
    limited(phantoms, tmp_path, schedule="cosine", epochs=1)
    with pytest.raises(UsageError, match="other data or settings"):
        limited(phantoms, tmp_path, schedule="cosine", epochs=2)


def test_a_deeply_supervised_network_trains_all_its_heads(phantoms: PhantomSet, tmp_path: Path) -> None:
    spec = replace(tiny_spec(), architecture="unetpp", network={"width": "tiny", "deep_supervision": True})
    config = tiny_config(epochs=1, frozen_epochs=0, train_folds=(2,), ema_decay=0.0)
    fit(phantoms.rows(), spec, config, tmp_path, report=lambda _line: None)
    torch.manual_seed(config.seed)
    fresh, trained = models.build_for(spec).state_dict(), checkpoint.load_model(tmp_path)[0].state_dict()
    heads = [name for name in fresh if "head" in name and name.endswith("weight")]
    assert len(heads) > 1
    assert all(not torch.equal(fresh[name], trained[name]) for name in heads)


def test_a_known_leak_is_recorded(phantoms: PhantomSet, tmp_path: Path) -> None:
    spec = replace(tiny_spec(), architecture="busi_unet", network={"width": "tiny"})
    leaking = [replace(row, group="p0_0") if row.fold == 3 else row for row in phantoms.rows()]
    config = tiny_config(epochs=1, frozen_epochs=0, train_folds=(2, 3))
    done = fit(leaking, spec, config, tmp_path, report=lambda _line: None, allow_leak=True)
    assert done.training["leaking_split"] is True
