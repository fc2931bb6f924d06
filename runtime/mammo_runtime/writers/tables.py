"""Tables of a run: `results.csv` for people and spreadsheets, `results.jsonl` for programs.

Both are UTF-8 (no byte order mark), lines end with a single line feed on every system, written while the records pass
by, whole or not at all. The JSON lines are exact. In the CSV, control characters are shown as backslash escapes so that
a row stays a row, and text a spreadsheet would take for a formula starts with an apostrophe; outlines are left out.

The CSV has one row for each finding, and one with empty finding fields for each image without any. Where boxes were
given, a box without a finding has a row of its own instead: only `prompt_box` and `predicted_iou` are filled then.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from mammo_runtime.atomic import whole_file

Record = Mapping[str, Any]
"""One input image, as a line of results.jsonl."""

IMAGE_COLUMNS = ("image", "status", "error", "rows", "columns", "file_format", "laterality", "view")
SPACING_COLUMNS = ("spacing_row_mm", "spacing_column_mm", "spacing_source")
FINDING_COLUMNS = (
    *("finding", "box_x_px", "box_y_px", "box_width_px", "box_height_px", "centroid_x_px", "centroid_y_px"),
    *("area_px", "area_mm2", "long_axis_mm", "short_axis_mm", "long_axis_px", "short_axis_px"),
    *("mean_probability", "peak_probability", "prompt_box", "predicted_iou"),
)
CLASS_COLUMNS = ("predicted_class", "classes")
"""`classes`: "benign 0.71; malignant 0.29", a classifier's probabilities or a class map's shares of the picture, in the
model's order; classes of no pixel are left out. The exact values are in results.jsonl."""
RUN_COLUMNS = (
    "threshold",
    "min_area_px",
    "model",
    "model_file",
    "model_sha256",
    "decoder_sha256",
    "backend",
    "precision",
    "prompt_source",
)
FILE_COLUMNS = ("mask", "overlay", "file_sha256", "intensity_rule", "notes")
CSV_COLUMNS = IMAGE_COLUMNS + SPACING_COLUMNS + FINDING_COLUMNS + CLASS_COLUMNS + RUN_COLUMNS + FILE_COLUMNS
"""Header of results.csv. Numbers keep six decimals; an unknown value is an empty cell."""

# Control characters, line and paragraph separators, marks that reverse the writing direction, lone surrogates.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")
_FORMULA_STARTS = frozenset("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
_COMMON_ESCAPES = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible_text(text: str) -> str:
    """Return `text` on one line, with control, direction and undecodable characters as backslash escapes."""
    return _UNSEEN.sub(lambda found: _COMMON_ESCAPES.get(found[0], _escape(ord(found[0]))), text)


def results_csv_rows(records: Iterable[Record]) -> Iterator[dict[str, str]]:
    """Yield the rows of results.csv as safe cells by `CSV_COLUMNS`.

    One per finding, then one per box without a finding; at least one per image.
    """
    for record in records:
        shared = {**dict.fromkeys(CSV_COLUMNS, ""), **_image_cells(record)}
        own = [_finding_cells(finding) for finding in record.get("findings") or ()]
        for number, expected in boxes_without_finding(record):
            own.append({"prompt_box": _cell(number), "predicted_iou": _cell(expected)})
        for cells in own or [{}]:
            yield {**shared, **cells}


def boxes_without_finding(record: Record) -> list[tuple[int, float | None]]:
    """Return (number from 1, predicted IoU or None) of each given box in which a judged image has no finding."""
    if record.get("status") != "ok":
        return []
    found = {finding.get("prompt_box") for finding in record.get("findings") or ()}
    boxes = record.get("boxes") or ()
    expected = record.get("box_predicted_iou") or [None] * len(boxes)
    return [(number, expected[number - 1]) for number in range(1, len(boxes) + 1) if number not in found]


def write_results_csv(path: Path, records: Iterable[Record]) -> None:
    """Write results.csv to `path` in one pass over the records. Raises OutputError."""
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        table = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerows(results_csv_rows(records))


def jsonl_line(record: Record) -> bytes:
    """Return one line of results.jsonl with its line end: UTF-8 JSON that reads back as the same record.

    Undecodable bytes of file names (lone surrogates) become JSON escapes and survive. Numbers that are not finite
    become null, because JSON has none. Raises TypeError for what JSON cannot hold.
    """
    text = json.dumps(_finite(record), ensure_ascii=False, allow_nan=False, separators=(", ", ": "))
    # Legal in JSON, yet line ends to many readers of lines.
    for separator in "\x85\u2028\u2029":
        text = text.replace(separator, f"\\u{ord(separator):04x}")
    return text.encode("utf-8", "backslashreplace") + b"\n"


def write_results_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write results.jsonl to `path` in one pass over the records. Raises OutputError."""
    with whole_file(path) as temporary, temporary.open("wb") as stream:
        stream.writelines(jsonl_line(record) for record in records)


def _escape(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def _finite(value: Any) -> Any:
    """Return plain JSON values: NumPy scalars as Python numbers, numbers that are not finite as None."""
    if value is None or isinstance(value, (str, bool)):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    raise TypeError(f"a record holds {type(value).__name__}, which is no JSON value")


def _cell(value: Any) -> str:
    """Return a cell: numbers as they are (six decimals), text without line breaks and never a formula."""
    plain = _finite(value)
    if plain is None:
        return ""
    if not isinstance(plain, str):
        return repr(round(plain, 6)) if isinstance(plain, float) else str(plain)
    guard = "'" if plain[:1] in _FORMULA_STARTS or plain.lstrip()[:1] in _FORMULA_STARTS else ""
    return guard + visible_text(plain) if plain else ""


def _image_cells(record: Record) -> dict[str, str]:
    row_mm, column_mm = record.get("spacing_mm") or (None, None)
    outputs = record.get("outputs") or {}
    known = ("spacing_source", "file_sha256", "intensity_rule", *IMAGE_COLUMNS, *RUN_COLUMNS)
    return {name: _cell(record.get(name)) for name in known} | {
        "spacing_row_mm": _cell(row_mm),
        "spacing_column_mm": _cell(column_mm),
        "mask": _cell(outputs.get("mask")),
        "overlay": _cell(outputs.get("overlay")),
        "predicted_class": _cell(record.get("predicted_class")),
        "classes": _cell(_class_list(record.get("classes") or ())),
        "notes": _cell("; ".join(record.get("notes") or ())),
    }


def _class_list(classes: Iterable[Mapping[str, Any]]) -> str:
    shares = ((c["name"], c.get("probability", c.get("fraction")), c.get("area_px")) for c in classes)
    return "; ".join(f"{name} {value:.4g}" for name, value, area in shares if area != 0)


def _finding_cells(finding: Mapping[str, Any]) -> dict[str, str]:
    box = dict(zip(("box_x_px", "box_y_px", "box_width_px", "box_height_px"), finding["box"]))
    centre = dict(zip(("centroid_x_px", "centroid_y_px"), finding["centroid"]))
    named = {"finding": finding["number"], **box, **centre}
    return {name: _cell(named[name] if name in named else finding.get(name)) for name in FINDING_COLUMNS}
