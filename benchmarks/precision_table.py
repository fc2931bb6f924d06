"""Measures which precisions pass for which network: python precision_table.py -o WORK [--runs DIR] [--tiny].

Every finished run DIR/NAME/run goes through `mammo-export` in a process of its own, into the bundle WORK/NAME; bundles
below --bundles are read as they are. With --tiny, every network without one is trained in its tiny width on phantoms
for two epochs and exported: that shows its form and what stands in the way, not accuracy. What was found goes into
benchmarks/results/precisions.json and, by benchmarks/precisions_page.py, into docs/precisions.md. Interrupted, the
same call goes on: a bundle of the same weights is not made again unless --again is given.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import precisions_page
from mammo_runtime.machine import machine_record
from mammo_train import checkpoint, models
from mammo_train.systems import SYSTEMS

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "precisions.json"
KEYS = ("fp32", "fp16", "int8", "int8-cpu")
MISSED_A_GATE = 6
"""Exit code of `mammo-export` when it wrote a bundle without all that was asked for."""
DIFFERENCE = ("n", "patients", "mean", "low", "high", "reference")
SPEED = ("backend", "than", "ratio", "low", "high", "passed", "batch", "threads")


@dataclass(frozen=True)
class Source:
    """What a row is about."""

    name: str
    bundle: Path
    """Made from the run, or there already."""
    run: Path | None
    phantoms: bool = False
    """Trained for two epochs on synthetic pictures: numbers mean nothing."""


def runs_below(folder: Path, work: Path, phantoms: bool = False) -> Iterator[Source]:
    """Yield the finished runs FOLDER/NAME/run."""
    for path in sorted(folder.glob(f"*/run/{checkpoint.SPEC}")):
        # Its spec is written last but one: a run that is under way has no operating point yet.
        if "operating_point" in json.loads(path.read_text(encoding="utf-8"))["training"]:
            yield Source(path.parents[1].name, work / path.parents[1].name, path.parent, phantoms)


def row_of(source: Source, options: Sequence[str] = (), again: bool = False) -> dict[str, Any]:
    """Export a source where that was not done, and return its row; a failure becomes the row.

    `options` go to `mammo-export`.
    """
    if source.run is not None and (again or not _is_of(source.bundle, source.run)):
        problem = _export(source.run, source.bundle, options)
        if problem:
            spec = checkpoint.load_spec(source.run)
            return {**_about(source, spec.to_dict()), "status": "failed", "why": problem}
    manifest = json.loads((source.bundle / "bundle.json").read_text(encoding="utf-8"))
    return {**_about(source, manifest["spec"]), "status": "exported", "why": "", **_measured(manifest)}


def not_run(name: str) -> dict[str, Any]:
    """Return the row of a network that nothing was at hand of."""
    (system, *_others) = [key for key, known in SYSTEMS.items() if known.architecture == name] or ["NAME"]
    why = f"no finished run was at hand; `mammo-train reproduce {system}` makes one"
    return {"name": name, "architecture": name, "status": "not run", "why": why, "phantoms": False}


def _about(source: Source, spec: Mapping[str, Any]) -> dict[str, Any]:
    size, training = spec["input"], spec["training"]
    return {
        "name": source.name,
        "architecture": spec["architecture"],
        "network": spec["network"],
        "parameters": models.count_parameters(
            spec["architecture"], len(spec["classes"]), size["channels"], **spec["network"]
        ),
        "task": spec["task"],
        "input": f"{size['mode']} {size['channels']}x{size['height']}x{size['width']}",
        "phantoms": source.phantoms,
        "trained_on": [entry["title"] for entry in training.get("data", ())],
        "epochs": training.get("epochs"),
        "fine_tuned": "qat" in training,
    }


def _measured(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a bundle says of its precisions, of those it was written without, too."""
    entries = {**manifest.get("not_shipped", {}), **manifest["precisions"]}
    calibration = manifest.get("calibration") or {}
    return {
        "precisions": {key: _precision(entries[key], manifest) for key in KEYS if key in entries},
        "calibration": {name: calibration.get(name) for name in ("inputs", "folds", "crop")},
        "weights_sha256": (manifest.get("parent_run") or {}).get("weights_sha256"),
        "git_commit": manifest.get("git_commit"),
        "toolchain": manifest.get("toolchain"),
        "machine": (manifest.get("timing") or {}).get("machine"),
    }


def _precision(entry: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    gates, made = entry.get("gates") or {}, entry.get("made") or {}
    difference, parity, form = gates.get("difference"), gates.get("parity"), gates.get("form") or {}
    islands = Counter(f"{island['operator']}: {island['why']}" for island in made.get("islands", ()))
    named = [entry[part] for part in ("file", "prompt_decoder") if entry.get(part)]
    files = [manifest["files"][name] for name in named if name in manifest["files"]]
    return {
        "verdict": entry["verdict"],
        "why": list(entry.get("why", ())),
        "difference": difference and {name: difference[name] for name in DIFFERENCE},
        "by_size": difference and {size: part["mean"] for size, part in difference["by_size"].items()},
        "parity": parity and {name: parity[name] for name in ("logit_error", "images")},
        "speed": [{name: one[name] for name in SPEED} for one in entry.get("speed", ())],
        "bytes": sum(file["bytes"] for file in files) if files and all("bytes" in file for file in files) else None,
        "operators": form.get("operators"),
        "batch_norms_left": form.get("batch_norms_left"),
        "computed_in": made.get("computed_in") or [form.get("computed_in")],
        "islands": dict(sorted(islands.items())),
        "kept_float": dict(Counter(made.get("kept_float", {}).values())),
        "reverted": list(made.get("reverted", ())),
        "calibrator": made.get("calibrator"),
        "equalised": made.get("equalised"),
        "not_finite": list(gates.get("not_finite", ())),
    }


def _is_of(bundle: Path, run: Path) -> bool:
    """Whether a bundle of these weights with all precisions tried is there."""
    if not (bundle / "bundle.json").is_file():
        return False
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    tried = {**manifest.get("not_shipped", {}), **manifest["precisions"]}
    same = (manifest.get("parent_run") or {}).get("weights_sha256") == checkpoint.weights_sha256(run)
    return same and set(KEYS) <= set(tried)


def _export(run: Path, bundle: Path, options: Sequence[str]) -> str:
    """Export; returns "" or what went wrong."""
    command = [sys.executable, "-m", "mammo_export.cli", str(run), "-o", str(bundle), "--overwrite", "--no-ranking"]
    done = subprocess.run([*command, *options, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode in (0, MISSED_A_GATE) and (bundle / "bundle.json").is_file():
        return ""
    last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
    return f"mammo-export ended with exit code {done.returncode}: {' '.join(last)}"


def _tiny(architectures: Sequence[str], work: Path) -> Iterator[Source]:
    """Train each network in its tiny width on phantoms and yield the runs, one after the other."""
    for name in architectures:
        system = next(key for key, known in SYSTEMS.items() if known.architecture == name)
        if not any(one.name == system for one in runs_below(work, work)):
            command = [sys.executable, "-m", "mammo_train.cli", "reproduce", system, "--tiny", "-o", str(work), "-q"]
            subprocess.run(command, check=False, capture_output=True)
        yield from (one for one in runs_below(work, work / "exported", phantoms=True) if one.name == system)


def _sources(wanted: argparse.Namespace) -> list[Source]:
    found = [
        Source(path.parent.name, path.parent, None)
        for folder in wanted.bundles
        for path in sorted(folder.glob("*/bundle.json"))
    ]
    return found + [source for folder in wanted.runs for source in runs_below(folder, wanted.output)]


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder of the bundles")
    parser.add_argument("--runs", type=Path, action="append", default=[], help="folder with NAME/run; repeatable")
    parser.add_argument("--bundles", type=Path, action="append", default=[], help="folder with finished bundles")
    parser.add_argument("--only", action="append", default=[], help="name of a run; repeatable")
    parser.add_argument("--limit", type=int, help="judge on at most so many pictures")
    parser.add_argument("--calibrate", type=int, help="calibrate on at most so many inputs")
    parser.add_argument("--tiny", action="store_true", help="tiny networks on phantoms where there is no run")
    parser.add_argument("--again", action="store_true", help="export anew what was exported")
    wanted = parser.parse_args()
    limits = {"--limit": wanted.limit, "--calibrate": wanted.calibrate}
    options = [text for name, value in limits.items() if value for text in (name, str(value))]
    rows = []
    for source in _sources(wanted):
        if not wanted.only or source.name in wanted.only:
            print(f"== {source.name}", flush=True)
            rows.append(row_of(source, options, wanted.again))
            write(rows, wanted)
    missing = [name for name in models.ARCHITECTURES if name not in {row["architecture"] for row in rows}]
    for source in _tiny(missing, wanted.output / "tiny") if wanted.tiny else ():
        print(f"== {source.name}, tiny", flush=True)
        rows.append(row_of(source, options, wanted.again))
        write(rows, wanted)
    write(rows, wanted)


def write(rows: Sequence[Mapping[str, Any]], wanted: argparse.Namespace) -> None:
    """Write what was found so far, and the page that shows it."""
    known = {row["architecture"] for row in rows}
    limits = {"limit": wanted.limit, "calibrate": wanted.calibrate}
    table = {"schema_version": 1, **limits, "machine": machine_record(),
             "rows": [*rows, *(not_run(name) for name in models.ARCHITECTURES if name not in known)]}  # fmt: skip
    RESULTS.write_text(json.dumps(table, indent=1) + "\n", encoding="utf-8")
    precisions_page.PAGE.write_text(precisions_page.page(table), encoding="utf-8")


if __name__ == "__main__":
    main()
