"""What tuned checkpoints lost, drawn by plotly: forgetting by task with its intervals, and the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from landscape.plotting.basics import COLORS, clean, number, shorten
from landscape.plotting.interactive_style import BUTTONS, LINE_AXIS, ROW, add_heading, new_figure, plotly_text

if TYPE_CHECKING:
    import pandas

    from landscape.forgetting.losses import Forgetting

_SHAPES = ("circle", "square", "triangle-up", "diamond", "triangle-down")
_LINE = 26  # pixels to a checkpoint


def forgetting_figure(results: Sequence[Forgetting]) -> go.Figure:
    """The plotly figure of forgetting: a panel per task below one another, a row per checkpoint."""
    tasks = list(dict.fromkeys(task.name for result in results for task in result.tasks))
    panel = 80 + _LINE * len(results)
    height = panel * len(tasks)
    names = [plotly_text(shorten(clean(result.name), 32)) for result in results]
    figure = new_figure()
    left = 30 + 7 * min(32, max(len(result.name) for result in results))
    margin = {"l": left, "r": 20, "t": BUTTONS, "b": 0}
    figure.update_layout(height=height + BUTTONS, margin=margin, hovermode="closest")
    for index, name in enumerate(tasks):
        suffix = str(index + 1) if index else ""
        bottom, top = 1 - ((index + 1) * panel - 46) / height, 1 - (index * panel + 26) / height
        figure.layout[f"xaxis{suffix}"] = LINE_AXIS | {
            "anchor": f"y{suffix}",
            "title": {"text": "nats per token", "standoff": 4},  # what is measured, the text below says
            "rangemode": "tozero",
            "zeroline": True,
            "zerolinecolor": "#555",
        }
        figure.layout[f"yaxis{suffix}"] = LINE_AXIS | {
            "domain": [bottom, top],
            "anchor": f"x{suffix}",
            "range": [len(names) - 0.5, -0.5],
            "tickvals": list(range(len(names))),
            "ticktext": names,
            "showgrid": False,
        }
        shown = [(row, task) for row, result in enumerate(results) for task in result.tasks if task.name == name]
        values = np.array([task.forgetting for _, task in shown])
        ends = np.array([task.forgetting_interval for _, task in shown], dtype=float)
        hover = [
            f"{plotly_text(results[row].name)}<br>{number(task.forgetting)}"
            f" [{', '.join(number(end) for end in task.forgetting_interval)}] nats per token"
            for row, task in shown
        ]
        figure.add_scatter(
            x=values,
            y=[row for row, _ in shown],
            mode="markers",
            marker={"size": 9, "color": COLORS[0]},
            error_x={
                "type": "data",
                "symmetric": False,
                "array": np.nan_to_num(ends[:, 1] - values),
                "arrayminus": np.nan_to_num(values - ends[:, 0]),
                "color": COLORS[0],
                "thickness": 1.8,
            },
            text=hover,
            hovertemplate="%{text}<extra></extra>",
            showlegend=False,
            xaxis=f"x{suffix}",
            yaxis=f"y{suffix}",
        )
        heading = [f"<b>{plotly_text(shorten(clean(name), 50))}</b>"]
        add_heading(figure, heading, 0, top, xanchor="left", yanchor="bottom", yshift=2)
    return figure


def pareto_front(costs: np.ndarray) -> np.ndarray:
    """Return which points no other one beats: none is as low in every column, and lower in one.

    Args:
        costs: Shape (points, columns). A point with a number that is not finite is never on the front.

    Returns:
        Booleans, shape (points,).
    """
    known = np.isfinite(costs).all(axis=1)
    no_higher = (costs[:, None] <= costs[None]).all(axis=2)  # [a, b]: a is nowhere higher than b
    lower = (costs[:, None] < costs[None]).any(axis=2)
    return known & ~(no_higher & lower & known[:, None]).any(axis=0)


def pareto_figure(table: pandas.DataFrame, low: np.ndarray, high: np.ndarray) -> go.Figure:
    """The plotly figure of new loss against forgetting, with the front of those that no other checkpoint beats.

    Args:
        table: What `measure_checkpoints` returned, with the columns name, loss_after_new and forgetting.
        low: The lower ends of the intervals of forgetting, a number for each row; NaN where unknown.
        high: The upper ends.
    """
    x, y = (table[column].to_numpy(dtype=float) for column in ("loss_after_new", "forgetting"))
    front = np.flatnonzero(pareto_front(np.stack([x, y], axis=1)))
    front = front[np.argsort(x[front], kind="stable")]
    figure = new_figure()
    figure.update_layout(
        height=ROW,
        margin={"l": 70, "r": 20, "t": 20, "b": 20},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        xaxis=LINE_AXIS | {"title": {"text": "loss on new data (nats per token)"}},
        yaxis=LINE_AXIS | {"title": {"text": "forgetting (nats per token)"}},
    )
    figure.add_scatter(
        x=x[front],
        y=y[front],
        mode="lines",
        line={"color": "#777", "dash": "dot", "shape": "hv", "width": 2},
        hoverinfo="skip",
        name="no other is lower in both",
    )
    kinds = table["optimizer"].astype(object).fillna("not given").map(str) if "optimizer" in table.columns else None
    for order, kind in enumerate(dict.fromkeys(kinds) if kinds is not None else [None]):
        rows = np.flatnonzero(kinds == kind) if kind is not None and kinds is not None else np.arange(len(table))
        figure.add_scatter(
            x=x[rows],
            y=y[rows],
            mode="markers",
            marker={
                "size": 9,
                "color": COLORS[order % len(COLORS)],
                "symbol": _SHAPES[order % len(_SHAPES)],
                "line": {"color": "white", "width": 1},
            },
            error_y={
                "type": "data",
                "symmetric": False,
                "array": np.nan_to_num(high[rows] - y[rows]),
                "arrayminus": np.nan_to_num(y[rows] - low[rows]),
                "color": "#999",
                "thickness": 1,
                "width": 0,
            },
            text=[_hover(str(table["name"].iloc[row]), x[row], y[row], low[row], high[row]) for row in rows],
            hovertemplate="%{text}<extra></extra>",
            name=plotly_text(shorten(clean(kind or "checkpoint"), 40)),
        )
    return figure


def _hover(name: str, x: float, y: float, low: float, high: float) -> str:
    interval = f" [{number(low)}, {number(high)}]" if math.isfinite(low) and math.isfinite(high) else ""
    return f"<b>{plotly_text(name)}</b><br>new loss: {number(x, 4)}<br>forgetting: {number(y)}{interval}"
