"""The end of a run: counts, exit code, and the tables and report written from the ledger."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from mammo_runtime import __version__
from mammo_runtime.atomic import write_text
from mammo_runtime.bundle import LoadedModel
from mammo_runtime.errors import EXIT_MEANING, ExitCode
from mammo_runtime.ledger import Ledger
from mammo_runtime.machine import machine_record
from mammo_runtime.records import Record
from mammo_runtime.tasks import TASKS
from mammo_runtime.writers.report import write_report
from mammo_runtime.writers.tables import write_results_csv, write_results_jsonl


def run_record(
    model: LoadedModel,
    ledger: Ledger,
    sources: Sequence[bytes],
    started: datetime,
    total_s: float,
    threshold: float | None = None,
) -> dict[str, Any]:
    """Return run.json's content for the given inputs (the ledger's keys), as the ledger holds them.

    `threshold` is the user's, None for the model's own.
    """
    counts = dict.fromkeys(("inputs", "ok", "failed", "skipped", "with_findings", "findings"), 0)
    predicted: dict[str, int] = {}
    for record in ledger.records(sources):
        counts["inputs"] += 1
        counts[record["status"]] += 1
        counts["with_findings"] += bool(record["findings"])
        counts["findings"] += len(record["findings"])
        if record["predicted_class"] is not None:
            predicted[record["predicted_class"]] = predicted.get(record["predicted_class"], 0) + 1
    code = exit_code(counts)
    spec = model.spec
    # A class map and a classifier have no threshold, whatever the spec's field says.
    own = spec.threshold if TASKS[spec.task].thresholded else None
    return {
        "toolkit_version": __version__,
        "started": started.isoformat(timespec="seconds"),
        "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "total_s": round(total_s, 3),
        "model": {
            "name": spec.name,
            "file": model.file,
            "why": model.why,
            "sha256": model.sha256,
            "decoder_sha256": model.decoder_sha256,
            "task": spec.task.value,
            "classes": list(spec.classes),
            "modality": spec.modality.value,
            "input": f"{spec.input.mode.value} {spec.input.height}x{spec.input.width}",
            "threshold": own if threshold is None else threshold,
            "own_threshold": own,
            "licence": spec.licence,
        },
        "backend": model.session.backend,
        "precision": spec.precision.value,
        "counts": counts,
        "predicted_classes": predicted,
        "exit_code": int(code),
        "exit_meaning": EXIT_MEANING[code],
        "machine": machine_record(),
    }


TABLES = ("results.jsonl", "results.csv", "report.html", "run.json")


def exit_code(counts: dict[str, int]) -> ExitCode:
    """Return the run's exit code: 0 all done, 3 some failed, 4 none done and some failed, 2 nothing suitable."""
    if counts["failed"]:
        return ExitCode.SOME_FAILED if counts["ok"] else ExitCode.ALL_FAILED
    return ExitCode.DONE if counts["ok"] else ExitCode.USAGE


def write_tables(output: Path, ledger: Ledger, sources: Sequence[bytes], summary: dict[str, Any]) -> None:
    """Write results.jsonl, results.csv, report.html and, last, run.json: where it stands, the run is complete."""
    write_results_jsonl(output / "results.jsonl", ledger.records(sources))
    write_results_csv(output / "results.csv", ledger.records(sources))
    current = iter(sources)
    latest: list[bytes] = []

    def records() -> Iterator[Record]:
        for source in current:
            found = ledger.find(source)
            if found is not None:
                latest[:] = [source]
                yield found[1]

    # The report asks for a picture while it writes that record's card, so the latest record is the one meant.
    write_report(output / "report.html", summary, records(), lambda _: ledger.thumbnail(latest[0]))
    write_text(output / "run.json", json.dumps(summary, indent=1, ensure_ascii=True) + "\n")
