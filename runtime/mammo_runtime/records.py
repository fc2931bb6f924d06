"""The record of one input: a line of results.jsonl, with every key whatever happened."""

from __future__ import annotations

import hashlib
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mammo_runtime.bundle import LoadedModel
from mammo_runtime.errors import ImageError
from mammo_runtime.findings import Finding
from mammo_runtime.mammogram import Box, Mammogram
from mammo_runtime.result import Result

Record = dict[str, Any]

BOXES_FILE = "boxes file"
"""Where the prompts of a run come from: the user's --boxes."""


def unfinished_record(model: LoadedModel, image: str, status: str, error: str, digest: str = "") -> Record:
    """Return the record of a failed or skipped input; `digest` is the file's sha256 where it could be read."""
    return {
        "image": image, "status": status, "error": error, "rows": None, "columns": None, "file_format": None,
        "intensity_rule": None, "file_sha256": digest or None, "spacing_mm": None, "spacing_source": "none",
        "laterality": None, "view": None, "notes": [], "boxes": None, "prompt_source": None, "findings": [],
        "box_predicted_iou": None, "predicted_class": None, "classes": [], "timings_ms": {}, "outputs": {},
        "model": model.spec.name, "model_file": model.file, "model_sha256": model.sha256,
        "decoder_sha256": model.decoder_sha256, "backend": model.session.backend,
        "precision": model.spec.precision.value, "threshold": None, "min_area_px": None,
    }  # fmt: skip


def finished_record(
    model: LoadedModel,
    name: str,
    image: Mammogram,
    found: Result,
    boxes: Sequence[Box] | None,
    outputs: Mapping[str, str],
    timings_ms: Mapping[str, float],
) -> Record:
    """Return the record of a segmented image; `outputs` maps the kind of picture to its path below OUT."""
    return unfinished_record(model, name, "ok", "", image.file_sha256) | {
        "error": None,
        "rows": image.rows,
        "columns": image.columns,
        "file_format": image.file_format,
        "intensity_rule": image.intensity_rule,
        "spacing_mm": None if image.spacing_mm is None else list(image.spacing_mm),
        "spacing_source": image.spacing_source,
        "laterality": image.laterality.value if image.laterality else None,
        "view": image.view.value if image.view else None,
        "notes": list(dict.fromkeys((*image.notes, *found.notes))),
        "boxes": None if boxes is None else [[b.x, b.y, b.width, b.height] for b in boxes],
        "prompt_source": None if boxes is None else BOXES_FILE,
        "findings": [_finding(f) for f in found.findings],
        "box_predicted_iou": None
        if found.box_predicted_iou is None
        else [round(value, 4) for value in found.box_predicted_iou],
        "predicted_class": found.predicted_class,
        "classes": [{k: round(v, 6) if isinstance(v, float) else v for k, v in vars(c).items()} for c in found.classes],
        "threshold": found.threshold,
        "min_area_px": None if found.min_area_px is None else round(found.min_area_px, 2),
        "outputs": dict(outputs),
        "timings_ms": {step: round(value, 2) for step, value in timings_ms.items()},
    }


def hidden_name(text: str) -> str:
    """Return a name for a path that must not be shown (--deidentify): the first half of its sha256."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:32]


def is_hidden_name(text: str) -> bool:
    """Tell whether `hidden_name` made this name."""
    return re.fullmatch("[0-9a-f]{32}", text) is not None


def failure(error: Exception) -> tuple[str, str]:
    """Return status and sentence for whatever went wrong with one image; never text that could quote the file."""
    if isinstance(error, ImageError):
        return error.status, str(error)
    kind = type(error)
    # OpenCV reports a failed allocation (code -4, StsNoMem) as an error of its own.
    if isinstance(error, MemoryError) or (kind.__module__ == "cv2" and getattr(error, "code", None) == -4):
        return "failed", "not enough memory for this image"
    place = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(place.filename).name} line {place.lineno}"
    return "failed", f"internal error ({kind.__name__} in {where}); please report it"


def _finding(finding: Finding) -> Record:
    box = finding.bounding_box
    renamed = ("bounding_box", "contour", "centroid_x", "centroid_y")
    values: Record = {
        k: round(v, 4) if isinstance(v, float) else v for k, v in vars(finding).items() if k not in renamed
    }
    values["box"] = [int(box.x), int(box.y), int(box.width), int(box.height)]
    values["centroid"] = [round(finding.centroid_x, 2), round(finding.centroid_y, 2)]
    values["contour"] = [list(point) for point in finding.contour]
    return values
