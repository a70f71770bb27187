"""Maps of heads as a page, drawn by plotly."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from landscape.plotting.basics import clean, shorten
from landscape.plotting.instruction_vectors.shared import Maps
from landscape.plotting.interactive_style import LINE_AXIS, add_heading, new_figure, plot_html, plotly_text
from landscape.plotting.page import html_page

_WIDTH = (480, 1400)  # pixels: the least of the plot, the greatest of the page
_ROW = 330  # pixels to a row of maps


def maps_page(maps: Maps, caption: str, title: str) -> str:
    """The page of maps, with the text under them and a table of the heads."""
    rows = [
        [
            vector.name,
            vector.task,
            vector.few_shot.in_words(".1%"),
            vector.steered.in_words(".1%"),
            vector.joint_effect.in_words(),
            vector.random_effect.in_words(),
            ", ".join(f"{layer}.{head}" for layer, head in vector.heads),
        ]
        for vector in maps.cells.values()
    ]
    header = [
        "checkpoint",
        "task",
        "few-shot accuracy",
        "zero-shot with vector",
        "effect of heads",
        "of as many others",
    ]
    return html_page(title, plot_html(maps_figure(maps)), caption, [*header, "heads (layer.head)"], rows, _WIDTH)


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
