"""What `mammo-train models` prints: every network with the parameters counted on the network itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mammo_train.models import ARCHITECTURES, Architecture, count_parameters
from mammo_train.study_presets import PRESETS

COLUMNS = ("name", "study", "input", "outputs", "widths", "task", "loss")


def model_rows(architectures: Mapping[str, Architecture] | None = None) -> list[dict[str, Any]]:
    """Return every network (or the given ones) as JSON-ready objects; takes seconds, since each width is built."""
    return [_row(name, entry) for name, entry in (architectures or ARCHITECTURES).items()]


def table_lines(rows: list[dict[str, Any]], heading: bool = True) -> list[str]:
    """Return the rows as a table for people: columns divided by two spaces, widths with their parameters."""
    cells: list[tuple[str, ...]] = [COLUMNS] if heading else []
    cells += [_cells(row) for row in rows]
    if not cells:
        return []
    sizes = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(size) for cell, size in zip(line, sizes, strict=True)).rstrip() for line in cells]


def _row(name: str, entry: Architecture) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": name,
        "seed": entry.study,
        "summary": entry.summary,
        "task": entry.task.value,
        "input": {"channels": entry.channels, "height": entry.height, "width": entry.width},
        "outputs": entry.classes,
        "widths": {width: list(filters) for width, filters in entry.widths.items()},
        "default_width": next(iter(entry.widths)),
        "parameters": {width: count_parameters(name, width=width) for width in entry.widths},
        "loss": entry.loss,
        "options": dict(entry.options),
        "presets": list(PRESETS.get(name, ("default",))),
    }
    if entry.critics is not None:
        image_and_mask = entry.channels + entry.classes
        critics = entry.critics(image_and_mask).critics
        each = sum(p.numel() for p in critics[0].parameters())
        row["critics"] = {"count": len(critics), "parameters": each}
    return row


def _cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    grid, counts = row["input"], row["parameters"]
    widths = ", ".join(f"{width} {number:,}" for width, number in counts.items())
    if "critics" in row:
        widths += f" (+ {row['critics']['count']} critics x {row['critics']['parameters']:,})"
    size = f"{grid['channels']}x{grid['height']}x{grid['width']}"

    return (row["name"], row["seed"], size, str(row["outputs"]), widths, row["task"], row["loss"])
