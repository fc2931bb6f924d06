"""The parity ladder: the same pictures through a model in several hands, each rung compared with the one below.

From the FP32 graph in ONNX Runtime over the same graph as the engine's to the engine. Judged like the check at a site:
by what a person would see (masks, findings, classes), with its tolerances (`acceptance_answers.TOLERANCES`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from mammo_runtime.acceptance import WORDS
from mammo_runtime.acceptance_answers import TOLERANCES, Answer
from mammo_runtime.atomic import write_bytes
from mammo_runtime.errors import GateMissed, ImageError, UsageError
from mammo_runtime.inputs import find_inputs, read_boxes
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.readers import ReadOptions, read_image
from mammo_runtime.result import Result
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec
from mammo_runtime.writers.overlays import overlay
from mammo_runtime.writers.pictures import picture_png

FAILED = "ladder-failed.png"
"""The first failing case, both answers side by side."""
_GAP_PX = 8
_TOLD = 5
"""Misses of a step that are quoted."""


@dataclass(frozen=True, eq=False)
class Case:
    """A picture to judge."""

    name: str
    image: Mammogram
    boxes: tuple[Box, ...] | None = None


@dataclass(frozen=True, eq=False)
class Rung:
    """A model in one hand."""

    name: str
    key: str
    """Of its graph: the tolerances are that key's."""
    session: Session | None
    """None: it cannot be asked here, for the reason `why`."""
    decoder: Session | None = None
    why: str = ""


@dataclass(frozen=True)
class Step:
    """One rung against a lower one, over all pictures."""

    rung: str
    than: str
    images: int
    largest: Mapping[str, float]
    """Name of a difference (see `Answer.difference`) → the largest of all pictures."""
    tolerances: Mapping[str, float]
    misses: tuple[str, ...]
    """In words with numbers, the picture's name first."""


@dataclass(frozen=True)
class Ladder:
    """How far up it went."""

    steps: tuple[Step, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Rung → why it was not climbed."""
    unusable: tuple[str, ...] = ()
    """Pictures that the lowest rung could not judge."""
    picture: str | None = None
    """File with the first failing case, both answers side by side."""

    @property
    def misses(self) -> tuple[str, ...]:
        """All that is not as it should be, lowest rung first."""
        return tuple(f"{step.rung} against {step.than}: {miss}" for step in self.steps for miss in step.misses)

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each step, and each rung left out."""
        told = [_line(step) for step in self.steps]
        return (*told, *(f"{name}: not climbed, {why}" for name, why in self.left_out.items()))

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-ready dictionary."""
        return asdict(self)


def cases_from_files(
    inputs: Sequence[Path], boxes: Path | None, spec: ModelSpec, limit: int, output: Path
) -> tuple[Case, ...]:
    """Return at most `limit` pictures, with their boxes where the model takes them.

    What cannot be read is passed over. Raises UsageError: no picture, or boxes missing or not wanted.
    """
    if spec.takes_boxes != (boxes is not None):
        need = "needs a box for each lesion (--boxes)" if spec.takes_boxes else "takes no boxes"
        raise UsageError(f"the model {spec.name} {need}")
    files = [file for file in find_inputs(inputs, True, output).files if not file.skip]
    known = {} if boxes is None else read_boxes(boxes)
    reading = ReadOptions(modality=spec.modality)
    cases: list[Case] = []
    for file in files:
        own = tuple(box for name in dict.fromkeys(file.names) for box in known.get(name, ()))
        if len(cases) == limit:
            break
        if boxes is not None and not own:
            continue
        try:
            cases.append(Case(file.relative.as_posix(), read_image(file.path, reading), own or None))
        except ImageError:
            continue
    if not cases:
        raise UsageError(f"none of the {len(files)} files can be read as pictures for {spec.name}")
    return tuple(cases)


def climb(spec: ModelSpec, rungs: Sequence[Rung], cases: Sequence[Case], pictures: Path | None = None) -> Ladder:
    """Judge every picture on every rung and compare: each rung with the one below it, the highest with the lowest too.

    Into the folder `pictures` goes the first failing case as `FAILED`, the lower rung's answer left. Raises UsageError
    when fewer than two rungs can be climbed or no picture can be judged.
    """
    climbed = [rung for rung in rungs if rung.session is not None]
    left_out = {rung.name: rung.why for rung in rungs if rung.session is None}
    if len(climbed) < 2:
        raise UsageError(f"a ladder needs two rungs; left out: {left_out}")
    pairs = [(k - 1, k) for k in range(1, len(climbed))]
    if len(climbed) > 2:
        pairs.append((0, len(climbed) - 1))
    tallies = {pair: _Tally() for pair in pairs}
    unusable, picture = [], None
    for case in cases:
        answers = [_answer(case, spec, rung) for rung in climbed]
        if isinstance(answers[0], str):
            unusable.append(case.name)
            continue
        for pair in pairs:
            lower, upper = (answers[k] for k in pair)
            fine = tallies[pair].add(case.name, lower, upper, TOLERANCES[climbed[pair[1]].key])
            if not fine and picture is None and pictures is not None:
                picture = _save(pictures, case, lower, upper)
    if len(unusable) == len(cases):
        raise UsageError(f"none of the {len(cases)} pictures can be judged by {climbed[0].name}; give others")
    steps = tuple(_step(climbed[low].name, climbed[high], tallies[low, high]) for low, high in pairs)
    return Ladder(steps, left_out, tuple(unusable), picture)


def require_ladder(ladder: Ladder) -> None:
    """Raise GateMissed when a rung does not say what the one below it says."""
    misses = ladder.misses
    if misses:
        seen = f" See {ladder.picture}." if ladder.picture else ""
        more = f" and {len(misses) - _TOLD} more" if len(misses) > _TOLD else ""
        raise GateMissed(f"the answers differ: {'; '.join(misses[:_TOLD])}{more}.{seen} The engine was not kept")


class _Tally:
    """What a step's pictures showed so far."""

    def __init__(self) -> None:
        self.images = 0
        self.largest: dict[str, float] = {}
        self.misses: list[str] = []

    def add(self, name: str, lower: Result | str, upper: Result | str, tolerances: Mapping[str, float]) -> bool:
        """Count a picture; tell whether it is as it should be."""
        self.images += 1
        before = len(self.misses)
        if isinstance(upper, str) or isinstance(lower, str):
            if not isinstance(lower, str):
                self.misses.append(f"{name}: {upper}")
            return len(self.misses) == before
        for kind, value in Answer.from_result(upper).difference(Answer.from_result(lower)).items():
            self.largest[kind] = max(self.largest.get(kind, 0.0), value)
            # Written so that NaN is a miss.
            if not value <= tolerances[kind]:
                self.misses.append(f"{name}: {WORDS[kind].format(value)} (accepted: {tolerances[kind]:g})")
        return len(self.misses) == before


def _answer(case: Case, spec: ModelSpec, rung: Rung) -> Result | str:
    """Return a rung's answer, or the sentence of why it has none."""
    assert rung.session is not None
    try:
        return segment(case.image, rung.session, spec, boxes=case.boxes, decoder=rung.decoder)
    except ImageError as error:
        return str(error)


def _step(than: str, rung: Rung, tally: _Tally) -> Step:
    return Step(rung.name, than, tally.images, tally.largest, TOLERANCES[rung.key], tuple(tally.misses))


def _line(step: Step) -> str:
    told = ", ".join(WORDS[kind].format(value) for kind, value in step.largest.items() if value) or "nothing differs"
    state = f"{len(step.misses)} misses" if step.misses else "passed"
    return f"{step.rung} against {step.than}, {step.images} pictures: {state}; at most {told}"


def _save(folder: Path, case: Case, lower: Result | str, upper: Result | str) -> str:
    """Write both answers side by side, the only one where the other failed; returns the file's name."""
    shown = [overlay(case.image, one, case.boxes) for one in (lower, upper) if isinstance(one, Result)]
    rows = max(picture.shape[0] for picture in shown)
    margins = [((0, rows - picture.shape[0]), (0, _GAP_PX), (0, 0)) for picture in shown]
    parts = [np.pad(picture, margin, constant_values=255) for picture, margin in zip(shown, margins)]
    write_bytes(folder / FAILED, picture_png(np.ascontiguousarray(np.concatenate(parts, axis=1))))
    return FAILED
