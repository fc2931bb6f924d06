"""What a run is asked to do, what it would do, and whether the model can do it; nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from mammo_runtime.bundle import LoadedModel, load_model
from mammo_runtime.errors import UsageError
from mammo_runtime.inputs import InputFile, find_inputs, read_boxes, unmatched_boxes
from mammo_runtime.ledger import LEDGER
from mammo_runtime.mammogram import Box
from mammo_runtime.readers import ReadOptions
from mammo_runtime.result import OperatingPoint
from mammo_runtime.session import SessionOptions
from mammo_runtime.spec import ModelSpec, Precision
from mammo_runtime.tasks import TASKS, check_point
from mammo_runtime.writers.words import NOTHING_OF_THE_KIND

PICTURES = ("mask", "overlay", "probability")
"""Kinds of pictures `--save` knows, in the order they are written."""


@dataclass(frozen=True)
class RunSettings:
    """What the user asked for."""

    inputs: tuple[Path, ...]
    output: Path
    model: str | None = None
    """Bundled name or path; None: `mass-full`, or `mass-roi` when boxes are given."""
    backend: str = "cpu"
    precision: Precision | None = None
    """None: "auto", the fastest graph that is proved for this processor, else FP32 (see `choice.choose`)."""
    boxes: Path | None = None
    point: OperatingPoint = field(default_factory=OperatingPoint)
    reading: ReadOptions = field(default_factory=ReadOptions)
    recursive: bool = True
    save: tuple[str, ...] = ("mask", "overlay")
    limit: int | None = None
    """Only the first so many inputs."""
    fail_fast: bool = False
    """Stop at the first failed input."""
    deidentify: bool = False
    """No input path or name in any output: hashes instead."""
    overwrite: bool = False
    """Forget earlier results of the output folder."""
    threads: int = 0

    @property
    def model_name(self) -> str:
        """The model to use."""
        return self.model or ("mass-roi" if self.boxes else "mass-full")


@dataclass(frozen=True)
class Plan:
    """What a run would do, before anything is written."""

    files: tuple[InputFile, ...]
    boxes: Mapping[str, tuple[Box, ...]] | None
    unmatched: tuple[str, ...]
    """Images the boxes file names that are not among the inputs."""
    notes: tuple[str, ...]


def plan_run(settings: RunSettings) -> Plan:
    """Find the inputs and boxes. Raises UsageError when there is nothing to do."""
    found = find_inputs(settings.inputs, settings.recursive, settings.output, LEDGER)
    boxes = read_boxes(settings.boxes) if settings.boxes else None
    unmatched = unmatched_boxes(boxes, found.files) if boxes else ()
    files, looked_at = [], 0
    for file in found.files:
        if settings.limit is not None and looked_at >= settings.limit:
            break
        files.append(file)
        looked_at += not file.skip
    return Plan(tuple(files), boxes, unmatched, found.notes)


def open_model(settings: RunSettings) -> LoadedModel:
    """Open the model asked for. Raises ModelRefused, or UsageError when the settings do not fit it."""
    options = SessionOptions(threads=settings.threads)
    model = load_model(settings.model_name, settings.backend, settings.precision, options)
    try:
        _check_fit(settings, model.spec)
    except UsageError:
        model.close()
        raise
    return model


def _check_fit(settings: RunSettings, spec: ModelSpec) -> None:
    """Raise UsageError when boxes, threshold or minimum area are missing or have no meaning for the model."""
    if spec.takes_boxes and settings.boxes is None:
        raise UsageError(f"the model {spec.name} segments inside boxes: give them with --boxes boxes.csv")
    if settings.boxes is not None and not spec.takes_boxes:
        raise UsageError(f"the model {spec.name} takes whole images; for --boxes use a model such as mass-roi")
    check_point(spec, settings.point)


def wanted_pictures(settings: RunSettings, spec: ModelSpec) -> tuple[str, ...]:
    """Return the kinds of pictures that were asked for and that the model's task has."""
    return tuple(kind for kind in PICTURES if kind in settings.save and kind in TASKS[spec.task].pictures)


def notes_on_settings(settings: RunSettings, spec: ModelSpec) -> tuple[str, ...]:
    """Return what was asked for and will not come, in words."""
    possible = TASKS[spec.task].pictures
    missing = [kind for kind in settings.save if kind not in possible]
    return tuple(f"no {kind} pictures: {spec.task.value} {NOTHING_OF_THE_KIND}" for kind in missing)


def settings_record(settings: RunSettings) -> dict[str, Any]:
    """Return the settings for run.json; paths are left out of de-identified runs."""
    values = asdict(settings)
    values["precision"] = "auto" if settings.precision is None else settings.precision.value
    values["reading"]["modality"] = settings.reading.modality.value
    values["inputs"], values["output"] = [str(path) for path in settings.inputs], str(settings.output)
    values["boxes"] = str(settings.boxes) if settings.boxes else None
    if settings.deidentify:
        model = Path(settings.model).name if settings.model else None
        values |= {"inputs": len(settings.inputs), "output": None, "boxes": values["boxes"] is not None, "model": model}
    return values
