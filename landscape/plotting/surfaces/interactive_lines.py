"""Loss along lines, to zoom and read values from, drawn by plotly: a panel per data set, a line per checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from landscape.plotting.basics import COLORS, clean, shorten
from landscape.plotting.interactive_style import BUTTONS, DASHES, LINE_AXIS, ROW, add_heading, new_figure, plotly_text
from landscape.plotting.surfaces.arrangement import (
    Arrangement,
    band_of,
    differ_in_eigenvectors,
    marked_places,
    shared_label,
    shown_name,
)
from landscape.plotting.surfaces.captions import notes
from landscape.plotting.surfaces.scale import LossScale, loss_scale

if TYPE_CHECKING:
    from landscape.surfaces.result import Surface


def lines_figure(arrangement: Arrangement) -> go.Figure:
    """The plotly figure of comparable lines: panels of data sets two to a row, a line per checkpoint."""
    scales = {data: loss_scale(arrangement.of_data(data), arrangement.log) for data in arrangement.data}
    figure = new_figure()
    columns = min(len(arrangement.data), 2)
    rows = -(-len(arrangement.data) // columns)
    figure.update_layout(
        height=ROW * rows,
        margin={"l": 70, "r": 20, "t": 40 + BUTTONS * (columns > 1), "b": 20},
        hovermode="closest",
        legend={"orientation": "h", "x": 0, "y": -0.16 / rows, "yanchor": "top"},
    )
    listed: set[str] = set()
    for index, data in enumerate(arrangement.data):
        row, column = divmod(index, columns)
        suffix = str(index + 1) if index else ""
        surfaces, scale = arrangement.of_data(data), scales[data]
        gap = 0.06 if columns > 1 else 0.0
        left = column / columns + gap * (column > 0)
        right = (column + 1) / columns - gap * (column + 1 < columns)
        bottom, top = 1 - (row + 1) / rows + 0.12 / rows, 1 - row / rows - (0.06 / rows if row else 0)
        pad = 0.04 * (scale.high - scale.low)
        ticks, texts = scale.ticks(8)
        x = surfaces[0].axes[0]
        figure.layout[f"xaxis{suffix}"] = LINE_AXIS | {
            "domain": [left, right],
            "anchor": f"y{suffix}",
            "range": [x[0], x[-1]],
            "title": {"text": plotly_text(shorten(shared_label(surfaces, 0), 60))},
            "showgrid": False,
        }
        # A plotly range on a log axis is in powers of ten, as the scale's heights are; its ticks are losses.
        figure.layout[f"yaxis{suffix}"] = LINE_AXIS | {
            "domain": [bottom, top],
            "anchor": f"x{suffix}",
            "type": "log" if scale.log else "linear",
            "range": [scale.low - pad, scale.high + pad],
            "ticktext": texts,
            "tickvals": scale.losses(ticks),
            "title": {"text": scale.name},
        }
        for surface in surfaces:
            order = arrangement.names.index(surface.name)
            legend = None if surface.name in listed else _legend(arrangement, surface.name)
            figure.add_traces(_line_traces(surface, order, suffix, scale, legend))
            listed.add(surface.name)
        _add_marks(figure, surfaces, suffix)
        if len(arrangement.data) > 1:
            heading = [f"<b>{plotly_text(shorten(clean(data), 50))}</b>"]
            add_heading(figure, heading, left, top, xanchor="left", yanchor="bottom", yshift=6)
    return figure


def _legend(arrangement: Arrangement, name: str) -> str:
    """The name of a checkpoint with the warnings about its lines."""
    shown = [arrangement.cells[name, data] for data in arrangement.data if (name, data) in arrangement.cells]
    several = len(arrangement.data) > 1
    own = differ_in_eigenvectors(list(arrangement.cells.values()))
    remarks = []
    for surface in shown:
        where = f"{plotly_text(surface.data)}: " if several else ""
        labels = [plotly_text(surface.axis_labels[0])] if own else []
        remarks += [where + remark for remark in (*labels, *notes(surface))]
    return plotly_text(shorten(clean(name), 100)) + (f" ({'; '.join(remarks)})" if remarks else "")


def _line_traces(surface: Surface, order: int, panel: str, scale: LossScale, legend: str | None) -> list:
    name = plotly_text(surface.name)
    losses = np.where(np.isfinite(surface.loss), surface.loss, np.nan)
    spots = [(m.coordinates[0], m.loss) for m in surface.markers] or [(0.0, surface.center)]
    spots = [spot for spot in spots if np.isfinite(scale.heights(spot[1]))]
    where, shown = plotly_text(surface.axis_labels[0]), plotly_text(shown_name(surface))
    common = {
        "xaxis": f"x{panel}",
        "yaxis": f"y{panel}",
        "legendgroup": str(order),
        "hovertemplate": f"{name}<br>{where}: %{{x:.3g}}<br>{shown}: %{{y:.4f}}<extra></extra>",
    }
    color = COLORS[order % len(COLORS)]
    line = {"color": color, "dash": DASHES[order % len(DASHES)], "width": 2.5}
    points = {"color": color, "size": 8, "line": {"color": "white", "width": 1}}
    x, y = [spot[0] for spot in spots], [spot[1] for spot in spots]
    listing = {"name": legend, "showlegend": legend is not None}
    return [
        *_band_traces(surface, color, common),
        go.Scatter(x=surface.axes[0], y=losses, mode="lines", line=line, **listing, **common),
        go.Scatter(x=x, y=y, mode="markers", marker=points, showlegend=False, **common),
    ]


def _band_traces(surface: Surface, color: str, common: dict[str, Any]) -> list:
    """The edges of a band of one standard error, with what lies between them filled."""
    if (band := band_of(surface)) is None:
        return []
    edge = common | {"mode": "lines", "line": {"color": color, "width": 0}, "showlegend": False, "hoverinfo": "skip"}
    low, high = band
    return [
        go.Scatter(x=surface.axes[0], y=low, **edge),
        go.Scatter(x=surface.axes[0], y=high, fill="tonexty", opacity=0.3, **edge),
    ]


def _add_marks(figure: go.Figure, surfaces: Sequence[Surface], suffix: str) -> None:
    """A dotted vertical line, with the names, wherever checkpoints lie."""
    for at, names in marked_places(surfaces).items():
        refs = {"xref": f"x{suffix}", "yref": f"y{suffix} domain"}
        figure.add_shape(
            type="line", x0=at, x1=at, y0=0, y1=1, line={"color": "#777", "width": 1, "dash": "dot"}, **refs
        )
        figure.add_annotation(
            text=plotly_text(shorten(" / ".join(names), 50)),
            x=at,
            y=1,
            textangle=-90,
            xanchor="right",
            yanchor="top",
            showarrow=False,
            font={"size": 12},
            **refs,
        )
