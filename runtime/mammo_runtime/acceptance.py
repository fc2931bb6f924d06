"""The check at a site: a few phantoms in the bundle with the answers its graphs gave where they were made.

What a bundle holds below acceptance/: `phantom-N.png`, for each graph its mask, thinned probability map or labels, and
`expected.json` with findings, boxes and tolerances. Needs neither the trainer's nor the exporter's libraries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any

from mammo_runtime.acceptance_answers import PICTURES, TOLERANCES, Answer
from mammo_runtime.bundle import Bundle, load_key, vouched_for
from mammo_runtime.choice import choose, key_of, suits
from mammo_runtime.errors import GateMissed, ImageError, ModelRefused
from mammo_runtime.mammogram import Box
from mammo_runtime.manifest import KEYS
from mammo_runtime.readers import ReadOptions, read_image
from mammo_runtime.segmenter import segment
from mammo_runtime.session import Session, SessionOptions
from mammo_runtime.spec import ModelSpec, Precision

FOLDER = "acceptance"
EXPECTED = f"{FOLDER}/expected.json"
SCHEMA_VERSION = 1
MAX_PIXELS = 4_000_000
MAX_INPUTS = 64


@dataclass(frozen=True)
class Checked:
    """One phantom, judged again."""

    image: str
    identical: bool
    """Whether nothing differs at all from what was stored."""
    differences: Mapping[str, float]
    """See `Answer.difference`."""
    misses: tuple[str, ...]
    """Differences above their tolerance, and failures, in words with numbers."""


@dataclass(frozen=True)
class GraphChecked:
    """What one graph said here of the bundle's phantoms."""

    key: str
    backend: str
    """What really ran, e.g. "onnxruntime 1.32.0 CPUExecutionProvider"."""
    expected_from: str
    """The same of the machine that the expected answers come from."""
    images: tuple[Checked, ...]
    tolerances: Mapping[str, float]

    @property
    def misses(self) -> tuple[str, ...]:
        """What is not as expected, with graph, image and number."""
        return tuple(f"{self.key}, {one.image}: {miss}" for one in self.images for miss in one.misses)

    @property
    def line(self) -> str:
        """The outcome in one line for people."""
        failed = sum(bool(one.misses) for one in self.images)
        if failed:
            return f"{self.key}: {failed} of {len(self.images)} phantoms not as expected ({'; '.join(self.misses)})"
        identical = sum(one.identical for one in self.images)
        return f"{self.key}: {len(self.images)} phantoms as expected, {identical} of them to the last bit"


@dataclass(frozen=True)
class AcceptanceReport:
    """What a bundle's graphs said here of its phantoms."""

    graphs: tuple[GraphChecked, ...]

    @property
    def misses(self) -> tuple[str, ...]:
        """What is not as expected, with graph, image and number; nothing when the bundle may be used here."""
        return tuple(miss for graph in self.graphs for miss in graph.misses)

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each graph."""
        return tuple(graph.line for graph in self.graphs)

    @property
    def line(self) -> str:
        """The outcome in one line for people."""
        return f"acceptance: {'; '.join(self.lines)}"

    def to_dict(self) -> dict[str, Any]:
        """Return what was measured, JSON-ready; None where one of two answers lacks a part of the other."""
        found: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        for image in (image for graph in found["graphs"] for image in graph["images"]):
            image["differences"] = {k: v if isfinite(v) else None for k, v in image["differences"].items()}
        return found


def checkable(bundle: Bundle, backend: str) -> tuple[Precision, ...]:
    """Return the precisions of a bundle that this backend can be checked on."""
    keys = {precision: key_of(precision, backend) for precision in Precision}
    return tuple(p for p, key in keys.items() if key in bundle.precisions and suits(bundle, key, backend))


def check_acceptance(
    bundle: Bundle, backend: str = "cpu", precision: Precision | None = None, options: SessionOptions | None = None
) -> AcceptanceReport:
    """Judge the bundle's phantoms again and compare with the stored answers: of one precision, or of all there are.

    Raises ModelRefused: no phantoms or none for a graph, a changed or damaged file, a graph that cannot be opened.
    """
    found = []
    for one in checkable(bundle, backend) if precision is None else (precision,):
        key = choose(bundle, backend, one).key
        with load_key(bundle, key, backend, options) as model:
            found.append(check_sessions(bundle, key, model.session, model.decoder))
    return AcceptanceReport(tuple(found))


def check_sessions(bundle: Bundle, key: str, session: Session, decoder: Session | None = None) -> GraphChecked:
    """Do what `check_acceptance` does with sessions that are open already, such as an engine's. Raises ModelRefused."""
    expected = _read_expected(bundle)
    try:
        tolerances = {str(name): float(limit) for name, limit in expected["tolerances"].get(key, {}).items()}
        made_with = expected["made_with"].get(key)
        inputs = expected["inputs"]
        if not isinstance(made_with, str) or not tolerances or not all(isfinite(v) for v in tolerances.values()):
            raise ModelRefused(f"the acceptance files of {bundle.folder.name} have no answers of its {key} graph")
        if not isinstance(inputs, list) or not 1 <= len(inputs) <= MAX_INPUTS:
            raise ValueError(f"there must be 1 to {MAX_INPUTS} inputs")
        images = tuple(_checked(bundle, one, key, session, decoder, tolerances) for one in inputs)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ModelRefused(f"{bundle.folder / EXPECTED} is not valid ({type(error).__name__}: {error})") from error
    return GraphChecked(key, session.backend, made_with, images, tolerances)


def require_acceptance(report: AcceptanceReport) -> None:
    """Raise GateMissed when a phantom is not judged as expected, naming every graph and image with its numbers."""
    if report.misses:
        raise GateMissed(
            f"the model does not say here what it said where it was made: {'; '.join(report.misses)}. Do not use it on "
            "this machine"
        )


def reading_of(spec: ModelSpec) -> ReadOptions:
    """Return how the phantoms of a model are read."""
    return ReadOptions(modality=spec.modality, max_pixels=MAX_PIXELS)


def _checked(
    bundle: Bundle,
    described: Mapping[str, Any],
    key: str,
    session: Session,
    decoder: Session | None,
    tolerances: Mapping[str, float],
) -> Checked:
    name, record = str(described["image"]), described["expected"][key]
    boxes = None if described["boxes"] is None else tuple(Box(*map(float, box)) for box in described["boxes"])
    pictures = {str(record[kind]): _content(bundle, str(record[kind])) for kind in PICTURES if kind in record}
    expected = Answer.from_stored(record, pictures)
    _content(bundle, name)  # vouched for before it is read
    try:
        image = read_image(bundle.folder / FOLDER / name, reading_of(bundle.spec))
        found = Answer.from_result(segment(image, session, bundle.spec, boxes=boxes, decoder=decoder))
    except ImageError as error:
        return Checked(name, False, {}, (str(error),))
    apart = found.difference(expected)
    return Checked(name, not any(apart.values()), apart, tuple(_misses(apart, tolerances)))


WORDS: Mapping[str, str] = {
    "findings": "{:.0f} findings more or fewer",
    "probability": "a probability differs by {:.3g}",
    "probability_mean": "the probabilities differ by {:.3g} on average",
    "mask": "{:.2%} of the mask differs",
    "area": "the area of a finding differs by {:.2%}",
    "centroid_px": "a finding lies {:.2f} pixels away",
    "labels": "{:.2%} of the labels differ",
    "classes": "the probability of a class differs by {:.3g}",
    "predicted_iou": "the predicted overlap differs by {:.3g}",
}
"""Name of a difference → how it is told."""


def _misses(apart: Mapping[str, float], tolerances: Mapping[str, float]) -> Iterator[str]:
    for name, value in apart.items():
        # Written so that NaN is a miss.
        if not value <= tolerances[name]:
            yield f"{WORDS[name].format(value)} (accepted: {tolerances[name]:g})"


def _content(bundle: Bundle, name: str) -> bytes:
    """Return an acceptance file's bytes. Raises ModelRefused when it changed or the manifest does not list it."""
    if f"{FOLDER}/{name}" not in bundle.acceptance:
        raise ModelRefused(f"{bundle.folder / EXPECTED} names {name!r}, which is not among the acceptance files")
    path = bundle.folder / FOLDER / name
    vouched_for(bundle, path)
    return path.read_bytes()


def _read_expected(bundle: Bundle) -> dict[str, Any]:
    if EXPECTED not in bundle.acceptance:
        raise ModelRefused(f"the bundle {bundle.folder.name} holds no acceptance files; export it again to get them")
    vouched_for(bundle, bundle.folder / EXPECTED)
    try:
        values = json.loads((bundle.folder / EXPECTED).read_text(encoding="utf-8"))
        if values["schema_version"] != SCHEMA_VERSION:
            raise ModelRefused(
                f"{bundle.folder / EXPECTED} has schema version {values['schema_version']!r}, this runtime reads "
                f"{SCHEMA_VERSION}; export the model again"
            )
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise ModelRefused(f"{bundle.folder / EXPECTED} is not valid ({type(error).__name__}: {error})") from error
    return dict(values)


def expected_json(inputs: list[dict[str, Any]], made_with: Mapping[str, str]) -> bytes:
    """Return expected.json's content; `made_with` maps each key to the backend that answered."""
    values = {
        "schema_version": SCHEMA_VERSION,
        "inputs": inputs,
        "made_with": dict(made_with),
        "tolerances": {key: dict(TOLERANCES[key]) for key in made_with if key in KEYS},
    }
    return (json.dumps(values, indent=1, sort_keys=True) + "\n").encode("utf-8")
