"""Figures of loss surfaces of one dimension, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from landscape.plotting.basics import COLORS, clean, shorten
from landscape.plotting.paper_style import (
    LINES,
    Sheet,
    Style,
    fitted,
    halo,
    legend_below,
    legend_text,
    open_axes,
    panel_width,
    points,
    set_linear_ticks,
    set_ticks,
    text_width,
)
from landscape.plotting.surfaces.arrangement import (
    Arrangement,
    band_of,
    differ_in_eigenvectors,
    marked_places,
    shared_label,
)
from landscape.plotting.surfaces.captions import center_text, notes
from landscape.plotting.surfaces.scale import LossScale

if TYPE_CHECKING:
    from landscape.surfaces.result import Surface


def draw_lines(arrangement: Arrangement, scales: dict[str, LossScale], caption: str, style: Style) -> Figure:
    """The panels of surfaces of one dimension, within the context of the style."""
    wide = max((text_width(text, 7) for scale in scales.values() for text in scale.ticks(7)[1]), default=0.0)
    left = max(0.62, wide + 0.36)  # the texts of the ticks, their marks, and the label beside them
    count = len(arrangement.data)
    columns = min(count, 2)
    rows = -(-count // columns)
    height, gap, right = 2.1, left + 0.1, 0.1
    width = panel_width(style, columns, left + right, gap)
    names = {data: _line_labels(arrangement.of_data(data), width) for data in arrangement.data}
    lines = max(sum(text.count("\n") + 1 for text in texts) for texts in names.values())
    top = 0.28 if count > 1 else 0.1
    block = top + height + 0.42 + 0.135 * lines

    sheet = Sheet(style, left + columns * width + (columns - 1) * gap + right, rows * block, caption)
    for index, data in enumerate(arrangement.data):
        row, column = divmod(index, columns)
        axes = sheet.axes(left + column * (width + gap), row * block + top, width, height)
        surfaces = arrangement.of_data(data)
        handles = [_draw_line(axes, s, arrangement.names.index(s.name), scales[data].log) for s in surfaces]
        _finish_lines(axes, surfaces, scales[data], width)
        if count > 1:
            axes.set_title(fitted(clean(data), width, 8.5), fontweight="bold", loc="left")
        legend_below(axes, handles, names[data], height)
    return sheet.figure


def _line_labels(surfaces: Sequence[Surface], width: float) -> list[str]:
    own = differ_in_eigenvectors(surfaces)
    return [
        legend_text(s.name, [*([clean(s.axis_labels[0])] if own else []), center_text(s), *notes(s)], width)
        for s in surfaces
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
            axes.plot(
                x, loss, "o", color=color, markersize=points(3.5), markeredgecolor="white", markeredgewidth=points(0.6)
            )
    return handle


def _finish_lines(axes: Axes, surfaces: Sequence[Surface], scale: LossScale, width: float) -> None:
    x = surfaces[0].axes[0]
    pad = 0.04 * (scale.high - scale.low)
    low, high = scale.low - pad, scale.high + pad
    axes.set(xlim=(x[0], x[-1]), xlabel=fitted(shared_label(surfaces, 0), width, 8), ylabel=scale.name)
    set_linear_ticks(axes.xaxis, x[0], x[-1], 6)
    if scale.log:
        axes.set_yscale("log")
    axes.set_ylim(*scale.losses([low, high]))
    positions, texts = scale.ticks(7)
    set_ticks(axes.yaxis, scale.losses(positions), texts)
    axes.grid(axis="y")
    open_axes(axes)
    for at, names in marked_places(surfaces).items():
        axes.axvline(at, color="0.45", linewidth=points(0.8), linestyle=":", zorder=0)
        axes.annotate(
            shorten(" / ".join(names), 40),
            (at, 1),
            xycoords=("data", "axes fraction"),
            xytext=(points(-2), points(-2)),
            textcoords="offset points",
            rotation=90,
            ha="right",
            va="top",
            fontsize=points(7),
            path_effects=halo(),
        )
