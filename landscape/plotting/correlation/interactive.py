"""Correlations: a forest plot, and scatter plots with the checkpoints' names, drawn by plotly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from landscape.correlation import group_levels
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
    signed,
    significant,
    symbol_of,
)
from landscape.plotting.interactive_style import LINE_AXIS, add_heading, new_figure, plotly_text
from landscape.plotting.page import Cell, Plot, Section, Table
from landscape.plotting.ticks import linear_ticks

if TYPE_CHECKING:
    import pandas

_LEAST = 640  # pixels below which a plot does not shrink
_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down")
_COLUMNS, _ROW = 3, 330  # panels beside one another, and pixels to a row of them
_PANEL = 290  # pixels to a panel at least: in less, the names of metrics run into one another


def correlation_section(
    result: pandas.DataFrame,
    forest: Forest,
    points: tuple[pandas.DataFrame, Scatter] | None,
    caption: str,
    title: str = "",
) -> Section:
    """The section of a page with a forest plot; with `points`, the table and what to draw of it, scatter plots too."""
    outcome = outcome_of(result)
    words = f"Correlation of {len(forest.rows)} metrics with {outcome}, each with its interval"
    plots = [Plot(forest_plot(result, forest), words, least=_LEAST)]
    if points is not None:
        words = f"Scatter plots of {len(forest.rows)} metrics against {outcome}"
        least = _PANEL * min(len(forest.rows), _COLUMNS)
        plots.append(Plot(scatter_plot(result, *points), words, least=least))
    # Few wide columns, because many narrow ones would break their numbers over lines.
    header = ["metric", symbol_of(result), "p and q", "further", "note"]
    rows = [[row["metric"], _main(row), _chance(row), _further(row), row["note"]] for row in forest.rows]
    return Section(title, plots, caption, [Table(header, rows)])


def _main(row: dict[str, Any]) -> Cell:
    if not np.isfinite(row["estimate"]):
        return Cell("none")
    return Cell(estimate_text(row), row["estimate"], row["low"], row["high"])


def _chance(row: dict[str, Any]) -> Cell:
    tested = f"p {chance_text(row['p'])}, q {chance_text(row['q'])}, " if np.isfinite(row["estimate"]) else ""
    return Cell(f"{tested}n = {row['n']}", row["p"])


def _further(row: dict[str, Any]) -> str:
    """Those numbers beside the correlation that are known."""
    known = {name: value for name, value in row.items() if isinstance(value, float) and np.isfinite(value)}
    parts = [f"{name} {signed(known[name])}" for name in ("partial", "within", "granulated") if name in known]
    if "within_partial" in known:
        parts.append(
            f"partial within groups {signed(known['within_partial'])} (p {chance_text(row['within_partial_p'])})"
        )
    if "partial" in known and "partial_p" in known:
        parts[0] += f" (p {chance_text(known['partial_p'])})"
    if "logo_low" in known and "logo_high" in known:
        parts.append(f"without any one group {signed(known['logo_low'])} to {signed(known['logo_high'])}")
    return "; ".join(parts)


# --- forest -------------------------------------------------------------------------------------------------


def forest_plot(result: pandas.DataFrame, forest: Forest) -> go.Figure:
    """The plotly figure of a forest plot: a row per metric, the numbers on hover."""
    count = len(forest.rows)
    names = [plotly_text(shorten(clean(row["metric"]), 44)) for row in forest.rows]
    figure = new_figure()
    margin = {"l": 40 + 7 * min(44, max(len(row["metric"]) for row in forest.rows)), "r": 220, "t": 50, "b": 60}
    figure.update_layout(height=110 + 26 * count, margin=margin, hovermode="closest")
    figure.update_layout(legend={"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"})
    figure.layout.xaxis = LINE_AXIS | {
        "range": [-1.05, 1.05],
        "title": {"text": f"{symbol_of(result)} with {plotly_text(shorten(clean(outcome_of(result)), 60))}"},
        "zeroline": True,
        "zerolinecolor": "#555",
    }
    figure.layout.yaxis = LINE_AXIS | {
        "range": [count - 0.5, -0.5],
        "tickvals": list(range(count)),
        "ticktext": names,
        "showgrid": False,
        "ticks": "",
        "showline": False,
    }
    known = list(enumerate(forest.rows[: forest.numbers]))
    for filled, text in MARKED.items():
        shown = [(place, row) for place, row in known if significant(row) == filled]
        if shown:
            figure.add_trace(_estimates(shown, symbol_of(result), filled, plotly_text(text), forest.partial))
    if forest.partial:
        shown = [(place, row) for place, row in known if np.isfinite(row["partial"])]
        figure.add_scatter(
            x=[row["partial"] for _, row in shown],
            y=[place + 0.25 for place, _ in shown],
            mode="markers",
            marker={"symbol": "diamond", "size": 8, "color": COLORS[5]},
            text=[_hover(row, symbol_of(result)) for _, row in shown],
            hovertemplate="%{text}<extra></extra>",
            name="partial",
        )
    for place, row in enumerate(forest.rows):
        if place < forest.numbers:
            text, where = estimate_text(row), {"x": 1, "xref": "paper", "xanchor": "left", "xshift": 8}
        else:
            note = plotly_text(shorten(clean(row["note"]), 90)) or "no number"
            text, where = f"<i>{note}</i>", {"x": -1, "xref": "x", "xanchor": "left"}
        text = f"<b>{text}</b>" if significant(row) else text
        figure.add_annotation(text=text, y=place, yref="y", showarrow=False, font={"size": 12}, **where)
    for edge in {forest.intervals, forest.numbers} - {0, count}:
        line = {"color": "#999", "width": 1, "dash": "dash"}
        figure.add_shape(type="line", x0=0, x1=1, xref="paper", y0=edge - 0.5, y1=edge - 0.5, line=line)
    return figure


def _estimates(shown: list[tuple[int, dict[str, Any]]], symbol: str, filled: bool, name: str, raised: bool) -> Any:
    rows = [row for _, row in shown]
    estimates = np.array([row["estimate"] for row in rows])
    fill = COLORS[0] if filled else "white"
    return go.Scatter(
        x=estimates,
        y=[place - 0.12 * raised for place, _ in shown],
        mode="markers",
        marker={"size": 9, "color": fill, "line": {"color": COLORS[0], "width": 2}},
        error_x={
            "type": "data",
            "symmetric": False,
            "array": np.nan_to_num(np.array([row["high"] for row in rows]) - estimates),
            "arrayminus": np.nan_to_num(estimates - np.array([row["low"] for row in rows])),
            "color": COLORS[0],
            "thickness": 1.8,
            "width": 0,
        },
        text=[_hover(row, symbol) for row in rows],
        hovertemplate="%{text}<extra></extra>",
        name=name,
    )


def _hover(row: dict[str, Any], symbol: str) -> str:
    lines = [plotly_text(row["metric"]), f"{symbol} = {estimate_text(row)}"]
    lines.append(f"p: {chance_text(row['p'])}, q: {chance_text(row['q'])}, n = {row['n']}")
    for name in ("partial", "within"):
        if np.isfinite(row.get(name, np.nan)):
            lines.append(f"{name}: {signed(row[name])}")
        if np.isfinite(row.get(f"{name}_low", np.nan)):
            lines[-1] += f" [{signed(row[f'{name}_low'])}, {signed(row[f'{name}_high'])}]"
    lines += [plotly_text(note) for note in filter(None, row["note"].split("; "))]
    return "<br>".join(lines).replace("<0.001", "&lt;0.001")


# --- scatter ------------------------------------------------------------------------------------------------


def scatter_plot(result: pandas.DataFrame, table: pandas.DataFrame, scatter: Scatter) -> go.Figure:
    """The plotly figure of all panels, three to a row; a point's hover names its checkpoint."""
    columns = min(len(scatter.panels), _COLUMNS)
    rows = -(-len(scatter.panels) // columns)
    entries = -(-len(scatter.colors) // 4)
    top, bottom = 60 + 22 * entries, 30
    height = top + _ROW * rows + bottom
    figure = new_figure()
    figure.update_layout(height=height, margin={"l": 75, "r": 20, "t": top, "b": bottom}, hovermode="closest")
    named = f"{plotly_text(shorten(clean(scatter.color or ''), 40))}  "
    legend = {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "title": {"text": named}}
    figure.update_layout(legend=legend | {"yref": "paper"}, showlegend=bool(scatter.colors))
    listed: set[int] = set()
    for index, panel in enumerate(scatter.panels):
        row, column = divmod(index, columns)
        suffix = str(index + 1) if index else ""
        left, right = (column + 0.04 * (column > 0)) / columns, (column + 1 - 0.04) / columns
        upper = 1 - (row + 0.16) / rows
        lower = 1 - (row + 0.84) / rows
        ticks, texts = panel.ticks(5)
        figure.layout[f"xaxis{suffix}"] = LINE_AXIS | {
            "domain": [left, right],
            "anchor": f"y{suffix}",
            "type": "log" if panel.log else "linear",
            "range": [panel.low, panel.high],  # powers of ten on a log axis, to plotly too
            "tickvals": ticks,
            "ticktext": texts,
            "title": {"text": plotly_text(shorten(clean(panel.row["metric"]), 44)), "standoff": 6},
        }
        ticks, texts = linear_ticks(scatter.low, scatter.high, 6)
        figure.layout[f"yaxis{suffix}"] = LINE_AXIS | {
            "domain": [lower, upper],
            "anchor": f"x{suffix}",
            "range": [scatter.low, scatter.high],
            "matches": None if index == 0 else "y",
            "tickvals": ticks,
            "ticktext": texts,
            "showticklabels": column == 0,
            "title": {"text": plotly_text(shorten(clean(scatter.outcome), 40)) if column == 0 else ""},
        }
        for trace in _points(result, table, scatter, panel, suffix):
            order = int(trace.legendgroup)
            trace.showlegend = order not in listed
            listed.add(order)
            figure.add_trace(trace)
        title = [plotly_text(line) for line in panel.title(symbol_of(result))]
        title = [f"<b>{line}</b>" for line in title] if significant(panel.row) else title
        font = {"size": 12}
        add_heading(figure, title, left, upper, xanchor="left", yanchor="bottom", align="left", yshift=3, font=font)
    return figure


def _points(
    result: pandas.DataFrame, table: pandas.DataFrame, scatter: Scatter, panel: Panel, suffix: str
) -> list[go.Scatter]:
    """A trace per value of the colour column, even if it is empty, so that the legend is complete."""
    groups = [name for name in group_levels(table, result.attrs.get("groups")) if name != scatter.color]
    of, traces = scatter.of[panel.places], []
    missing = [-1] if scatter.color and (scatter.of < 0).any() else []
    for index in [*range(len(scatter.colors)), *missing] if scatter.color else [-1]:
        here = np.flatnonzero(of == index)
        color, shape = look_of(index) if scatter.color else (COLORS[0], 0)
        value = scatter.colors[index] if index >= 0 else "not given"
        hover = []
        for at in here:
            place = panel.places[at]
            lines = [f"<b>{plotly_text(scatter.names[place])}</b>"]
            lines.append(f"{plotly_text(panel.row['metric'])}: {panel.x[at]:.5g}")
            lines.append(f"{plotly_text(scatter.outcome)}: {panel.y[at]:.5g}")
            if scatter.color:
                lines.append(f"{plotly_text(scatter.color)}: {plotly_text(value)}")
            for name in groups:
                lines.append(f"{plotly_text(str(name))}: {plotly_text(str(table[name].iloc[place]))}")
            hover.append("<br>".join(lines))
        traces.append(
            go.Scatter(
                x=panel.x[here],
                y=panel.y[here],
                mode="markers",
                marker={
                    "symbol": _SHAPES[shape],
                    "size": 9,
                    "color": color,
                    "opacity": 0.8,
                    "line": {"color": "white", "width": 1},
                },
                text=hover,
                hovertemplate="%{text}<extra></extra>",
                name=plotly_text(shorten(clean(value), 60)),
                legendgroup=str(index),
                xaxis=f"x{suffix}",
                yaxis=f"y{suffix}",
            )
        )
    return traces
