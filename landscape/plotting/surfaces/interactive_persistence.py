"""Persistence diagrams to read values from, drawn by plotly: a point for each minimum and its saddle."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import plotly.graph_objects as go

from landscape.plotting.basics import COLORS, clean, number, shorten
from landscape.plotting.interactive_style import LINE_AXIS, ROW, new_figure, plotly_text
from landscape.plotting.surfaces.persistence import count_of_minima

if TYPE_CHECKING:
    from landscape.surfaces.topology import Topology

_SHAPES = ("circle", "square", "diamond", "triangle-down", "cross")


def persistence_figure(topologies: Sequence[Topology]) -> go.Figure:
    """The plotly figure of topologies of one height on one data set: the higher above the diagonal, the deeper."""
    figure = new_figure()
    values = [topology.lowest_value for topology in topologies]
    values += [value for topology in topologies for pair in topology.pairs for value in (pair.birth, pair.death)]
    room = 0.08 * (max(values) - min(values)) or 0.1 * max(1.0, abs(values[0]))
    low, high = min(values) - room, max(values) + room
    shown = plotly_text(topologies[0].shown)
    axis = LINE_AXIS | {"range": [low, high], "nticks": 6}
    figure.update_layout(
        height=ROW,
        margin={"l": 70, "r": 20, "t": 28, "b": 20},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        xaxis=axis | {"title": {"text": f"{shown} at the minimum", "standoff": 4}},
        yaxis=axis | {"title": {"text": f"{shown} at its saddle"}},
    )
    line = {"mode": "lines", "hoverinfo": "skip", "showlegend": False}
    figure.add_scatter(x=[low, high], y=[low, high], line={"color": "#999", "width": 1}, **line)
    for order, topology in enumerate(topologies):
        name, color = plotly_text(topology.name), COLORS[order % len(COLORS)]
        births, deaths = ([getattr(pair, end) for pair in topology.pairs] or [None] for end in ("birth", "death"))
        hover = f"{name}<br>minimum %{{x:.4f}}, saddle %{{y:.4f}}<extra></extra>"
        shared = {"legendgroup": str(order), "mode": "markers"}
        figure.add_scatter(
            x=births,
            y=deaths,
            marker={"color": color, "size": 9, "symbol": _SHAPES[order % len(_SHAPES)]},
            name=f"{plotly_text(shorten(clean(topology.name), 60))} ({count_of_minima(topology)})",
            hovertemplate=hover,
            **shared,
        )
        figure.add_scatter(
            x=[topology.lowest_value],
            y=[high],
            marker={"color": color, "size": 12, "symbol": "triangle-up"},
            hovertemplate=f"{name}<br>lowest minimum: {number(topology.lowest_value, 5)}<extra></extra>",
            cliponaxis=False,
            showlegend=False,
            **shared,
        )
        if topology.noise:
            ends = [end + 2 * topology.noise for end in (low, high)]
            figure.add_scatter(x=[low, high], y=ends, line={"color": color, "width": 1, "dash": "dot"}, **line)
    return figure
