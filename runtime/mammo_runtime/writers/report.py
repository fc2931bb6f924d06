"""`report.html`: one self-contained page a site can keep, open offline, search and print.

Everything a record says is text here: Jinja escapes it, control characters become visible escapes, and a strict
content security policy lets nothing run but the page's own script. Cards are written while the records pass by.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mammo_runtime.atomic import whole_file
from mammo_runtime.writers.cards import cards
from mammo_runtime.writers.palette import css_colour
from mammo_runtime.writers.tables import visible_text
from mammo_runtime.writers.words import NOTHING_OF_THE_KIND, WORDS, TaskWords

MAX_THUMBNAILS = 2000
"""A run with more images gets cards with links only: their pictures would make a page no browser opens."""
DISCLAIMER = "Research use only. Not a medical device."

_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)(?:\.\d+)?(.*)", re.DOTALL)
_UNKNOWN = "not stated"

Record = Mapping[str, Any]


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
    jinja = environment(Path(__file__).parent)
    context = {**_page(run, jinja), "with_pictures": with_pictures, "max_thumbnails": MAX_THUMBNAILS}
    context["cards"] = cards(records, thumbnail, MAX_THUMBNAILS if with_pictures else 0, context["words"].marks)
    template = jinja.get_template("report.html.j2")
    with whole_file(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as stream:
        stream.writelines(template.generate(context))


def environment(folder: Path) -> Environment:
    """Return Jinja for templates of a folder: everything escaped, and what no eye sees in a text made visible."""

    def shown(value: Any) -> Any:
        return visible_text(value) if isinstance(value, str) and not isinstance(value, Markup) else value

    return Environment(
        loader=FileSystemLoader(folder),
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
    words = _task_words(run)
    colours = enumerate((run.get("model") or {}).get("classes") or ())
    return {
        "words": words,
        "predicted": dict(run.get("predicted_classes") or {}),
        # What a class map's colours mean; a classifier has none.
        "legend": [(str(name), css_colour(k)) for k, name in colours] if words is WORDS["multiclass"] else [],
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
        "notes": [(str(note), str(note).endswith(NOTHING_OF_THE_KIND)) for note in run.get("notes") or ()],
        "deidentified": bool(run.get("deidentified")),
    }


def _task_words(run: Mapping[str, Any]) -> TaskWords:
    return WORDS[(run.get("model") or {}).get("task") or "segmentation"]


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
        ("Threshold", _words(model.get("threshold"), _UNKNOWN if _task_words(run).marks else "none: likeliest class")),
        ("Backend", _words(run.get("backend"))),
        ("Precision", _words(run.get("precision"))),
        ("Model file", _words(model.get("file"))),
        ("Why this file", _words(model.get("why"))),
        ("Toolkit", f"mammo-edge {_words(run.get('toolkit_version'))}"),
        ("Started", _when(run.get("started"))),
        ("Finished", _when(run.get("finished"))),
        ("Total time", f"{run['total_s']:.1f} s" if run.get("total_s") is not None else _UNKNOWN),
        ("Outcome", outcome.strip()),
        ("Model licence", _words(model.get("licence"))),
        ("Model SHA-256", _hashes(model)),
    ]


def _hashes(model: Mapping[str, Any]) -> str:
    if not model.get("decoder_sha256"):
        return _words(model.get("sha256"))
    return f"{model.get('sha256')} (encoder), {model['decoder_sha256']} (decoder)"


def _run_details(run: Mapping[str, Any]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return the settings and the machine as titled lists."""
    parts = (("Settings", run.get("settings")), ("Machine", run.get("machine")))
    return [(title, [(str(k), _words(v, "not set")) for k, v in values.items()]) for title, values in parts if values]


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
