"""Profiles: the loss along random lines, as its mean over draws of directions with a band, drawn by plotly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from landscape.plotting.basics import COLORS, clean, shorten
from landscape.plotting.interactive_style import DASHES, LINE_AXIS, ROW, new_figure, plotly_text

if TYPE_CHECKING:
    from landscape.surfaces.result import Surface

CONFIDENCE = 0.95


def profile_bands(losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of losses over draws and half the width of its interval, point by point.

    Args:
        losses: A row for each draw, shape (draws, points). What is not finite counts as unknown.

    Returns:
        The means, and the half-widths by Student's t distribution, of each point alone; shape (points,) each. Both are
        NaN where the loss of a draw is not known.
    """
    from scipy import stats

    known = np.where(np.isfinite(losses), losses, np.nan)
    count = len(known)
    stderr = known.std(axis=0, ddof=1) / np.sqrt(count)
    return known.mean(axis=0), stats.t.ppf(0.5 + CONFIDENCE / 2, count - 1) * stderr


def profile_caption(surfaces: Sequence[Surface]) -> str:
    """What a figure of profiles shows, in words."""
    draws = len({surface.seed for surface in surfaces})
    band = f"{CONFIDENCE:.0%} interval of that mean, of each point alone"
    return f"Mean loss over {draws} draws of the direction; band: {band}"


def profile_figure(surfaces: Sequence[Surface]) -> go.Figure:
    """The plotly figure of lines of several draws on one data set: a mean with its band for each checkpoint."""
    figure = new_figure()
    figure.update_layout(
        height=ROW,
        margin={"l": 70, "r": 20, "t": 20, "b": 20},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": -0.16, "yanchor": "top"},
        xaxis=LINE_AXIS | {"title": {"text": "distance along the direction", "standoff": 4}, "showgrid": False},
        yaxis=LINE_AXIS | {"title": {"text": "loss"}},
    )
    for order, name in enumerate(dict.fromkeys(surface.name for surface in surfaces)):
        own = [surface for surface in surfaces if surface.name == name]
        mean, half = profile_bands(np.stack([surface.loss for surface in own]))
        x, color = own[0].axes[0], COLORS[order % len(COLORS)]
        known = np.isfinite(mean) & np.isfinite(half)
        shared = {"legendgroup": str(order), "mode": "lines"}
        band = np.concatenate([(mean + half)[known], (mean - half)[known][::-1]])
        figure.add_scatter(
            x=np.concatenate([x[known], x[known][::-1]]),
            y=band,
            fill="toself",
            fillcolor=color,
            opacity=0.25,
            line={"width": 0},
            hoverinfo="skip",
            showlegend=False,
            **shared,
        )
        figure.add_scatter(
            x=x,
            y=mean,
            customdata=half,
            line={"color": color, "dash": DASHES[order % len(DASHES)], "width": 2.5},
            name=plotly_text(shorten(clean(name), 100)),
            hovertemplate=f"{plotly_text(name)}<br>%{{x:.3g}}: %{{y:.4f}} ± %{{customdata:.2g}}<extra></extra>",
            **shared,
        )
    return figure
