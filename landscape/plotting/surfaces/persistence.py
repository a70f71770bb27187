"""Persistence diagrams of surfaces for papers, drawn by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import InputError
from landscape.plotting.basics import COLORS, clean, shorten
from landscape.plotting.files import write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscape.surfaces.topology import Topology

MARKERS = "osD^v<>"


def plot_persistence(topologies: Sequence[Topology], *, caption: str | None = None, style: str = "paper") -> Figure:
    """Draw the persistence diagrams of surfaces: a point for each minimum, at its value and at that of its saddle.

    The higher a point lies above the diagonal, the deeper the minimum lies below the way out of its basin. Below the
    dotted line, noise of the size that the topology knows could have made it. The triangle is the lowest minimum, which
    has no saddle.

    Args:
        topologies: What `compute_topology` returned, of one height.
        caption: Replaces the text under the figure; "" leaves it out.
        style: What the figure is for, as for `plot_surfaces`.

    Returns:
        A matplotlib figure that does not belong to pyplot.

    Raises:
        InputError: There is no topology, they are of different heights, or there is no such `style`.
    """
    from landscape.plotting.paper_style import Sheet, legend_below, legend_text, open_axes, points, style_named

    if not topologies:
        raise InputError("no topology to plot; give at least one.")
    heights = list(dict.fromkeys(topology.height for topology in topologies))
    if len(heights) > 1:
        raise InputError(f"the topologies are of different heights: {', '.join(heights)}.")
    values = [t.lowest_value for t in topologies]
    values += [value for t in topologies for pair in t.pairs for value in (pair.birth, pair.death)]
    room = 0.08 * (max(values) - min(values)) or 0.1 * max(1.0, abs(values[0]))
    ends = (min(values) - room, max(values) + room)
    shown, several = clean(topologies[0].shown), len({topology.data for topology in topologies}) > 1
    text = (
        f"Minima of {shown} over the grid and the saddles that end their basins; triangles on the "
        f"edge: the lowest minimum. {_noise_text(topologies)}"
    ).rstrip()
    look = style_named(style)
    side = look.single - 0.95
    with look.context():
        names = [
            legend_text(shorten(_label(t, several), 40), [count_of_minima(t), f"SMAD {t.smad:.3g}"], side)
            for t in topologies
        ]
        lines = sum(name.count("\n") + 1 for name in names)
        sheet = Sheet(look, look.single, side + 0.65 + 0.135 * lines, text if caption is None else clean(caption))
        axes = sheet.axes(0.75, 0.15, side, side)
        axes.plot(ends, ends, color="0.6", linewidth=points(0.8))
        handles = []
        for number, topology in enumerate(topologies):
            color, marker = COLORS[number % len(COLORS)], MARKERS[number % len(MARKERS)]
            births, deaths = ([getattr(pair, end) for pair in topology.pairs] for end in ("birth", "death"))
            (handle,) = axes.plot(births, deaths, marker, color=color, markersize=points(5), linestyle="none")
            axes.plot([topology.lowest_value], [ends[1]], "^", color=color, markersize=points(6), clip_on=False)
            if topology.noise:
                axes.plot(ends, [end + 2 * topology.noise for end in ends], ":", color=color, linewidth=points(0.8))
            handles.append(handle)
        axes.set(xlim=ends, ylim=ends, xlabel=f"{shown} at the minimum", ylabel="at its saddle")
        open_axes(axes)
        legend_below(axes, handles, names, side)
    return sheet.figure


def _noise_text(topologies: Sequence[Topology]) -> str:
    """What the noise has to do with the points; a line that lies above all of them would not be in the picture."""
    known = [topology for topology in topologies if topology.noise and topology.pairs]
    if not known:
        return ""
    if any(topology.surviving for topology in known):
        return "Points below a dotted line are within the noise."
    return "All points are within the noise." if len(known) == len(topologies) else "No point is above a known noise."


def _label(topology: Topology, several: bool) -> str:
    """The name of a surface, with its data where there are several."""
    return f"{topology.name} on {topology.data}" if several else topology.name


def count_of_minima(topology: Topology) -> str:
    """How many minima there are, in words."""
    return "1 minimum" if topology.minima == 1 else f"{topology.minima} minima"


def write_persistence(topologies: Sequence[Topology], stem: Path, *, style: str = "paper") -> list[Path]:
    """Write the diagram of topologies as `write_figure` does; of none there is no file.

    Args:
        topologies: As for `plot_persistence`, or none.
        stem: The path of the files without their suffix.
        style: As for `plot_surfaces`.

    Returns:
        The paths of the files.
    """
    return write_figure(plot_persistence(topologies, style=style), stem) if topologies else []
