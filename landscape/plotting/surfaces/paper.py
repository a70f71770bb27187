"""Figures of loss surfaces for papers, drawn by matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from mpl_toolkits.mplot3d import Axes3D

from landscape.plotting.basics import COLORS, clean, shorten
from landscape.plotting.paper_style import (
    LINES,
    Sheet,
    legend_below,
    legend_text,
    open_axes,
    set_linear_ticks,
    set_ticks,
    style,
    text_width,
)
from landscape.plotting.surfaces.interpolation import finer_surface
from landscape.plotting.surfaces.shared import (
    Arrangement,
    LossScale,
    aspect,
    band_of,
    center_text,
    differ_in_eigenvectors,
    marked_places,
    notes,
    shared_label,
)

if TYPE_CHECKING:
    from landscape.surfaces.result import Surface

CAMERA = {"elev": 30, "azim": -60}
_HALO = [withStroke(linewidth=2, foreground="white")]
_RASTER_CELLS = 10_000  # from here on a surface goes into the PDF as pixels, or viewers crawl


def draw_surfaces(arrangement: Arrangement, scales: dict[str, LossScale], caption: str) -> Figure:
    """The figure of comparable surfaces, with the loss scale of each data set and the text under it."""
    with style():
        draw = _draw_lines if arrangement.dim == 1 else _draw_planes
        return draw(arrangement, scales, caption)


def _title_lines(name: str, width: int) -> list[str]:
    return textwrap.wrap(shorten(clean(name), 3 * width), width) or [" "]


# --- two dimensions -----------------------------------------------------------------------------------------


def _draw_planes(arrangement: Arrangement, scales: dict[str, LossScale], caption: str) -> Figure:
    several = len(arrangement.data) > 1
    side = 2.1 if several else 2.5  # so that the rows of two data sets still fit on a page
    columns = len(arrangement.names)
    first = next(iter(arrangement.cells.values()))
    own_axes = differ_in_eigenvectors(list(arrangement.cells.values()))
    # From the last panel to the edge: the colour bar, its ticks' marks and texts, and its label.
    ticks = [text for scale in scales.values() for text in scale.bar_ticks()[1]]
    bar = 0.12 + 0.1 + 0.1 + max((text_width(text, 7) for text in ticks), default=0.0) + 0.25
    gap, left, right = 0.42 if own_axes else 0.3, 0.62, max(0.8, bar)
    titles = {name: _title_lines(name, int(15 * side)) for name in arrangement.names}
    name_lines = max(len(lines) for lines in titles.values())
    note_lines = max(len(notes(surface)) for surface in arrangement.cells.values())
    names_end = (0.28 if several else 0.05) + 0.14 * name_lines
    view_top = names_end + 0.14 * (1 + note_lines)
    view_top -= 0.04 * side  # the upper corners of a view are empty
    view, flat_height = 0.96 * side, side * aspect(first)
    flat_top = view_top + view + 0.2  # the labels of a view hang below it
    block = flat_top + flat_height + 0.45

    width = left + columns * side + (columns - 1) * gap + right
    sheet = Sheet(width, block * len(arrangement.data), caption)
    for row, data in enumerate(arrangement.data):
        top, scale = row * block, scales[data]
        if several:
            sheet.text(0.1, top + 0.05, shorten(clean(data), int(10 * width)), fontsize=9, fontweight="bold")
        norm = Normalize(scale.levels[0], scale.levels[-1])
        outer, filled = True, None
        for column, name in enumerate(arrangement.names):
            surface = arrangement.cells.get((name, data))
            if surface is None:
                continue
            x = left + column * (side + gap)
            _draw_title(sheet, x + side / 2, top + names_end, titles[name], surface)
            box = sheet.axes(x - 0.15, top + view_top, side + 0.3, view, projection="3d")
            _draw_view(box, surface, scale, norm)
            flat = sheet.axes(x, top + flat_top, side, flat_height)
            filled = _draw_contours(flat, surface, scale, norm) or filled
            if not outer:  # the first panel of a row speaks for the others
                flat.set_ylabel("" if surface.axis_labels[1] == first.axis_labels[1] else flat.get_ylabel())
                flat.tick_params(labelleft=False)
            outer = False
        if filled is not None:
            x = left + columns * side + (columns - 1) * gap + 0.12
            _draw_bar(sheet.figure, sheet.axes(x, top + flat_top, 0.1, flat_height), filled, scale)
    return sheet.figure


def _draw_title(sheet: Sheet, center: float, names_end: float, name: list[str], surface: Surface) -> None:
    sheet.text(center, names_end, "\n".join(name), ha="center", va="bottom", fontweight="bold")
    below = "\n".join([center_text(surface), *notes(surface)])
    sheet.text(center, names_end + 0.02, below, ha="center", fontsize=7)


def _draw_view(axes: Axes3D, surface: Surface, scale: LossScale, norm: Normalize) -> None:
    (x, y), heights = surface.axes, scale.heights(surface.loss)
    if np.isfinite(heights).any():
        axes.plot_surface(
            *np.meshgrid(x, y, indexing="ij"),
            heights,
            rcount=len(x),
            ccount=len(y),
            cmap="viridis",
            norm=norm,
            linewidth=0.2,
            edgecolor=(0, 0, 0, 0.25),
            rasterized=heights.size > _RASTER_CELLS,
        )
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), zlim=(scale.low, scale.high))
    axes.view_init(**CAMERA)
    axes.set_box_aspect((1, aspect(surface), 0.72), zoom=1.02)
    for axis, label, grid in (
        (axes.xaxis, surface.axis_labels[0], x),
        (axes.yaxis, surface.axis_labels[1], y),
    ):
        axis.set_label_text(shorten(clean(label), 38), fontsize=7 if len(label) <= 20 else 5.5)
        axis.labelpad = -9
        edge = 0.1 * (grid[-1] - grid[0])  # ticks of both axes would collide in the corner
        set_linear_ticks(axis, grid[0] + edge, grid[-1] - edge, 4)
    axes.zaxis.set_rotate_label(False)
    positions, texts = scale.ticks(5)
    wide = max((text_width(text, 6) for text in texts), default=0.0) - text_width("0.00", 6)
    axes.set_zlabel(scale.shown, fontsize=7, labelpad=-9 + 72 * max(0.0, wide), rotation=90)
    set_ticks(axes.zaxis, positions, texts)
    axes.tick_params(labelsize=6, pad=-3.5)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set(facecolor="white", edgecolor="0.8", linewidth=0.5)
        axis.line.set(color="0.5", linewidth=0.5)
    axes.computed_zorder = False
    # Of the panes' edges, matplotlib leaves out the one to the left.
    axes.plot([x[0]] * 2, [y[0]] * 2, [scale.low, scale.high], color="0.9", linewidth=0.5, zorder=0)
    axes.patch.set_visible(False)  # the view reaches over its cell


def _draw_contours(axes: Axes, surface: Surface, scale: LossScale, norm: Normalize) -> Any:
    """Draw a contour panel; returns what the colour bar explains, None where nothing was finite."""
    (x, y), heights = surface.axes, scale.heights(surface.loss).T  # contour's rows are y
    axes.patch.set(facecolor="0.9", hatch="////", edgecolor="0.6")  # seen through the holes only
    filled = None
    if np.isfinite(heights).any():
        finer = finer_surface(surface, scale)
        at_x, at_y, drawn = (x, y, heights) if finer is None else (finer[0], finer[1], finer[2].T)
        masked = np.ma.masked_invalid(drawn)
        filled = axes.contourf(at_x, at_y, masked, scale.levels, cmap="viridis", norm=norm, extend=_extend(scale))
        inside = [level for level in scale.levels if masked.min() < level < masked.max()]
        if inside:
            axes.contour(at_x, at_y, masked, inside, colors="white", linewidths=0.35, linestyles="solid", alpha=0.7)
        if finer is not None:
            points_x, points_y = np.meshgrid(x, y)
            points = axes.scatter(points_x, points_y, s=1.2, color="white", linewidths=0, alpha=0.8)
            points.set_gid("measured points")
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    axes.set_xlabel(shorten(clean(surface.axis_labels[0]), 40))
    axes.set_ylabel(shorten(clean(surface.axis_labels[1]), 40))
    set_linear_ticks(axes.xaxis, x[0], x[-1], 5)
    set_linear_ticks(axes.yaxis, y[0], y[-1], 5)
    if not surface.kind_type.markers_are_path:
        _draw_markers(axes, surface, range(len(surface.markers)))
    else:
        places = np.array([marker.coordinates for marker in surface.markers])
        (line,) = axes.plot(*places.T, "-", color="black", linewidth=0.9, scalex=False, scaley=False)
        line.set(path_effects=_HALO, zorder=3)
        _draw_markers(axes, surface, (0, len(surface.markers) - 1))
    if not any(marker.coordinates == (0, 0) for marker in surface.markers):
        halo = [withStroke(linewidth=2, foreground="0.2")]
        (cross,) = axes.plot(0, 0, "+", color="white", markersize=6, scalex=False, scaley=False)
        cross.set(markeredgewidth=1.1, path_effects=halo)
    return filled


def _draw_markers(axes: Axes, surface: Surface, named: Sequence[int]) -> None:
    """A point where each checkpoint lies, with its name where it is among the `named`."""
    (x, y) = surface.axes
    for index, marker in enumerate(surface.markers):
        at_x, at_y = marker.coordinates
        (point,) = axes.plot(at_x, at_y, "o", color="white", markersize=4, scalex=False, scaley=False)
        point.set(markeredgecolor="black", markeredgewidth=0.8, zorder=4)
        if index not in named:
            continue
        right = at_x > (x[0] + x[-1]) / 2  # the label goes to the side where there is room
        axes.annotate(
            shorten(clean(marker.name), 26),
            (at_x, at_y),
            xytext=(-5 if right else 5, 4 if at_y < y[0] + 0.9 * (y[-1] - y[0]) else -10),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=7,
            path_effects=_HALO,
            zorder=5,
        )


def _extend(scale: LossScale) -> str:
    below, above = scale.low < scale.levels[0], scale.high > scale.levels[-1]
    return {(False, False): "neither", (True, False): "min", (False, True): "max"}.get((below, above), "both")


def _draw_bar(figure: Figure, axes: Axes, filled: Any, scale: LossScale) -> None:
    bar = figure.colorbar(filled, cax=axes, label=scale.name, spacing="proportional")
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")  # or PDF viewers show seams between the colours
    bar.outline.set_linewidth(0.4)
    set_ticks(axes.yaxis, *scale.bar_ticks())


# --- one dimension ------------------------------------------------------------------------------------------


def _draw_lines(arrangement: Arrangement, scales: dict[str, LossScale], caption: str) -> Figure:
    wide = max((text_width(text, 7) for scale in scales.values() for text in scale.ticks(7)[1]), default=0.0)
    left = max(0.62, wide + 0.36)  # the texts of the ticks, their marks, and the label beside them
    width, height, gap, right = 2.75, 2.1, left + 0.1, 0.1
    count = len(arrangement.data)
    columns = min(count, 3)
    rows = -(-count // columns)
    names = {data: _line_labels(arrangement.of_data(data)) for data in arrangement.data}
    lines = max(sum(text.count("\n") + 1 for text in texts) for texts in names.values())
    top = 0.28 if count > 1 else 0.1
    block = top + height + 0.42 + 0.135 * lines

    sheet = Sheet(left + columns * width + (columns - 1) * gap + right, rows * block, caption)
    for index, data in enumerate(arrangement.data):
        row, column = divmod(index, columns)
        axes = sheet.axes(left + column * (width + gap), row * block + top, width, height)
        surfaces = arrangement.of_data(data)
        handles = [_draw_line(axes, s, arrangement.names.index(s.name), scales[data].log) for s in surfaces]
        _finish_lines(axes, surfaces, scales[data])
        if count > 1:
            axes.set_title(shorten(clean(data), 40), fontweight="bold", loc="left")
        legend_below(axes, handles, names[data], height)
    return sheet.figure


def _line_labels(surfaces: Sequence[Surface]) -> list[str]:
    own = differ_in_eigenvectors(surfaces)
    return [
        legend_text(s.name, [*([clean(s.axis_labels[0])] if own else []), center_text(s), *notes(s)]) for s in surfaces
    ]


def _draw_line(axes: Axes, surface: Surface, index: int, log: bool) -> Any:
    color, line = COLORS[index % len(COLORS)], LINES[index % len(LINES)]
    losses = np.where(np.isfinite(surface.loss), surface.loss, np.nan)
    (handle,) = axes.plot(surface.axes[0], losses, color=color, linestyle=line)
    if (band := band_of(surface)) is not None:
        axes.fill_between(surface.axes[0], *band, color=color, alpha=0.18, linewidth=0)
    spots = [(marker.coordinates[0], marker.loss) for marker in surface.markers] or [(0.0, surface.center)]
    for x, loss in spots:
        if np.isfinite(loss) and (loss > 0 or not log):
            axes.plot(x, loss, "o", color=color, markersize=3.5, markeredgecolor="white", markeredgewidth=0.6)
    return handle


def _finish_lines(axes: Axes, surfaces: Sequence[Surface], scale: LossScale) -> None:
    x = surfaces[0].axes[0]
    pad = 0.04 * (scale.high - scale.low)
    low, high = scale.low - pad, scale.high + pad
    axes.set(xlim=(x[0], x[-1]), xlabel=shorten(shared_label(surfaces, 0), 48), ylabel=scale.name)
    set_linear_ticks(axes.xaxis, x[0], x[-1], 6)
    if scale.log:
        axes.set_yscale("log")
    axes.set_ylim(*scale.losses([low, high]))
    positions, texts = scale.ticks(7)
    set_ticks(axes.yaxis, scale.losses(positions), texts)
    axes.grid(axis="y")
    open_axes(axes)
    for at, names in marked_places(surfaces).items():
        axes.axvline(at, color="0.45", linewidth=0.8, linestyle=":", zorder=0)
        axes.annotate(
            shorten(" / ".join(names), 40),
            (at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(-2, -2),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=7,
            path_effects=_HALO,
        )
