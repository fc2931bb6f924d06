"""Plots of the report as SVG whose letters are outlines: no font is needed, and the same data give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

INK, SOFT, LINE = "#17212a", "#51606c", "#c5ced5"
GOOD, BAD, LIMIT = "#0b5c7a", "#b3261e", "#b3261e"
WIDTH_IN = 5.2
"""Narrow, so that letters are still legible where a phone shrinks the plot."""
ROW_IN = 0.36
LEAST_SPAN = 0.004
"""Of the score axis: less would make noise look like an effect."""
WIDEST = 0.08
"""Of the score axis to each side; what lies beyond is drawn as an arrow with its number."""
SALT = "mammo-edge"


@dataclass(frozen=True)
class Mark:
    """One row of a forest plot."""

    name: str
    mean: float
    low: float | None = None
    high: float | None = None
    n: int = 0
    good: bool = True
    limits: tuple[float, ...] = ()
    """Limits on the mean, drawn in this row."""
    low_limits: tuple[float, ...] = ()
    """Limits on the lower end of the interval."""


@dataclass(frozen=True)
class Bar:
    """One row of the sensitivity plot."""

    name: str
    change: float
    disturbance: float
    reverted: bool


def forest_svg(marks: Sequence[Mark], axis: str) -> str:
    """Draw means with intervals, one row each, top down, with the row's own limits. Raises ValueError without any."""
    if not marks:
        raise ValueError("a forest plot needs at least one row")
    left, right = _span(marks)
    figure, axes = _canvas(len(marks), [f"{mark.name}  (n {mark.n})" for mark in marks])
    axes.axvline(0, color=SOFT, linewidth=1)
    for row, mark in enumerate(marks):
        colour = GOOD if mark.good else BAD
        if mark.low is not None and mark.high is not None:
            axes.plot([max(mark.low, left), min(mark.high, right)], [row, row], color=colour, linewidth=2.2)
        if left <= mark.mean <= right:
            axes.plot(mark.mean, row, "o", color=colour, markersize=6)
        else:
            _beyond(axes, mark, row, left, right)
        for values, style in ((mark.limits, "-"), (mark.low_limits, ":")):
            for value in values:
                if left <= value <= right:
                    axes.plot([value, value], [row - 0.38, row + 0.38], color=LIMIT, linewidth=1.3, linestyle=style)
    span = right - left
    axes.set_xlim(left - 0.04 * span, right + 0.04 * span)
    axes.set_xlabel(axis, color=INK)
    _legend(figure, marks)
    return _svg(figure)


def sensitivity_svg(bars: Sequence[Bar], axis: str) -> str:
    """Draw what each group costs alone, top down; those that went back are marked. Raises ValueError without any."""
    if not bars:
        raise ValueError("a sensitivity plot needs at least one row")
    figure, axes = _canvas(len(bars), [_short(bar.name) for bar in bars], ROW_IN * 0.72)
    axes.axvline(0, color=SOFT, linewidth=1)
    for row, bar in enumerate(bars):
        colour = BAD if bar.reverted else GOOD
        axes.barh(row, bar.change, height=0.62, color=colour)
        axes.plot([-bar.disturbance, -bar.disturbance], [row - 0.36, row + 0.36], color=INK, linewidth=1.2)
    reach = max(1e-6, *(max(abs(bar.change), bar.disturbance) for bar in bars))
    axes.set_xlim(-1.08 * reach, max(0.35 * reach, 1.08 * max(bar.change for bar in bars)))
    axes.set_xlabel(axis, color=INK)
    handles = [Line2D([], [], color=GOOD, linewidth=6, label="mean change, stays INT8")]
    if any(bar.reverted for bar in bars):
        handles.append(Line2D([], [], color=BAD, linewidth=6, label="mean change, went back"))
    handles.append(Line2D([], [], color=INK, linewidth=1.2, label="mean size of single changes"))
    figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False, fontsize=9)
    return _svg(figure)


def _canvas(rows: int, names: Sequence[str], row_in: float = ROW_IN) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(WIDTH_IN, row_in * rows + 1.5), layout="constrained")
    axes = figure.subplots()
    axes.set_yticks(range(rows), names, fontsize=9.5, color=INK)
    axes.set_ylim(rows - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=9, colors=INK)
    axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(5))
    axes.grid(axis="x", color=LINE, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color(SOFT)
    return figure, axes


def _span(marks: Sequence[Mark]) -> tuple[float, float]:
    """Return the ends of the axis: everything drawn, but no farther than `WIDEST`."""
    values = [0.0]
    for mark in marks:
        ends = (mark.mean, mark.mean if mark.low is None else mark.low, mark.mean if mark.high is None else mark.high)
        values += [*ends, *mark.limits, *mark.low_limits]
    return max(min(-LEAST_SPAN / 2, *values), -WIDEST), min(max(LEAST_SPAN / 2, *values), WIDEST)


def _beyond(axes: Axes, mark: Mark, row: int, left: float, right: float) -> None:
    """Say where a mean lies that the axis does not reach."""
    below = mark.mean < left
    place, sign = (left, "<") if below else (right, ">")
    axes.plot(place, row, sign, color=BAD, markersize=8)
    axes.annotate(
        f"{mark.mean:+.3f}".replace("-", "−"), (place, row), (9 if below else -9, 0), textcoords="offset points",
        ha="left" if below else "right", va="center", fontsize=9, color=BAD,
    )  # fmt: skip


def _legend(figure: Figure, marks: Sequence[Mark]) -> None:
    handles = []
    if any(mark.low is not None for mark in marks):
        handles.append(Line2D([], [], color=GOOD, marker="o", linewidth=2.2, label="mean with 95 % interval"))
    if any(mark.limits for mark in marks):
        handles.append(Line2D([], [], color=LIMIT, linewidth=1.3, label="limit of the mean"))
    if any(mark.low_limits for mark in marks):
        handles.append(Line2D([], [], color=LIMIT, linewidth=1.3, linestyle=":", label="limit of the lower end"))
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=1, frameon=False, fontsize=9)


def _short(name: str, most: int = 30) -> str:
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-(most // 2) :]}"


def _svg(figure: Figure) -> str:
    content = io.StringIO()
    # Letters as outlines, identifiers from a fixed salt, no date and no version: the same data give the same text.
    with matplotlib.rc_context({"svg.fonttype": "path", "svg.hashsalt": SALT, "font.family": "DejaVu Sans"}):
        FigureCanvasSVG(figure)
        figure.savefig(content, format="svg", metadata={"Date": None, "Creator": None})
    return content.getvalue()
