"""Figures of loss surfaces for papers, drawn by matplotlib."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from mpl_toolkits.mplot3d import Axes3D

from landscape.plotting.basics import clean, shorten
from landscape.plotting.paper_style import (
    Sheet,
    Style,
    fitted,
    halo,
    points,
    set_linear_ticks,
    set_ticks,
    text_width,
    wrapped,
)
from landscape.plotting.surfaces.arrangement import Arrangement, aspect, differ_in_eigenvectors
from landscape.plotting.surfaces.captions import center_text, notes
from landscape.plotting.surfaces.interpolation import finer_surface
from landscape.plotting.surfaces.paper_lines import draw_lines
from landscape.plotting.surfaces.scale import LossScale
from landscape.plotting.ticks import linear_ticks

if TYPE_CHECKING:
    from landscape.surfaces.result import Surface

CAMERA = {"elev": 30, "azim": -60}
_LABEL_OFFSET, _TICK_OFFSET = 21, 8  # points that mplot3d adds to the pads of labels and of ticks
_RASTER_CELLS = 10_000  # from here on a surface goes into the PDF as pixels, or viewers crawl


def draw_surfaces(arrangement: Arrangement, scales: dict[str, LossScale], caption: str, style: Style) -> Figure:
    """The figure of comparable surfaces, with the loss scale of each data set and the text under it."""
    with style.context():
        draw = draw_lines if arrangement.dim == 1 else _draw_planes
        return draw(arrangement, scales, caption, style)


def _title_lines(name: str, width: int) -> list[str]:
    return textwrap.wrap(shorten(clean(name), 3 * width), width) or [" "]


_LEAST_SIDE, _MOST_SIDE, _MOST_SIDE_OF_SEVERAL = 1.35, 2.6, 2.1  # inches; the last where data sets share a page


def _draw_planes(arrangement: Arrangement, scales: dict[str, LossScale], caption: str, style: Style) -> Figure:
    several = len(arrangement.data) > 1
    first = next(iter(arrangement.cells.values()))
    own_axes = differ_in_eigenvectors(list(arrangement.cells.values()))
    # From the last panel to the edge: the colour bar, its ticks' marks and texts, and its label.
    ticks = [text for scale in scales.values() for text in scale.bar_ticks()[1]]
    bar = 0.12 + 0.1 + 0.1 + max((text_width(text, 7) for text in ticks), default=0.0) + 0.25
    gap, left, right = 0.42 if own_axes else 0.3, 0.62, max(0.8, bar)

    room = (style.double if len(arrangement.names) > 1 else style.single) - left - right
    columns = max(1, min(len(arrangement.names), int((room + gap) / (_LEAST_SIDE + gap))))
    side = min((room + gap) / columns - gap, _MOST_SIDE_OF_SEVERAL if several else _MOST_SIDE)
    # Of the height, a view and its contours take 0.92 + aspect sides, and the texts around them about an inch.
    side = max(min(side, (style.height / style.scale - 1.05) / (0.92 + aspect(first))), 0.8 * _LEAST_SIDE)
    titles = {name: _title_lines(name, int(15 * side)) for name in arrangement.names}
    below = {place: _below_title(surface, side + 0.8 * gap) for place, surface in arrangement.cells.items()}
    names_end = (0.28 if several else 0.05) + 0.14 * max(len(lines) for lines in titles.values())
    view_top = names_end + 0.14 * max(map(len, below.values()))
    view_top -= 0.04 * side  # the upper corners of a view are empty
    view, flat_height = 0.96 * side, side * aspect(first)
    flat_top = view_top + view + 0.2  # the labels of a view hang below it
    block = flat_top + flat_height + 0.45

    width = left + columns * side + (columns - 1) * gap + right
    names = arrangement.names
    rows = [(data, names[at : at + columns]) for data in arrangement.data for at in range(0, len(names), columns)]
    sheet = Sheet(style, width, block * len(rows), caption)
    for row, (data, here) in enumerate(rows):
        top, scale = row * block, scales[data]
        if several:
            title: dict[str, Any] = {"fontsize": points(9), "fontweight": "bold"}
            sheet.text(0.1, top + 0.05, fitted(clean(data), width - 0.2, 9.5), **title)
        norm = Normalize(scale.levels[0], scale.levels[-1])
        outer, filled, end = True, None, left
        for column, name in enumerate(here):
            surface = arrangement.cells.get((name, data))
            if surface is None:
                continue
            x = left + column * (side + gap)
            _draw_title(sheet, x + side / 2, top + names_end, titles[name], below[name, data])
            box = sheet.axes(x - 0.15, top + view_top, side + 0.3, view, projection="3d")
            _draw_view(box, surface, scale, norm, side)
            flat = sheet.axes(x, top + flat_top, side, flat_height)
            filled = _draw_contours(flat, surface, scale, norm) or filled
            flat.set_xlabel(fitted(clean(surface.axis_labels[0]), side + 0.8 * gap, 8))
            if outer or surface.axis_labels[1] != first.axis_labels[1]:
                flat.set_ylabel(fitted(clean(surface.axis_labels[1]), flat_height, 8))
            set_linear_ticks(flat.xaxis, surface.axes[0][0], surface.axes[0][-1], max(2, int(2 * side)))
            set_linear_ticks(flat.yaxis, surface.axes[1][0], surface.axes[1][-1], max(2, int(2 * side)))
            if not outer:  # the first panel of a row speaks for the others
                flat.tick_params(labelleft=False)
            outer, end = False, x + side
        if filled is not None:
            bar_axes = sheet.axes(end + 0.12, top + flat_top, 0.1, flat_height)
            _draw_bar(sheet.figure, bar_axes, filled, scale, max(2, int(3.6 * flat_height)))
    return sheet.figure


def _below_title(surface: Surface, width: float) -> list[str]:
    """The lines under a checkpoint's name: its loss, and warnings."""
    return [line for text in (center_text(surface), *notes(surface)) for line in wrapped(text, width, 7)]


def _draw_title(sheet: Sheet, center: float, names_end: float, name: list[str], below: list[str]) -> None:
    sheet.text(center, names_end, "\n".join(name), ha="center", va="bottom", fontweight="bold")
    sheet.text(center, names_end + 0.02, "\n".join(below), ha="center", fontsize=points(7))


def _draw_view(axes: Axes3D, surface: Surface, scale: LossScale, norm: Normalize, side: float) -> None:
    (x, y), heights = surface.axes, scale.heights(surface.loss)
    if np.isfinite(heights).any():
        axes.plot_surface(
            *np.meshgrid(x, y, indexing="ij"),
            heights,
            rcount=len(x),
            ccount=len(y),
            cmap="viridis",
            norm=norm,
            linewidth=points(0.2),
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
        small = 7 if text_width(clean(label), 7) <= 0.5 * side else 5.5
        axis.set_label_text(fitted(clean(label), 0.5 * side, small), fontsize=points(small))
        axis.labelpad = points(12) - _LABEL_OFFSET
        edge = 0.1 * (grid[-1] - grid[0])  # ticks of both axes would collide in the corner
        ticks, texts = linear_ticks(grid[0] + edge, grid[-1] - edge, 4 if side > 2 else 2)
        if sum(text_width(text, 6) for text in texts) > 0.4 * side:  # an axis of a view is about 0.6 sides long
            ticks, texts = [ticks[0], ticks[-1]], [texts[0], texts[-1]]
        set_ticks(axis, ticks, texts)
    axes.zaxis.set_rotate_label(False)
    positions, texts = scale.ticks(5 if side > 2 else 3)
    wide = max((text_width(text, 6) for text in texts), default=0.0) - text_width("0.00", 6)
    pad = points(12 + 72 * max(0.0, wide)) - _LABEL_OFFSET
    axes.set_zlabel(scale.shown, fontsize=points(7), labelpad=pad, rotation=90)
    set_ticks(axes.zaxis, positions, texts)
    axes.tick_params(labelsize=points(6), pad=points(4.5) - _TICK_OFFSET)
    for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
        axis.pane.set(facecolor="white", edgecolor="0.8", linewidth=points(0.5))
        axis.line.set(color="0.5", linewidth=points(0.5))
    axes.computed_zorder = False
    # Of the panes' edges, matplotlib leaves out the one to the left.
    axes.plot([x[0]] * 2, [y[0]] * 2, [scale.low, scale.high], color="0.9", linewidth=points(0.5), zorder=0)
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
            thin = points(0.35)
            axes.contour(at_x, at_y, masked, inside, colors="white", linewidths=thin, linestyles="solid", alpha=0.7)
        if finer is not None:
            points_x, points_y = np.meshgrid(x, y)
            dots = axes.scatter(points_x, points_y, s=points(1.1) ** 2, color="white", linewidths=0, alpha=0.8)
            dots.set_gid("measured points")
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    if not surface.kind_type.markers_are_path:
        _draw_markers(axes, surface, range(len(surface.markers)))
    else:
        places = np.array([marker.coordinates for marker in surface.markers])
        (line,) = axes.plot(*places.T, "-", color="black", linewidth=points(0.9), scalex=False, scaley=False)
        line.set(path_effects=halo(), zorder=3)
        _draw_markers(axes, surface, (0, len(surface.markers) - 1))
    if not any(marker.coordinates == (0, 0) for marker in surface.markers):
        (cross,) = axes.plot(0, 0, "+", color="white", markersize=points(6), scalex=False, scaley=False)
        cross.set(markeredgewidth=points(1.1), path_effects=halo("0.2"))
    return filled


def _draw_markers(axes: Axes, surface: Surface, named: Sequence[int]) -> None:
    """A point where each checkpoint lies, with its name where it is among the `named`."""
    inch = axes.figure.dpi * points(72) / 72  # dots of an inch of the layout
    left, right = axes.bbox.x0 / inch, axes.bbox.x1 / inch
    taken: list[tuple[float, float, float, float]] = []
    for index, marker in enumerate(surface.markers):
        at_x, at_y = marker.coordinates
        (point,) = axes.plot(at_x, at_y, "o", color="white", markersize=points(4), scalex=False, scaley=False)
        point.set(markeredgecolor="black", markeredgewidth=points(0.8), zorder=4)
        if index not in named:
            continue
        name = fitted(clean(marker.name), 0.75 * (right - left), 7)
        x, y = axes.transData.transform((at_x, at_y)) / inch
        width, box = text_width(name, 7), (0.0, 0.0, 0.0, 0.0)
        for to_right, above in ((True, True), (False, True), (True, False), (False, False)):
            start = x + 0.07 if to_right else x - 0.07 - width
            box = (start, y + 0.03 if above else y - 0.14, start + width, y + 0.14 if above else y - 0.03)
            inside = (
                left <= box[0] and box[2] <= right and axes.bbox.y0 / inch <= box[1] and box[3] <= axes.bbox.y1 / inch
            )
            if inside and not any(_overlap(box, other) for other in taken):
                break
        taken.append(box)
        axes.annotate(
            name,
            (at_x, at_y),
            xytext=(points(5 if to_right else -5), points(2.5 if above else -2.5)),
            textcoords="offset points",
            ha="left" if to_right else "right",
            va="bottom" if above else "top",
            fontsize=points(7),
            path_effects=halo(),
            zorder=5,
        )


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    """Whether two boxes (left, bottom, right, top) overlap."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _extend(scale: LossScale) -> str:
    below, above = scale.low < scale.levels[0], scale.high > scale.levels[-1]
    return {(False, False): "neither", (True, False): "min", (False, True): "max"}.get((below, above), "both")


def _draw_bar(figure: Figure, axes: Axes, filled: Any, scale: LossScale, count: int) -> None:
    bar = figure.colorbar(filled, cax=axes, label=scale.name, spacing="proportional")
    if bar.solids is not None:
        bar.solids.set_edgecolor("face")  # or PDF viewers show seams between the colours
    bar.outline.set_linewidth(points(0.4))
    set_ticks(axes.yaxis, *scale.bar_ticks(count))
