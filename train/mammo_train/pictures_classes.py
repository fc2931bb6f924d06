"""Charts of classes: confusion matrix, reliability diagram, and sheets of label maps with their legend."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from mammo_runtime.errors import UsageError
from mammo_train.pictures import PANEL_SIDE_PX, save_figure, shrunk

PLAIN_CELLS = 30
"""Up to so many classes, percentages are written into the cells."""


@dataclass(frozen=True, eq=False)
class LabelCase:
    """One column of a sheet of label maps."""

    name: str
    caption: str
    pixels: np.ndarray
    """uint8 [rows, columns] or RGB [rows, columns, 3]."""
    truth: np.ndarray
    """uint8 [rows, columns], numbers of classes; others are not judged."""
    labels: np.ndarray
    """uint8 [rows, columns], numbers of classes."""


def confusion_png(matrix: Sequence[Sequence[int]], classes: Sequence[str], output: Path, unit: str = "pixels") -> None:
    """Draw a confusion matrix, each row as percent of its truth; `unit` is what was counted.

    Raises UsageError when it is no square of the classes, OutputError when the picture cannot be written.
    """
    counts = np.asarray(matrix, np.float64)
    if counts.shape != (len(classes), len(classes)):
        raise UsageError(f"a confusion matrix of {len(classes)} classes cannot be {list(counts.shape)}")
    wanted = counts.sum(axis=1)
    with np.errstate(invalid="ignore"):
        percent = 100 * counts / wanted[:, None]
    k = len(classes)
    longest = max(len(name) for name in classes)
    figure = Figure(figsize=(2.8 + 0.09 * longest + 0.52 * k, 2.2 + 0.09 * longest + 0.46 * k), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    axes.set_xticks(range(k), classes, rotation=90 if k > 4 else 0)
    axes.set_yticks(range(k), [f"{name} ({_short(n)})" for name, n in zip(classes, wanted)])
    axes.set(xlabel="predicted", ylabel=f"truth ({unit})", title="Percent of each row's truth")
    axes.set_xticks(np.arange(-0.5, k), minor=True)
    axes.set_yticks(np.arange(-0.5, k), minor=True)
    axes.grid(which="minor", color="#dddddd", linewidth=0.6)
    axes.tick_params(which="minor", length=0)
    for row, column in np.ndindex(k, k) if k <= PLAIN_CELLS else ():
        value = percent[row, column]
        text = "-" if not np.isfinite(value) else "" if value == 0 else f"{value:.0f}" if value >= 0.5 else "<1"
        colour = "white" if np.isfinite(value) and value > 55 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=8 if k > 8 else 11)
    figure.colorbar(image, ax=axes, label="%", fraction=0.046, pad=0.02)
    save_figure(figure, output)


def reliability_png(calibration: Mapping[str, Any], output: Path) -> None:
    """Draw how often the likeliest class is right against its probability, and how many pictures each bin holds.

    `calibration` is that block of `classification.summarise_classification`. Raises OutputError.
    """
    bins = calibration["bins"]
    filled = [entry for entry in bins if entry["n"]]
    figure = Figure(figsize=(5.2, 6.4), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    top.plot([0, 1], [0, 1], color="#888888", linestyle="--", label="perfectly calibrated")
    confidence, right = ([entry[name] for entry in filled] for name in ("confidence", "right"))
    top.vlines(confidence, confidence, right, color="#cc4444", linewidth=1.5, label="gap")
    top.plot(confidence, right, "o-", color="#3366aa", label="measured")
    ece, brier = (calibration[name]["value"] for name in ("ece", "brier"))
    top.set(xlim=(0, 1), ylim=(0, 1.02), ylabel="fraction right", title=f"ECE {ece:.3f}, Brier {brier:.3f}")
    top.grid(alpha=0.3)
    top.legend(loc="upper left", frameon=False)
    starts, widths = [e["from"] for e in bins], [e["to"] - e["from"] for e in bins]
    bottom.bar(starts, [e["n"] for e in bins], widths, align="edge", color="#99bbdd", edgecolor="white")
    bottom.set(xlabel="probability of the likeliest class", ylabel="pictures")
    bottom.yaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, output)


def label_cases_png(
    worst: Sequence[LabelCase],
    best: Sequence[LabelCase],
    classes: Sequence[str],
    colours: np.ndarray,
    output: Path,
    columns: int = 6,
) -> None:
    """Draw each case as a column: picture, truth, prediction; the legend names the classes that occur.

    `colours` uint8 [classes, 3] RGB. Pixels that are not judged are black in the truth. Either part may be empty,
    not both (UsageError). Raises OutputError when the picture cannot be written.
    """
    parts = [(title, cases[:columns]) for title, cases in (("worst", worst), ("best", best)) if cases]
    if not parts:
        raise UsageError("no case to draw")
    columns = max(len(cases) for _, cases in parts)
    width = max(5.0, 2.0 * columns)
    figure = Figure(figsize=(width, 6.4 * len(parts) + 0.8), layout="constrained")
    grid = figure.subplots(3 * len(parts), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    seen: set[int] = set()
    for number, (title, cases) in enumerate(parts):
        rows = grid[3 * number : 3 * number + 3]
        for label, row in zip(("picture", "truth", "prediction"), rows):
            row[0].annotate(
                f"{title}: {label}", (0, 0.5), (-8, 0), xycoords="axes fraction", textcoords="offset points",
                rotation=90, ha="right", va="center", fontsize=8,
            )  # fmt: skip
        for column, case in enumerate(cases):
            panels = (shrunk(case.pixels)[0], _painted(case.truth, colours), _painted(case.labels, colours))
            for panel, row in zip(panels, rows):
                row[column].imshow(panel, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            rows[0][column].set_title(f"{case.name[-24:]}\n{case.caption}", fontsize=7)
            seen |= {*np.unique(case.truth).tolist(), *np.unique(case.labels).tolist()}
    handles = [Patch(color=colours[c] / 255, label=name) for c, name in enumerate(classes) if c in seen]
    # A column of the longest names of BCSS is 2.3 inches wide.
    fitting = max(1, min(len(handles), int(width / 2.3)))
    figure.legend(handles=handles, loc="outside lower center", ncols=fitting, frameon=False, fontsize=8)
    save_figure(figure, output)


def _painted(labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return RGB uint8 of at most `PANEL_SIDE_PX`; values that are no class are black."""
    table = np.zeros((256, 3), np.uint8)
    table[: len(colours)] = colours
    rows, columns = labels.shape
    factor = min(1.0, PANEL_SIDE_PX / max(rows, columns))
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    return np.asarray(table[cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST)])


def _short(number: float) -> str:
    for limit, letter in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if number >= limit:
            return f"{number / (1e3 if letter == 'k' else limit):.3g} {letter}"
    return f"{number:.0f}"
