"""Basins to read values from, drawn by plotly: the share of directions along which a height held, over the step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from landscape.plotting.basics import COLORS, clean, number, shorten
from landscape.plotting.interactive_style import DASHES, LINE_AXIS, ROW, new_figure, plotly_text

if TYPE_CHECKING:
    from landscape.basins.result import Basin

_END = 1.0  # rays end where the step is as long as the weights


def held_curve(radii: Sequence[float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the share of directions whose radius is at least a step, as a falling curve with a corner per radius.

    Args:
        radii: One for each direction; infinite where the height held to the end of the ray.

    Returns:
        The steps at which the share falls, and the share beyond each; both begin with the first step of all, where
        the share is 1, and end at the end of the rays.
    """
    ordered = np.sort([radius for radius in radii if np.isfinite(radius)])
    shares = 1 - np.arange(1, len(ordered) + 1) / len(radii)
    start = ordered[0] if len(ordered) else _END
    last = shares[-1] if len(ordered) else 1.0
    return np.concatenate([[start], ordered, [_END]]), np.concatenate([[1.0], shares, [last]])


def basins_figure(basins: Sequence[Basin]) -> go.Figure:
    """The plotly figure of basins of one height on one data set: a curve for each checkpoint, and its worst case."""
    figure = new_figure()
    curves = [held_curve([radius.value for radius in basin.radii]) for basin in basins]
    seen = [float(steps[0]) for steps, _ in curves]
    seen += [b.worst.value for b in basins if b.worst is not None and 0 < b.worst.value < _END]
    least = min([step for step in seen if step > 0], default=_END / 128) / 2
    figure.update_layout(
        height=ROW,
        margin={"l": 70, "r": 20, "t": 28, "b": 20},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": -0.2, "yanchor": "top"},
        xaxis=LINE_AXIS
        | {"type": "log", "range": [float(np.log10(least)), 0.02]}
        | {"title": {"text": "step / norm of the weights", "standoff": 4}}
        | {"dtick": 1 if least < 0.02 else "D2", "exponentformat": "none"},
        yaxis=LINE_AXIS | {"range": [-0.04, 1.04], "tickformat": ".0%", "title": {"text": "directions that hold"}},
    )
    for order, (basin, (steps, shares)) in enumerate(zip(basins, curves, strict=True)):
        name, color = plotly_text(basin.name), COLORS[order % len(COLORS)]
        shared = {"legendgroup": str(order)}
        figure.add_scatter(
            x=np.concatenate([[least], steps]),
            y=np.concatenate([[1.0], shares]),
            mode="lines",
            line={"color": color, "dash": DASHES[order % len(DASHES)], "width": 2.5, "shape": "hv"},
            name=plotly_text(shorten(clean(basin.name), 100)),
            hovertemplate=f"{name}<br>beyond %{{x:.3g}}: %{{y:.0%}} hold<extra></extra>",
            **shared,
        )
        if basin.worst is not None and 0 < basin.worst.value < _END:
            figure.add_scatter(
                x=[basin.worst.value],
                y=[0],
                mode="markers",
                marker={"color": color, "size": 11, "symbol": "triangle-up", "line": {"color": "white", "width": 1}},
                hovertemplate=f"{name}<br>worst direction found: {number(basin.worst.value)}<extra></extra>",
                showlegend=False,
                **shared,
            )
    return figure
