"""Curvature to zoom and read values from, drawn by plotly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from landscape.plotting.basics import COLORS, Places, clean, shorten
from landscape.plotting.curvature.shared import (
    DensityPanel,
    bar_range,
    density_remarks,
    extremes,
    layer_bars,
)
from landscape.plotting.interactive_style import (
    DASHES,
    LINE_AXIS,
    ROW,
    add_heading,
    new_figure,
    plotly_text,
)
from landscape.plotting.page import Cell, Plot, Section, Table
from landscape.plotting.ticks import log_ticks

if TYPE_CHECKING:
    from landscape.curvature.results import LayerCurvature, SpectralDensity

_LEAST = 520  # pixels below which a plot does not shrink


def _legend(foot: float) -> dict[str, Any]:
    return {"orientation": "h", "x": 0, "y": -foot, "yanchor": "top"}


# --- spectral density ---------------------------------------------------------------------------------------


def density_section(
    places: Places[SpectralDensity], panels: dict[str, DensityPanel], caption: str, title: str = ""
) -> Section:
    """The section of a page on comparable densities, with the text under them."""
    rows: list[list[str | Cell]] = []
    for density in places.cells.values():
        mean, spread = (density.parameters * value for value in density.moment(1))
        trace = Cell(f"{mean:.5g} +- {spread:.2g}", mean, mean - spread, mean + spread)
        rows.append([density.name, density.data, trace, ", ".join(density_remarks(density))])
    words = f"Spectral density of {len(places.names)} checkpoints on {len(places.data)} data sets"
    plot = Plot(density_figure(places, panels), words, least=_LEAST)
    return Section(title, [plot], caption, [Table(["checkpoint", "data", "trace", "nodes"], rows)])


def density_figure(places: Places[SpectralDensity], panels: dict[str, DensityPanel]) -> go.Figure:
    """The plotly figure of comparable densities: a panel per data set below one another, a line per checkpoint."""
    count = len(panels)
    figure = new_figure()
    margin = {"l": 80, "r": 20, "t": 40, "b": 20}
    figure.update_layout(height=ROW * count, margin=margin, hovermode="closest", legend=_legend(0.16 / count))
    listed: set[str] = set()
    for index, (data, panel) in enumerate(panels.items()):
        suffix = str(index + 1) if index else ""
        bottom, top = 1 - (index + 1) / count + 0.12 / count, 1 - index / count - (0.08 / count if index else 0)
        span = [float(np.log10(panel.floor)), float(np.log10(panel.top))]
        ticks, texts = log_ticks(span[0], span[1], 6)
        figure.layout[f"xaxis{suffix}"] = LINE_AXIS | {
            "anchor": f"y{suffix}",
            "range": [panel.low, panel.high],
            "title": {"text": "eigenvalue", "standoff": 8},
            "showgrid": False,
        }
        figure.layout[f"yaxis{suffix}"] = LINE_AXIS | {
            "domain": [bottom, top],
            "anchor": f"x{suffix}",
            "type": "log",
            "range": span,
            "tickvals": ticks,
            "ticktext": texts,
            "title": {"text": "density (log scale)"},
        }
        for row, (density, curve) in enumerate(zip(panel.densities, panel.curves, strict=True)):
            order, name = places.names.index(density.name), plotly_text(density.name)
            color = COLORS[order % len(COLORS)]
            shared = {"xaxis": f"x{suffix}", "yaxis": f"y{suffix}", "legendgroup": str(order)}
            line = {"color": color, "dash": DASHES[order % len(DASHES)], "width": 2}
            listing = {
                "name": plotly_text(shorten(clean(density.name), 100)),
                "showlegend": density.name not in listed,
            }
            words = f"{name}<br>eigenvalue: %{{x:.4g}}<br>density: %{{y:.3g}}<extra></extra>"
            figure.add_scatter(
                x=curve[0], y=curve[1], mode="lines", line=line, hovertemplate=words, **listing, **shared
            )
            listed.add(density.name)
            nodes = extremes(density)
            height = 10 ** (span[0] + (0.03 + 0.05 * row) * (span[1] - span[0]))  # a row of ticks for each checkpoint
            figure.add_scatter(
                x=nodes,
                y=np.full(len(nodes), height),
                mode="markers",
                marker={"symbol": "line-ns-open", "size": 9, "color": color, "line": {"width": 1.5}},
                hovertemplate=f"{name}<br>extreme node: %{{x:.6g}}<extra></extra>",
                showlegend=False,
                **shared,
            )
        if count > 1:
            heading = [f"<b>{plotly_text(shorten(clean(data), 50))}</b>"]
            add_heading(figure, heading, 0, top, xanchor="left", yanchor="bottom", yshift=6)
    return figure


# --- layers -------------------------------------------------------------------------------------------------


def layers_section(places: Places[LayerCurvature], caption: str, title: str = "") -> Section:
    """The section of a page on comparable tables by layer, with the text under them."""
    rows: list[list[str | Cell]] = [
        [
            table.name,
            table.data,
            row.name,
            _cell(f"{row.trace:.5g} +- {row.trace_stderr:.2g}", row.trace, row.trace_stderr),
            _cell(
                f"{row.top:.5g} +- {row.residual:.1g}" + ("" if row.converged else ", not converged"),
                row.top,
                row.residual,
            ),
        ]
        for table in places.cells.values()
        for row in table.layers
    ]
    header = ["checkpoint", "data", "layer", "trace", "largest eigenvalue"]
    words = f"Trace and largest eigenvalue of each layer of {len(places.names)} checkpoints"
    return Section(title, [Plot(layers_figure(places), words, least=_LEAST)], caption, [Table(header, rows)])


def _cell(text: str, value: float, error: float) -> Cell:
    return Cell(text, value, value - error, value + error)


def layers_figure(places: Places[LayerCurvature]) -> go.Figure:
    """The plotly figure of comparable tables: a row per data set, traces to the left of the eigenvalues."""
    first = next(iter(places.cells.values()))
    names = [plotly_text(shorten(clean(row.name), 40)) for row in first.layers]
    row_height = 136 + max(24, 14 * len(places.names)) * len(names)
    count = len(places.data)
    figure = new_figure()
    margin = {"l": 40 + 7 * min(40, max(map(len, names))), "r": 20, "t": 40, "b": 20}
    figure.update_layout(height=row_height * count, margin=margin, barmode="group", bargap=0.2)
    figure.update_layout(legend=_legend(70 / (row_height * count)), hovermode="closest")
    listed: set[str] = set()
    for index, data in enumerate(places.data):
        tables = places.of_data(data)
        bottom = 1 - (index + 1) / count + 60 / (row_height * count)
        top = 1 - index / count - (36 / (row_height * count) if index else 0)
        for column, label in enumerate(("trace", "largest eigenvalue")):
            number = 2 * index + column
            suffix = str(number + 1) if number else ""
            columns = [layer_bars(table)[column] for table in tables]
            figure.layout[f"xaxis{suffix}"] = LINE_AXIS | {
                "domain": [0.52 * column, 0.48 + 0.52 * column],
                "anchor": f"y{suffix}",
                "range": list(bar_range(columns)),
                "title": {"text": label, "standoff": 8},
                "zeroline": True,
                "zerolinecolor": "#555",
            }
            figure.layout[f"yaxis{suffix}"] = LINE_AXIS | {
                "domain": [bottom, top],
                "anchor": f"x{suffix}",
                "range": [len(names) - 0.5, -0.5],  # the first layer at the top
                "tickvals": list(range(len(names))),
                "ticktext": names if column == 0 else [""] * len(names),
                "showgrid": False,
            }
            for table, bars in zip(tables, columns, strict=True):
                order = places.names.index(table.name)
                color = COLORS[order % len(COLORS)]
                endings = ["<br>not converged" if hollow else "" for hollow in bars.hollow]
                pairs = zip(names, endings, strict=True)
                hover = [f"{plotly_text(table.name)}<br>{name}{ending}" for name, ending in pairs]
                fill = ["white" if hollow else color for hollow in bars.hollow]
                figure.add_bar(
                    orientation="h",
                    y=list(range(len(names))),
                    x=bars.values,
                    error_x={"type": "data", "array": bars.errors, "color": "#444", "thickness": 1, "width": 2},
                    marker={"color": fill, "line": {"color": color, "width": 1.5}},
                    text=hover,
                    textposition="none",
                    hovertemplate=f"%{{text}}<br>{label}: %{{x:.5g}}<extra></extra>",
                    name=plotly_text(shorten(clean(table.name), 100)),
                    showlegend=table.name not in listed,
                    legendgroup=str(order),
                    offsetgroup=str(order),
                    xaxis=f"x{suffix}",
                    yaxis=f"y{suffix}",
                )
                listed.add(table.name)
        if count > 1:
            heading = [f"<b>{plotly_text(shorten(clean(data), 50))}</b>"]
            add_heading(figure, heading, 0, top, xanchor="left", yanchor="bottom", yshift=6)
    return figure
