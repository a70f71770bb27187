"""Figures of curvature for papers, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from landscape.plotting.basics import COLORS, Places, clean, shorten
from landscape.plotting.curvature.shared import (
    Bars,
    DensityPanel,
    bar_range,
    density_remarks,
    extremes,
    layer_bars,
)
from landscape.plotting.paper_style import (
    LINES,
    Sheet,
    Style,
    fitted,
    legend_below,
    legend_text,
    open_axes,
    panel_width,
    points,
    set_linear_ticks,
    set_ticks,
    text_width,
)
from landscape.plotting.ticks import log_ticks

if TYPE_CHECKING:
    from landscape.curvature.results import Eigenvalues, LayerCurvature, SpectralDensity, TraceEstimate

_HEIGHT = 2.1  # inches of a panel, as of lines through a surface


# --- spectral density ---------------------------------------------------------------------------------------


def draw_densities(
    places: Places[SpectralDensity], panels: dict[str, DensityPanel], caption: str, style: Style
) -> Figure:
    """The figure of comparable densities: a panel per data set, a line per checkpoint, the text under it."""
    with style.context():
        return _draw_density_sheet(places, panels, caption, style)


def _draw_density_sheet(
    places: Places[SpectralDensity], panels: dict[str, DensityPanel], caption: str, style: Style
) -> Figure:
    gap, left, right = 0.78, 0.68, 0.1
    columns = min(len(panels), 2)
    width = panel_width(style, columns, left + right, gap)
    rows = -(-len(panels) // columns)
    legends = {
        data: [legend_text(d.name, density_remarks(d), width) for d in panel.densities]
        for data, panel in panels.items()
    }
    lines = max(sum(text.count("\n") + 1 for text in texts) for texts in legends.values())
    top = 0.28 if len(panels) > 1 else 0.1
    block = top + _HEIGHT + 0.42 + 0.135 * lines
    sheet = Sheet(style, left + columns * width + (columns - 1) * gap + right, rows * block, caption)
    for index, (data, panel) in enumerate(panels.items()):
        row, column = divmod(index, columns)
        axes = sheet.axes(left + column * (width + gap), row * block + top, width, _HEIGHT)
        orders = [places.names.index(density.name) for density in panel.densities]
        handles = _draw_density_panel(axes, panel, orders)
        if len(panels) > 1:
            axes.set_title(fitted(clean(data), width, 8.5), fontweight="bold", loc="left")
        legend_below(axes, handles, legends[data], _HEIGHT)
    return sheet.figure


def _draw_density_panel(axes: Axes, panel: DensityPanel, orders: Sequence[int]) -> list[Any]:
    axes.set_yscale("log")
    handles = []
    for row, (density, (x, y), order) in enumerate(zip(panel.densities, panel.curves, orders, strict=True)):
        color = COLORS[order % len(COLORS)]
        handles += axes.plot(x, y, color=color, linestyle=LINES[order % len(LINES)], linewidth=points(1.1))
        # A line of ticks for each checkpoint, at the foot of the panel: they would hide each other in one.
        height = np.full(2 * len(density.nodes), 0.03 + 0.05 * row)
        mark: dict[str, Any] = {"ms": points(5), "mew": points(0.9), "transform": axes.get_xaxis_transform()}
        axes.plot(extremes(density), height, "|", color=color, **mark)
    axes.set(xlim=(panel.low, panel.high), ylim=(panel.floor, panel.top), xlabel="eigenvalue")
    axes.set_ylabel("density (log scale)")
    set_linear_ticks(axes.xaxis, panel.low, panel.high, 7)
    set_ticks(axes.yaxis, *log_ticks(np.log10(panel.floor), np.log10(panel.top), 6))
    axes.grid(axis="y")
    open_axes(axes)
    return handles


# --- layers -------------------------------------------------------------------------------------------------


def draw_layers(places: Places[LayerCurvature], caption: str, style: Style) -> Figure:
    """The figure of comparable tables: a row per data set, traces to the left of the eigenvalues, the text under it."""
    with style.context():
        return _draw_layers_sheet(places, caption, style)


def _draw_layers_sheet(places: Places[LayerCurvature], caption: str, style: Style) -> Figure:
    names = [shorten(clean(row.name), 30) for row in next(iter(places.cells.values())).layers]
    several = len(places.data) > 1
    pitch = max(0.17, 0.09 * len(places.names) + 0.06)  # inches to a layer
    height, gap, right = pitch * len(names), 0.2, 0.12
    left = 0.15 + max(text_width(name, 7) for name in names)
    width = panel_width(style, 2, left + right, gap)
    top = 0.3 if several else 0.1
    block = top + height + 0.45
    legend = [legend_text(name, [], 2 * width) for name in places.names]
    foot = 0.135 * sum(text.count("\n") + 1 for text in legend)
    sheet = Sheet(style, left + 2 * width + gap + right, block * len(places.data) + foot, caption)
    for index, data in enumerate(places.data):
        y = index * block
        if several:
            sheet.text(0.1, y + 0.06, shorten(clean(data), 60), fontsize=points(9), fontweight="bold")
        tables = places.of_data(data)
        orders = [places.names.index(table.name) for table in tables]
        columns = zip(*(layer_bars(table) for table in tables), strict=True)
        for column, (bars, label) in enumerate(zip(columns, ("trace", "largest eigenvalue"), strict=True)):
            axes = sheet.axes(left + column * (width + gap), y + top, width, height)
            _draw_bars(axes, bars, orders, len(places.names))
            axes.set_xlabel(label)
            set_ticks(axes.yaxis, range(len(names)), names if column == 0 else [""] * len(names))
            if column == 0 and index == len(places.data) - 1:
                legend_below(axes, _patches(len(places.names)), legend, height)
    return sheet.figure


def _draw_bars(axes: Axes, bars: Sequence[Bars], orders: Sequence[int], checkpoints: int) -> None:
    thick = 0.8 / checkpoints
    for order, these in zip(orders, bars, strict=True):
        at = np.arange(len(these.values)) + (order - (checkpoints - 1) / 2) * thick
        color = COLORS[order % len(COLORS)]
        faces = ["white" if hollow else color for hollow in these.hollow]
        axes.barh(at, these.values, height=0.85 * thick, color=faces, edgecolor=color, linewidth=points(0.8))
        axes.errorbar(
            *(these.values, at),
            xerr=these.errors,
            fmt="none",
            ecolor="0.25",
            elinewidth=points(0.7),
            capsize=points(1.3),
        )
    low, high = bar_range(bars)
    axes.set(xlim=(low, high), ylim=(len(bars[0].values) - 0.5, -0.5))  # the first layer at the top
    set_linear_ticks(axes.xaxis, low, high, 5)
    axes.axvline(0, color="0.2", linewidth=points(0.6))
    axes.grid(axis="x")
    axes.tick_params(axis="y", length=0)
    open_axes(axes)


def _patches(count: int) -> list[Any]:
    return [Patch(color=COLORS[index % len(COLORS)]) for index in range(count)]


# --- single results -----------------------------------------------------------------------------------------


def draw_eigenvalues(result: Eigenvalues, caption: str, style: Style) -> Figure:
    """The figure of eigenvalues with their residual norms, the text under it."""
    with style.context():
        sheet, axes = _small_sheet(result.name, result.data, caption, style)
        sizes: dict[str, Any] = {
            "ms": points(4),
            "markeredgewidth": points(1.0),
            "capsize": points(2),
            "elinewidth": points(0.8),
        }
        for order, (value, residual, good) in enumerate(
            zip(result.values, result.residuals, result.converged, strict=True), start=1
        ):
            if np.isfinite(value):
                options: dict[str, Any] = {"color": COLORS[0], "markerfacecolor": COLORS[0] if good else "white"}
                axes.errorbar(order, value, yerr=np.nan_to_num(residual), fmt="o", **sizes, **options)
        axes.axhline(0, color="0.45", linewidth=points(0.6))
        axes.set(xlim=(0.5, len(result.values) + 0.5), xlabel="eigenvalue number", ylabel="eigenvalue")
        axes.xaxis.set_major_locator(MaxNLocator(10, integer=True, min_n_ticks=1))
        set_linear_ticks(axes.yaxis, *axes.get_ylim(), 6)
        axes.grid(axis="y")
        open_axes(axes)
        return sheet.figure


def draw_trace(result: TraceEstimate, caption: str, style: Style) -> Figure:
    """The histogram of what single probes estimate, the text under it."""
    samples = result.samples[np.isfinite(result.samples)]
    with style.context():
        sheet, axes = _small_sheet(result.name, result.data, caption, style)
        if len(samples):
            axes.hist(samples, bins="sturges", color=COLORS[0], alpha=0.55, edgecolor="white", linewidth=points(0.6))
        interval = result.confidence_interval
        if np.isfinite(interval).all():
            axes.axvspan(*interval, color=COLORS[1], alpha=0.25, linewidth=0)
        if np.isfinite(result.value):
            axes.axvline(result.value, color=COLORS[1], linewidth=points(1.2))
        weighted = f"{clean(result.weighting)} " if result.weighting else ""
        axes.set(xlabel=f"{weighted}trace by one probe", ylabel="probes")
        set_linear_ticks(axes.xaxis, *axes.get_xlim(), 6)
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        open_axes(axes)
        return sheet.figure


def _small_sheet(name: str, data: str, caption: str, style: Style) -> tuple[Sheet, Axes]:
    """A sheet with one panel, the checkpoint and its data above it."""
    left, top = 0.68, 0.28
    width = panel_width(style, 1, left + 0.1, 0)
    sheet = Sheet(style, left + width + 0.1, top + _HEIGHT + 0.42, caption)
    axes = sheet.axes(left, top, width, _HEIGHT)
    title = f"{shorten(clean(name), 28)} on {shorten(clean(data), 20)}"
    axes.set_title(fitted(title, width, 8.5), fontweight="bold", loc="left")
    return sheet, axes
