"""Pictures of a run: learning curves, and a sheet of its worst and best cases. The only file that draws charts."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from mammo_runtime.atomic import whole_file
from mammo_runtime.errors import UsageError

TRUTH, PREDICTION = "#22cc44", "#ff3030"
PANEL_SIDE_PX = 512
"""Pictures are shrunk to this for the sheet."""


@dataclass(frozen=True, eq=False)
class Case:
    """One panel of the sheet."""

    name: str
    pixels: np.ndarray
    """uint8 [rows, columns], already windowed."""
    truth: np.ndarray
    """bool [rows, columns]."""
    mask: np.ndarray
    """bool [rows, columns]."""
    dice: float


def curves_png(log: Path, output: Path) -> None:
    """Draw loss and validation Dice over the epochs of `log.csv`, with phase boundary and best epoch.

    Raises UsageError when the log holds no epoch, OutputError when the picture cannot be written.
    """
    with log.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise UsageError(f"{log} holds no epoch")
    columns = {name: np.array([float(row[name]) for row in rows]) for name in rows[0]}
    epoch, dice = columns["epoch"], columns["validation_dice"]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(epoch, columns["train_loss"], color="#3366aa", label="training")
    top.plot(epoch, columns["validation_loss"], color="#dd7711", label="validation")
    top.set_ylabel("loss")
    bottom.plot(epoch, dice, color="#dd7711", label="validation")
    bottom.set(ylabel="Dice on the network's grid", xlabel="epoch", ylim=(0, 1))
    best = int(np.argmax(dice))
    bottom.plot(
        epoch[best], dice[best], "o", color="#22884a", label=f"best: {dice[best]:.3f} at epoch {epoch[best]:.0f}"
    )
    phases = columns["phase"]
    for axes in (top, bottom):
        for change in np.flatnonzero(np.diff(phases)):
            axes.axvline(epoch[change] + 0.5, color="#888888", linestyle="--", label="encoder unfrozen")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(epoch) == 1:
            for line in axes.get_lines():
                line.set_marker("o")
    _save(figure, output)


def cases_png(worst: Sequence[Case], best: Sequence[Case], output: Path, columns: int = 6) -> None:
    """Draw two rows of panels: truth contour green, prediction contour red, name and Dice above each.

    Either row may be empty, not both (UsageError). Raises OutputError when the picture cannot be written.
    """
    lines = [(title, cases) for title, cases in (("worst", worst), ("best", best)) if cases]
    if not lines:
        raise UsageError("no case to draw")
    columns = min(columns, max(len(cases) for _, cases in lines))
    figure = Figure(figsize=(2.6 * columns, 3.0 * len(lines) + 0.4), layout="constrained")
    grid = figure.subplots(len(lines), columns, squeeze=False)
    for (title, cases), row in zip(lines, grid):
        for axes in row:
            axes.set_axis_off()
        for case, axes in zip(cases, row):
            _draw(axes, case)
        row[0].annotate(
            title, (0, 0.5), (-8, 0), xycoords="axes fraction", textcoords="offset points",
            rotation=90, ha="right", va="center",
        )  # fmt: skip
    handles = [Line2D([], [], color=TRUTH, label="truth"), Line2D([], [], color=PREDICTION, label="prediction")]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    _save(figure, output)


def _draw(axes: Axes, case: Case) -> None:
    rows, columns = case.pixels.shape
    factor = min(1.0, PANEL_SIDE_PX / max(rows, columns))
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    shrunk = cv2.resize(case.pixels, size, interpolation=cv2.INTER_AREA)
    axes.imshow(shrunk, cmap="gray", vmin=0, vmax=255)
    for mask, colour in ((case.truth, TRUTH), (case.mask, PREDICTION)):
        # Outlines are found before shrinking, so that a finding of a few pixels stays visible.
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        for outline in outlines:
            points = (outline.reshape(-1, 2) + 0.5) * factor - 0.5
            closed = np.concatenate([points, points[:1]])
            axes.plot(closed[:, 0], closed[:, 1], color=colour, linewidth=1.2, solid_joinstyle="round")
    axes.set(xlim=(-0.5, size[0] - 0.5), ylim=(size[1] - 0.5, -0.5))
    axes.set_title(f"{case.name}\nDice {case.dice:.3f}", fontsize=9)


def _save(figure: Figure, output: Path) -> None:
    with whole_file(output) as path:
        # Without the date and version the same data give the same file.
        FigureCanvasAgg(figure).print_figure(path, format="png", dpi=110, metadata={"Software": None})
