"""`report.html` of a bundle: the page that a physicist or the IT of a site reads before trusting it.

One file without scripts, fonts or links to elsewhere; the same evidence gives the same bytes.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from mammo_export import report_tables as tables
from mammo_export.accuracy import UNKNOWN_SIZE, limits_of
from mammo_export.report_cases import case_picture, case_words
from mammo_export.report_ladder import ladder
from mammo_export.report_plots import Bar, Mark, forest_svg, sensitivity_svg
from mammo_export.report_words import (
    Entry,
    Evidence,
    counted,
    difference_of,
    entries,
    facts,
    groups_words,
    headline,
    label,
    score_name,
    ships,
    signed,
    sizes_of,
    status,
    warnings,
    with_interval,
)
from mammo_runtime.spec import Task
from mammo_runtime.writers.pictures import thumbnail_jpeg
from mammo_runtime.writers.report import DISCLAIMER, environment

TEMPLATE = "report.html.j2"
STYLE = "report.css.j2"
BARS = 20
"""Groups in the sensitivity plot; the rest is in bundle.json."""


def write_report(evidence: Mapping[str, Any]) -> str:
    """Return the page. `evidence`: bundle.json's dictionary, and under "cases" the worst cases of `examples`."""
    jinja = environment(Path(__file__).parent)
    style = jinja.get_template(STYLE).render(disclaimer=DISCLAIMER)
    policy = f"default-src 'none'; img-src data:; style-src '{_csp_hash(style)}'; base-uri 'none'; form-action 'none'"
    spec = evidence["spec"]
    return jinja.get_template(TEMPLATE).render(
        style=Markup(style),
        policy=policy,
        disclaimer=DISCLAIMER,
        spec=spec,
        about=_about(spec),
        headline=headline(evidence),
        verdicts=[_verdict(evidence, key, entry) for key, entry in entries(evidence).items()],
        warnings=warnings(evidence),
        tables={"ladder": ladder(evidence), **{name: getattr(tables, name)(evidence) for name in _TABLES}},
        plots=_plots(evidence),
        sensitivities=list(_sensitivities(evidence)),
        cases=[_case(case) for case in evidence.get("cases") or ()],
        draws_masks=spec["task"] in (Task.SEGMENTATION.value, Task.PROMPTED.value),
        judged=_judged(evidence),
        calibration=_calibration(evidence),
        timing=_timing(evidence.get("timing")),
        toolchain=sorted((evidence.get("toolchain") or {}).items()),
        acceptance=list(evidence.get("acceptance") or ()),
        licence=spec.get("licence") or "not stated: treat as research use only",
    )


_TABLES = ("summary", "scores", "strata", "flagged", "worst", "candidates", "islands", "speeds")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _about(spec: Mapping[str, Any]) -> list[tuple[str, str]]:
    size = spec["input"]
    return [
        ("Network", str(spec["architecture"])),
        ("Task", f"{spec['task']}, {spec.get('modality', '')}".rstrip(", ")),
        ("Network input", f"{size['mode']}, {size['channels']} × {size['height']} × {size['width']}"),
        ("Threshold (frozen)", f"{spec['threshold']:g}"),
        ("Made from weights", str(spec.get("parent_sha256") or "not stated")),
    ]


def _verdict(evidence: Evidence, key: str, entry: Entry) -> dict[str, Any]:
    mood, words = status(evidence, key, entry)
    file = str(entry.get("file", "")) if ships(evidence, key) else ""
    why = list(entry.get("why") or (entry.get("waived") or {}).get("misses") or ())
    return {"name": label(key), "file": file, "mood": mood, "words": words, "facts": facts(evidence, entry), "why": why}


def _plots(evidence: Evidence) -> dict[str, dict[str, str] | None]:
    spec = evidence["spec"]
    score = score_name(spec)
    classes = spec["task"] == Task.CLASSIFICATION.value
    whole, sizes = [], []
    for key, entry in entries(evidence).items():
        found = difference_of(entry)
        if found is None or found["mean"] is None:
            continue
        good = status(evidence, key, entry)[0] != "bad"
        limits = limits_of(key)
        least = max(limits.most_accuracy_loss or 0.0, 1 / found["n"]) if classes else limits.most_loss
        own = () if least is None else (-least,)
        either = () if classes or limits.most_change is None else (-limits.most_change, limits.most_change)
        low = () if classes or limits.most_loss_low is None else (-limits.most_loss_low,)
        ends = (found["mean"], found["low"], found["high"], found["n"])
        whole.append(Mark(label(key), *ends, good, (*own, *either), low))
        for size, part in sizes_of(found).items():
            limit = () if limits.most_loss_of_size is None or size == UNKNOWN_SIZE else (-limits.most_loss_of_size,)
            kept = not limit or part["mean"] >= limit[0]
            name = f"{label(key)}, {size}"
            sizes.append(Mark(name, part["mean"], part["low"], part["high"], part["n"], kept, limit))
    axis = f"change of {score} against FP32"
    return {
        "whole": _plot(forest_svg(whole, axis), _forest_alt(whole, axis)) if whole else None,
        "sizes": _plot(forest_svg(sizes, axis), _forest_alt(sizes, axis)) if sizes else None,
    }


def _forest_alt(marks: Sequence[Mark], axis: str) -> str:
    rows = (f"{m.name} {with_interval({'mean': m.mean, 'low': m.low, 'high': m.high})}" for m in marks)
    return f"Forest plot of the {axis}: {'; '.join(rows)}. The table beside it holds the same numbers."


def _plot(svg: str, alt: str) -> dict[str, str]:
    content = base64.b64encode(svg.encode("utf-8")).decode("ascii")
    return {"source": f"data:image/svg+xml;base64,{content}", "alt": alt}


def _sensitivities(evidence: Evidence) -> list[dict[str, Any]]:
    found = []
    for key, entry in entries(evidence).items():
        made = entry.get("made") or {}
        ranking = made.get("ranking") or ()
        if not ranking:
            continue
        reverted = set(made.get("reverted") or ())
        worst = [
            Bar(e["group"], e.get("change") or 0.0, e.get("mean_absolute") or 0.0, e["group"] in reverted)
            for e in ranking[:BARS]
        ]
        score = score_name(evidence["spec"])
        told = "; ".join(f"{bar.name} {signed(bar.change)}" for bar in worst[:5])
        found.append({
            "name": label(key), "groups": len(ranking), "shown": len(worst), "why": made.get("mix", ""),
            "lost": sum(e.get("lost") or 0 for e in ranking),
            **_plot(sensitivity_svg(worst, f"change of {score} with only this group quantised"),
                    f"Bar plot of what each quantised group costs alone, worst first: {told}."),
        })  # fmt: skip
    return found


def _case(case: Mapping[str, Any]) -> dict[str, str]:
    picture = case_picture(case["image"], case.get("truth"), case["reference"], case["candidate"])
    numbers = ", ".join(
        f"{label(key)} {value:.3f}" if isinstance(value, float) else f"{label(key)} without a score"
        for key, value in case["numbers"].items()
    )
    words = case_words(case)
    content = base64.b64encode(thumbnail_jpeg(picture, max(picture.shape))).decode("ascii")
    return {
        "title": f"{label(case['key'])}: {case['name']}",
        "caption": f"{numbers}; {words}",
        "alt": f"{case['name']} with the outlines of the truth, FP32 and {label(case['key'])}: {words}.",
        "source": f"data:image/jpeg;base64,{content}",
        "width": str(picture.shape[1]),
        "height": str(picture.shape[0]),
    }


def _judged(evidence: Evidence) -> list[tuple[str, str]]:
    """Return what each precision's accuracy was measured on, and how the interval was reckoned."""
    said = [
        (label(key), f"measured on {entry['made']['judged_on']}")
        for key, entry in entries(evidence).items()
        if (entry.get("made") or {}).get("judged_on")
    ]
    ways = {
        found["interval"] for e in entries(evidence).values() if (found := difference_of(e)) and found.get("interval")
    }
    return [*said, *(("Intervals", way) for way in sorted(ways))]


def _calibration(evidence: Evidence) -> list[tuple[str, str]]:
    used = evidence.get("calibration")
    if not used:
        return []
    kinds = ", ".join(f"{kind} {count}" for kind, count in (used.get("kinds") or {}).items())
    digest = hashlib.sha256(" ".join(used.get("images_sha256") or ()).encode()).hexdigest()
    return [
        ("Inputs", f"{used['inputs']} from {counted(used['images'], 'pictures')}" + (f" ({kinds})" if kinds else "")),
        ("Patients or groups", groups_words(evidence["spec"], len(used.get("groups_sha256") or ()))),
        ("Folds", ", ".join(str(fold) for fold in used.get("folds") or ()) or "not stated"),
        ("Seen as", str(used.get("crop", "not stated"))),
        ("Order", str(used.get("order", "not stated"))),
        ("Leak guard", "no patient or group and no picture shared with the validation and test folds"),
        ("Fewer than 100", str(used.get("fewer_than_100") or "no")),
        ("sha256 of the list of picture hashes in bundle.json", digest),
    ]  # fmt: skip


def _timing(timing: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    if not timing:
        return []
    machine, busy = timing.get("machine") or {}, timing.get("other_processes_cores")
    return [
        ("Processor", str(machine.get("processor", "not stated"))),
        ("Instruction set", str(machine.get("instruction_set", "not stated"))),
        ("Cores, threads used", f"{machine.get('cores', '–')}, {timing.get('threads', '–')}"),
        ("System", f"{machine.get('system', 'not stated')}, Python {machine.get('python', '–')}"),
        ("Order", str(timing.get("order", "not stated"))),
        ("Intervals", str(timing.get("interval", "not stated"))),
        ("Busy with other programs", "not known" if busy is None else f"{busy:.2f} cores on average"),
    ]
