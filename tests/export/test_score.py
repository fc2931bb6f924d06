"""Items of every task, with models whose answers are known beforehand, and the differences of two models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from fake_sessions import EchoSession, echo_spec
from mammo_export import desk as desk_module
from mammo_export.desk import Desk
from mammo_export.score import Difference, Item, difference, scored
from mammo_runtime.errors import MammoError, ModelRefused, UsageError
from mammo_runtime.spec import InputMode, ModelSpec
from mammo_train.evaluate import evaluate
from mammo_train.index import IndexRow
from mammo_train.judge import Model
from task_sessions import box_model, class_model, ellipse_row, grey_row, label_model, label_row

SIDE = 128
Discs = Sequence[tuple[int, int, int]]


def drawn(folder: Path, name: str, true: Discs, seen: Discs | None = None, kind: str = "mass") -> IndexRow:
    """Write a picture: the echo session marks the discs (x, y, radius) `seen`, the truth holds `true`; 0.5 mm."""
    picture, mask = np.full((SIDE, SIDE), 60, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
    for x, y, radius in true:
        cv2.circle(mask, (x, y), radius, 255, -1)
    for x, y, radius in true if seen is None else seen:
        cv2.circle(picture, (x, y), radius, 200, -1)
    cv2.imwrite(str(folder / f"{name}.png"), picture)
    cv2.imwrite(str(folder / f"{name}_mask.png"), mask)
    mask_file = folder / f"{name}_mask.png" if true else None
    return IndexRow(folder / f"{name}.png", mask_file, f"patient {name}", 0, kind, 0.5)


def echoed(rows: Sequence[IndexRow], session: EchoSession | None = None, spec: ModelSpec | None = None,
           **options: object) -> tuple[Item, ...]:  # fmt: skip
    return scored(spec or echo_spec(), session or EchoSession(), None, rows, **options)  # type: ignore[arg-type]


class Blind(EchoSession):
    """Gives one answer for every pixel."""

    def __init__(self, answer: float) -> None:
        super().__init__()
        self.answer = answer

    def run(self, batch: np.ndarray) -> np.ndarray:
        return np.full_like(super().run(batch), self.answer)


@pytest.fixture
def pictures(tmp_path: Path) -> list[IndexRow]:
    """One mass found, two of which the second is missed, a normal picture, one with a false finding."""
    return [
        drawn(tmp_path, "one", [(40, 60, 15)]),
        drawn(tmp_path, "two", [(30, 30, 8), (90, 90, 24)], [(30, 30, 8)]),
        drawn(tmp_path, "none", [], kind="normal"),
        drawn(tmp_path, "false", [], [(60, 60, 9)], kind="normal"),
    ]


def test_whole_pictures_give_one_item_each(pictures: list[IndexRow]) -> None:
    one, two, none, false = echoed(pictures)
    assert one == Item("one", "patient one", "mass", score=1.0, size="10-20 mm", found=True, hits="1")
    assert two.score is not None
    assert 0 < two.score < 0.5
    assert (two.size, two.hits) == (">20 mm", "10"), "the size is the largest lesion's"
    assert none == Item("none", "patient none", "normal", found=False)
    assert false == Item("false", "patient false", "normal", found=True), "without any mask only finding counts"


def test_lesions_are_items_where_the_model_takes_boxes(pictures: list[IndexRow]) -> None:
    spec = echo_spec(InputMode.ROI)
    found = echoed(pictures, spec=spec)
    assert [item.name for item in found] == ["one lesion 1", "two lesion 1", "two lesion 2"]
    assert [item.found for item in found] == [True, False, True]
    assert [item.size for item in found] == ["10-20 mm", ">20 mm", "<10 mm"]
    assert {item.hits for item in found} == {""}


@pytest.mark.parametrize("mode", list(InputMode))
def test_scores_are_those_of_the_trainers_evaluation(pictures: list[IndexRow], mode: InputMode) -> None:
    spec = echo_spec(mode)
    block = evaluate(Model(EchoSession(), spec), pictures)["kinds"]["mass"]
    scores = [item.score for item in echoed(pictures, spec=spec) if item.score is not None]
    assert np.mean(scores) == pytest.approx(block["per_image"]["dice"]["value"])
    assert len(scores) == block["n"]


def test_multiclass_pictures_have_a_macro_dice(tmp_path: Path) -> None:
    model, seen = label_model(), np.zeros((64, 64), np.uint8)
    seen[:, 32:] = 1
    wrong = seen.copy()
    wrong[:32] = 0
    rows = [label_row(tmp_path, "right", seen + 1, seen), label_row(tmp_path, "wrong", seen + 1, wrong)]
    right, other = scored(model.spec, model.session, None, [*rows, replace(rows[0], mask=None)])[:2]
    assert right.score == 1
    assert other.score == pytest.approx((2 * 2048 / (2048 + 3072) + 2 * 1024 / (2048 + 1024)) / 2)
    ignored = scored(model.spec, model.session, None, rows[:1], ignore_codes=(0, 1, 2))[0]
    assert ignored.score is None, "a picture without a pixel that counts has no score"
    assert ignored.fault == ""


def test_classifiers_are_right_or_wrong(tmp_path: Path) -> None:
    model = class_model()
    rows = [
        grey_row(tmp_path, "dark", 2, "normal"), grey_row(tmp_path, "bright", 250, "benign"),
        grey_row(tmp_path, "strange", 128, "implant"),
    ]  # fmt: skip
    found = scored(model.spec, model.session, None, rows)
    assert [(item.score, item.said) for item in found] == [(1, "normal"), (0, "malignant"), (None, "benign")]


def test_prompted_models_are_scored_at_each_lesion(tmp_path: Path) -> None:
    model = box_model()
    rows = [ellipse_row(tmp_path, "a", [(40, 40, 14), (90, 90, 10)], "p"), grey_row(tmp_path, "n", 40, "normal")]
    found = scored(model.spec, model.session, model.decoder, rows)
    assert [item.part for item in found] == [1, 2]
    assert all(item.score is not None and item.score > 0.9 and item.found for item in found)


def test_nan_is_a_fault_and_never_a_score(pictures: list[IndexRow]) -> None:
    found = echoed(pictures, Blind(float("nan")))
    assert all("NaN" in item.fault and item.score is None and item.found is None for item in found)
    told = difference(echoed(pictures), found)
    assert len(told.unusable) == 4
    assert told.unusable[0].startswith("one (candidate: the model returned values that are no probabilities")
    assert (told.n, told.mean) == (0, None)
    by_hand = difference([Item("a", "p", "mass", score=0.5)], [Item("a", "p", "mass", score=float("nan"))])
    assert by_hand.unusable == ("a (candidate: the score is nan)",)


def test_another_threshold_is_another_score(pictures: list[IndexRow]) -> None:
    assert [item.found for item in echoed(pictures, threshold=0.9)] == [False] * 4


def test_pictures_are_read_and_prepared_once(pictures: list[IndexRow], monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    for name in ("read_labelled", "prepare_all"):
        true = getattr(desk_module, name)
        monkeypatch.setattr(desk_module, name, lambda *a, true=true, name=name: calls.append(name) or true(*a))
    desk = Desk(echo_spec())
    first = echoed(pictures, desk=desk)
    assert len(calls) == 2 * len(pictures)
    assert echoed(pictures, desk=desk) == first
    assert len(calls) == 2 * len(pictures)
    assert echoed(pictures, desk=Desk(echo_spec(), most_bytes=40_000)) == first, "what does not fit is read again"
    with pytest.raises(ModelRefused, match="sees pictures otherwise"):
        echoed(pictures, spec=echo_spec(side=64), desk=desk)


def test_unreadable_pictures_stop_the_scoring(pictures: list[IndexRow]) -> None:
    pictures[0].image.write_bytes(b"no picture")
    with pytest.raises(UsageError, match=r"one\.png"):
        echoed(pictures)


def test_a_model_does_not_differ_from_itself(pictures: list[IndexRow]) -> None:
    found = difference(echoed(pictures), echoed(pictures))
    assert (found.items, found.n, found.patients, found.found) == (4, 2, 2, 3)
    assert (found.mean, found.low, found.high, found.mean_absolute) == (0, 0, 0, 0)
    assert (found.worst, found.appeared, found.vanished, found.lost, found.unusable) == ((),) * 5
    assert found.reference == found.candidate


def test_a_vanished_mask_is_named(pictures: list[IndexRow]) -> None:
    everywhere = difference(echoed(pictures), echoed(pictures, Blind(0.0)))
    assert everywhere.vanished == ("one", "two", "false")
    assert everywhere.lost == ("one (lesion 1 of 1)", "two (lesion 1 of 2)"), "a vanished false finding is no lost mass"
    assert everywhere.worst[0] == ("one", -1.0)
    back = difference(echoed(pictures, Blind(0.0)), echoed(pictures))
    assert (back.appeared, back.vanished, back.lost) == (("one", "two", "false"), (), ())


def test_a_lesion_lost_beside_another_is_named(tmp_path: Path) -> None:
    true = [(30, 30, 12), (90, 90, 12)]
    row = drawn(tmp_path, "pair", true)
    before = echoed([row])
    drawn(tmp_path, "pair", true, true[:1])
    assert difference(before, echoed([row])).lost == ("pair (lesion 2 of 2)",)


def test_lesions_that_only_the_reference_finds_at_their_box() -> None:
    old = [Item("a", "p", "mass", part=k, score=s, found=True) for k, s in ((1, 0.7), (2, 0.0))]
    new = [replace(item, found=False, score=0.0) for item in old]
    found = difference(old, new)
    assert found.vanished == ("a lesion 1", "a lesion 2")
    assert found.lost == ("a lesion 1",), "the other mark was not on the lesion"


def test_patients_are_drawn_not_pictures() -> None:
    def items(change: float) -> list[Item]:
        return [Item(f"{k}", "same" if k < 9 else "other", "mass", score=0.5 + change * (k < 9)) for k in range(10)]

    found = difference(items(0.0), items(-0.1))
    assert found.mean == pytest.approx(-0.09)
    assert (found.low, found.high) == (pytest.approx(-0.1), pytest.approx(0.0)), "two patients: it may be either"
    assert difference(items(0.0)[:9], items(-0.1)[:9]).low is None, "one patient gives no interval"


def test_sizes_and_classes_are_told_apart() -> None:
    old = [
        Item("a", "p", "mass", score=0.8, size="<10 mm"), Item("b", "q", "mass", score=0.6, size=">20 mm"),
        Item("c", "r", "normal", said="benign"), Item("d", "s", "mass", score=0.5),
    ]  # fmt: skip
    new = [replace(old[0], score=0.7), old[1], replace(old[2], said="normal"), old[3]]
    found = difference(old, new)
    assert {size: (own["n"], own["mean"]) for size, own in found.by_size.items()} == {
        "<10 mm": (1, pytest.approx(-0.1)), ">20 mm": (1, 0.0),
    }  # fmt: skip
    assert found.changed_class == ("c (benign became normal)",)
    assert found.mean == pytest.approx(-0.1 / 3)


def test_differences_and_items_survive_json(pictures: list[IndexRow]) -> None:
    items = echoed(pictures)
    assert tuple(Item(**one) for one in json.loads(json.dumps([asdict(item) for item in items]))) == items
    found = difference(items, echoed(pictures, Blind(0.0)))
    assert Difference.from_dict(json.loads(json.dumps(found.to_dict(), allow_nan=False))) == found


def test_other_pictures_are_not_compared(pictures: list[IndexRow]) -> None:
    items = echoed(pictures)
    for other in (items[:-1], items[::-1]):
        with pytest.raises(MammoError, match="not of the same pictures"):
            difference(items, other)
