"""Pictures of a run: learning curves, and a sheet of its worst and best cases. See `pictures_classes` for classes."""

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
from matplotlib.patches import Rectangle

from mammo_runtime.atomic import whole_file
from mammo_runtime.errors import UsageError
from mammo_runtime.mammogram import Box

TRUTH, PREDICTION, PROMPT = "#22cc44", "#ff3030", "#33bbff"
PANEL_SIDE_PX = 512
"""Pictures are shrunk to this for the sheet."""
_COLUMNS = ("epoch", "phase", "train_loss", "validation_loss", "validation_score", "validation_dice")


@dataclass(frozen=True, eq=False)
class Case:
    """One panel of the sheet."""

    name: str
    caption: str
    """What was measured, e.g. "Dice 0.512"."""
    pixels: np.ndarray
    """uint8 [rows, columns] or RGB [rows, columns, 3], already windowed."""
    truth: np.ndarray | None = None
    """bool [rows, columns]; None: no outline."""
    mask: np.ndarray | None = None
    """bool [rows, columns]; None: no outline."""
    box: Box | None = None
    """The prompt, in the panel's own pixels."""


def curves_png(log: Path, output: Path, score: str = "validation score", best_epoch: int | None = None) -> None:
    """Draw loss and validation score over the epochs of `log.csv`, with phase boundary and best epoch.

    `score` names what was validated; `best_epoch` is the one whose weights were kept (None: the highest score's).
    Logs of the first version call the column "validation_dice".
    Raises UsageError when the log holds no epoch, OutputError when the picture cannot be written.
    """
    with log.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    if not rows:
        raise UsageError(f"{log} holds no epoch")
    columns = {name: np.array([float(row[name] or "nan") for row in rows]) for name in _COLUMNS if name in rows[0]}
    epoch, phases = columns["epoch"], columns["phase"]
    scores = columns.get("validation_score", columns.get("validation_dice", np.full(len(rows), np.nan)))
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True)
    top.plot(epoch, columns["train_loss"], color="#3366aa", label="training")
    top.plot(epoch, columns["validation_loss"], color="#dd7711", label="validation")
    top.set_ylabel("loss")
    bottom.plot(epoch, scores, color="#dd7711", label="validation")
    bottom.set(ylabel=score, xlabel="epoch", ylim=(min(0, *_finite(scores)), max(1, *_finite(scores))))
    if np.isfinite(scores).any():
        chosen = np.flatnonzero(epoch == best_epoch)
        best = int(chosen[0]) if chosen.size else int(np.nanargmax(scores))
        label = f"best: {scores[best]:.3f} at epoch {epoch[best]:.0f}"
        bottom.plot(epoch[best], scores[best], "o", color="#22884a", label=label)
    for axes in (top, bottom):
        for change in np.flatnonzero(np.diff(phases)):
            axes.axvline(epoch[change] + 0.5, color="#888888", linestyle="--", label="encoder unfrozen")
        axes.grid(alpha=0.3)
        axes.legend(loc="best", frameon=False)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if len(epoch) == 1:
            for line in axes.get_lines():
                line.set_marker("o")
    save_figure(figure, output)


def _finite(scores: np.ndarray) -> list[float]:
    return [0.0, *scores[np.isfinite(scores)].tolist()]


def cases_png(worst: Sequence[Case], best: Sequence[Case], output: Path, columns: int = 6) -> None:
    """Draw two rows of panels: truth contour green, prediction contour red, prompt box blue, captions above each.

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
    shown = [case for _, cases in lines for case in cases]
    kinds = (("truth", TRUTH, "truth"), ("mask", PREDICTION, "prediction"), ("box", PROMPT, "box given to the model"))
    handles = [
        Line2D([], [], color=colour, label=label, linestyle="--" if name == "box" else "-")
        for name, colour, label in kinds
        if any(getattr(case, name) is not None for case in shown)
    ]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False)
    save_figure(figure, output)


def shrunk(pixels: np.ndarray) -> tuple[np.ndarray, float]:
    """Return a picture of at most `PANEL_SIDE_PX`, by area averaging, and the factor it was scaled by."""
    rows, columns = pixels.shape[:2]
    factor = min(1.0, PANEL_SIDE_PX / max(rows, columns))
    size = (max(1, round(columns * factor)), max(1, round(rows * factor)))
    return cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), factor


def _draw(axes: Axes, case: Case) -> None:
    panel, factor = shrunk(case.pixels)
    axes.imshow(panel, cmap="gray", vmin=0, vmax=255)
    for mask, colour in ((case.truth, TRUTH), (case.mask, PREDICTION)):
        if mask is None:
            continue
        # Outlines are found before shrinking, so that a finding of a few pixels stays visible.
        outlines, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        for outline in outlines:
            points = (outline.reshape(-1, 2) + 0.5) * factor - 0.5
            closed = np.concatenate([points, points[:1]])
            axes.plot(closed[:, 0], closed[:, 1], color=colour, linewidth=1.2, solid_joinstyle="round")
    if case.box is not None:
        corner = (case.box.x * factor - 0.5, case.box.y * factor - 0.5)
        size = (case.box.width * factor, case.box.height * factor)
        axes.add_patch(Rectangle(corner, *size, fill=False, edgecolor=PROMPT, linewidth=1.0, linestyle="--"))
    axes.set(xlim=(-0.5, panel.shape[1] - 0.5), ylim=(panel.shape[0] - 0.5, -0.5))
    axes.set_title(f"{case.name}\n{case.caption}", fontsize=9)


def save_figure(figure: Figure, output: Path) -> None:
    """Write a figure as PNG. Raises OutputError when that fails."""
    with whole_file(output) as path:
        # Without the date and version the same data give the same file.
        FigureCanvasAgg(figure).print_figure(path, format="png", dpi=110, metadata={"Software": None})
