"""What all interactive plots share: the look, and texts that plotly shows as they are. Drawn by plotly."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

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
BUTTONS = 28  # pixels of plotly's buttons, which lie over the first heading in a narrow window otherwise


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
