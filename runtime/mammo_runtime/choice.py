"""Which graph of a bundle runs: what was asked for, or by measured speed; and why, in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mammo_runtime.errors import ModelRefused
from mammo_runtime.machine import UNKNOWN, instruction_set
from mammo_runtime.manifest import KEYS, ORIGIN, PASSED, Bundle, reason_of
from mammo_runtime.spec import Precision

SPECIAL_KEYS: Mapping[tuple[str, Precision], str] = {("cpu", Precision.INT8): "int8-cpu"}
"""(Backend, precision) → key, where a backend has a form of its own; elsewhere the key is the precision's name."""
MEASURED_BACKENDS = ("cpu",)
"""Backends whose speed was measured for kinds of machine that can be told apart at a site."""


@dataclass(frozen=True)
class Choice:
    """A graph of a bundle."""

    key: str
    why: str
    """One sentence without its full stop, for run.json and the terminal."""


def key_of(precision: Precision, backend: str) -> str:
    """Return the key of a precision's graph for a backend."""
    return SPECIAL_KEYS.get((backend, precision), precision.value)


def choose(bundle: Bundle, backend: str, precision: Precision | None, here: str | None = None) -> Choice:
    """Return the graph to run: that of `precision`, or of None ("auto") the fastest that is proved for this processor.

    `here` is the processor's instruction set, by default this one's. "auto" takes a graph only when it passed every
    gate and each of its speed measurements on this backend and instruction set; else it takes FP32. Raises
    ModelRefused when the graph asked for is not in the bundle or not for the backend, with the reason in the manifest.
    """
    if precision is None:
        return _fastest(bundle, backend, instruction_set() if here is None else here)
    key = key_of(precision, backend)
    _require(bundle, key, backend)
    form = f", which on the {backend} backend is {key}" if key != precision.value else ""
    return Choice(key, f"{precision.value} was asked for{form}{_reserve(bundle.precisions[key])}")


def suits(bundle: Bundle, key: str, backend: str) -> bool:
    """Tell whether a graph of the bundle is for a backend; where the manifest is silent, all but "int8" are for all."""
    known = bundle.precisions[key].get("backends")
    return backend in known if known else (backend, key) != ("cpu", "int8")


def require_backend(bundle: Bundle, key: str, backend: str) -> None:
    """Raise ModelRefused when a graph is not for a backend."""
    if not suits(bundle, key, backend):
        known = ", ".join(bundle.precisions[key].get("backends") or ["tensorrt"])
        raise ModelRefused(
            f"the {key} model of {bundle.folder.name} is for {known}, not for the {backend} backend: "
            "choose another --precision"
        )


def _require(bundle: Bundle, key: str, backend: str) -> None:
    if key in bundle.precisions:
        require_backend(bundle, key, backend)
        return
    reason = reason_of(bundle.not_shipped.get(key, {}))
    raise ModelRefused(
        f"the bundle {bundle.folder.name} holds no {key} model{f' ({reason})' if reason else ''}; it has "
        f"{', '.join(bundle.precisions)}"
    )


def _reserve(entry: Mapping[str, Any]) -> str:
    """Return what must be known of a graph that did not pass every gate, as the end of a sentence."""
    verdict = entry.get("verdict", PASSED)
    if verdict == PASSED:
        return ""
    reason = reason_of(entry)
    return f"; its verdict is “{verdict}”{f' ({reason})' if reason else ''}"


def _fastest(bundle: Bundle, backend: str, here: str) -> Choice:
    _require(bundle, ORIGIN, backend)
    if backend not in MEASURED_BACKENDS:
        return Choice(ORIGIN, f"auto takes {ORIGIN} on the {backend} backend: its speed is not measured beforehand")
    faster: dict[str, float] = {}
    against: list[str] = []
    for key in dict.fromkeys(key_of(precision, backend) for precision in Precision):
        if key == ORIGIN:
            continue
        objection = _objection(bundle, key, backend, here)
        if objection:
            against.append(f"{key} {objection}")
        else:
            faster[key] = _gain(bundle, key, backend, here)
    best = max(faster, key=faster.__getitem__, default=ORIGIN)
    if best == ORIGIN:
        return Choice(ORIGIN, f"auto takes {ORIGIN}: {', '.join(against)}")
    return Choice(
        best,
        f"auto takes {best}: it passed every gate and was measured {faster[best]:.2f} times as fast as {ORIGIN} on "
        f"a processor with this one's instruction set ({here})",
    )


def _objection(bundle: Bundle, key: str, backend: str, here: str) -> str:
    """Return what speaks against a graph, to be read after its key; "" when it may be chosen."""
    entry = bundle.precisions.get(key)
    if entry is None:
        return "is not in the bundle"
    verdict = entry.get("verdict")
    if verdict != PASSED:
        return f"has the verdict “{verdict}”" if verdict else "has no verdict"
    if not suits(bundle, key, backend):
        return f"is not for the {backend} backend"
    if here == UNKNOWN:
        return "may be slower here, since this processor's instruction set is unknown"
    of_backend = [one for one in entry.get("speed", []) if one["backend"] == backend]
    measured = _measured(bundle, key, backend, here)
    if not measured:
        elsewhere = sorted({_set_of(one) for one in of_backend})
        return f"was timed on {', '.join(elsewhere)}, not on {here}" if elsewhere else "was not timed"
    if not all(one["passed"] for one in measured):
        return f"is not fast enough on {here}"
    return "" if _gain(bundle, key, backend, here) > 1 else f"was not timed against {ORIGIN} on {here}"


def _measured(bundle: Bundle, key: str, backend: str, here: str) -> list[Mapping[str, Any]]:
    """Return a graph's timings on a backend and an instruction set."""
    speeds = bundle.precisions[key].get("speed", []) if key in bundle.precisions else []
    return [one for one in speeds if one["backend"] == backend and _set_of(one) == here]


def _set_of(measured: Mapping[str, Any]) -> str:
    return str(measured.get("machine", {}).get("instruction_set") or UNKNOWN)


def _gain(bundle: Bundle, key: str, backend: str, here: str) -> float:
    """Return how many times as fast as FP32 a graph is: the least of what was measured; 0 when it was not.

    A timing against another graph counts times that graph's own.
    """
    measured = _measured(bundle, key, backend, here)
    direct = [float(one["ratio"]) for one in measured if one["than"] == ORIGIN]
    if direct:
        return min(direct)
    chained = [
        float(one["ratio"]) * float(base["ratio"])
        for one in measured
        if one["than"] in KEYS
        for base in _measured(bundle, one["than"], backend, here)
        if base["than"] == ORIGIN
    ]
    return min(chained, default=0.0)
