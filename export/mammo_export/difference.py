"""How far a candidate's scores differ from the reference's: paired, with intervals over patients, and by name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from mammo_runtime.errors import MammoError
from mammo_train.evaluate_masks import SIZES
from mammo_train.metrics import Draws

WORST = 12
"""Items that are named as the worst."""
HIT, LOST = "1", "0"


@dataclass(frozen=True)
class Item:
    """One thing that is scored: a picture, or a lesion that the model was pointed at. JSON-ready by `asdict`."""

    image: str
    """Name of the picture's file without suffix."""
    group: str
    """Its patient: what the bootstrap draws."""
    kind: str
    part: int = 0
    """Number of the lesion (from 1) where lesions are scored, else 0."""
    score: float | None = None
    """Dice (multi-class: macro Dice; classifiers: 1 right, 0 wrong); None where there is no truth to score, or
    no usable answer."""
    size: str | None = None
    """Size class (`evaluate_masks.SIZES`) of the lesion, or of a whole picture's largest one."""
    found: bool | None = None
    """Whether anything is marked; None where nothing is marked by such models."""
    said: str = ""
    """The class that a classifier predicts."""
    hits: str = ""
    """Of whole pictures: for each true lesion, topmost first, "1" where the mask touches it, "0" where not."""
    fault: str = ""
    """Why there is no usable answer (NaN, a wrong shape …)."""

    @property
    def name(self) -> str:
        """How people are told which item it is."""
        return f"{self.image} lesion {self.part}" if self.part else self.image


@dataclass(frozen=True)
class Difference:
    """Candidate minus reference over the items that both have a score for; None where nothing could be paired."""

    items: int
    """All that were judged, scored or not."""
    n: int
    """Pairs of scores."""
    patients: int
    """Among those pairs."""
    mean: float | None
    low: float | None
    """95 % interval of the mean; None with fewer than two patients."""
    high: float | None
    interval: str = ""
    """How it was reckoned."""
    mean_absolute: float | None = None
    """Mean size of the single differences: what a mean near 0 may hide."""
    reference: float | None = None
    """Mean score of the reference over the pairs."""
    candidate: float | None = None
    by_size: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Size class → {"n", "patients", "mean", "low", "high"}."""
    worst: tuple[tuple[str, float], ...] = ()
    """Items (by name) that lost most, and how much; at most `WORST`, only losses."""
    found: int = 0
    """Items in which the reference marks something."""
    appeared: tuple[str, ...] = ()
    """Items in which only the candidate marks something."""
    vanished: tuple[str, ...] = ()
    """Items in which only the reference marks something."""
    lost: tuple[str, ...] = ()
    """True lesions that only the reference finds: its mask overlapped with the truth there."""
    changed_class: tuple[str, ...] = ()
    """Items with another predicted class: "p1 (benign became normal)"."""
    unusable: tuple[str, ...] = ()
    """Items without a usable answer of one side, with side and reason."""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; `from_dict` is the inverse."""
        values = asdict(self)
        lists = {name: list(value) for name, value in values.items() if isinstance(value, tuple)}
        return {**values, **lists, "worst": [list(one) for one in self.worst]}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Difference:
        """Build from `to_dict`'s form."""
        names = ("appeared", "vanished", "lost", "changed_class", "unusable")
        tuples: dict[str, Any] = {name: tuple(values[name]) for name in names}
        worst = tuple((str(name), float(change)) for name, change in values["worst"])
        return cls(**{**values, **tuples, "worst": worst})


def difference(reference: Sequence[Item], candidate: Sequence[Item]) -> Difference:
    """Compare two models' items of the same pictures in the same order.

    Raises MammoError when they are not of the same pictures. Items without a usable answer have no place in the mean;
    they are named in `unusable`.
    """
    if [(i.image, i.part) for i in reference] != [(i.image, i.part) for i in candidate]:
        raise MammoError("two models' scores cannot be compared: they are not of the same pictures and lesions")
    pairs = list(zip(reference, candidate))
    sound = [(old, new) for old, new in pairs if not (_fault(old) or _fault(new))]
    both = [(old, new) for old, new in sound if old.score is not None and new.score is not None]
    changes = np.array([new.score - old.score for old, new in both], np.float64)  # type: ignore[operator]
    groups = [old.group for old, _ in both]
    sizes = [old.size for old, _ in both]
    order = sorted((float(change), old.name) for change, (old, _) in zip(changes, both))
    return Difference(
        items=len(pairs),
        n=len(both),
        interval=Draws(groups).words if groups else "",
        mean_absolute=_mean(np.abs(changes)),
        reference=_mean([old.score for old, _ in both]),
        candidate=_mean([new.score for _, new in both]),
        by_size={
            size: {"n": len(own), **_interval(changes[own], [groups[k] for k in own])}
            for size in SIZES
            if (own := [k for k, one in enumerate(sizes) if one == size])
        },
        worst=tuple((name, change) for change, name in order[:WORST] if change < 0),
        found=sum(bool(old.found) for old, _ in sound),
        appeared=tuple(new.name for old, new in sound if new.found and not old.found),
        vanished=tuple(new.name for old, new in sound if old.found and not new.found),
        lost=tuple(name for old, new in sound for name in _lost(old, new)),
        changed_class=tuple(f"{o.name} ({o.said} became {n.said})" for o, n in sound if o.said != n.said),
        unusable=tuple(
            f"{one.name} ({side}: {_fault(one)})"
            for pair in pairs
            for side, one in zip(("reference", "candidate"), pair)
            if _fault(one)
        ),
        **_interval(changes, groups),
    )


def _fault(item: Item) -> str:
    if not item.fault and item.score is not None and not math.isfinite(item.score):
        return f"the score is {item.score}"
    return item.fault


def _lost(old: Item, new: Item) -> list[str]:
    """Return the true lesions that the reference found and the candidate does not."""
    if old.hits:
        pairs = enumerate(zip(old.hits, new.hits, strict=True), start=1)
        total = len(old.hits)
        return [f"{old.name} (lesion {k} of {total})" for k, (before, after) in pairs if before == HIT != after]
    if old.found and not new.found and old.score:
        return [old.name]
    return []


def _interval(changes: np.ndarray, groups: Sequence[str]) -> dict[str, Any]:
    if not len(changes):
        return {"patients": 0, "mean": None, "low": None, "high": None}
    draws = Draws(groups)
    found = draws.ratio(changes, np.ones(len(changes)))
    return {"patients": draws.groups, "mean": found["value"], "low": found["low"], "high": found["high"]}


def _mean(values: Any) -> float | None:
    return float(np.mean(values)) if len(values) else None
