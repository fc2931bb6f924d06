"""Folds: 0 test, 1 validation, 2 to 4 training, disjoint by unit (patient, or near-duplicate group)."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from mammo_runtime.errors import UsageError
from mammo_train.index.entry import Entry, Say
from mammo_train.index.registry import Study

TEST, VALIDATION, TRAINING = 0, 1, (2, 3, 4)


def units_of(names: Sequence[str], patients: Sequence[str], pairs: Iterable[tuple[int, int]]) -> list[str]:
    """Return each picture's unit: pictures of one patient, and pictures linked by `pairs`, share one.

    A unit is called after its first patient, else after its first picture.
    """
    parent = list(range(len(names)))

    def root(k: int) -> int:
        while parent[k] != k:
            parent[k] = parent[parent[k]]
            k = parent[k]
        return k

    def join(i: int, j: int) -> None:
        low, high = sorted((root(i), root(j)))
        parent[high] = low

    first: dict[str, int] = {}
    for k, patient in enumerate(patients):
        if patient:
            join(first.setdefault(patient, k), k)
    for i, j in pairs:
        join(i, j)
    return [patients[root(k)] or names[root(k)] for k in range(len(names))]


def spread(kinds: Sequence[str], units: Sequence[str], folds: Sequence[int], seed: int) -> list[int]:
    """Return a fold for each picture: units stay whole, each fold gets its share of every kind as well as possible.

    Greedy, largest units first; the same input and seed give the same folds. Raises UsageError for too few units.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for k, unit in enumerate(units):
        members[unit].append(k)
    if len(members) < len(folds):
        raise UsageError(f"{len(folds)} folds need at least {len(folds)} patients or groups; there are {len(members)}")
    total = Counter(kinds)
    rng = np.random.default_rng(seed)
    shuffled = sorted(members)
    rng.shuffle(shuffled)
    shuffled.sort(key=lambda unit: -len(members[unit]))
    filled = {fold: Counter[str]() for fold in folds}
    fold_of: dict[str, int] = {}
    for unit in shuffled:
        own = Counter(kinds[k] for k in members[unit])

        def cost(fold: int, own: Counter[str] = own) -> tuple[float, int, int]:
            rise = sum((2 * filled[fold][kind] * n + n * n) / total[kind] ** 2 for kind, n in own.items())
            return rise, sum(filled[fold].values()), fold

        fold_of[unit] = min(folds, key=cost)
        filled[fold_of[unit]].update(own)
    return [fold_of[unit] for unit in units]


def official(entries: Sequence[Entry], units: Sequence[str], seed: int, say: Say) -> list[int | None]:
    """Return the published parts as folds: test 0, validation 1, training 2-4; None for pictures left out.

    Without a published validation part the training pictures share the folds 1 to 4. Pictures on the training side
    whose patient, or a copy of which, stands in the test (then validation) part are left out.
    """
    parts = {entry.part for entry in entries}
    published = [part for part in ("test", "validation") if part in parts]
    # The first part in this order keeps a unit; the others lose their pictures of it.
    keeper: dict[str, str] = {}
    for part in (*published, "train"):
        for entry, unit in zip(entries, units):
            if entry.part == part:
                keeper.setdefault(unit, part)
    kept = [k for k, unit in enumerate(units) if keeper.get(unit) == entries[k].part]
    left = len(entries) - len(kept)
    if left:
        say(f"{left} pictures left out: their patient, or a copy, stands in the published test or validation part")
    training = [k for k in kept if entries[k].part == "train"]
    if not training or not published:
        raise UsageError("the published split needs both its training and its test or validation pictures")
    folds = TRAINING if "validation" in parts else (VALIDATION, *TRAINING)
    chosen = spread([entries[k].kind for k in training], [units[k] for k in training], folds, seed)
    fold: list[int | None] = [None] * len(entries)
    for k in kept:
        fold[k] = TEST if entries[k].part == "test" else VALIDATION
    for k, value in zip(training, chosen):
        fold[k] = value
    return fold


def as_in_study(entries: Sequence[Entry], study: Study) -> list[int | None]:
    """Return the folds of a study's own split: test 0, validation 1, training 2; None for what it did not use."""
    used = [k for k, entry in enumerate(entries) if entry.in_study]
    fold: list[int | None] = [None] * len(entries)
    if study.by == "part":
        for k in used:
            fold[k] = {"test": TEST, "validation": VALIDATION}.get(entries[k].part, TRAINING[0])
        return fold
    units = [entries[k].patient if study.by == "patient" else str(k) for k in used]
    order = list(dict.fromkeys(units))
    held = shuffled_parts(len(order), study)
    place = {unit: part for unit, part in zip(order, held)}
    for k, unit in zip(used, units):
        fold[k] = place[unit]
    return fold


def shuffled_parts(count: int, study: Study) -> list[int]:
    """Return a fold for each of `count` rows or patients: held-out shares rounded up, drawn by the study's seed.

    The studies state shares and sizes (study 000: 980/123/123 of 1,226; study 003: 43/10/10 of 63), not how they drew.
    """
    # RandomState, not default_rng: what scikit-learn and Keras draw with.
    order = np.random.RandomState(study.seed).permutation(count)
    test = math.ceil(round(count * study.test, 9))
    held = test + math.ceil(round(count * study.validation, 9))
    fold = [TRAINING[0]] * count
    for place, k in enumerate(order[:held]):
        fold[int(k)] = TEST if place < test else VALIDATION
    return fold
