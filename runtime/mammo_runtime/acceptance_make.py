"""Makes the files of the check at a site (see `acceptance`): phantoms, and what each graph says about them."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from mammo_runtime.acceptance import EXPECTED, FOLDER, expected_json, reading_of
from mammo_runtime.acceptance_answers import Answer
from mammo_runtime.embeddings import EmbeddingCache
from mammo_runtime.errors import GateMissed, ImageError
from mammo_runtime.mammogram import Box, Laterality, Mammogram
from mammo_runtime.manifest import ORIGIN
from mammo_runtime.phantom import WHITE, make_phantom
from mammo_runtime.readers import read_image
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec
from mammo_runtime.tasks import TASKS

ROWS, COLUMNS = 256, 192
"""Of a phantom: noise does not compress, and three of them with their answers shall stay below 300 kB."""
WANTED = 3
TRIED = 9
"""Phantoms that are looked at to find `WANTED` on which the model marks something and all its graphs agree."""


class Graph(NamedTuple):
    """The sessions of one key; of a prompted model two. For "int8", those of its twin in FP32 scales."""

    session: Session
    decoder: Session | None = None


@dataclass(frozen=True, eq=False)
class _Trial:
    """A phantom with what every graph said about it."""

    seed: int
    content: bytes
    boxes: tuple[Box, ...] | None
    answers: Mapping[str, Answer]
    steady: bool
    """Whether FP32 finds as many masses when the operating point moves a little: nothing is about to appear."""

    @property
    def rank(self) -> tuple[bool, bool, bool, int]:
        """Sorts the most telling first: steady, all graphs find as many masses, at least one; then by seed."""
        counts = {len(answer.findings) for answer in self.answers.values()}
        return not self.steady, len(counts) > 1, counts == {0}, self.seed


def make_acceptance(spec: ModelSpec, graphs: Mapping[str, Graph]) -> dict[str, bytes]:
    """Return the acceptance files of a bundle by their names inside it; the same graphs give the same bytes.

    `graphs` maps each shipped key to open sessions and holds "fp32". The manifest lists the names, sorted, under
    "acceptance", and their hashes among "files". Raises GateMissed when the FP32 graph fails on every phantom or
    another graph on one that FP32 can judge.
    """
    chosen = sorted(sorted(_trials(spec, graphs), key=lambda trial: trial.rank)[:WANTED], key=lambda trial: trial.seed)
    if not chosen:
        raise GateMissed(f"{spec.name} could judge none of {TRIED} phantoms: it would be of no use at a site")
    files: dict[str, bytes] = {}
    inputs: list[dict[str, Any]] = []
    for number, trial in enumerate(chosen, start=1):
        stem = f"phantom-{number}"
        files[f"{stem}.png"] = trial.content
        expected = {}
        for key, answer in trial.answers.items():
            expected[key], pictures = answer.stored(f"{stem}.{key}")
            files |= pictures
        boxes = None if trial.boxes is None else [[b.x, b.y, b.width, b.height] for b in trial.boxes]
        inputs.append({"image": f"{stem}.png", "boxes": boxes, "expected": expected})
    made_with = {key: graph.session.backend for key, graph in graphs.items()}
    return {**{f"{FOLDER}/{name}": files[name] for name in sorted(files)}, EXPECTED: expected_json(inputs, made_with)}


def _trials(spec: ModelSpec, graphs: Mapping[str, Graph]) -> Iterator[_Trial]:
    """Yield phantoms that the FP32 graph can judge, until enough of them show something."""
    good = 0
    with tempfile.TemporaryDirectory(prefix="mammo-acceptance-") as folder:
        for seed in range(1, TRIED + 1):
            content, boxes = _phantom(seed, spec)
            path = Path(folder) / f"{seed}.png"
            path.write_bytes(content)
            image = read_image(path, reading_of(spec))
            try:
                answers = {ORIGIN: _answer(image, spec, graphs[ORIGIN], boxes)}
                steady = _steady(image, spec, graphs[ORIGIN], boxes, len(answers[ORIGIN].findings))
            except ImageError:
                continue
            for key, graph in graphs.items():
                if key == ORIGIN:
                    continue
                try:
                    answers[key] = _answer(image, spec, graph, boxes)
                except ImageError as error:
                    raise GateMissed(f"the {key} graph fails on phantom {seed}, which FP32 judges: {error}") from error
            trial = _Trial(seed, content, boxes, answers, steady)
            good += not any(trial.rank[:3])
            yield trial
            if good == WANTED:
                return


def _answer(image: Mammogram, spec: ModelSpec, graph: Graph, boxes: Sequence[Box] | None) -> Answer:
    return Answer.from_result(segment(image, graph.session, spec, boxes=boxes, decoder=graph.decoder))


def _steady(image: Mammogram, spec: ModelSpec, graph: Graph, boxes: Sequence[Box] | None, findings: int) -> bool:
    """Tell whether a threshold and a least size some ten and forty per cent lower and higher find as many masses."""
    if not TASKS[spec.task].thresholded:
        return True
    cache, counts = EmbeddingCache(), {findings}
    for threshold, area in ((0.9, 0.7), (1.1, 1.4)):
        moved = replace(spec, threshold=min(1.0, spec.threshold * threshold), min_area_cells=spec.min_area_cells * area)
        found = segment(image, graph.session, moved, boxes=boxes, decoder=graph.decoder, embeddings=cache)
        counts.add(len(found.findings))
    return len(counts) == 1


def _phantom(seed: int, spec: ModelSpec) -> tuple[bytes, tuple[Box, ...] | None]:
    """Return a phantom as PNG, 16 bit grey, or 8 bit colour for colour models, and the boxes of models that need them.

    Every second is a right breast, every third has two masses.
    """
    side = Laterality.RIGHT if seed % 2 == 0 else Laterality.LEFT
    phantom = make_phantom(seed, ROWS, COLUMNS, side, lesions=2 if seed % 3 == 0 else 1)
    pixels = phantom.pixels
    if spec.input.colour:
        # Pale background, pink, violet where dense: each channel has its own course, so that swapped ones are seen.
        dark = pixels.astype(np.float64) / WHITE
        red, green, blue = (240 * (1 - share * dark) for share in (0.45, 0.9, 0.6))
        pixels = np.rint(np.stack([blue, green, red], axis=-1)).astype(np.uint8)
    done, content = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, 9])
    assert done, "OpenCV writes PNG"
    return content.tobytes(), phantom.boxes if spec.takes_boxes else None
