"""What `mammo-infer` prints while it runs and at its end."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click


def printable(text: str) -> str:
    """Return text that neither steers the terminal nor lacks a character there (file names hold any bytes)."""
    visible = "".join(c if c.isprintable() else "?" for c in text)
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return visible.encode(encoding, "replace").decode(encoding)


class Progress:
    """Prints progress: one rewritten line with ETA on a terminal, plain lines otherwise; problems always by name."""

    def __init__(self, quiet: bool, verbose: bool) -> None:
        self._verbose = verbose
        self._quiet = quiet or sys.stderr is None
        self._terminal = not self._quiet and sys.stderr.isatty()
        self._start = self._last = time.monotonic()

    def __call__(self, number: int, total: int, path: str, record: dict[str, Any]) -> None:
        """Report one finished input; see `pipeline.Progress`."""
        if self._quiet:
            return
        try:
            self._report(number, total, path, record)
        except OSError:  # the terminal or log is gone; the run is not
            self._quiet = True

    def _report(self, number: int, total: int, path: str, record: dict[str, Any]) -> None:
        now = time.monotonic()
        line = f"{path}: {record['status']}"
        if record["status"] != "ok":
            self._line(f"{line}: {record['error']}")
        elif self._verbose:
            self._line(f"{line}, {_said(record)}, {sum(record['timings_ms'].values()):.0f} ms")
        if self._terminal or number == total or now - self._last >= 10:
            self._last = now
            left = (now - self._start) / number * (total - number)
            text = f"{number}/{total}  {number / max(1e-9, now - self._start):.1f} images/s  {left:.0f} s left"
            ends = not self._terminal or number == total
            click.echo(f"\r\x1b[K{text}" if self._terminal else text, err=True, nl=ends)

    def _line(self, text: str) -> None:
        click.echo(("\r\x1b[K" if self._terminal else "") + printable(text), err=True)


def closing_lines(summary: dict[str, Any], output: Path) -> None:
    """Print the end of a finished run: notes, counts, where the report lies, exit code."""
    counts = summary["counts"]
    if not summary["deidentified"]:
        for note in summary["notes"]:
            click.echo(printable(f"note: {note}"))
    reused = f" ({counts['reused']} taken over from an earlier run)" if counts["reused"] else ""
    click.echo(
        f"files: {counts['inputs']} = {counts['ok']} done{reused} + {counts['failed']} failed + "
        f"{counts['skipped']} skipped{_found(summary)}"
    )
    name = printable(summary["model"]["name"])
    click.echo(f"{name} {summary['precision']} on {summary['backend']}, {summary['total_s']:.1f} s")
    click.echo(printable(chosen_line(summary["model"]["file"], summary["model"]["why"])))
    click.echo(printable(f"report: {output / 'report.html'}"))
    click.echo(f"exit code {summary['exit_code']}: {summary['exit_meaning']}")


def chosen_line(file: str, why: str) -> str:
    """Return which file was run and why."""
    return f"file: {file} ({why})"


def _said(record: dict[str, Any]) -> str:
    """Return what the model said of one judged image."""
    if record["predicted_class"] is not None:
        return f"class {record['predicted_class']}"
    if record["classes"]:
        return f"{sum(one['area_px'] > 0 for one in record['classes'])} class(es)"
    return f"{len(record['findings'])} finding(s)"


def _found(summary: dict[str, Any]) -> str:
    """Return what the model said of all images together; nothing for class maps, which cannot be counted."""
    if summary["predicted_classes"]:
        return "; " + ", ".join(f"{name}: {count}" for name, count in sorted(summary["predicted_classes"].items()))
    if summary["model"]["threshold"] is None:
        return ""
    return f"; with findings: {summary['counts']['with_findings']}"
