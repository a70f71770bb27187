"""Maps of heads as a page, drawn by plotly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import plotly.graph_objects as go

from landscape.plotting.basics import clean, shorten
from landscape.plotting.instruction_vectors.shared import Maps
from landscape.plotting.interactive_style import LINE_AXIS, add_heading, new_figure, plotly_text
from landscape.plotting.page import Cell, Plot, Row, Section, Table

if TYPE_CHECKING:
    from landscape.instruction_vectors.result import Estimate

_LEAST = 480  # pixels below which the plot does not shrink
_ROW = 330  # pixels to a row of maps


def maps_section(maps: Maps, caption: str, title: str = "") -> Section:
    """The section of a page with the maps, the text under them, and a table of the heads."""
    rows: list[Row] = [
        [
            vector.name,
            vector.task,
            *(estimate_cell(share, ".1%") for share in (vector.few_shot, vector.zero_shot, vector.steered)),
            *(estimate_cell(effect, "+.4f") for effect in (vector.joint_effect, vector.random_effect)),
            ", ".join(f"{layer}.{head}" for layer, head in vector.heads),
        ]
        for vector in maps.cells.values()
    ]
    accuracies = ["few-shot accuracy", "zero-shot accuracy", "zero-shot with vector"]
    header = ["checkpoint", "task", *accuracies, "effect of heads", "of as many others", "heads (layer.head)"]
    described = f"Effects of all heads of {', '.join(maps.names)} on {', '.join(maps.tasks)}, as maps of layer by head"
    return Section(title, [Plot(maps_figure(maps), described, least=_LEAST)], caption, [Table(header, rows)])


def estimate_cell(estimate: Estimate, kind: str) -> Cell:
    """A cell of a table with an estimate in a format such as "+.1%", and its interval as a bar."""
    return Cell(estimate.in_words(kind), estimate.value, estimate.low, estimate.high)


def maps_figure(maps: Maps) -> go.Figure:
    """The plotly figure of maps: a row for each task, a column for each checkpoint."""
    figure = new_figure()
    rows, columns = len(maps.tasks), len(maps.names)
    height = _ROW * rows
    figure.update_layout(height=height, margin={"l": 60, "r": 20, "t": 50, "b": 50}, hovermode="closest")
    figure.update_layout(coloraxis={"colorscale": "RdBu_r", "cmin": -maps.limit, "cmax": maps.limit, "cmid": 0})
    figure.layout.coloraxis.colorbar = {"title": {"text": "effect"}}
    for row, task in enumerate(maps.tasks):
        for column, name in enumerate(maps.names):
            vector = maps.cells.get((name, task))
            if vector is None:
                continue
            number = row * columns + column
            suffix = str(number + 1) if number else ""
            left, right = column / columns + 0.02, (column + 1) / columns - 0.02
            bottom, top = 1 - (row + 1) / rows + 50 / height, 1 - row / rows - 30 / height
            axis = LINE_AXIS | {"showgrid": False}
            figure.layout[f"xaxis{suffix}"] = axis | {
                "domain": [left, right],
                "anchor": f"y{suffix}",
                "title": {"text": "head", "standoff": 4},
            }
            figure.layout[f"yaxis{suffix}"] = axis | {
                "domain": [bottom, top],
                "anchor": f"x{suffix}",
                "title": {"text": "layer", "standoff": 4},
            }
            where = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}"}
            words = f"{plotly_text(name)}, {plotly_text(task)}<br>layer %{{y}} head %{{x}}"
            figure.add_heatmap(
                z=vector.mean_effects,
                customdata=vector.effects_stderr,
                coloraxis="coloraxis",
                hovertemplate=f"{words}<br>effect: %{{z:.4f}} +- %{{customdata:.2g}}<extra></extra>",
                **where,
            )
            chosen = np.array(vector.heads)
            figure.add_scatter(
                x=chosen[:, 1],
                y=chosen[:, 0],
                mode="markers",
                marker={"symbol": "circle-open", "size": 9, "color": "black"},
                hoverinfo="skip",
                showlegend=False,
                **where,
            )
            heading = [f"<b>{plotly_text(shorten(clean(task), 30))}</b>, {plotly_text(shorten(clean(name), 40))}"]
            add_heading(figure, heading, left, top, xanchor="left", yanchor="bottom", yshift=2)
    return figure
