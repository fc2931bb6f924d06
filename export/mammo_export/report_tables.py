"""The tables of the report: evidence in, rows of text out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mammo_export.report_words import (
    Evidence,
    counted,
    difference_of,
    entries,
    items_name,
    label,
    listed,
    megabytes,
    score_name,
    ships,
    signed,
    size_of,
    sizes_of,
    status,
    with_interval,
)
from mammo_export.speed import Speed

FLAGS: Mapping[str, str] = {
    "appeared": "Masks that FP32 does not draw",
    "vanished": "Masks that only FP32 draws",
    "lost": "True lesions that only FP32 finds",
    "changed_class": "Another class is predicted",
    "unusable": "No usable answer",
}


UNBROKEN = 32
"""Letters of a text that stays in one line: a number with its interval."""


@dataclass(frozen=True)
class Cell:
    """A cell with several lines, or with a meaning that is coloured as well as said."""

    lines: tuple[str, ...]
    mood: str = ""
    """"good", "reserve", "bad" or nothing."""

    @property
    def kind(self) -> str:
        """Its classes in the page; short texts are not broken."""
        short = len(self.lines) == 1 and len(self.lines[0]) <= UNBROKEN
        return f"{self.mood} {'number' if short else ''}".strip()


@dataclass(frozen=True)
class Table:
    """A table with a caption; the first cell of each row is its header."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


Row = Sequence[str | Cell]


def table(caption: str, head: Sequence[str], rows: Sequence[Row]) -> Table | None:
    """Return a table of texts, None without rows."""
    made = tuple(tuple(c if isinstance(c, Cell) else Cell((c,)) for c in row) for row in rows)
    return Table(caption, tuple(head), made) if made else None


def summary(evidence: Evidence) -> Table | None:
    """Return one row for each precision: what a reader needs first."""
    spec = evidence["spec"]
    rows: list[Row] = []
    for key, entry in entries(evidence).items():
        found, (mood, _) = difference_of(entry), status(evidence, key, entry)
        change = "reference" if key == "fp32" else "–" if found is None else with_interval(found)
        n = "–" if found is None else str(found["n"])
        fast = [f"{one['ratio']:.2f} ({one['low']:.2f} to {one['high']:.2f})" for one in entry.get("speed") or ()]
        rows.append([
            label(key), Cell((str(entry.get("verdict", "")),), mood), "yes" if ships(evidence, key) else "no",
            change, n, megabytes(size_of(evidence, key)), fast[0] if fast else "–",
        ])  # fmt: skip
    head = ("Graph", "Verdict", "In the bundle", f"Change of {score_name(spec)} (95 %)", f"n {items_name(spec)}",
            "Size", "Times as fast as FP32 on a CPU (95 %)")  # fmt: skip
    return table("All graphs, one row each", head, rows)


def scores(evidence: Evidence) -> Table | None:
    """Return scores and their differences."""
    spec = evidence["spec"]
    rows: list[Row] = []
    for key, entry in entries(evidence).items():
        found = difference_of(entry)
        if found is None or found["mean"] is None:
            continue
        mood = status(evidence, key, entry)[0]
        absolute = found.get("mean_absolute")
        rows.append([
            label(key), str(found["n"]), str(found["patients"]), _plain(found.get("reference")),
            _plain(found.get("candidate")), Cell((with_interval(found),), "bad" if mood == "bad" else ""),
            "–" if absolute is None else f"{absolute:.4f}",
        ])  # fmt: skip
    score = score_name(spec)
    head = ("Graph", f"n {items_name(spec)}", "Patients or groups", f"{score}, FP32", f"{score}, this graph",
            "Change (95 %)", "Mean size of a change")  # fmt: skip
    return table(f"Mean {score} of each graph against FP32, paired", head, rows)


def _plain(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def strata(evidence: Evidence) -> Table | None:
    """Return the differences by lesion size."""
    rows = [
        [label(key), size, str(own["n"]), str(own["patients"]), with_interval(own)]
        for key, entry in entries(evidence).items()
        for size, own in sizes_of(difference_of(entry)).items()
        if own["mean"] is not None
    ]
    score = score_name(evidence["spec"])
    return table(f"Change of {score} by lesion size", ("Graph", "Lesion size", "n", "Patients or groups",
                                                       f"Change of {score} (95 %)"), rows)  # fmt: skip


def flagged(evidence: Evidence) -> Table | None:
    """Return by name what appeared, vanished, was lost or changed."""
    rows = [
        [label(key), words, str(len(found[name])), listed(found[name], 60)]
        for key, entry in entries(evidence).items()
        if (found := difference_of(entry)) is not None
        for name, words in FLAGS.items()
        if found.get(name)
    ]
    return table("Masks that appeared or vanished, by name", ("Graph", "What", "How many", "Names"), rows)


def worst(evidence: Evidence) -> Table | None:
    """Return the largest losses by name."""
    rows: list[Row] = [
        [label(key), Cell(tuple(f"{name} {signed(change, 3)}" for name, change in found["worst"][:6]))]
        for key, entry in entries(evidence).items()
        if (found := difference_of(entry)) is not None and found.get("worst")
    ]
    return table("Largest losses", ("Graph", f"Change of {score_name(evidence['spec'])} against FP32"), rows)


def candidates(evidence: Evidence) -> Table | None:
    """Return the ways of calibrating that were tried; the chosen one is marked."""
    rows: list[Row] = []
    for key, entry in entries(evidence).items():
        made = entry.get("made") or {}
        for one in made.get("candidates") or ():
            chosen = (one["calibrator"], one["equalised"]) == (made.get("calibrator"), made.get("equalised"))
            rows.append([
                label(key), one["calibrator"], "yes" if one["equalised"] else "no", with_interval(one),
                str(one.get("n", "–")), Cell(("chosen",), "good") if chosen else "",
            ])  # fmt: skip
    head = ("Graph", "Calibrator", "Channels equalised", f"Change of {score_name(evidence['spec'])} (95 %)", "n", "")
    return table("Ways of quantising that were tried, before any layer went back to float", head, rows)


def islands(evidence: Evidence) -> Table | None:
    """Return what stays in a higher precision, and why."""
    rows: list[Row] = []
    for key, entry in entries(evidence).items():
        made = entry.get("made") or {}
        for one in made.get("islands") or ():
            rows.append([label(key), one["node"], one["operator"], one["why"]])
        for group, why in sorted((made.get("kept_float") or {}).items()):
            rows.append([label(key), group, "–", why])
        for group in made.get("reverted") or ():
            rows.append([label(key), group, "–", "went back so that accuracy passes"])
    return table("What computes in a higher precision inside a lower one", ("Graph", "Node", "Operator", "Why"), rows)


def speeds(evidence: Evidence) -> Table | None:
    """Return what was timed in one run, in turns."""
    timing = evidence.get("timing")
    if not timing:
        return None
    blocks = {name: tuple(own) for name, own in timing["blocks_ms"].items()}
    order = list(entries(evidence))
    speed = Speed(blocks, 0, True, 0, timing["batch"], timing["threads"], timing["machine"], None)

    def ratio(name: str, than: str) -> str:
        if than not in blocks or name == than:
            return "–"
        found = speed.ratio(name, than)
        return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"

    rows = [
        [
            label(name) if name in entries(evidence) else "PyTorch, eager", f"{timing['median_ms'][name]:.1f} ms",
            ratio(name, "torch"), ratio(name, "fp32"), _verdict(evidence, name), megabytes(size_of(evidence, name)),
        ]
        for name in sorted(blocks, key=lambda one: (one in order, order.index(one) if one in order else 0, one))
    ]  # fmt: skip
    head = ("Contestant", "Median time of a call", "Times as fast as PyTorch (95 %)", "Times as fast as FP32 (95 %)",
            "Asked for", "Size")  # fmt: skip
    return table("Speed on the CPU of the exporting machine, batch "
                 f"{timing['batch']}, {counted(timing['threads'], 'threads')}", head, rows)  # fmt: skip


def _verdict(evidence: Evidence, key: str) -> str | Cell:
    for one in entries(evidence).get(key, {}).get("speed") or ():
        if one.get("limit") is not None:
            kept = "reached" if one["passed"] else "not reached"
            return Cell((f"{one['limit']:.2f} times: {kept}",), "good" if one["passed"] else "reserve")
    return "–"
