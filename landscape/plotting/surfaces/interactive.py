"""Pages of loss surfaces to turn, zoom and read values from, drawn by plotly. A page loads no other file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import plotly.graph_objects as go

from landscape.plotting.basics import COLORS, clean, shorten
from landscape.plotting.interactive_style import (
    DASHES,
    LINE_AXIS,
    ROW,
    add_heading,
    new_figure,
    plot_html,
    plotly_text,
)
from landscape.plotting.page import html_page
from landscape.plotting.surfaces.shared import (
    Arrangement,
    LossScale,
    aspect,
    center_name,
    center_text,
    differ_in_eigenvectors,
    loss_scale,
    marked_places,
    notes,
    shared_label,
)

if TYPE_CHECKING:
    from landscape.surfaces.result import Marker, Surface

_EYE = {"x": 0.95, "y": -1.65, "z": 1.05}
_SCENE_AXIS = {"showbackground": False, "gridcolor": "#ddd", "linecolor": "#888", "zeroline": False}
_COLUMN = 370  # pixels below which a panel does not shrink: a scene narrower than high is cut off

# When a reader turns one scene, the others turn along. Our own relayout raises the event again; `busy` ends the echo.
_SAME_CAMERA = """
const plot = document.getElementById("{plot_id}");
const scenes = Object.keys(plot.layout).filter(key => /^scene[0-9]*$/.test(key));
let busy = false;
plot.on("plotly_relayout", change => {
  if (busy) return;
  const moved = scenes.find(scene => Object.keys(change).some(key => key.startsWith(scene + ".camera")));
  if (moved === undefined) return;
  const camera = JSON.stringify(plot.layout[moved].camera);
  const others = scenes.filter(key => key !== moved).map(key => [key + ".camera", JSON.parse(camera)]);
  const done = () => { busy = false; };
  busy = true;
  Plotly.relayout(plot, Object.fromEntries(others)).then(done, done);
});
"""


def surface_page(arrangement: Arrangement, caption: str, title: str) -> str:
    """The page of comparable surfaces, with the text under them."""
    surfaces = list(arrangement.cells.values())
    columns = len(arrangement.names) if arrangement.dim == 2 else min(len(arrangement.data), 2)
    return html_page(
        title,
        plot_html(surface_figure(arrangement), _SAME_CAMERA if arrangement.dim == 2 else None),
        caption,
        ["checkpoint", "data", f"loss at {center_name(surfaces[0])}", ""],
        [_row(surface) for surface in surfaces],
        width=(_COLUMN * columns + 90, max(900, 480 * columns + 140)),
    )


def _row(surface: Surface) -> list[str]:
    center = f"{surface.center:.4f}" if np.isfinite(surface.center) else "not finite"
    return [surface.name, surface.data, center, "; ".join(notes(surface))]


def surface_figure(arrangement: Arrangement) -> go.Figure:
    """The plotly figure of comparable surfaces."""
    scales = {data: loss_scale(arrangement.of_data(data), arrangement.log) for data in arrangement.data}
    figure = new_figure()
    draw = _add_lines if arrangement.dim == 1 else _add_scenes
    draw(figure, arrangement, scales)
    return figure


def _scene_text(text: str) -> str:
    """`plotly_text` for the axis titles of a scene, where plotly reads tags and `%{...}` but no entities."""
    return clean(text).replace("<", "<\u200b").replace("%{", "%\u200b{")


# --- two dimensions -----------------------------------------------------------------------------------------


def _add_scenes(figure: go.Figure, arrangement: Arrangement, scales: dict[str, LossScale]) -> None:
    """A scene for each surface: a column per checkpoint, a row and a colour scale per data set."""
    columns, rows = len(arrangement.names), len(arrangement.data)
    several = rows > 1
    figure.update_layout(height=ROW * rows + 30, margin={"l": 0, "r": 90, "t": 30, "b": 0}, showlegend=False)
    number = 0
    for row, data in enumerate(arrangement.data):
        scale, coloraxis = scales[data], f"coloraxis{row + 1 if row else ''}"
        bottom, top = 1 - (row + 1) / rows, 1 - row / rows
        heading = 60 / (ROW * rows)
        ticks, texts = scale.ticks(9)
        figure.layout[coloraxis] = {
            "colorscale": "Viridis",
            "cmin": scale.low,
            "cmax": scale.high,
            "colorbar": {
                "title": {"text": scale.name},
                "tickvals": ticks,
                "ticktext": texts,
                "x": 1.0,
                "y": (bottom + top - heading) / 2,
                "len": 0.75 * (top - bottom - heading),
                "thickness": 14,
            },
        }
        for column, name in enumerate(arrangement.names):
            surface = arrangement.cells.get((name, data))
            if surface is None:
                continue
            number += 1
            scene = f"scene{number if number > 1 else ''}"
            domain = {"x": [column / columns, (column + 1) / columns], "y": [bottom, top - heading]}
            figure.layout[scene] = _scene(surface, scale) | {"domain": domain}
            figure.add_traces(_surface_traces(surface, scale, scene, coloraxis))
            lines = [f"<b>{plotly_text(shorten(clean(name), 44))}</b>"]
            where = f"{plotly_text(shorten(clean(data), 30))}: " if several else ""
            lines += [where + center_text(surface), *notes(surface)]
            middle = (column + 0.5) / columns
            add_heading(figure, lines, middle, top, xanchor="center", yanchor="top", yshift=-4)


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


def _surface_traces(surface: Surface, scale: LossScale, scene: str, coloraxis: str) -> list[Any]:
    """The surface itself, and a point where each checkpoint lies."""
    (x, y), heights = surface.axes, scale.heights(surface.loss)
    drawable = np.isfinite(heights)
    if not drawable.any():  # plotly fails at an empty surface; a hidden point keeps the axes in place
        corner = {"x": [x[0]], "y": [y[0]], "z": scale.losses([scale.low]), "scene": scene}
        return [go.Scatter3d(mode="markers", marker={"opacity": 0}, hoverinfo="skip", **corner)]
    first, second = (plotly_text(label) for label in surface.axis_labels)
    traces: list[Any] = [
        go.Surface(
            x=x,
            y=y,
            z=np.where(drawable, surface.loss, np.nan).T,  # plotly's rows are y
            surfacecolor=heights.T,
            scene=scene,
            coloraxis=coloraxis,
            connectgaps=False,
            hovertemplate=f"{first}: %{{x:.3g}}<br>{second}: %{{y:.3g}}<br>loss: %{{z:.4f}}<extra></extra>",
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
                scene=scene,
                marker={"size": 4, "color": "white", "line": {"color": "black", "width": 2}},
                text=[f"{plotly_text(n)}<br>loss {loss:.4f}" for n, loss in zip(names, losses, strict=True)],
                hovertemplate="%{text}<extra></extra>",
            )
        )
    return traces


def _inside(place: Sequence[float], surface: Surface) -> bool:
    return all(axis[0] <= at <= axis[-1] for at, axis in zip(place, surface.axes, strict=True))


# --- one dimension ------------------------------------------------------------------------------------------


def _add_lines(figure: go.Figure, arrangement: Arrangement, scales: dict[str, LossScale]) -> None:
    """A panel per data set, two to a row; a line per checkpoint."""
    columns = min(len(arrangement.data), 2)
    rows = -(-len(arrangement.data) // columns)
    figure.update_layout(
        height=ROW * rows,
        margin={"l": 70, "r": 20, "t": 40, "b": 20},
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
    where = plotly_text(surface.axis_labels[0])
    common = {
        "xaxis": f"x{panel}",
        "yaxis": f"y{panel}",
        "legendgroup": str(order),
        "hovertemplate": f"{name}<br>{where}: %{{x:.3g}}<br>loss: %{{y:.4f}}<extra></extra>",
    }
    color = COLORS[order % len(COLORS)]
    line = {"color": color, "dash": DASHES[order % len(DASHES)], "width": 2.5}
    points = {"color": color, "size": 8, "line": {"color": "white", "width": 1}}
    x, y = [spot[0] for spot in spots], [spot[1] for spot in spots]
    listing = {"name": legend, "showlegend": legend is not None}
    return [
        go.Scatter(x=surface.axes[0], y=losses, mode="lines", line=line, **listing, **common),
        go.Scatter(x=x, y=y, mode="markers", marker=points, showlegend=False, **common),
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
