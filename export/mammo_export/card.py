"""The part of a model card that speaks of the precisions of a bundle: Markdown, filled from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mammo_export.report_words import (
    Entry,
    Evidence,
    counted,
    difference_of,
    entries,
    groups_words,
    items_name,
    label,
    limit_words,
    listed,
    megabytes,
    score_name,
    ships,
    signed,
    size_of,
    sizes_of,
    status,
    warnings,
    with_interval,
)

HEADING = "## Precisions"


def precision_section(manifest: Mapping[str, Any]) -> str:
    """Return the section for MODEL_CARD.md, from `HEADING` to its last line. `manifest`: bundle.json's dictionary.

    Every number comes with its n, and with a 95 % interval where there is one.
    """
    known = entries(manifest)
    parts = [
        HEADING,
        _basis(manifest, known),
        _table(manifest, known),
        "\n".join(line for key, entry in known.items() for line in _told(manifest, key, entry)),
    ]
    warned = warnings(manifest)
    if warned:
        parts.append("Warnings:\n\n" + "\n".join(f"- {_safe(sentence)}" for sentence in warned))
    parts += [_calibration(manifest), "Details and plots: `report.html`."]
    return "\n\n".join(part for part in parts if part) + "\n"


def _table(manifest: Evidence, known: Mapping[str, Entry]) -> str:
    lines = [
        f"| graph | verdict | change of {score_name(manifest['spec'])} | n ({items_name(manifest['spec'])}) | size "
        "| times as fast as FP32 on a CPU |",
        "|---|---|---|---|---|---|",
    ]
    for key, entry in known.items():
        found = difference_of(entry)
        change, n = ("reference", "–") if key == "fp32" else ("–", "–")
        if found is not None:
            change, n = with_interval(found), str(found["n"])
        speed = "; ".join(_ratio(one) for one in entry.get("speed") or () if one["than"] == "fp32") or "–"
        cells = (label(key), str(entry.get("verdict", "")), change, n, megabytes(size_of(manifest, key)), speed)
        lines.append("| " + " | ".join(_safe(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _ratio(one: Mapping[str, Any]) -> str:
    interval = f" ({one['low']:.2f} to {one['high']:.2f})" if one.get("low") is not None else ""
    return f"{one['ratio']:.2f}{interval}"


def _told(manifest: Evidence, key: str, entry: Entry) -> list[str]:
    """Return a list item with what a table has no room for."""
    said = [status(manifest, key, entry)[1]]
    found = difference_of(entry)
    if found is not None and found["mean"] is not None:
        spec = manifest["spec"]
        said.append(f"Limits: {'; '.join(limit_words(key, spec))}.")
        sizes = [f"{size} {with_interval(own)}, n {own['n']}" for size, own in sizes_of(found).items()]
        said += [f"By lesion size: {'; '.join(sizes)}."] if sizes else []
        if found.get("worst"):
            name, change = found["worst"][0]
            said.append(f"Largest loss: {name}, {signed(change, 3)}.")
    said += _made(entry)
    if entry.get("why") and not ships(manifest, key):
        said.append(f"Why, and what to try: {'; '.join(entry['why'])}.")
    if entry.get("waived"):
        said.append(f"Missed: {'; '.join(entry['waived']['misses'])}.")
    return [f"- **{label(key)}**: {_safe(' '.join(said))}"]


def _made(entry: Entry) -> list[str]:
    made = entry.get("made") or {}
    said = []
    if made.get("calibrator"):
        even = " after equalising channel ranges" if made.get("equalised") else ""
        said.append(f"Calibrator {made['calibrator']}{even}.")
    if made.get("reverted"):
        said.append(f"Back in higher precision: {counted(len(made['reverted']), 'layers')} of those ranked worst.")
    if made.get("islands"):
        said.append(f"FP32 inside: {counted(len(made['islands']), 'nodes')}.")
    return said


def _calibration(manifest: Evidence) -> str:
    used = manifest.get("calibration")
    if not used:
        return ""
    folds = listed([str(fold) for fold in used.get("folds") or ()])
    groups = len(used.get("groups_sha256") or ())
    return (
        f"INT8 was calibrated on {counted(used['inputs'], 'inputs')} from {counted(used['images'], 'pictures')} of "
        f"{groups_words(manifest['spec'], groups)}, training folds {folds}; none of them shares a "
        "patient or a picture with the validation or test folds (checked by patient and by sha256)."
    )


def _basis(manifest: Evidence, known: Mapping[str, Entry]) -> str:
    """Return what the table's numbers rest on: pictures, patients, processor."""
    spec = manifest["spec"]
    judged = next((found for entry in known.values() if (found := difference_of(entry)) is not None), None)
    timed = next((one for entry in known.values() for one in entry.get("speed") or ()), None)
    said = (
        f"Change of the {score_name(spec)} against the FP32 graph, on the same {items_name(spec)} of the validation "
        f"fold at the frozen threshold {spec['threshold']:g}"
    )
    if judged is not None:
        said += f": {counted(judged['n'], items_name(spec))} of {groups_words(spec, judged['patients'])}"
    machine = (timed or {}).get("machine") or {}
    where = f" Speed on one {machine['processor']} ({machine['instruction_set']})." if machine else ""
    return f"{said}. 95 % intervals in brackets.{where}"


def _safe(text: str) -> str:
    """Return text that stays in its cell and line, and is no markup."""
    line = " ".join(text.split())
    for sign in ("\\", "|", "<", "`", "*", "[", "_"):
        line = line.replace(sign, f"\\{sign}")
    return line
