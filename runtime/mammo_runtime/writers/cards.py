"""The cards of the report: each record in words, ready for the template, which escapes them."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from mammo_runtime.writers.amounts import chance, share
from mammo_runtime.writers.palette import css_colour
from mammo_runtime.writers.tables import boxes_without_finding

_LATERALITY = {"L": "Left", "R": "Right"}
_OUTPUT_NAMES = {"mask": "Mask", "probability": "Probability map", "overlay": "Overlay"}
_UNKNOWN = "not stated"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class FindingRow:
    """One finding as the page words it."""

    number: str
    position: str
    area: str
    axes: str
    mean_probability: str
    peak_probability: str
    prompt_box: str
    predicted_iou: str


@dataclass(frozen=True)
class ClassRow:
    """One class of a class map or a classifier as the page words it."""

    name: str
    value: str
    """Share of the picture, or probability."""
    area: str
    """Empty for a classifier."""
    colour: str
    """"#rrggbb" as in the overlay; empty for a classifier."""
    level: float
    """0..1, for the bar."""


@dataclass(frozen=True)
class Card:
    """One image as the page words it; `peak` … `area_px` are for sorting in the browser, -1 where there is none."""

    order: int
    name: str
    folder: str
    """First part of `name`, up to and with the last "/"."""
    file_name: str
    kind: str
    """"with" or "without" (findings), "judged" (by a model that marks none), "failed" or "skipped"."""
    verdict: str
    error: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[FindingRow]
    missed_boxes: Sequence[str]
    """Prompt boxes in which the model marked nothing, in words."""
    classes: Sequence[ClassRow]
    absent: int
    """Classes of a class map that no pixel belongs to."""
    notes: Sequence[str]
    links: Sequence[tuple[str, str]]
    """(label, relative URL) of the files written for this image."""
    overlay_url: str
    jpeg_base64: str
    """Of the thumbnail; empty without one."""
    alt: str
    peak: float
    area_mm2: float
    area_px: float


def relative_url(path: str) -> str:
    """Percent-encode a path relative to the report ("/" between folders); it can never name a scheme or a host."""
    return "./" + quote(path.encode("utf-8", "surrogateescape"), safe="/")


def cards(
    records: Iterable[Record], thumbnail: Callable[[Record], bytes | None], pictures: int, marks: bool
) -> Iterator[Card]:
    """Yield the cards while the records pass by, the first `pictures` with their thumbnails.

    `marks`: whether the run's model marks findings, or judges without (class map, classifier).
    """
    for order, record in enumerate(records):
        wanted = order < pictures and record.get("status") == "ok"
        yield _card(order, record, thumbnail(record) if wanted else None, marks)


def _card(order: int, record: Record, jpeg: bytes | None, marks: bool) -> Card:
    name, findings = str(record.get("image") or "unnamed"), list(record.get("findings") or ())
    status = record.get("status")
    judged = status == "ok"
    kind = _kind(str(status), bool(findings), marks)
    outputs = {k: str(v) for k, v in (record.get("outputs") or {}).items() if v}
    rows = class_rows(record.get("classes") or ()) if judged else []
    verdict = _verdict(kind, len(findings), record, rows)
    return Card(
        order=order,
        name=name,
        folder="".join(name.rpartition("/")[:2]),
        file_name=name.rpartition("/")[2],
        kind=kind,
        verdict=verdict,
        error=str(record.get("error") or "No reason was recorded.") if not judged else "",
        facts=_image_facts(record),
        findings=[_finding_row(f) for f in findings],
        missed_boxes=_missed_boxes(record),
        classes=rows,
        absent=len(record.get("classes") or ()) - len(rows) if judged else 0,
        notes=[str(note) for note in record.get("notes") or ()],
        links=[(_OUTPUT_NAMES.get(k, k), relative_url(path)) for k, path in outputs.items()],
        overlay_url=relative_url(outputs["overlay"]) if "overlay" in outputs else "",
        jpeg_base64=base64.b64encode(jpeg).decode("ascii") if jpeg else "",
        alt=f"Overlay of {name}: {verdict}",
        peak=_peak(record, findings),
        area_mm2=max((f["area_mm2"] for f in findings if f.get("area_mm2") is not None), default=-1.0),
        area_px=max((f["area_px"] for f in findings), default=-1.0),
    )


def _kind(status: str, has_findings: bool, marks: bool) -> str:
    if status != "ok":
        return "skipped" if status == "skipped" else "failed"
    if not marks:
        return "judged"
    return "with" if has_findings else "without"


def _verdict(kind: str, count: int, record: Record, rows: Sequence[ClassRow]) -> str:
    if kind == "with":
        return "1 finding" if count == 1 else f"{count} findings"
    if kind == "judged":
        return _class_verdict(record, rows)
    return {"without": "No mass marked by the model", "failed": "Failed, not judged"}.get(kind, "Skipped, not judged")


def _class_verdict(record: Record, rows: Sequence[ClassRow]) -> str:
    """Say what a classifier or a class map says, and that it is the model that says it."""
    if record.get("predicted_class"):
        best = rows[0].value if rows else _UNKNOWN
        return f"Likeliest class for the model: {record['predicted_class']} ({best})"
    named = ", ".join(f"{row.name} {row.value}" for row in rows[:3])
    more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
    return f"{len(rows)} {'class' if len(rows) == 1 else 'classes'} marked by the model: {named}{more}"


def class_rows(classes: Sequence[Mapping[str, Any]]) -> list[ClassRow]:
    """Return the classes of a record in words: those of any pixel or probability at all, largest first."""
    rows = []
    for number, one in enumerate(classes):
        name = str(one["name"])
        if "probability" in one:
            level = float(one["probability"] or 0.0)
            rows.append(ClassRow(name, chance(level), "", "", level))
        elif one["area_px"]:
            mm2 = one.get("area_mm2")
            area = f"{one['area_px']} px" if mm2 is None else f"{_rounded(mm2)} mm²"
            rows.append(ClassRow(name, share(one["fraction"]), area, css_colour(number), float(one["fraction"])))
    return sorted(rows, key=lambda row: -row.level)


def _missed_boxes(record: Record) -> list[str]:
    told = record.get("box_predicted_iou") is not None
    return [
        f"Box {number}: no mass marked by the model" + (f" (predicted IoU {_probability(expected)})" if told else "")
        for number, expected in boxes_without_finding(record)
    ]


def _peak(record: Record, findings: Sequence[Mapping[str, Any]]) -> float:
    """Return what "highest probability" sorts by."""
    scores = [one["probability"] or 0.0 for one in record.get("classes") or () if "probability" in one]
    return max([*scores, *(f.get("peak_probability") or 0.0 for f in findings)], default=-1.0)


def _image_facts(record: Record) -> list[tuple[str, str]]:
    facts = []
    if record.get("status") == "ok" or record.get("laterality") or record.get("view"):
        facts.append(("Laterality, view", _projection(record)))
    if record.get("rows") and record.get("columns"):
        facts.append(("Size", f"{record['columns']} × {record['rows']} px"))
    if record.get("status") == "ok" or record.get("spacing_mm"):
        facts.append(("Pixel spacing", _spacing(record)))
    if record.get("file_format"):
        facts.append(("File", str(record["file_format"])))
    if record.get("prompt_source"):
        facts.append(("Boxes from", str(record["prompt_source"])))
    return facts


def _projection(record: Record) -> str:
    laterality, view = record.get("laterality"), record.get("view")
    known = [_LATERALITY.get(str(laterality), str(laterality)) if laterality else "", str(view) if view else ""]
    return " ".join(part for part in known if part) or _UNKNOWN


def _spacing(record: Record) -> str:
    if not record.get("spacing_mm"):
        return "spacing unknown: no millimetres"
    row_mm, column_mm = record["spacing_mm"]
    value = f"{row_mm:.4g} mm" if row_mm == column_mm else f"{row_mm:.4g} × {column_mm:.4g} mm rows × columns"
    return f"{value} ({record.get('spacing_source') or _UNKNOWN})"


def _finding_row(finding: Mapping[str, Any]) -> FindingRow:
    x, y = finding["centroid"]
    area = f"{finding['area_px']} px" if finding.get("area_mm2") is None else f"{_rounded(finding['area_mm2'])} mm²"
    unit = "px" if finding.get("long_axis_mm") is None else "mm"
    axes = [_rounded(finding[f"{end}_axis_{unit}"]) for end in ("long", "short")]
    return FindingRow(
        number=str(finding["number"]),
        position=f"x {x:.0f}, y {y:.0f}",
        area=area,
        axes=f"{axes[0]} × {axes[1]} {unit}",
        mean_probability=_probability(finding.get("mean_probability")),
        peak_probability=_probability(finding.get("peak_probability")),
        prompt_box=str(finding.get("prompt_box") or ""),
        predicted_iou="" if finding.get("predicted_iou") is None else _probability(finding["predicted_iou"]),
    )


def _probability(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"
