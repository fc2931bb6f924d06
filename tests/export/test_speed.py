"""Timing in turns, judged with a clock of its own: planted differences are found, equal contestants stay equal."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from mammo_export import speed as speed_module
from mammo_export.speed import FASTER, Plan, Ratio, Speed, busy_elsewhere, compare_speed
from mammo_runtime.errors import UsageError

NOISE = 0.03


class Machine:
    """A clock that contestants move on: each call takes its time, with noise, and more when the machine is busy."""

    def __init__(self, seed: int = 0, load: Callable[[float], float] = lambda now: 1.0) -> None:
        self.now, self.calls, self._load = 0.0, [], load  # type: ignore[var-annotated]
        self._rng = np.random.default_rng(seed)

    def contestant(self, name: str, milliseconds: float, first: Sequence[float] = ()) -> Callable[[], None]:
        """Return a contestant; `first`: factors of its first calls (cold caches)."""
        factors = list(first)

        def call() -> None:
            self.calls.append(name)
            cold = factors.pop(0) if factors else 1.0
            self.now += 1e-3 * milliseconds * cold * self._load(self.now) * float(self._rng.lognormal(0, NOISE))

        return call

    def compare(self, milliseconds: dict[str, float], plan: Plan | None = None, **options: object) -> Speed:
        named = {name: self.contestant(name, ms) for name, ms in milliseconds.items()}
        return compare_speed(named, clock=lambda: self.now, busy=lambda: 0.0, plan=plan, machine={}, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
def test_equal_contestants_are_not_told_apart(seed: int) -> None:
    ratio = Machine(seed).compare({"fp32": 20.0, "again": 20.0}).ratio("again", "fp32")
    assert 0.97 < ratio.value < 1.03
    assert ratio.low < 1.02
    assert ratio.high > 0.98
    assert not ratio.reaches(FASTER)


@pytest.mark.parametrize("seed", range(5))
def test_a_planted_slowdown_is_found(seed: int) -> None:
    found = Machine(seed).compare({"fp32": 20.0, "int8": 22.0})
    ratio = found.ratio("int8", "fp32")
    assert ratio.value == pytest.approx(20 / 22, rel=0.03)
    assert ratio.high < 1, "10 % slower, surely"
    assert not found.entry("int8", "fp32")["passed"]
    assert found.ratio("fp32", "int8").low > 1


def test_a_gain_passes_and_a_small_one_does_not() -> None:
    found = Machine().compare({"fp32": 20.0, "int8": 10.0, "fp16": 19.0})
    assert found.entry("int8", "fp32")["passed"]
    assert not found.entry("fp16", "fp32")["passed"]
    assert found.ratio("int8", "fp16").value == pytest.approx(1.9, rel=0.05)


def test_load_that_comes_and_goes_meets_both() -> None:
    """A night job triples every time for a third of the run, without touching the ratio."""
    machine = Machine(load=lambda now: 3.0 if 0.8 < now < 2.4 else 1.0)
    found = machine.compare({"fp32": 20.0, "int8": 16.0})
    assert max(found.blocks_ms["fp32"]) > 2 * min(found.blocks_ms["fp32"]), "the load was met"
    ratio = found.ratio("int8", "fp32")
    assert ratio.value == pytest.approx(1.25, rel=0.03)
    assert found.entry("int8", "fp32")["passed"]


def test_contestants_take_turns_after_the_warm_up() -> None:
    machine = Machine()
    found = machine.compare({"a": 1.0, "b": 2.0}, Plan(rounds=3, calls=2, window=1))
    assert machine.calls[found.warm_up_calls :] == ["a", "a", "b", "b"] * 3
    assert [len(own) for own in found.blocks_ms.values()] == [3, 3]


def test_the_warm_up_lasts_until_windows_agree() -> None:
    machine = Machine()
    cold = machine.contestant("cold", 10.0, first=[9, 8, 7, 6, 5, 4, 3, 2])
    named = {"cold": cold, "other": machine.contestant("other", 10.0)}
    found = compare_speed(named, clock=lambda: machine.now, busy=lambda: None, plan=Plan(window=2), machine={})
    assert found.settled
    assert machine.calls.index("other") >= 10, "eight cold calls, and a window that agrees with another"
    assert found.median_ms("cold") == pytest.approx(10, rel=0.05)


def test_a_warm_up_that_never_settles_is_said() -> None:
    machine = Machine()
    wild = machine.contestant("wild", 10.0, first=[1, 2] * 200)
    named = {"wild": wild, "calm": machine.contestant("calm", 10.0)}
    plan = Plan(rounds=2, calls=1, window=1, most_windows=6)
    found = compare_speed(named, clock=lambda: machine.now, busy=lambda: None, plan=plan, machine={})
    assert not found.settled
    assert not found.to_dict()["settled"]


def test_the_entry_says_how_it_was_measured() -> None:
    machine, spent = Machine(), iter([5.0, 6.0])
    named = {"fp32": machine.contestant("fp32", 20.0), "int8-cpu": machine.contestant("int8-cpu", 10.0)}
    found = compare_speed(named, 1, 2, clock=lambda: machine.now, busy=lambda: next(spent))
    entry = json.loads(json.dumps(found.entry("int8-cpu", "fp32"), allow_nan=False))
    assert (entry["backend"], entry["than"], entry["limit"], entry["batch"], entry["threads"]) == (
        "cpu", "fp32", FASTER, 1, 2,
    )  # fmt: skip
    assert entry["low"] <= entry["ratio"] <= entry["high"]
    assert {"processor", "instruction_set", "cores"} <= set(entry["machine"])
    assert entry["other_processes_cores"] == pytest.approx(1 / (15 * 5 * 0.03), rel=0.05)
    assert json.dumps(found.to_dict(), allow_nan=False)
    with pytest.raises(UsageError, match="was not timed; these were: fp32, int8-cpu"):
        found.ratio("fp16", "fp32")


def test_progress_is_reported() -> None:
    said: list[str] = []
    Machine().compare({"a": 1.0, "b": 2.0}, Plan(rounds=2), report=said.append)
    assert said[-1].startswith("speed: round 2 of 2: a 1.0 ms, b 2.")


def test_wrong_calls_are_refused() -> None:
    with pytest.raises(UsageError, match="at least two"):
        Machine().compare({"alone": 1.0})
    with pytest.raises(ValueError, match="at least"):
        Plan(rounds=0)


@pytest.mark.parametrize(
    ("ratio", "reached"),
    [
        (Ratio(1.2, 1.1, 1.3), True),
        (Ratio(1.15, 1.01, 1.3), True),
        (Ratio(1.14, 1.1, 1.2), False),
        (Ratio(1.3, 0.98, 1.7), False),
    ],
)
def test_it_must_be_fast_enough_and_surely_faster(ratio: Ratio, reached: bool) -> None:
    assert ratio.reaches(FASTER) is reached


def test_time_of_other_processes_comes_from_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed_module, "STAT", tmp_path / "stat")
    assert busy_elsewhere() is None
    (tmp_path / "stat").write_text("cpu  100000 200 3000 999999 5 10 20 30 0 0\n")
    monkeypatch.setattr(speed_module.time, "process_time", lambda: 32.6)
    assert busy_elsewhere() == pytest.approx((100000 + 200 + 3000 + 10 + 20 + 30) / 100 - 32.6)
    (tmp_path / "stat").write_text("other\n")
    assert busy_elsewhere() is None
