"""`report.html`: one self-contained page a site can keep, open offline, search and print.

Everything a record says is text here: Jinja escapes it, control characters become visible escapes, and a strict
content security policy lets nothing run but the page's own script. Cards are written while the records pass by.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mammo_runtime.atomic import whole_file
from mammo_runtime.writers.tables import visible_text

MAX_THUMBNAILS = 2000
"""A run with more images gets cards with links only: their pictures would make a page no browser opens."""
DISCLAIMER = "Research use only. Not a medical device."

_LATERALITY = {"L": "Left", "R": "Right"}
_OUTPUT_NAMES = {"mask": "Mask", "probability": "Probability map", "overlay": "Overlay"}
_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(.*)", re.DOTALL)
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


@dataclass(frozen=True)
class Card:
    """One image as the page words it; `peak` … `area_px` are for sorting in the browser, -1 where there is none."""

    order: int
    name: str
    folder: str
    """First part of `name`, up to and with the last "/"."""
    file_name: str
    kind: str
    """"with", "without", "failed" or "skipped"."""
    verdict: str
    error: str
    facts: Sequence[tuple[str, str]]
    findings: Sequence[FindingRow]
    missed_boxes: Sequence[int]
    """Prompt boxes in which the model marked nothing."""
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


def write_report(
    path: Path,
    run: Mapping[str, Any],
    records: Iterable[Record],
    thumbnail: Callable[[Record], bytes | None],
) -> None:
    """Write the report of a run (run.json's dictionary) to `path` in one pass over the records.

    `thumbnail` is asked once per judged image for the JPEG bytes of its overlay, None for no picture; it is not asked
    at all when the run has more than `MAX_THUMBNAILS` inputs. Raises OutputError.
    """
    inputs = (run.get("counts") or {}).get("inputs") or 0
    with_pictures = inputs <= MAX_THUMBNAILS
    jinja = _environment()
    context = {**_page(run, jinja), "with_pictures": with_pictures, "max_thumbnails": MAX_THUMBNAILS}
    context["cards"] = _cards(records, thumbnail, MAX_THUMBNAILS if with_pictures else 0)
    template = jinja.get_template("report.html.j2")
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(template.generate(context))


def relative_url(path: str) -> str:
    """Percent-encode a path relative to the report ("/" between folders); it can never name a scheme or a host."""
    return "./" + quote(path.encode("utf-8", "surrogateescape"), safe="/")


def _environment() -> Environment:
    def shown(value: Any) -> Any:
        return visible_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _page(run: Mapping[str, Any], jinja: Environment) -> dict[str, Any]:
    """Return what the template needs besides the cards."""
    style = jinja.get_template("report.css.j2").render(disclaimer=DISCLAIMER)
    script = jinja.get_template("report.js.j2").render()
    counts = {name: 0 for name in ("inputs", "ok", "failed", "skipped", "with_findings", "findings")}
    counts |= {name: value for name, value in (run.get("counts") or {}).items() if value is not None}
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_csp_hash(style)}'; script-src '{_csp_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return {
        # Our own two files, not data: marked so that their quotes stay quotes.
        "style": Markup(style),
        "script": Markup(script),
        "policy": policy,
        "disclaimer": DISCLAIMER,
        "started": _when(run.get("started")),
        "counts": counts,
        "without_findings": max(0, counts["ok"] - counts["with_findings"]),
        "facts": _run_facts(run),
        "details": _run_details(run),
        "notes": list(run.get("notes") or ()),
        "deidentified": bool(run.get("deidentified")),
    }


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _run_facts(run: Mapping[str, Any]) -> list[tuple[str, str]]:
    model = run.get("model") or {}
    code = run.get("exit_code")
    outcome = f"{run.get('exit_meaning') or ''} (exit code {code})" if code is not None else _UNKNOWN
    return [
        ("Model", _words(model.get("name"))),
        ("Task", ", ".join(str(model[k]) for k in ("task", "modality") if model.get(k)) or _UNKNOWN),
        ("Network input", _words(model.get("input"))),
        ("Threshold", _words(model.get("threshold"))),
        ("Backend", _words(run.get("backend"))),
        ("Precision", _words(run.get("precision"))),
        ("Toolkit", f"mammo-edge {_words(run.get('toolkit_version'))}"),
        ("Started", _when(run.get("started"))),
        ("Finished", _when(run.get("finished"))),
        ("Total time", f"{run['total_s']:.1f} s" if run.get("total_s") is not None else _UNKNOWN),
        ("Outcome", outcome.strip()),
        ("Model licence", _words(model.get("licence"))),
        ("Model SHA-256", _words(model.get("sha256"))),
    ]


def _run_details(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the settings and the machine as titled lists."""
    parts = (("Settings", run.get("settings")), ("Machine", run.get("machine")))
    return [(title, [(str(k), _words(v, "not set")) for k, v in values.items()]) for title, values in parts if values]


def _cards(records: Iterable[Record], thumbnail: Callable[[Record], bytes | None], pictures: int) -> Iterator[Card]:
    for order, record in enumerate(records):
        wanted = order < pictures and record.get("status") == "ok"
        yield _card(order, record, thumbnail(record) if wanted else None)


def _card(order: int, record: Record, jpeg: bytes | None) -> Card:
    name, findings = str(record.get("image") or "unnamed"), list(record.get("findings") or ())
    status = record.get("status")
    judged = status == "ok"
    kind = ("with" if findings else "without") if judged else ("skipped" if status == "skipped" else "failed")
    outputs = {k: str(v) for k, v in (record.get("outputs") or {}).items() if v}
    verdict = _verdict(kind, len(findings))
    belongs = {f.get("prompt_box") for f in findings}
    boxes = range(1, len(record.get("boxes") or ()) + 1) if judged else ()
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
        missed_boxes=[number for number in boxes if number not in belongs],
        notes=[str(note) for note in record.get("notes") or ()],
        links=[(_OUTPUT_NAMES.get(k, k), relative_url(path)) for k, path in outputs.items()],
        overlay_url=relative_url(outputs["overlay"]) if "overlay" in outputs else "",
        jpeg_base64=base64.b64encode(jpeg).decode("ascii") if jpeg else "",
        alt=f"Overlay of {name}: {verdict}",
        peak=max((f.get("peak_probability") or 0.0 for f in findings), default=-1.0),
        area_mm2=max((f["area_mm2"] for f in findings if f.get("area_mm2") is not None), default=-1.0),
        area_px=max((f["area_px"] for f in findings), default=-1.0),
    )


def _verdict(kind: str, count: int) -> str:
    if kind == "with":
        return "1 finding" if count == 1 else f"{count} findings"
    return {"without": "No mass marked by the model", "failed": "Failed, not judged"}.get(kind, "Skipped, not judged")


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
    )


def _probability(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"


def _rounded(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def _words(value: Any, absent: str = _UNKNOWN) -> str:
    if value is None or value == "":
        return absent
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {_words(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_words(part) for part in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)


def _when(value: Any) -> str:
    return _ISO_TIME.sub(r"\1 \2 \3", str(value)).strip() if value else _UNKNOWN
