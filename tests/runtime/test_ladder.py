from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from fake_sessions import EchoSession, echo_spec
from mammo_runtime.errors import GateMissed, InferenceFailed, UsageError
from mammo_runtime.ladder import FAILED, Case, Ladder, Rung, cases_from_files, climb, require_ladder
from mammo_runtime.mammogram import Mammogram
from mammo_runtime.session import Session
from mammo_runtime.spec import InputMode
from tiny_model import picture, save

SPEC = echo_spec(side=128)


class Altered(EchoSession):
    """An echo that a test falsifies."""

    def __init__(self, change: Callable[[np.ndarray], np.ndarray]) -> None:
        super().__init__()
        self._change = change

    def run(self, batch: np.ndarray) -> np.ndarray:
        return self._change(super().run(batch))


def fails(values: np.ndarray) -> np.ndarray:
    raise InferenceFailed("CUDA could not finish the work (error 700)")


def case(name: str = "a", rows: int = 128) -> Case:
    return Case(name, Mammogram(picture(rows=rows, columns=100), 255, "as it is", "0" * 64))


def rung(session: Session | None = None, name: str = "engine", key: str = "fp16", why: str = "") -> Rung:
    return Rung(name, key, session, why=why)


def climbed(
    *sessions: Session, pictures: Path | None = None, cases: tuple[Case, ...] = (case("a"), case("b"))
) -> Ladder:
    rungs = [rung(session, f"rung {k}", "fp32" if k == 0 else "fp16") for k, session in enumerate(sessions)]
    return climb(SPEC, rungs, cases or (case("a"), case("b")), pictures)


def test_equal_rungs_pass_and_are_told() -> None:
    ladder = climbed(EchoSession(), EchoSession(), EchoSession())
    assert [(step.rung, step.than, step.images) for step in ladder.steps] == [
        ("rung 1", "rung 0", 2), ("rung 2", "rung 1", 2), ("rung 2", "rung 0", 2)
    ]  # fmt: skip
    require_ladder(ladder)
    assert "passed; at most nothing differs" in ladder.lines[0]
    json.dumps(ladder.to_dict())


def test_a_small_difference_passes_with_its_number() -> None:
    ladder = climbed(EchoSession(), Altered(lambda p: p * np.float32(0.99)))
    require_ladder(ladder)
    assert 0 < ladder.steps[0].largest["probability"] <= 0.02


def test_a_vanished_mass_fails_and_is_kept_as_a_picture(tmp_path: Path) -> None:
    ladder = climbed(EchoSession(), EchoSession(), Altered(np.zeros_like), pictures=tmp_path)
    assert "rung 2 against rung 1: a: 1 findings more or fewer" in ladder.misses[0]
    with pytest.raises(GateMissed, match=rf"the answers differ: .* and \d+ more\. See {FAILED}\. The engine"):
        require_ladder(ladder)
    kept = cv2.imread(str(tmp_path / FAILED))
    assert kept.shape == (128, 2 * (100 + 8), 3)
    left, right = kept[:, :100].astype(int), kept[:, 108:208].astype(int)
    assert (left[..., 2] - left[..., 1]).max() > 50, "the lower rung's mass is red"
    assert (right[..., 2] - right[..., 1]).max() < 50, "the higher one's is gone"


@pytest.mark.parametrize("change", [fails, lambda p: p * np.float32(np.nan)])
def test_a_rung_that_cannot_answer_fails(change: Callable[[np.ndarray], np.ndarray], tmp_path: Path) -> None:
    ladder = climbed(EchoSession(), Altered(change), pictures=tmp_path)
    assert len(ladder.misses) == 2
    assert (tmp_path / FAILED).is_file()


def test_a_rung_in_between_that_fails_does_not_hide_the_highest() -> None:
    ladder = climbed(EchoSession(), Altered(fails), EchoSession())
    assert [len(step.misses) for step in ladder.steps] == [2, 0, 0]


def test_pictures_that_nobody_can_judge_are_left_out() -> None:
    def not_the_first(values: np.ndarray) -> np.ndarray:
        return fails(values) if values[0, 0, 0].any() else values

    white = Case("white", Mammogram(np.full((64, 64), 255, np.uint8), 255, "as it is", "0" * 64))
    ladder = climbed(Altered(not_the_first), EchoSession(), cases=(case(), white))
    assert ladder.unusable == ("white",)
    with pytest.raises(UsageError, match="none of the 1 pictures"):
        climbed(Altered(fails), EchoSession(), cases=(white,))


def test_a_rung_left_out_says_why() -> None:
    rungs = [rung(EchoSession(), "low", "fp32"), rung(None, "middle", "int8", "wrong on a CPU"), rung(EchoSession())]
    ladder = climb(SPEC, rungs, [case()])
    assert ladder.lines[-1] == "middle: not climbed, wrong on a CPU"
    with pytest.raises(UsageError, match="needs two rungs"):
        climb(SPEC, rungs[:2], [case()])


def test_pictures_come_from_a_folder(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    assert [c.name for c in cases_from_files((tmp_path,), None, SPEC, 2, tmp_path / "out")] == ["a.png", "b.png"]
    boxes = tmp_path / "boxes.csv"
    boxes.write_text("image,x,y,width,height\nb.png,10,10,20,20\nb.png,30,30,20,20\n")
    (one,) = cases_from_files((tmp_path,), boxes, echo_spec(InputMode.ROI), 9, tmp_path / "out")
    assert one.boxes is not None
    assert (one.name, len(one.boxes)) == ("b.png", 2)
    with pytest.raises(UsageError, match="takes no boxes"):
        cases_from_files((tmp_path,), boxes, SPEC, 9, tmp_path / "out")
    with pytest.raises(UsageError, match="needs a box"):
        cases_from_files((tmp_path,), None, echo_spec(InputMode.ROI), 9, tmp_path / "out")
    with pytest.raises(UsageError, match="can be read as pictures"):
        cases_from_files((tmp_path / "notes.txt",), None, SPEC, 9, tmp_path / "out")
