"""Accuracy-gated mixed precision: which groups cost most, and how few of them must go back for the rest to pass."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeVar

import onnx

from mammo_export.difference import Difference
from mammo_export.memory import Json, Memory

LEAST_SHARE = 0.5
"""Of the multiply-adds: with less than half of them quantised, no processor's INT8 gains the 15 % that INT8 must (by
Amdahl's law a twofold gain on half of the work is 1.33 before the conversions between the two)."""
Made = TypeVar("Made", onnx.ModelProto, tuple[onnx.ModelProto, ...])
Worth = Callable[[frozenset[str]], bool]
"""Tells of some reverted groups whether a model with these is still worthwhile."""


class Named(Protocol):
    """A group, as `quantize.groups` gives it."""

    @property
    def name(self) -> str:
        """Its first node's."""


@dataclass(frozen=True)
class Effect:
    """What one group does alone: the scores with only it in the lower precision, minus those of FP32."""

    group: str
    change: float | None
    """Of the mean score."""
    mean_absolute: float | None
    """Mean size of the single changes: with few pictures it tells small effects apart where the mean is noise."""
    lost: int
    """True lesions that are no longer found."""
    unusable: int
    """Answers that cannot be used."""

    @property
    def severity(self) -> tuple[int, int, float]:
        """What groups are ordered by: broken answers, lost lesions, then loss and disturbance together."""
        loss = max(0.0, -(self.change or 0.0))
        return self.unusable, self.lost, loss + (self.mean_absolute or 0.0)


@dataclass(frozen=True)
class Mix:
    """Which groups go back to the higher precision."""

    reverted: tuple[str, ...]
    """Worst first."""
    ranking: tuple[Effect, ...]
    """Every group, worst first; empty where nothing had to be reverted and nobody asked."""
    difference: Difference
    passes: bool
    why: str
    """In one sentence."""

    def ranking_record(self) -> list[dict[str, Any]]:
        """Return the ranking, JSON-ready."""
        return [asdict(effect) for effect in self.ranking]


class _Judge:
    """Judges models by what is reverted in them, each once."""

    def __init__(
        self,
        make: Callable[[frozenset[str]], Made],
        judge: Callable[[Made], Difference],
        memory: Memory,
        base: Mapping[str, Json],
    ) -> None:
        self._make: Any = make
        self._judge: Any = judge
        self._memory, self._base = memory, base
        self._known: dict[frozenset[str], Difference] = {}
        self.seconds = 0.0
        """Spent on judging in this process."""
        self.fresh = 0
        """Models judged in this process."""

    def __call__(self, reverted: frozenset[str]) -> Difference:
        if reverted not in self._known:
            parts = {**self._base, "reverted": sorted(reverted)}
            stored = self._memory.remembered(parts, lambda: self._judged(reverted).to_dict())
            self._known[reverted] = Difference.from_dict(stored)
        return self._known[reverted]

    def _judged(self, reverted: frozenset[str]) -> Difference:
        started = time.monotonic()
        found: Difference = self._judge(self._make(reverted))
        self.seconds, self.fresh = self.seconds + time.monotonic() - started, self.fresh + 1
        return found


def find_mix(
    groups: Sequence[Named],
    make: Callable[[frozenset[str]], Made],
    judge: Callable[[Made], Difference],
    passes: Callable[[Difference], bool],
    memory: Memory,
    report: Callable[[str], None],
    about: Mapping[str, Json] | None = None,
    still_worth: Worth | None = None,
    rank_always: bool = False,
    rank_by: Callable[[Made], Difference] | None = None,
) -> Mix:
    """Return the fewest of the worst groups that must be reverted for the model to pass.

    `make` builds a model from the names of the reverted groups (none: all in the lower precision), `judge` compares
    it with FP32. Groups are ranked by what each does alone, then the worst 1, 2, 4 … are reverted until `passes`,
    and the number is halved back to the least. `still_worth` ends that: what is not worthwhile is not tried. A killed
    search resumes from `memory`; `about` names what its results follow from besides the models (pictures, settings).
    `rank_always`: rank even where nothing must be reverted, for the report. `rank_by`: another judge for the ranking
    only, such as one of fewer pictures; what is said in the end always comes from `judge`.
    """
    names = [group.name for group in groups]
    base = {"what": "mix", **(about or {}), "whole": _digest(make(frozenset()))}
    ask = _Judge(make, judge, memory, base)
    ask_quickly = ask if rank_by is None else _Judge(make, rank_by, memory, {**base, "quick": True})
    whole = ask(frozenset())
    if passes(whole):
        ranking = _ranking(names, ask_quickly, report) if rank_always else ()
        return Mix((), ranking, whole, True, "nothing had to be reverted")
    ranking = _ranking(names, ask_quickly, report)
    order = [effect.group for effect in ranking]
    worth = still_worth or (lambda reverted: True)
    most = _most_worthwhile(order, worth)
    least = _least_passing(order, most, ask, passes, report)
    if least is None:
        stop = "more would not be worthwhile" if most < len(order) else "those are all"
        why = f"it does not pass with the {most} worst of {len(order)} groups reverted, and {stop}"
        if not most:
            why = f"it does not pass, and with any of {len(order)} groups reverted it would not be worthwhile"
        kept = tuple(order[:most])
        return Mix(kept, ranking, ask(frozenset(kept)), False, why)
    kept = tuple(order[:least])
    why = f"it passes with the {least} worst of {len(order)} groups reverted, not with fewer"
    return Mix(kept, ranking, ask(frozenset(kept)), True, why)


def _ranking(names: Sequence[str], ask: _Judge, report: Callable[[str], None]) -> tuple[Effect, ...]:
    """Return every group's effect alone, worst first; equal ones in the graph's order."""
    everything, effects = frozenset(names), []
    for number, name in enumerate(names, start=1):
        found = ask(everything - {name})
        effects.append(Effect(name, found.mean, found.mean_absolute, len(found.lost), len(found.unusable)))
        left = f", about {_duration(ask.seconds / ask.fresh * (len(names) - number))} left" if ask.fresh else ""
        change = "no score" if found.mean is None else f"{found.mean:+.4f}"
        report(f"sensitivity: group {number} of {len(names)} ({name}): {change}{left}")
    return tuple(sorted(effects, key=lambda e: tuple(-value for value in e.severity)))


def _most_worthwhile(order: Sequence[str], worth: Worth) -> int:
    """Return how many of the worst may be reverted at most; the more are reverted, the less it is worth."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        if worth(frozenset(order[:middle])):
            low = middle
        else:
            high = middle - 1
    return low


def _least_passing(
    order: Sequence[str],
    most: int,
    ask: _Judge,
    passes: Callable[[Difference], bool],
    report: Callable[[str], None],
) -> int | None:
    """Return the least number of the worst groups that passes, None when not even `most` do. None reverted fails."""

    def tried(number: int) -> bool:
        good = passes(ask(frozenset(order[:number])))
        report(f"mixed precision: the {number} worst of {len(order)} groups reverted {'pass' if good else 'miss'}")
        return good

    failed, step = 0, 1
    while failed < most:
        number = min(most, step)
        if tried(number):
            passing = number
            break
        failed, step = number, 2 * step
    else:
        return None
    while passing - failed > 1:
        middle = (passing + failed) // 2
        if tried(middle):
            passing = middle
        else:
            failed = middle
    return passing


def worth_by_share(shares: Mapping[str, float], least: float = LEAST_SHARE) -> Worth:
    """Return a rule: worthwhile while groups with at least `least` of the multiply-adds stay as they are.

    `shares`: group → its multiply-adds in any unit.
    """
    total = sum(shares.values())

    def worth(reverted: frozenset[str]) -> bool:
        return total > 0 and sum(v for name, v in shares.items() if name not in reverted) >= least * total

    return worth


def _digest(made: Any) -> str:
    digest = hashlib.sha256()
    for graph in made if isinstance(made, tuple) else (made,):
        digest.update(hashlib.sha256(graph.SerializeToString()).digest())
    return digest.hexdigest()


def _duration(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{seconds:.0f} s"
