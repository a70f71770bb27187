"""What all interactive plots share: the look, safe texts, and the HTML of a plot. Drawn by plotly."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
import plotly.io

from landscape.plotting.basics import clean
from landscape.plotting.page import FONT

DASHES = ("solid", "dash", "dashdot", "dot", "longdash")
LINE_AXIS = {
    "gridcolor": "#e5e5e5",
    "zeroline": False,
    "showline": True,
    "linecolor": "#555",
    "ticks": "outside",
}
ROW = 440  # pixels to a row of panels


def plot_html(
    figure: go.Figure, script: str | None = None, *, name: str = "landscape-plot", include_plotly: bool = True
) -> str:
    """Make the HTML of a figure as a part of a page.

    Args:
        figure: What to show.
        script: JavaScript that runs when the figure is drawn.
        name: Identifier of the plot in its page. It is fixed, so that the same results make the same page.
        include_plotly: Whether the HTML contains the library, as the first plot of a page must.
    """
    return plotly.io.to_html(
        figure,
        full_html=False,
        include_plotlyjs=include_plotly,
        include_mathjax=False,
        div_id=name,
        post_script=script,
        # Plotly's "Share chart" button, there by default, would send the data to its makers' server.
        config={"responsive": True, "displaylogo": False, "showSendToCloud": False},
    )


def new_figure() -> go.Figure:
    """An empty figure in the style of all."""
    return go.Figure(layout={"template": "none", "font": {"family": FONT, "size": 13, "color": "#222"}})


def plotly_text(text: str) -> str:
    """`text` escaped so that plotly shows it as it is. Plotly reads some HTML tags, and fills in `%{...}`."""
    return html.escape(clean(text), quote=False).replace("%{", "&#37;{")


def add_heading(figure: go.Figure, lines: Sequence[str], x: float, y: float, **place: Any) -> None:
    """Write lines of plotly text at a place on the sheet."""
    paper = {"xref": "paper", "yref": "paper", "showarrow": False}
    figure.add_annotation(text="<br>".join(lines), x=x, y=y, **paper, **place)
