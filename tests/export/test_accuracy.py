"""Limits of the lower precisions: each caught with its number and name, on made-up differences and on real graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from fake_sessions import EchoSession, echo_spec
from mammo_export.accuracy import LIMITS, advice, batch_invariance, limits_record, misses, preference, repeats
from mammo_export.difference import Difference, difference
from mammo_export.files import opened
from mammo_export.score import scored
from mammo_runtime.errors import UsageError
from mammo_runtime.spec import InputMode, ModelSpec
from mammo_train.dataset import read_picture
from mammo_train.index import IndexRow
from mammo_train.judge import Model
from task_sessions import BoxDecoder, class_model, label_model
from tiny_export import Altered, Exported, changed_weight

Rows = tuple[IndexRow, ...]
CLEAN = Difference(items=40, n=38, patients=35, mean=0.0, low=-0.0005, high=0.0005, found=30)
FULL, ROI = echo_spec(), echo_spec(InputMode.ROI)
LESION = {"n": 4, "patients": 4, "low": None, "high": None}


def test_the_limits_are_those_of_the_issue() -> None:
    assert LIMITS["fp16"].most_change == 0.001
    assert LIMITS["int8"] == LIMITS["int8-cpu"]
    eight = LIMITS["int8"]
    assert (eight.most_loss, eight.most_loss_low, eight.most_loss_of_size) == (0.005, 0.010, 0.020)
    with pytest.raises(UsageError, match="no limits for 'int4', but for fp32, fp16, int8, int8-cpu"):
        limits_record("int4")


@pytest.mark.parametrize("key", LIMITS)
def test_no_difference_is_no_miss(key: str) -> None:
    identical = {"runs": 100, "identical": True, "differs_on": None}
    assert misses(key, CLEAN, FULL, identical, 0.0) == ()


@pytest.mark.parametrize(
    ("key", "changes", "said"),
    [
        ("fp16", {"mean": 0.0011}, "changed by +0.0011 over 38 pictures of 35 patients (limit 0.0010 either way)"),
        ("fp16", {"mean": -0.0011}, "changed by -0.0011"),
        ("int8", {"mean": -0.0051}, "changed by -0.0051 over 38 pictures of 35 patients (limit -0.0050)"),
        ("int8", {"mean": -0.0051, "worst": (("p7", -0.3),)}, "; worst: p7 -0.300"),
        ("int8-cpu", {"low": -0.0101}, "reaches down to -0.0101 over 38 pictures of 35 patients (limit -0.0100)"),
        ("int8", {"low": None}, "has no interval"),
        ("int8", {"by_size": {"unknown spacing": {**LESION, "mean": -0.5}, "<10 mm": {**LESION, "mean": -0.021}}},
         "lesions of <10 mm: mean Dice changed by -0.0210 over 4 (limit -0.0200)"),
        ("fp16", {"lost": ("p3 (lesion 1 of 1)",)}, "true lesions that FP32 finds are lost: p3 (lesion 1 of 1)"),
        ("int8", {"lost": tuple("abcdefg")}, "a, b, c, d, e and 2 more"),
        ("int8", {"unusable": ("p1 (candidate: NaN)",)}, "no usable answer"),
        ("int8", {"n": 0, "mean": None, "low": None}, "nothing could be scored: none of 40 items"),
    ],
)  # fmt: skip
def test_every_limit_is_told_with_its_number(key: str, changes: dict[str, object], said: str) -> None:
    found = misses(key, replace(CLEAN, **changes), FULL)  # type: ignore[arg-type]
    assert len(found) == 1
    assert said in found[0]


def test_what_keeps_its_limit_just_so_passes() -> None:
    edge = replace(CLEAN, mean=-0.005, low=-0.010, by_size={"<10 mm": {**LESION, "mean": -0.020}})
    assert misses("int8", edge, FULL) == ()
    assert misses("fp16", replace(CLEAN, mean=0.001), FULL) == ()
    assert misses("int8", replace(CLEAN, mean=0.2), FULL) == (), "a gain is no miss for INT8"


def test_masks_that_appear_or_vanish_are_named_but_no_miss() -> None:
    named = replace(CLEAN, appeared=("n1",), vanished=("n2",))
    assert misses("int8", named, FULL) == ()
    assert named.to_dict()["appeared"] == ["n1"]


def test_words_follow_the_task() -> None:
    worse = replace(CLEAN, mean=-0.02)
    assert "mean Dice changed by -0.0200 over 38 lesions" in misses("int8", worse, ROI)[0]
    assert "mean macro Dice changed by -0.0200 over 38 pictures" in misses("int8", worse, label_model().spec)[0]


@pytest.mark.parametrize(
    ("key", "changed", "mean", "caught"),
    [
        ("fp16", 1, -1 / 38, 0),
        ("fp16", 2, 0.0, 1),
        ("int8", 1, -1 / 38, 0),
        ("int8", 2, -2 / 38, 2),
        ("fp32", 1, 0.0, 1),
        ("fp32", 0, -1 / 38, 1),
    ],
)
def test_classifiers_may_change_one_tie(key: str, changed: int, mean: float, caught: int) -> None:
    spec = class_model().spec
    found = replace(CLEAN, mean=mean, changed_class=tuple(f"p{k} (a became b)" for k in range(changed)))
    assert len(misses(key, found, spec)) == caught


def test_large_sets_of_classified_pictures_have_proportional_limits() -> None:
    spec, many = class_model().spec, replace(CLEAN, items=1000, n=1000)
    assert misses("int8", replace(many, mean=-0.010, changed_class=("x",) * 30), spec) == ()
    said = misses("int8", replace(many, mean=-0.011, changed_class=("x",) * 31), spec)
    assert "31 of 1000 pictures (limit 30)" in said[0]
    assert "accuracy changed by -0.0110 over 1000 pictures (limit -0.0100)" in said[1]


def test_repeats_and_company_have_limits() -> None:
    twice = {"runs": 100, "identical": False, "differs_on": 7}
    assert "another answer on run 7 of 100" in misses("int8", CLEAN, FULL, twice)[0]
    assert "differs by 0.01 from the same input alone" in misses("int8", CLEAN, FULL, None, 0.01)[0]
    assert len(misses("int8", CLEAN, FULL, None, float("nan"))) == 1


def test_candidates_are_compared_by_lost_lesions_before_dice() -> None:
    loses = replace(CLEAN, mean=0.01, lost=("p1",))
    broken = replace(CLEAN, unusable=("p1",), mean=None)
    assert max((broken, loses, replace(CLEAN, mean=-0.01), CLEAN), key=preference) == CLEAN
    assert min((broken, loses, CLEAN), key=preference) == broken


def test_advice_names_what_can_be_done() -> None:
    assert any("--qat" in one for one in advice("int8", CLEAN, FULL))
    assert "masses among them (so far 12)" in advice("int8-cpu", CLEAN, FULL, 12)[0]
    assert "each class among them" in advice("int8-cpu", CLEAN, class_model().spec, 300)[0]
    assert "depthwise" in advice("int8", CLEAN, replace(FULL, architecture="mobilenetv2_unet"))[-1]
    assert "FP32" in advice("fp16", CLEAN, FULL)[0]
    assert "overflows" in advice("int8", replace(CLEAN, unusable=("p",)), FULL)[0]
    assert "other pictures" in advice("int8", replace(CLEAN, n=0), FULL)[0]


class Forgetful(EchoSession):
    """Gives another answer on one call, or lets the first input of a batch leak into the others."""

    def __init__(self, on_call: int = 0, leak: float = 0.0) -> None:
        super().__init__()
        self.on_call, self.leak = on_call, leak

    def run(self, batch: np.ndarray) -> np.ndarray:
        found = super().run(batch) + self.leak * batch[:1, :1]
        return found + np.float32(1e-7) if self.calls == self.on_call else found


def test_a_hundred_repeats_must_be_identical() -> None:
    batch = np.full((1, 1, 4, 4), 0.3, np.float32)
    assert repeats(Forgetful(), batch) == {"runs": 100, "identical": True, "differs_on": None}
    assert repeats(Forgetful(on_call=77), batch) == {"runs": 100, "identical": False, "differs_on": 77}
    same_nan = Altered(Forgetful(), lambda p: p * np.float32("nan"))
    assert repeats(same_nan, batch, times=3)["identical"], "that it is NaN is another gate's to say"


def test_inputs_together_are_compared_with_inputs_alone() -> None:
    batch = np.linspace(0, 1, 3 * 16, dtype=np.float32).reshape(3, 1, 4, 4)
    assert batch_invariance(Forgetful(), batch) == 0
    assert batch_invariance(Forgetful(leak=0.01), batch) == pytest.approx(0.01 * 2 / 3, rel=0.1)
    with pytest.raises(UsageError, match="at least two"):
        batch_invariance(Forgetful(), batch[:1])
    labels = Altered(Forgetful(leak=0.5), lambda p: (p > 0.5).astype(np.uint8))
    assert 0 < batch_invariance(labels, batch) < 1, "labels: the fraction that differs"
    boxes = np.array([[[8, 8, 40, 40], [60, 60, 90, 100]]], np.float32)
    decoder = BoxDecoder(0.0, by_width=True)
    assert batch_invariance(decoder, np.zeros((1, 1, 8, 8), np.float32), boxes) == 0


@pytest.fixture(scope="module")
def true_rows(exported: Exported, rows: Rows, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    """The phantoms with what the random network marks as their truth: it finds everything, with a Dice of 1."""
    folder, found = tmp_path_factory.mktemp("truth"), []
    with opened(exported.model) as session:
        for row in rows:
            mask = Model(session, exported.spec).judge(read_picture(row, exported.spec.modality)).mask
            assert cv2.imwrite(str(folder / f"{row.name}.png"), mask.astype(np.uint8) * 255)
            found.append(replace(row, mask=folder / f"{row.name}.png"))
    return tuple(found)


def judged(exported: Exported, rows: Rows, model: onnx.ModelProto | None = None,
           answer: Callable[[np.ndarray], np.ndarray] = lambda p: p) -> Difference:  # fmt: skip
    """Compare a falsified graph, or one whose answers are falsified, with the true one."""
    spec: ModelSpec = exported.spec
    with opened(exported.model) as true, opened(model or exported.model) as other:
        return difference(scored(spec, true, None, rows), scored(spec, Altered(other, answer), None, rows))


def test_a_true_graph_passes(exported: Exported, true_rows: Rows) -> None:
    found = judged(exported, true_rows)
    assert (found.items, found.n, found.reference, found.mean) == (4, 4, 1, 0)
    assert misses("fp16", found, exported.spec) == misses("int8", found, exported.spec) == ()


def test_a_vanished_mask_is_a_miss(exported: Exported, true_rows: Rows) -> None:
    found = judged(exported, true_rows, answer=lambda p: p * np.float32(0.1))
    assert found.vanished == ("p0", "p1", "p2", "p3")
    said = misses("int8", found, exported.spec)
    assert any("true lesions that FP32 finds are lost: p" in one for one in said)


def test_a_nan_layer_is_a_miss(exported: Exported, true_rows: Rows) -> None:
    found = judged(exported, true_rows, changed_weight(exported.model, float("nan")))
    said = misses("fp16", found, exported.spec)
    assert "no usable answer (NaN, infinite or of a wrong shape) for p0" in said[0]


def test_a_coarse_network_is_a_miss(exported: Exported, true_rows: Rows) -> None:
    """Weights with three bits, as a quantisation that went wrong leaves them."""
    coarse = onnx.ModelProto()
    coarse.CopyFrom(exported.model)
    for tensor in coarse.graph.initializer:
        if len(tensor.dims) == 4:
            values = numpy_helper.to_array(tensor)
            step = np.abs(values).max() / 3
            tensor.CopyFrom(numpy_helper.from_array((np.round(values / step) * step).astype(np.float32), tensor.name))
    found = judged(exported, true_rows, coarse)
    assert any("mean Dice changed by -0." in one for one in misses("int8", found, exported.spec))
