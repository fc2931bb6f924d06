"""Writes docs/precisions.md from benchmarks/results/precisions.json: python precisions_page.py [--write].

benchmarks/precision_table.py measured those rows. A test compares the page with this script's output.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "precisions.json"
PAGE = ROOT / "docs" / "precisions.md"
KEYS: Mapping[str, str] = {
    "fp32": "FP32",
    "fp16": "FP16",
    "int8": "INT8 for TensorRT",
    "int8-cpu": "INT8 for the CPU",
}
FEW = 5
"""Groups that are named one by one."""

HEAD = """# Which precisions pass, network by network

Written by `benchmarks/precisions_page.py` from `benchmarks/results/precisions.json`; do not edit.

Every network went through `mammo-export` itself: a precision that is said to pass met every gate of that command. A
difference is that of the score (Dice; of classifiers the share of pictures that are right) to the FP32 graph on the
same validation pictures at the frozen threshold, in brackets its 95 % bootstrap interval over patients. n is small
everywhere: an interval that holds 0 is no proof that nothing was lost, one that was left is a reason to look. A
network that was trained for minutes, as most here were, says less about its precisions than a good one would: what it
gets wrong in FP32 cannot get lost. Times are against FP32 in the same ONNX Runtime on the machine named below; the
speed of INT8 for TensorRT was measured nowhere without a GPU.
Research use only, not a medical device.
"""


def page(table: dict[str, Any]) -> str:
    """Return the page for the content of precisions.json."""
    rows = table["rows"]
    trained = [row for row in rows if row["status"] == "exported" and not row["phantoms"]]
    tiny = [row for row in rows if row["status"] == "exported" and row["phantoms"]]
    others = [row for row in rows if row["status"] != "exported"]
    lines = [HEAD, "## Trained on patients' pictures", ""]
    lines += _table(trained, _judged) if trained else ["None was measured.", ""]
    lines += [
        "## On phantoms",
        "",
        "Two epochs on synthetic pictures, in the tiny width where a network has one: whether each form can be made,",
        "and what stands in its way. Differences and times of such networks mean nothing and are left out; what went",
        "back to float was chosen on phantoms, too.",
        "",
    ]
    lines += _table(tiny, _made) if tiny else ["None was measured.", ""]
    lines += ["## Not measured", ""]
    lines += [f"- `{row['name']}`: {row['status']}: {row['why']}" for row in others] or ["Nothing was left out."]
    lines += ["", "## Hazards met", ""]
    for row in (*trained, *tiny):
        lines += _hazards(row)
    lines += ["## Machines and versions", "", *sorted({_machine(row) for row in (*trained, *tiny)})]
    return "\n".join(lines) + "\n"


def _table(rows: list[dict[str, Any]], cell: Callable[[dict[str, Any]], str]) -> list[str]:
    head = ["network", "parameters, input", *KEYS.values()]
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    for row in rows:
        cells = [cell(row["precisions"][key]) if key in row["precisions"] else "not asked for" for key in KEYS]
        lines.append(f"| {_named(row)} | {row['parameters']:,}, {row['input']} | {' | '.join(cells)} |")
    return [*lines, ""]


def _named(row: dict[str, Any]) -> str:
    network = f"`{row['architecture']}`"
    options = ", ".join(f"{name} {value}" for name, value in row["network"].items())
    tuned = ", fine-tuned for INT8" if row["fine_tuned"] else ""
    name = "" if row["name"] == row["architecture"] else f"{row['name']}: "
    return f"{name}{network}{f' ({options})' if options else ''}{tuned}"


def _judged(entry: dict[str, Any]) -> str:
    """Return verdict, difference, speed and size of one precision."""
    parts = [entry["verdict"]]
    difference, parity = entry["difference"], entry["parity"]
    if difference is not None and difference["mean"] is not None:
        parts.append(
            f"{difference['mean']:+.4f} ({difference['low']:+.4f} to {difference['high']:+.4f}), n {difference['n']} "
            f"of {difference['patients']}"
        )
    if parity is not None:
        parts.append(f"logits within {parity['logit_error']:.0e} of torch, n {parity['images']}")
    parts += [
        f"{one['ratio']:.2f} ({one['low']:.2f}–{one['high']:.2f}) times as fast as {one['than']}, {one['backend']}"
        for one in entry["speed"]
    ]
    if entry["bytes"]:
        parts.append(f"{entry['bytes'] / 1e6:.1f} MB")
    return "<br>".join(parts)


def _made(entry: dict[str, Any]) -> str:
    """Return what a graph computes in; of a network that learned nothing, no more can be said."""
    if entry["verdict"] == "not made":
        return "not made"
    counted: dict[str, int] = {}
    for graph in entry["computed_in"]:
        for kind, count in (graph or {}).items():
            counted[kind] = counted.get(kind, 0) + count
    return "made; computes in " + (", ".join(f"{kind} {count}" for kind, count in counted.items()) or "unknown")


def _hazards(row: dict[str, Any]) -> list[str]:
    lines = []
    for key, words in KEYS.items():
        entry = row["precisions"].get(key)
        lines += [] if entry is None else [f"- {words}: {text}" for text in _found(entry, row["phantoms"])]
    return [f"### {row['name']}{' (phantoms)' if row['phantoms'] else ''}", "", *(lines or ["None."]), ""]


def _found(entry: dict[str, Any], phantoms: bool) -> list[str]:
    """Return everything about a precision that a reader who exports a network like it should know."""
    found = []
    if entry["batch_norms_left"]:
        found.append(f"batch norms that no convolution in front takes up: {entry['batch_norms_left']}")
    found += [f"stay FP32 ({count}): {why}" for why, count in entry["islands"].items()]
    found += [f"layers that stay float ({count}): {why}" for why, count in entry["kept_float"].items()]
    if entry["reverted"]:
        some = ", ".join(entry["reverted"][:FEW]) + (", …" if len(entry["reverted"]) > FEW else "")
        found.append(f"groups back in float for accuracy ({len(entry['reverted'])}): {some}")
    if entry["calibrator"] and not phantoms:
        found.append(f"best calibrator {entry['calibrator']}{', channels equalised' if entry['equalised'] else ''}")
    if entry["not_finite"]:
        found.append(f"tensors that are NaN or infinite on real pictures: {len(entry['not_finite'])}")
    # What a network that learned nothing misses in accuracy or speed is no hazard of the form.
    return found + ([] if phantoms and entry["verdict"] != "not made" else list(entry["why"]))


def _machine(row: dict[str, Any]) -> str:
    machine, tools = row["machine"] or {}, row["toolchain"] or {}
    place = f"{machine.get('processor', 'unknown processor')}, {machine.get('cores', 'unknown')} cores"
    versions = ", ".join(f"{name} {tools[name]}" for name in ("torch", "onnx", "onnxruntime", "numpy") if name in tools)
    return f"- {place}, {machine.get('instruction_set', 'unknown instruction set')}; {versions}"


def main() -> None:
    """Print the page, or write it with --write."""
    text = page(json.loads(RESULTS.read_text(encoding="utf-8")))
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
