"""Loss surfaces to turn, zoom and read values from, drawn by plotly: a scene for each plane."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from landscape.plotting.basics import clean, shorten
from landscape.plotting.interactive_style import ROW, new_figure, plotly_text
from landscape.plotting.page import Cell, Plot, Section, Table
from landscape.plotting.surfaces.arrangement import Arrangement, aspect, shown_name
from landscape.plotting.surfaces.captions import center_name, center_text, notes
from landscape.plotting.surfaces.interactive_lines import lines_figure
from landscape.plotting.surfaces.scale import LossScale, loss_scale

if TYPE_CHECKING:
    from landscape.surfaces.result import Marker, Surface

_EYE = {"x": 1.05, "y": -1.82, "z": 1.15}
_SCENE_AXIS = {"showbackground": False, "gridcolor": "#ddd", "linecolor": "#888", "zeroline": False}


def surface_section(arrangement: Arrangement, caption: str, title: str = "") -> Section:
    """The section of a page on comparable surfaces, with the text under them."""
    surfaces = list(arrangement.cells.values())
    if arrangement.dim == 1:
        words = f"Loss along a line, a curve for each of {len(arrangement.names)} checkpoints"
        plots = [Plot(lines_figure(arrangement), words, least=620 if len(arrangement.data) > 1 else 300)]
    else:
        scales = {data: loss_scale(arrangement.of_data(data), arrangement.log) for data in arrangement.data}
        several = len(arrangement.data) > 1
        plots = [
            Plot(
                scene_figure(surface, scales[data]),
                f"Surface of {surface.name} on {data}, {center_text(surface)}",
                title=surface.name,
                remarks=[f"{_data_of(surface)}: " * several + center_text(surface), *notes(surface)],
                turns=True,
                starts_row=index == 0,
            )
            for data in arrangement.data
            for index, surface in enumerate(arrangement.of_data(data))
        ]
    what = "" if any(surface.heights for surface in surfaces) else "loss "
    header = ["checkpoint", "data", f"{what}at {center_name(surfaces[0])}", ""]
    return Section(title, plots, caption, [Table(header, [_row(surface) for surface in surfaces])])


def _data_of(panel: Surface) -> str:
    """The name of the data of a panel, without that of its height."""
    return panel.data.removesuffix(f": {shown_name(panel)}") if panel.heights else panel.data


def _row(surface: Surface) -> list[str | Cell]:
    center = f"{surface.center:.4f}" if np.isfinite(surface.center) else "not finite"
    return [surface.name, surface.data, Cell(center, surface.center), "; ".join(notes(surface))]


def _scene_text(text: str) -> str:
    """`plotly_text` for the axis titles of a scene, where plotly reads tags and `%{...}` but no entities."""
    return clean(text).replace("<", "<\u200b").replace("%{", "%\u200b{")


def scene_figure(surface: Surface, scale: LossScale) -> go.Figure:
    """The plotly figure of a plane: a scene to turn, in the colours of a scale that others may share."""
    figure = new_figure()
    figure.update_layout(height=ROW, margin={"l": 0, "r": 0, "t": 0, "b": 0}, showlegend=False)
    ticks, texts = scale.ticks(6)
    figure.layout.coloraxis = {
        "colorscale": "Viridis",
        "cmin": scale.low,
        "cmax": scale.high,
        "colorbar": {
            "title": {"text": scale.name, "side": "top"},
            "tickvals": ticks,
            "ticktext": texts,
            "orientation": "h",  # below the scene, which in narrow windows needs all the width
            "y": 0,
            "yanchor": "bottom",
            "len": 0.8,
            "thickness": 10,
        },
    }
    figure.layout.scene = _scene(surface, scale) | {"domain": {"x": [0, 1], "y": [0.15, 1]}}
    figure.add_traces(_surface_traces(surface, scale))
    return figure


def _scene(surface: Surface, scale: LossScale) -> dict[str, Any]:
    (x, y), (ticks, texts) = surface.axes, scale.ticks(6)
    height = scale.high - scale.low
    zrange = [scale.low - 0.15 * height, scale.high + 0.03 * height]  # room to see the contours on the floor
    axis = _SCENE_AXIS | {"showspikes": False, "nticks": 5}
    labels = [_scene_text(shorten(clean(label), 40)) for label in surface.axis_labels]
    return {
        "xaxis": axis | {"title": {"text": labels[0]}, "range": [x[0], x[-1]]},
        "yaxis": axis | {"title": {"text": labels[1]}, "range": [y[0], y[-1]]},
        "zaxis": axis
        | {"type": "log" if scale.log else "linear", "range": zrange}
        # No title: it would be cut off in narrow windows, and the colour bar says what it is.
        | {"title": {"text": ""}, "tickvals": scale.losses(ticks), "ticktext": texts},
        "aspectmode": "manual",
        "aspectratio": {"x": 1, "y": aspect(surface), "z": 0.7},
        "camera": {"eye": _EYE, "center": {"x": 0, "y": 0, "z": -0.2}},
        "annotations": [_flag(m, scale) for m in _named(surface) if np.isfinite(scale.heights(m.loss))],
    }


def _named(surface: Surface) -> Sequence[Marker]:
    """The checkpoints that get a flag: along a path its ends alone."""
    return surface.markers[:: len(surface.markers) - 1] if surface.kind_type.markers_are_path else surface.markers


def _flag(marker: Marker, scale: LossScale) -> dict[str, Any]:
    """The name of a checkpoint on a short pole."""
    place = dict(zip("xyz", (*marker.coordinates, float(scale.heights(marker.loss))), strict=True))
    pole = {"ax": 0, "ay": -28, "arrowwidth": 1, "arrowhead": 0}
    return place | pole | {"text": plotly_text(shorten(marker.name, 30)), "bgcolor": "rgba(255,255,255,0.75)"}


def _surface_traces(surface: Surface, scale: LossScale) -> list[Any]:
    """The surface itself, and a point where each checkpoint lies."""
    (x, y), heights = surface.axes, scale.heights(surface.loss)
    drawable = np.isfinite(heights)
    if not drawable.any():  # plotly fails at an empty surface; a hidden point keeps the axes in place
        corner = {"x": [x[0]], "y": [y[0]], "z": scale.losses([scale.low])}
        return [go.Scatter3d(mode="markers", marker={"opacity": 0}, hoverinfo="skip", **corner)]
    first, second = (plotly_text(label) for label in surface.axis_labels)
    shown = plotly_text(scale.shown)
    traces: list[Any] = [
        go.Surface(
            x=x,
            y=y,
            z=np.where(drawable, surface.loss, np.nan).T,  # plotly's rows are y
            surfacecolor=heights.T,
            coloraxis="coloraxis",
            connectgaps=False,
            hovertemplate=f"{first}: %{{x:.3g}}<br>{second}: %{{y:.3g}}<br>{shown}: %{{z:.4f}}<extra></extra>",
            contours={"z": {"show": True, "color": "#777", "project": {"z": True}, "width": 1}},
            lighting={"ambient": 0.75, "diffuse": 0.45, "specular": 0.03, "roughness": 0.9},
        )
    ]
    points = [(marker.name, marker.coordinates, marker.loss) for marker in surface.markers]
    points = points or [(surface.name, (0.0, 0.0), surface.center)]
    points = [p for p in points if np.isfinite(scale.heights(p[2])) and _inside(p[1], surface)]
    if points:
        names, places, losses = zip(*points, strict=True)
        traces.append(
            go.Scatter3d(
                x=[p[0] for p in places],
                y=[p[1] for p in places],
                z=losses,
                mode="lines+markers" if surface.kind_type.markers_are_path else "markers",
                line={"color": "black", "width": 4},
                marker={"size": 4, "color": "white", "line": {"color": "black", "width": 2}},
                text=[f"{plotly_text(n)}<br>{shown} {loss:.4f}" for n, loss in zip(names, losses, strict=True)],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    return traces


def _inside(place: Sequence[float], surface: Surface) -> bool:
    return all(axis[0] <= at <= axis[-1] for at, axis in zip(place, surface.axes, strict=True))
