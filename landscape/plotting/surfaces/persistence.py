"""Persistence diagrams of surfaces for papers, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from landscape.errors import InputError
from landscape.plotting.basics import COLORS, clean, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscape.surfaces.topology import Topology

MARKERS = "osD^v<>"


def plot_persistence(topologies: Sequence[Topology], *, caption: str | None = None) -> Figure:
    """Draw the persistence diagrams of surfaces: a point for each minimum, at its value and at that of its saddle.

    The higher a point lies above the diagonal, the deeper the minimum lies below the way out of its basin. Below the
    dotted line, noise of the size that the topology knows could have made it. The triangle is the lowest minimum, which
    has no saddle.

    Args:
        topologies: What `compute_topology` returned, of one height.
        caption: Replaces the text under the figure; "" leaves it out.

    Returns:
        A matplotlib figure that does not belong to pyplot.

    Raises:
        InputError: There is no topology, or they are of different heights.
    """
    from landscape.plotting.paper_style import Sheet, legend_below, legend_text, open_axes, style

    if not topologies:
        raise InputError("no topology to plot; give at least one.")
    heights = list(dict.fromkeys(topology.height for topology in topologies))
    if len(heights) > 1:
        raise InputError(f"the topologies are of different heights: {', '.join(heights)}.")
    values = [t.lowest_value for t in topologies]
    values += [value for t in topologies for pair in t.pairs for value in (pair.birth, pair.death)]
    room = 0.08 * (max(values) - min(values)) or 0.1 * max(1.0, abs(values[0]))
    ends = (min(values) - room, max(values) + room)
    text = (
        f"Minima of {clean(heights[0])} over the grid and the saddles that end their basins; triangles on the "
        "edge: the lowest minimum. Points below a dotted line are within the noise."
    )
    with style():
        sheet = Sheet(4.2, 4.2, text if caption is None else clean(caption))
        axes = sheet.axes(0.75, 0.15, 3.0, 3.0)
        axes.plot(ends, ends, color="0.6", linewidth=0.8)
        handles = []
        for number, topology in enumerate(topologies):
            color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
            births, deaths = ([getattr(pair, end) for pair in topology.pairs] for end in ("birth", "death"))
            (handle,) = axes.plot(births, deaths, marker, color=color, markersize=5, linestyle="none")
            axes.plot([topology.lowest_value], [ends[1]], "^", color=color, markersize=6, clip_on=False)
            if topology.noise:
                axes.plot(ends, [end + 2 * topology.noise for end in ends], ":", color=color, linewidth=0.8)
            handles.append(handle)
        axes.set(xlim=ends, ylim=ends, xlabel=f"{clean(heights[0])} at the minimum", ylabel="at its saddle")
        open_axes(axes)
        names = [legend_text(shorten(t.name, 40), [f"{t.minima} minima", f"SMAD {t.smad:.3g}"]) for t in topologies]
        legend_below(axes, handles, names, 3.0)
    return sheet.figure
