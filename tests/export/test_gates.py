"""The parity proof: it passes for a true graph, and every planted fault is named."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mammo_export.gates import (
    MAX_BATCH_DIFFERENCE,
    MAX_LOGIT_ERROR,
    MAX_PROBABILITY_ERROR,
    MIN_EQUAL_PIXELS,
    Parity,
    require_parity,
)
from mammo_runtime.errors import GateMissed, UsageError
from mammo_train.index import IndexRow
from tiny_export import Exported, changed_weight, measured

Rows = tuple[IndexRow, ...]
CLEAN = Parity(
    reference="torch", measured="onnxruntime", images=4, windows=4, windows_with_mask=4,
    logit_error=1e-6, logit_error_image="a", probability_error=1e-6, probability_error_image="f",
    equal_pixels=1.0, equal_pixels_image="b", batch_difference=0.0,
)  # fmt: skip


def test_a_true_graph_passes_on_whole_images(exported: Exported, rows: Rows) -> None:
    parity = measured(exported, rows)
    require_parity(parity)
    assert (parity.images, parity.windows) == (4, 4)
    assert parity.windows_with_mask == 4, "without masks the mask gates would prove nothing"
    assert 0 < parity.logit_error < MAX_LOGIT_ERROR
    assert parity.reference.startswith("torch")
    assert parity.measured.startswith("onnxruntime")


def test_a_true_graph_passes_on_windows_round_lesions(exported_roi: Exported, rows: Rows) -> None:
    parity = measured(exported_roi, rows)
    require_parity(parity)
    assert (parity.images, parity.windows) == (3, 4), "the normal image has no box, one phantom has two lesions"
    assert parity.windows_with_mask > 0


def test_measurements_are_json(exported: Exported, rows: Rows) -> None:
    values = json.loads(json.dumps(measured(exported, rows[:1]).to_dict(), allow_nan=False))
    assert values["images"] == 1
    assert values["limits"] == {
        "logit_error": MAX_LOGIT_ERROR, "probability_error": MAX_PROBABILITY_ERROR,
        "equal_pixels": MIN_EQUAL_PIXELS, "batch_difference": MAX_BATCH_DIFFERENCE,
    }  # fmt: skip


def test_a_changed_weight_is_caught(exported: Exported, rows: Rows) -> None:
    wrong = changed_weight(exported.logits, 0.5)
    with pytest.raises(GateMissed, match=r"logits differ by \S+ of the largest logit on p\d \(limit 0.0001\)"):
        require_parity(measured(exported, rows, logits=wrong))


def test_a_changed_model_beside_true_logits_is_caught(exported: Exported, rows: Rows) -> None:
    parity = measured(exported, rows, model=changed_weight(exported.model, 5.0))
    assert parity.logit_error <= MAX_LOGIT_ERROR
    with pytest.raises(GateMissed, match=r"probabilities differ by \S+ on p\d \(limit 0.0001\)"):
        require_parity(parity)


def test_masks_that_differ_in_a_corner_are_caught(exported: Exported, rows: Rows) -> None:
    def with_a_speck(probability: np.ndarray) -> np.ndarray:
        probability = probability.copy()
        probability[..., 30:33, 30:33] = 1 - probability[..., 30:33, 30:33]
        return probability

    with pytest.raises(GateMissed, match=r"only 9\d\.\d+% of mask pixels are equal on p\d"):
        require_parity(measured(exported, rows, altered={"answer": with_a_speck}))


@pytest.mark.parametrize("side", ["logits", "model"])
def test_a_nan_weight_is_caught(exported: Exported, rows: Rows, side: str) -> None:
    wrong = changed_weight(getattr(exported, side), np.nan)
    with pytest.raises(GateMissed, match="no usable output for p0"):
        require_parity(measured(exported, rows[:1], **{side: wrong}))


def test_a_checkpoint_with_nan_is_caught(exported: Exported, rows: Rows) -> None:
    class Broken(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.tensor(torch.nan))

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return image[:, :1] * self.weight

    with pytest.raises(GateMissed, match=r"no usable output for p0 \(trained network\)"):
        require_parity(measured(exported, rows[:1], network=Broken()))


def test_a_vanished_mask_is_named(exported: Exported, rows: Rows) -> None:
    parity = measured(exported, rows, altered={"spec": replace(exported.spec, threshold=1.0)})
    assert parity.vanished == ("p0", "p1", "p2", "p3")
    assert parity.appeared == ()
    with pytest.raises(GateMissed, match="the mask vanished on p0, p1"):
        require_parity(parity)


def test_an_appeared_mask_is_named(exported: Exported, rows: Rows) -> None:
    silent = replace(exported, spec=replace(exported.spec, threshold=1.0))
    with pytest.raises(GateMissed, match="a mask appeared on p0, p1"):
        require_parity(measured(silent, rows))


def test_a_vanished_mask_of_one_box_is_named_with_its_box(exported_roi: Exported, rows: Rows) -> None:
    two_lesions = [row for row in rows if row.name == "p1"]
    true = measured(exported_roi, two_lesions)
    assert true.windows_with_mask == 2

    def without_second_window(probability: np.ndarray) -> np.ndarray:
        return np.concatenate([probability[:1], np.zeros_like(probability[1:])])

    parity = measured(exported_roi, two_lesions, altered={"answer": without_second_window})
    assert parity.vanished == ("p1 box 2",)


def test_a_spec_with_another_input_is_caught(exported: Exported, rows: Rows) -> None:
    other = replace(exported.spec, input=replace(exported.spec.input, mean=(0.4, 0.4, 0.4)))
    with pytest.raises(GateMissed, match="another input"):
        measured(exported, rows, altered={"spec": other})


def test_an_answer_of_another_shape_is_caught(exported: Exported, rows: Rows) -> None:
    parity = measured(exported, rows[:1], altered={"answer": lambda probability: probability[..., :32]})
    assert parity.unusable == ("p0 (graph)",)


def test_images_that_influence_each_other_in_a_batch_are_caught(exported: Exported, rows: Rows) -> None:
    def mixed(probability: np.ndarray) -> np.ndarray:
        return probability * np.float32(1 - 1e-3 * (len(probability) - 1))

    with pytest.raises(GateMissed, match="an image in a batch differs"):
        require_parity(measured(exported, rows, altered={"answer": mixed}))


def test_a_graph_that_answers_differently_each_time_is_caught(exported: Exported, rows: Rows) -> None:
    noise = np.random.default_rng(0)

    def unsteady(probability: np.ndarray) -> np.ndarray:
        return probability * np.float32(1 - 1e-6 * noise.random())

    with pytest.raises(GateMissed, match="gave two answers: p0, p1"):
        require_parity(measured(exported, rows, altered={"answer": unsteady}))


def test_nothing_to_prove_on_is_an_error_of_the_call(exported_roi: Exported, rows: Rows, tmp_path: Path) -> None:
    normal = [row for row in rows if row.mask is None]
    with pytest.raises(UsageError, match="lesion"):
        measured(exported_roi, normal)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(UsageError, match=r"text\.png"):
        measured(exported_roi, [replace(rows[0], image=tmp_path / "text.png")])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"logit_error": 1.01e-4}, "on a"),
        ({"logit_error": float("nan")}, "on a"),
        ({"probability_error": 1.01e-4}, "probabilities differ by 0.0001 on f"),
        ({"equal_pixels": 0.9998}, "99.9800% of mask pixels are equal on b"),
        ({"equal_pixels": float("nan")}, "on b"),
        ({"batch_difference": 1.1e-5}, "batch"),
        ({"appeared": ("c",)}, "appeared on c"),
        ({"vanished": ("d",)}, "vanished on d"),
        ({"unusable": tuple("abcdefgh")}, "a, b, c, d, e and 3 more"),
        ({"not_repeatable": ("e",)}, "two answers: e"),
    ],
)
def test_each_limit_is_kept_on_its_own(change: dict[str, object], words: str) -> None:
    missed = replace(CLEAN, **change)  # type: ignore[arg-type]
    assert len(missed.misses()) == 1
    with pytest.raises(GateMissed, match="measured on 4 images") as caught:
        require_parity(missed)
    assert words in str(caught.value)


def test_limits_are_those_of_the_issue() -> None:
    at_the_limit = replace(CLEAN, logit_error=1e-4, probability_error=1e-4, equal_pixels=0.9999, batch_difference=1e-5)
    require_parity(at_the_limit)
