"""Which of some graphs is faster here: timed in turns in one run, so that what else the machine does meets them all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_runtime.machine import machine_record

FASTER = 1.15
"""How many times as fast INT8 must be as the next precision (issue 4, "Gates")."""
AGREEMENT = 0.05
"""Two windows of the warm-up agree when their medians differ by at most this fraction."""
RESAMPLES = 2000
STAT = Path("/proc/stat")
TICKS_PER_SECOND = 100
"""Of the kernel's user-visible clock (USER_HZ on every platform we know)."""

Contestant = Callable[[], object]
"""One call of a graph on inputs of its own."""
Report = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How long to measure."""

    rounds: int = 15
    """A round lets every contestant run one block."""
    calls: int = 5
    """Of one block, whose median counts: the first finds the other contestant's weights in the caches."""
    window: int = 3
    """Calls of one window of the warm-up."""
    most_windows: int = 20
    """After these the measurement begins, settled or not."""

    def __post_init__(self) -> None:
        if min(self.rounds, self.calls, self.window) < 1 or self.most_windows < 2:
            raise ValueError("rounds, calls and window must be at least 1, most_windows at least 2")


@dataclass(frozen=True)
class Ratio:
    """How many times as fast one contestant is as another."""

    value: float
    """Median over the rounds of (other's block / own block): what slows a whole round down drops out."""
    low: float
    """95 % interval (percentile bootstrap over the rounds)."""
    high: float

    def reaches(self, limit: float) -> bool:
        """Whether it is `limit` times as fast, and surely (the whole interval) faster at all."""
        return self.value >= limit and self.low > 1


@dataclass(frozen=True)
class Speed:
    """Timings of all contestants of one run."""

    blocks_ms: Mapping[str, tuple[float, ...]]
    """Contestant → median time of a call in each of its blocks, in the order of the rounds."""
    calls: int
    """In each block."""
    settled: bool
    """Whether every contestant's warm-up came to rest before the measurement."""
    warm_up_calls: int
    batch: int
    threads: int
    machine: Mapping[str, Any]
    """Processor, instruction set, cores, versions (`machine_record`)."""
    others_cores: float | None
    """Processor cores that other processes kept busy meanwhile, on average; None where the kernel does not tell."""

    def median_ms(self, name: str) -> float:
        """Return a contestant's median time of a call."""
        return float(np.median(self.blocks_ms[self._known(name)]))

    def ratio(self, name: str, than: str, seed: int = 0) -> Ratio:
        """Return how many times as fast `name` is as `than`. Raises UsageError for an unknown name."""
        own, other = (np.array(self.blocks_ms[self._known(one)]) for one in (name, than))
        rounds = other / own
        drawn = np.random.default_rng(seed).integers(0, len(rounds), (RESAMPLES, len(rounds)))
        low, high = np.percentile(np.median(rounds[drawn], axis=1), (2.5, 97.5))
        return Ratio(float(np.median(rounds)), float(low), float(high))

    def entry(self, name: str, than: str, backend: str = "cpu", limit: float = FASTER) -> dict[str, Any]:
        """Return what bundle.json says of one contestant against another, JSON-ready."""
        ratio = self.ratio(name, than)
        return {
            "backend": backend,
            "than": than,
            "ratio": round(ratio.value, 4),
            "low": round(ratio.low, 4),
            "high": round(ratio.high, 4),
            "limit": limit,
            "passed": ratio.reaches(limit),
            "milliseconds": round(self.median_ms(name), 3),
            "than_milliseconds": round(self.median_ms(than), 3),
            **self._circumstances(),
        }

    def to_dict(self) -> dict[str, Any]:
        """Return everything that was measured, JSON-ready."""
        blocks = {name: [round(ms, 4) for ms in own] for name, own in self.blocks_ms.items()}
        medians = {name: round(self.median_ms(name), 3) for name in self.blocks_ms}
        return {"median_ms": medians, "blocks_ms": blocks, **self._circumstances()}

    def _circumstances(self) -> dict[str, Any]:
        rounds = len(next(iter(self.blocks_ms.values())))
        busy = self.others_cores
        return {
            "batch": self.batch,
            "threads": self.threads,
            "machine": dict(self.machine),
            "order": f"{rounds} rounds, {' '.join(self.blocks_ms)} in turns, {self.calls} calls a block",
            "interval": f"95 %, percentile bootstrap over rounds, {RESAMPLES} resamples",
            "settled": self.settled,
            "warm_up_calls": self.warm_up_calls,
            "other_processes_cores": None if busy is None else round(busy, 2),
        }

    def _known(self, name: str) -> str:
        if name not in self.blocks_ms:
            raise UsageError(f"{name!r} was not timed; these were: {', '.join(self.blocks_ms)}")
        return name


def compare_speed(
    contestants: Mapping[str, Contestant],
    batch: int = 1,
    threads: int = 0,
    plan: Plan | None = None,
    report: Report | None = None,
    clock: Callable[[], float] = time.perf_counter,
    busy: Callable[[], float | None] | None = None,
    machine: Mapping[str, Any] | None = None,
) -> Speed:
    """Time at least two contestants in turns: A B A B …, after a warm-up of each.

    `batch` and `threads` are what the contestants were set up with (0: one thread for each core), recorded only.
    `clock` gives seconds; `busy` the seconds that other processes have had of all cores so far, or None. Raises
    UsageError for fewer than two.
    """
    if len(contestants) < 2:
        raise UsageError("a speed is measured against another one: at least two graphs are needed")
    plan = plan or Plan()
    busy = busy or busy_elsewhere
    warm_up = [_warm_up(call, plan, clock) for call in contestants.values()]
    started, busy_before = clock(), busy()
    blocks: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(1, plan.rounds + 1):
        for name, call in contestants.items():
            blocks[name].append(1e3 * _median(call, plan.calls, clock))
        if report is not None:
            told = ", ".join(f"{name} {np.median(own):.1f} ms" for name, own in blocks.items())
            report(f"speed: round {number} of {plan.rounds}: {told}")
    elapsed, busy_after = clock() - started, busy()
    known = busy_before is not None and busy_after is not None and elapsed > 0
    return Speed(
        blocks_ms={name: tuple(own) for name, own in blocks.items()},
        calls=plan.calls,
        settled=all(settled for settled, _ in warm_up),
        warm_up_calls=sum(calls for _, calls in warm_up),
        batch=batch,
        threads=threads or os.cpu_count() or 1,
        machine=machine_record() if machine is None else machine,
        others_cores=max(0.0, (busy_after - busy_before) / elapsed) if known else None,  # type: ignore[operator]
    )


def busy_elsewhere() -> float | None:
    """Return the seconds that all processes but this one have had of all cores since the start of the machine.

    None where the kernel does not tell (Windows, macOS).
    """
    try:
        fields = STAT.read_text(encoding="ascii").splitlines()[0].split()
        user, nice, system, _, _, interrupts, soft, stolen = (int(value) for value in fields[1:9])
    except (OSError, ValueError, IndexError):
        return None
    everyone = (user + nice + system + interrupts + soft + stolen) / TICKS_PER_SECOND
    return everyone - time.process_time()


def _warm_up(call: Contestant, plan: Plan, clock: Callable[[], float]) -> tuple[bool, int]:
    """Call until two windows agree; returns whether they did, and the number of calls."""
    before = _median(call, plan.window, clock)
    for number in range(2, plan.most_windows + 1):
        now = _median(call, plan.window, clock)
        if abs(now - before) <= AGREEMENT * max(now, before):
            return True, number * plan.window
        before = now
    return False, plan.most_windows * plan.window


def _median(call: Contestant, calls: int, clock: Callable[[], float]) -> float:
    """Return the median time of a call in seconds."""
    times: list[float] = []
    for _ in range(calls):
        started = clock()
        call()
        times.append(clock() - started)
    return float(np.median(times))
