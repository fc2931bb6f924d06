"""One image through one model: preprocess → session → what the model's task makes of the answer."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

from mammo_runtime.embeddings import EmbeddingCache
from mammo_runtime.errors import UnsuitableImage, UnusableBox
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.preprocess import Prepared, prepare
from mammo_runtime.result import OperatingPoint, Result
from mammo_runtime.session import Session
from mammo_runtime.spec import ModelSpec
from mammo_runtime.tasks import MAX_BATCH, MAX_BOXES, TASKS, Work, check_point

__all__ = ["MAX_BATCH", "OperatingPoint", "Result", "prepare_all", "segment"]


def segment(
    image: Mammogram,
    session: Session,
    spec: ModelSpec,
    point: OperatingPoint | None = None,
    boxes: Sequence[Box] | None = None,
    decoder: Session | None = None,
    embeddings: EmbeddingCache | None = None,
    prepared: Sequence[Prepared] | None = None,
) -> Result:
    """Judge one image by a model of any task.

    `boxes` (original pixels) are needed where `spec.takes_boxes`, and refused elsewhere. A prompted model's `session`
    is its encoder; it needs its `decoder` too, and with `embeddings`, which belong to this encoder, a picture that
    comes again costs no second run of it. `prepared`: what `prepare_all` returned for the same image, spec and boxes,
    where many models of one spec judge the same pictures.

    Raises UnsuitableImage (no box), UnusableBox (see `roi_window`), InferenceFailed (an output that is not finite or
    not what the task promises), UsageError (`point` for a task without a threshold), ModelRefused (boxes, decoder and
    model do not fit together).
    """
    if boxes is not None and not boxes:
        raise UnsuitableImage("no box is given for this image in the boxes file")
    if boxes is not None and len(boxes) > MAX_BOXES:
        raise UnusableBox(f"{len(boxes)} boxes are given for this image; at most {MAX_BOXES} are judged")
    point = point or OperatingPoint()
    check_point(spec, point)
    started = time.perf_counter()
    procedure = TASKS[spec.task]
    if prepared is None:
        prepared = prepare_all(image, spec, boxes)
    cache = embeddings if embeddings is not None else EmbeddingCache()
    work = Work(image, spec, point, boxes, prepared, session, decoder, cache)
    preprocessed = time.perf_counter()
    answer = procedure.infer(work)
    inferred = time.perf_counter()
    found = procedure.conclude(work, answer)
    timings = {
        "preprocess": 1e3 * (preprocessed - started),
        "infer": 1e3 * (inferred - preprocessed),
        "postprocess": 1e3 * (time.perf_counter() - inferred),
    }
    notes = (note for one in prepared for note in one.notes)
    return replace(found, timings_ms=timings, notes=tuple(dict.fromkeys((*found.notes, *notes))))


def prepare_all(image: Mammogram, spec: ModelSpec, boxes: Sequence[Box] | None = None) -> list[Prepared]:
    """Lay on the network's grid what a model of this spec looks at: the whole picture, or a window for each box.

    Raises UnusableBox and ModelRefused as `segment` does.
    """
    return [prepare(image, spec.input, window) for window in TASKS[spec.task].windows(image, boxes)]
