"""The run: every input read, segmented, written and recorded, one after the other; nothing is lost on the way."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from mammo_runtime import __version__
from mammo_runtime.atomic import remove_partial, write_bytes
from mammo_runtime.bundle import LoadedModel
from mammo_runtime.embeddings import EmbeddingCache
from mammo_runtime.errors import ImageError, MammoError, OutputError, UnreadableImage, UnsuitableImage, UsageError
from mammo_runtime.hashing import file_sha256, path_key
from mammo_runtime.inputs import InputFile
from mammo_runtime.ledger import LEDGER, Ledger
from mammo_runtime.mammogram import Box
from mammo_runtime.output_names import OutputNames, all_there, remove_pictures
from mammo_runtime.plan import RunSettings, notes_on_settings, open_model, plan_run, settings_record, wanted_pictures
from mammo_runtime.preprocess import check_content
from mammo_runtime.readers import ReadOptions, read_image, sniff
from mammo_runtime.records import Record, failure, finished_record, hidden_name, is_hidden_name, unfinished_record
from mammo_runtime.segmenter import segment
from mammo_runtime.summary import TABLES, run_record, write_tables
from mammo_runtime.writers.overlays import mask_content, overlay
from mammo_runtime.writers.pictures import picture_png, probability_png, thumbnail_jpeg

Progress = Callable[[int, int, str, Record], None]
"""Called after each input with its number from 1, the number of inputs, its path and its record."""


@dataclass(frozen=True)
class Run:
    """A run with its model open."""

    settings: RunSettings
    model: LoadedModel
    ledger: Ledger
    names: OutputNames
    reading: ReadOptions
    boxes: Mapping[str, tuple[Box, ...]] | None
    embeddings: EmbeddingCache

    def boxes_of(self, file: InputFile) -> tuple[Box, ...] | None:
        """Return the boxes given for an input, by whichever of its names; None in a run without boxes."""
        if self.boxes is None:
            return None
        return tuple(box for name in dict.fromkeys(file.names) for box in self.boxes.get(name, ()))

    def called(self, path: Path, number: int) -> str:
        """Return an input's name on the terminal: only its number in de-identified runs, for logs keep them."""
        return f"input {number}" if self.settings.deidentify else str(path)

    def shown(self, path: str) -> str:
        """Return how an input is called in the outputs."""
        return hidden_name(path) if self.settings.deidentify else path

    def discard(self, source: bytes) -> None:
        """Remove an input's earlier result, pictures first."""
        earlier = self.ledger.find(source)
        if earlier is not None:
            remove_pictures(self.settings.output, earlier[1])
            self.ledger.forget(source)


def run_folder(settings: RunSettings, progress: Progress) -> dict[str, Any]:
    """Do the whole run and return what run.json holds, with `exit_code`.

    Raises UsageError, ModelRefused or OutputError; nothing that is about one image leaves here. When it is interrupted,
    what is done stays recorded and the same call goes on from there.
    """
    started, clock = datetime.now(timezone.utc), time.perf_counter()
    plan = plan_run(settings)
    model = open_model(settings)
    with model, Ledger(settings.output, settings.overwrite) as ledger:
        _make_ready(settings, ledger)
        reading = replace(settings.reading, modality=model.spec.modality)
        names = OutputNames(ledger.output_names(), settings.deidentify)
        run = Run(settings, model, ledger, names, reading, plan.boxes, EmbeddingCache())
        total = len(plan.files) + len(plan.unmatched)
        sources: list[bytes] = []
        reused = 0
        for file in plan.files:
            record, taken_over = _one_input(run, file)
            reused += taken_over
            sources.append(path_key(file.path))
            progress(len(sources), total, run.called(file.path, len(sources)), record)
            if settings.fail_fast and record["status"] == "failed":
                break
        else:
            for name in plan.unmatched:
                sentence = "named in the boxes file, but not among the inputs"
                record = unfinished_record(model, run.shown(name), "failed", sentence)
                # No path holds a null character: this key can never be that of an input.
                sources.append(path_key(Path(f"\0{name}")))
                ledger.store(sources[-1], "", record, None)
                progress(len(sources), total, run.called(Path(name), len(sources)), record)
        notes = [*(() if settings.deidentify else plan.notes), *model.notes, *notes_on_settings(settings, model.spec)]
        if others := len(set(ledger.output_names().values()) - set(sources)):
            notes.append(f"the output folder also holds pictures of {others} inputs of earlier runs, not listed here")
        if not (settings.output / LEDGER).is_file():
            raise OutputError(f"{settings.output} was removed or replaced during the run; its results are lost")
        summary = run_record(model, ledger, sources, started, time.perf_counter() - clock, settings.point.threshold)
        summary |= {"notes": notes, "settings": settings_record(settings), "deidentified": settings.deidentify}
        summary["embeddings"] = run.embeddings.to_dict() if model.decoder is not None else None
        summary["counts"] |= {"not_reached": total - len(sources), "reused": reused}
        write_tables(settings.output, ledger, sources, summary)
    return summary


def _make_ready(settings: RunSettings, ledger: Ledger) -> None:
    """Clear away what a killed run left half-done and, with --overwrite, all earlier results.

    Raises UsageError when results in clear lie where de-identified ones shall go, OutputError when nothing can go.
    """
    keys = ledger.keys() if settings.overwrite or settings.deidentify else ()
    for key, record in zip(keys, ledger.records(keys)):
        if settings.overwrite:
            remove_pictures(settings.output, record)
            ledger.forget(key)
        elif not is_hidden_name(record["image"]):
            raise UsageError(
                f"{settings.output} holds results with names in clear; for --deidentify choose another folder, "
                "or --overwrite to replace them"
            )
    try:
        remove_partial(settings.output)
        # The tables of an earlier run must not be taken for this one's should it be interrupted.
        for name in TABLES:
            (settings.output / name).unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"cannot clean up {settings.output}: {error.strerror or error}") from error


def _one_input(run: Run, file: InputFile) -> tuple[Record, bool]:
    """Bring one input to its end and commit it; whatever goes wrong with it becomes its record.

    Returns the record, and whether it was taken over from an earlier run.
    """
    source, digest, key, thumbnail = path_key(file.path), "", "", None
    try:
        if file.skip:
            raise UnsuitableImage(file.skip)
        digest = _digest(file.path) if file.path.is_file() else ""
        boxes = run.boxes_of(file)
        key = _work_key(run, digest, boxes)
        earlier = run.ledger.find(source)
        still_valid = earlier is not None and earlier[0] == key and earlier[1]["status"] == "ok"
        if earlier is not None and still_valid and all_there(run.settings.output, earlier[1]):
            return earlier[1], True
        run.discard(source)
        record, thumbnail = _segmented(run, file, boxes)
    except Exception as error:
        if isinstance(error, MammoError) and not isinstance(error, ImageError):
            raise
        run.discard(source)
        status, sentence = failure(error)
        record = unfinished_record(run.model, run.shown(str(file.path)), status, sentence, digest)
    run.ledger.store(source, key, record, thumbnail)
    return record, False


def _segmented(run: Run, file: InputFile, boxes: Sequence[Box] | None) -> tuple[Record, bytes]:
    """Read, segment and write one image; returns its record and the report's thumbnail. Raises ImageError."""
    clock = time.perf_counter()
    image = read_image(file.path, run.reading)
    timings = {"read": 1e3 * (time.perf_counter() - clock)}
    check_content(image, boxes)
    model = run.model
    found = segment(image, model.session, model.spec, run.settings.point, boxes, model.decoder, run.embeddings)
    timings |= found.timings_ms
    clock = time.perf_counter()
    outputs = run.names.claim(file, image.file_sha256, wanted_pictures(run.settings, model.spec))
    shown = run.shown(str(file.path))
    # First what is about to be written, so that a killed run leaves no picture that the next one does not know of.
    begun = unfinished_record(run.model, shown, "begun", "", image.file_sha256) | {"outputs": outputs}
    run.ledger.store(path_key(file.path), "", begun, None)
    if "probability" in outputs:
        write_bytes(run.settings.output / outputs["probability"], probability_png(found.probability))
    # 57 MB on a detector image that nobody needs any more.
    found = replace(found, probability=np.empty((0, 0), np.float32))
    if "mask" in outputs:
        write_bytes(run.settings.output / outputs["mask"], mask_content(found))
    picture = overlay(image, found, boxes)
    record = finished_record(run.model, shown, image, found, boxes, outputs, timings)
    del image, found  # another 43 MB, before the encoder asks for as much
    thumbnail = thumbnail_jpeg(picture)
    if "overlay" in outputs:
        write_bytes(run.settings.output / outputs["overlay"], picture_png(picture))
    record["timings_ms"]["write"] = round(1e3 * (time.perf_counter() - clock), 2)
    return record, thumbnail


def _digest(path: Path) -> str:
    """Return the file's sha256, or "" for what no reader takes: a backup of 40 GB is not worth the hour."""
    try:
        return file_sha256(path) if sniff(path) else ""
    except OSError as error:
        raise UnreadableImage(f"the file cannot be read: {error.strerror or type(error).__name__}") from error


def _work_key(run: Run, digest: str, boxes: Sequence[Box] | None) -> str:
    """Return a hash of all that determines a result: content, model, settings, toolkit version."""
    parts = {
        "content": digest,
        "model": [run.model.file, run.model.sha256, run.model.decoder_sha256],
        "backend": run.model.session.backend,
        "point": asdict(run.settings.point),
        "reading": {name: str(value) for name, value in vars(run.reading).items()},
        "boxes": None if boxes is None else [asdict(box) for box in boxes],
        "save": sorted(run.settings.save),
        "deidentify": run.settings.deidentify,
        "version": __version__,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
