"""Writes docs/reproduction.md from benchmarks/results/reproduction.json: python reproduction_page.py [--write] [OUT].

`mammo-train reproduce all` measured those rows; benchmarks/reproduction/train.sh holds the commands. With OUT, what it
left there, the rows of systems that were trained for more epochs there are taken over first. A test compares the page
with this script's output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "reproduction.json"
PAGE = ROOT / "docs" / "reproduction.md"

HEAD = """# Reproduction of the published systems

Written by `benchmarks/reproduction_page.py` from `benchmarks/results/reproduction.json`; do not edit.

**Reported and measured numbers cannot be compared with each other**: the studies used CBIS-DDSM, DMID, BCDR-D01 and
BCSS, which are not at hand, mostly with splits that share patients. Measured here: mini-MIAS and CDD-CESM mammograms
(mass systems) and BUSI ultrasound (study 002), by the fixed splits that share no patient (BUSI: no near-duplicate
group). Test = fold 0, never seen in training or selection; in brackets the 95 % bootstrap interval over patients or
groups. Each system was trained for the time in its row on the machine named below, far less than its study's epochs:
a row shows what this toolkit does with a network in that time, not what the network can do. The fixed split of BUSI
misses some near-duplicates: `mammo-train check-index --near` names 16 pairs of pictures that look alike across its
folds, so BUSI's numbers are slightly too good; the split is kept so that they stay comparable. Where a row says
"tiny" or a grid below the study's, that is what two CPU cores afford. Full-size SAM and MedSAM, and the L widths,
need a GPU and the published weights, which were not at hand. "No model" in a row is what filling each box (crops) or
marking every pixel gets on the same items, so it holds for the other rows on those items, too: a system is worth what
it has above that. The network of `mobilenetv2_resunet` was trained longer, our way, for the bundled models: their
numbers are in the README.
Research use only, not a medical device.
"""


def page(table: dict[str, Any]) -> str:
    """Return the page for the content of reproduction.json."""
    rows = table["rows"]
    lines = [HEAD, "## Results", ""]
    lines += [
        "| system | network, parameters | reported (data) | measured on test | n (groups) | trained |",
        "|---|---|---|---|---|---|",
    ]
    lines += [_result_row(row) for row in rows]
    lines += ["", "## Reported rows that contradict themselves", ""]
    flagged = [(row["system"], r) for row in rows for r in row["reported"] if r["problem"]]
    lines += [f'- {system}, "{r["label"]}": {r["problem"]}' for system, r in flagged] or ["None."]
    lines += ["", "## Settings and notes", ""]
    first: dict[str, str] = {}
    for row in rows:
        lines += _notes(row, first.setdefault(row["note"], row["system"]))
    lines += ["", "## Machines", ""]
    lines += sorted({_machine(row) for row in rows if row["status"] == "trained"}) or ["Nothing was trained."]
    return "\n".join(lines) + "\n"


def _result_row(row: dict[str, Any]) -> str:
    width = f" {row['network']['width']}" if "width" in row["network"] else ""
    network = f"`{row['architecture']}`{width}, {row['parameters']:,}"
    reported = "<br>".join(_reported(r) for r in row["reported"]) or "–"
    if row["status"] != "trained":
        return f"| {row['system']} | {network} | {reported} | {row['status']}: {row['why']} | – | – |"
    test = row["measured"]["test"]
    measured = "<br>".join(f"{name} {_value(value)}" for name, value in test["metrics"].items())
    trained = f"{row['settings']['epochs']} epochs, {row['trained_s'] / 60:.1f} min, {row['settings']['input']}"
    return (
        f"| {row['system']} | {network} | {reported} | {measured} "
        f"| {test['n']} {test['item']}s ({test['n_patients']}) | {trained} |"
    )


def _reported(reported: dict[str, Any]) -> str:
    values = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in reported["values"].items())
    mark = " (contradicts itself)" if reported["problem"] else ""
    return f"{reported['label']}: {values}{mark} ({reported['data']})"


def _value(estimate: dict[str, Any]) -> str:
    if estimate["value"] is None:
        return "undefined"
    text = f"{estimate['value']:.3f}"
    return text if estimate["low"] is None else f"{text} ({estimate['low']:.3f}–{estimate['high']:.3f})"


def _notes(row: dict[str, Any], first: str) -> list[str]:
    """Return what is to be said of a row; a preset's note stands with the `first` system that has it."""
    note = row["note"] if first == row["system"] else f"Note as for {first}."
    lines = [f"### {row['system']}", "", f"Study {row['study']}, preset `{row['preset']}`. {note}".strip(), ""]
    if row["status"] == "trained":
        settings, config = row["settings"], row["settings"]["config"]
        validation = row["measured"]["validation"]
        scores = ", ".join(f"{name} {_value(value)}" for name, value in validation["metrics"].items())
        exported, inferred = row["exported"], row["inferred"]
        lines += [
            f"- Trained on {'; '.join(row['measured']['data'])}",
            f"- Validation ({validation['n']} {validation['item']}s): {scores}",
            f"- {config['loss']}, {config['optimizer']} {config['rate']:g}, batch {config['batch_size']}, best epoch "
            f"{settings['best_epoch']} of {settings['epochs']}, stopped by {settings['stopped_by']}; "
            f"threshold {settings['threshold']:g}; encoder weights {settings.get('encoder_weights', 'none')}",
            f"- Export: {exported['verdict']}; `mammo-infer`: {inferred['ok']} of {inferred['images']} test pictures, "
            f"exit code {inferred['exit_code']}, {inferred['backend']}",
            f"- Differs from the preset: {_listed(row['deviations'])}",
            f"- Weights sha256 `{row['weights_sha256'][:16]}…`",
            "",
        ]
    return lines


def _listed(deviations: dict[str, Any]) -> str:
    changed = {k: v for k, v in deviations.items() if v not in (None, False) and (k, v) != ("scale", 1.0)}
    return ", ".join(f"{name} {value}" for name, value in changed.items()) or "in nothing"


def _machine(row: dict[str, Any]) -> str:
    machine = row["machine"]
    software = f"{machine['system']}, Python {machine['python']}, torch {machine['torch']}"
    return f"- {machine['processor']}, {machine['cores']} cores, {software}"


def taken_over(table: dict[str, Any], output: Path) -> dict[str, Any]:
    """Return the table with the rows of OUT/*/row.json whose runs had more epochs."""
    found = {row["system"]: row for row in (json.loads(path.read_text()) for path in output.glob("*/row.json"))}
    rows = [max(row, found.get(row["system"], row), key=_epochs) for row in table["rows"]]
    return {**table, "rows": rows}


def _epochs(row: dict[str, Any]) -> int:
    return int(row["settings"]["epochs"]) if row["status"] == "trained" else 0


def main() -> None:
    """Print the page, or write it with --write; with a folder given, take over its rows."""
    table = json.loads(RESULTS.read_text(encoding="utf-8"))
    for output in (argument for argument in sys.argv[1:] if argument != "--write"):
        table = taken_over(table, Path(output))
        RESULTS.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    text = page(table)
    if "--write" in sys.argv[1:]:
        PAGE.write_text(text, encoding="utf-8")
    else:
        print(text, end="")


if __name__ == "__main__":
    main()
