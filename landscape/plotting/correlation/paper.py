"""Figures of correlations for papers, drawn by matplotlib."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from landscape.plotting.basics import COLORS, clean, shorten
from landscape.plotting.correlation.shared import (
    MARKED,
    Forest,
    Panel,
    Scatter,
    chance_text,
    estimate_text,
    look_of,
    outcome_of,
    significant,
    symbol_of,
)
from landscape.plotting.paper_style import (
    Sheet,
    Style,
    fitted,
    open_axes,
    panel_width,
    points,
    set_linear_ticks,
    set_ticks,
    text_width,
)

if TYPE_CHECKING:
    import pandas

_SHAPES = ("o", "s", "^", "D", "v")
_PARTIAL = COLORS[5]
_LABEL = 36  # characters of a metric's name


# --- forest -------------------------------------------------------------------------------------------------


def draw_correlations(
    result: pandas.DataFrame, forest: Forest, scatter: Scatter | None, caption: str, style: Style
) -> Figure:
    """The forest plot, the scatter plots below it if there are any, and the text under them."""
    with style.context():
        height = 0.3 + _pitch(forest) * len(forest.rows) + 0.45
        if scatter is None:
            sheet = Sheet(style, style.double, height, caption)
        else:
            wide, high = _scatter_size(scatter, style)
            sheet = Sheet(style, max(style.double, wide), height + 0.15 + high, caption)
            _draw_scatter(sheet, scatter, symbol_of(result), height + 0.15)
        _draw_forest(sheet, result, forest)
        return sheet.figure


def _pitch(forest: Forest) -> float:
    return 0.2 if forest.partial else 0.165  # inches to a row


def _names(forest: Forest) -> list[str]:
    return [shorten(clean(row["metric"]), _LABEL) for row in forest.rows]


def _left(forest: Forest) -> float:
    return 0.2 + max(0.45, *(text_width(name, 7) for name in _names(forest)))


_TEXT = 2.15  # inches of the numbers beside the plot


def _draw_forest(sheet: Sheet, result: pandas.DataFrame, forest: Forest) -> None:
    left, top, pitch, count = _left(forest), 0.3, _pitch(forest), len(forest.rows)
    plot = sheet.figure.style.double - left - _TEXT
    axes = sheet.axes(left, top, plot, pitch * count)
    axes.set(xlim=(-1.05, 1.05), ylim=(count - 0.5, -0.5))
    axes.plot([0, 0], [-0.5, forest.numbers - 0.5], color="0.3", linewidth=points(0.7), zorder=1)
    for place, row in enumerate(forest.rows):
        _draw_row(axes, row, place - 0.14 * forest.partial, plot)
        if np.isfinite(row["partial"]):
            ends = row.get("partial_low", np.nan), row.get("partial_high", np.nan)
            if np.isfinite(ends).all():
                axes.plot(ends, [place + 0.24] * 2, color=_PARTIAL, linewidth=points(0.7), zorder=2)
            axes.plot(row["partial"], place + 0.24, "D", ms=points(3.2), color=_PARTIAL, markeredgewidth=0, zorder=3)
    for edge in {forest.intervals, forest.numbers} - {0, count}:
        axes.axhline(edge - 0.5, color="0.6", linewidth=points(0.5), linestyle=(0, (4, 3)))
    set_ticks(axes.yaxis, range(count), _names(forest))
    set_linear_ticks(axes.xaxis, -1, 1, 4)
    axes.set_xlabel(f"{symbol_of(result)} with {shorten(clean(outcome_of(result)), 30)}")
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    _legend(axes, forest, top)
    _draw_numbers(sheet, result, forest, left + plot, top, pitch)


def _draw_row(axes: Axes, row: dict[str, Any], at: float, width: float) -> None:
    if not np.isfinite(row["estimate"]):
        note = fitted(clean(row["note"]), width + _TEXT - 0.4, 6.5) or "no number"
        axes.text(-1.02, at, note, fontsize=points(6.5), color="0.4", va="center", style="italic", zorder=5)
        return
    color = COLORS[0]
    if np.isfinite([row["low"], row["high"]]).all():
        axes.plot(
            [row["low"], row["high"]], [at, at], color=color, linewidth=points(1.1), solid_capstyle="butt", zorder=2
        )
    face = color if significant(row) else "white"
    axes.plot(
        row["estimate"],
        at,
        "o",
        ms=points(4.2),
        color=color,
        markerfacecolor=face,
        markeredgewidth=points(1.0),
        zorder=4,
    )


def _legend(axes: Axes, forest: Forest, top: float) -> None:
    """Draw a legend above the plot, of those marks only that the plot shows."""
    shown = forest.rows[: forest.numbers]
    circle: dict[str, Any] = {"linestyle": "", "marker": "o", "ms": points(4.2), "color": COLORS[0]}
    handles = []
    if any(significant(row) for row in shown):
        handles.append(Line2D([], [], label=MARKED[True], **circle))
    if any(not significant(row) for row in shown):
        handles.append(Line2D([], [], label=MARKED[False], markerfacecolor="white", **circle))
    if forest.partial:
        style_: dict[str, Any] = {"linestyle": "", "marker": "D", "ms": points(3.2), "color": _PARTIAL}
        handles.append(Line2D([], [], label="partial", **style_))
    place: dict[str, Any] = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "borderaxespad": 0.2}
    axes.legend(handles=handles, ncols=3, handletextpad=0.2, columnspacing=1.2, **place)


def _draw_numbers(
    sheet: Sheet, result: pandas.DataFrame, forest: Forest, left: float, top: float, pitch: float
) -> None:
    """Write estimate with interval, q and n in columns to the right of the plot."""
    level = f"{result.attrs['confidence']:.0%} interval" if "confidence" in result.attrs else "interval"
    columns = ((0.1, "left"), (1.67, "right"), (2.05, "right"))

    def line(y: float, cells: list[str], **options: Any) -> None:
        for (x, side), cell in zip(columns, cells, strict=True):
            sheet.text(left + x, y, cell, ha=side, va="center", fontsize=points(7), **options)

    line(top - 0.1, [f"{symbol_of(result)} [{level}]", "q", "n"], color="0.35")
    for place, row in enumerate(forest.rows):
        known = np.isfinite(row["estimate"])
        cells = [estimate_text(row) if known else "", chance_text(row["q"]) if known else "", str(row["n"])]
        line(top + (place + 0.5) * pitch, cells, fontweight="bold" if significant(row) else "normal")


# --- scatter ------------------------------------------------------------------------------------------------

_HEIGHT = {1: 2.1, 2: 2.0, 3: 1.6, 4: 1.3}  # columns of panels -> inches of a panel
_MARGIN, _GAP, _RIGHT, _ABOVE, _BELOW = 0.62, 0.2, 0.15, 0.36, 0.42  # inches: left, between, right; over, under each


def draw_scatter(result: pandas.DataFrame, scatter: Scatter, caption: str, style: Style) -> Figure:
    """The scatter plots alone, and the text under them."""
    with style.context():
        sheet = Sheet(style, *_scatter_size(scatter, style), caption)
        _draw_scatter(sheet, scatter, symbol_of(result), 0.0)
        return sheet.figure


def _columns(scatter: Scatter) -> int:
    count = len(scatter.panels)
    return count if count <= 2 else 2 if count == 4 else 3 if count <= 9 else 4


def _panel_width(scatter: Scatter, style: Style) -> float:
    return panel_width(style, _columns(scatter), _MARGIN + _RIGHT, _GAP)


def _scatter_size(scatter: Scatter, style: Style) -> tuple[float, float]:
    columns, width = _columns(scatter), _panel_width(scatter, style)
    rows = -(-len(scatter.panels) // columns)
    total = _MARGIN + columns * width + (columns - 1) * _GAP + _RIGHT
    pitch = _ABOVE + _HEIGHT[columns] + _below(scatter, width)
    return total, rows * pitch + _legend_height(scatter, total)


def _metric_lines(panel: Panel, inches: float) -> list[str]:
    """A metric's name under its panel, in two lines where one would reach into the next panel."""
    width = int(16.5 * inches)
    text = shorten(clean(panel.row["metric"]), 2 * width - 6)
    return [line.replace("_ ", "_") for line in textwrap.wrap(text.replace("_", "_ "), width + 2)[:2]] or [" "]


def _below(scatter: Scatter, width: float) -> float:
    lines = max(len(_metric_lines(panel, width)) for panel in scatter.panels)
    return _BELOW + 0.13 * (lines - 1)


def _draw_scatter(sheet: Sheet, scatter: Scatter, symbol: str, top: float) -> None:
    columns, width = _columns(scatter), _panel_width(scatter, sheet.figure.style)
    height = _HEIGHT[columns]
    pitch = _ABOVE + height + _below(scatter, width)
    for index, panel in enumerate(scatter.panels):
        row, column = divmod(index, columns)
        axes = sheet.axes(_MARGIN + column * (width + _GAP), top + row * pitch + _ABOVE, width, height)
        _draw_panel(axes, scatter, panel, symbol, width)
        if column == 0:  # the first panel of a row speaks for the others
            axes.set_ylabel(shorten(clean(scatter.outcome), 30))
        else:
            axes.yaxis.set_major_formatter(NullFormatter())
    rows = -(-len(scatter.panels) // columns)
    _draw_colors(sheet, scatter, top + rows * pitch)


def _draw_panel(axes: Axes, scatter: Scatter, panel: Panel, symbol: str, width: float) -> None:
    if panel.log:
        axes.set_xscale("log")
    of = scatter.of[panel.places]
    for index in (-1, *range(len(scatter.colors))):
        here = of == index
        color, shape = look_of(index) if scatter.color else (COLORS[0], 0)
        size = 3.4 if len(panel.x) > 40 else 4.2
        axes.plot(
            panel.x[here],
            panel.y[here],
            _SHAPES[shape],
            ms=points(size),
            color=color,
            alpha=0.8,
            mew=points(0.4),
            mec="white",
        )
    if not len(panel.x):
        axes.text(0.5, 0.5, "no rows", transform=axes.transAxes, ha="center", color="0.4")
    axes.set(xlim=panel.limits, ylim=(scatter.low, scatter.high))
    set_ticks(axes.xaxis, *panel.ticks(3 if width < 2.2 else 6))
    set_linear_ticks(axes.yaxis, scatter.low, scatter.high, 6)
    axes.set_xlabel("\n".join(_metric_lines(panel, width)), linespacing=1.1)
    bold = "bold" if significant(panel.row) else "normal"
    axes.set_title(
        "\n".join(panel.title(symbol)), fontsize=points(7), loc="left", pad=points(3), linespacing=1.15, fontweight=bold
    )
    axes.grid()
    open_axes(axes)


def _legend_entries(scatter: Scatter, width: float) -> tuple[list[str], int]:
    """The values of the colour column, and the number that fits on a line."""
    entries = [shorten(clean(text), 32) for text in scatter.colors]
    return entries, max(1, int((width - _MARGIN) / (0.3 + 0.058 * max(map(len, entries), default=0))))


def _legend_height(scatter: Scatter, width: float) -> float:
    if not scatter.colors:
        return 0.0
    entries, columns = _legend_entries(scatter, width)
    return 0.2 + 0.15 * -(-len(entries) // columns)


def _draw_colors(sheet: Sheet, scatter: Scatter, top: float) -> None:
    if not scatter.colors:
        return
    entries, columns = _legend_entries(scatter, _scatter_size(scatter, sheet.figure.style)[0])
    handles = []
    for index, text in enumerate(entries):
        color, shape = look_of(index)
        handles.append(Line2D([], [], linestyle="", marker=_SHAPES[shape], ms=points(4.2), color=color, label=text))
    corner = (_MARGIN / sheet.width, 1 - top / sheet.height)
    legend = sheet.figure.legend(
        handles=handles,
        ncols=min(columns, len(entries)),
        loc="upper left",
        bbox_to_anchor=corner,
        borderaxespad=0,
        borderpad=0,
        handletextpad=0.2,
        columnspacing=1.2,
        title=shorten(clean(scatter.color or ""), 40),
        title_fontsize=points(7),
        alignment="left",
    )
    legend.set_in_layout(False)
