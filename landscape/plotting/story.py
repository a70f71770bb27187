"""The picture of `landscape demo --real`: how flat two checkpoints are, what lies between them, what each forgot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from landscape.plotting.basics import COLORS, clean
from landscape.plotting.paper_style import LINES, STYLES, Sheet, open_axes
from landscape.plotting.surfaces.interactive_profiles import profile_bands

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscape.forgetting.losses import Forgetting
    from landscape.surfaces.result import Surface

_LEFT, _GAP, _RIGHT = 0.6, 0.95, 0.1  # inches beside the panels, of which there are two to a row
_HEIGHT, _ABOVE, _BELOW = 1.9, 0.3, 0.45  # of a panel, over it and under it


class Story(NamedTuple):
    """What the picture is of.

    Attributes:
        profiles: Surfaces along random lines: of each checkpoint on each data set, several draws.
        line: The surface on the line from the first checkpoint to the second, on each data set.
        kept: What each checkpoint lost against its base.
    """

    profiles: Sequence[Surface]
    line: Sequence[Surface]
    kept: Sequence[Forgetting]


def story_figure(story: Story) -> Figure:
    """Draw a panel of profiles for each data set, then the line between the checkpoints, then what each forgot."""
    data = list(dict.fromkeys(surface.data for surface in story.profiles))
    draws = len({surface.seed for surface in story.profiles})
    caption = (
        f"Profiles: mean over {draws} random directions, normalized by filter; the band is the 95% interval of that "
        "mean at each point alone. Line: rise of the loss above that of its lower end. Forgetting: rise of the loss "
        "from the base, with its 95% interval over examples; below zero is what was learned. One run of each optimizer."
    )
    style, rows = STYLES["paper"], -(-(len(data) + 2) // 2)
    width = (style.double - _LEFT - _GAP - _RIGHT) / 2
    block = _ABOVE + _HEIGHT + _BELOW
    with style.context():
        sheet = Sheet(style, style.double, rows * block, caption)
        axes = [
            sheet.axes(_LEFT + place % 2 * (width + _GAP), place // 2 * block + _ABOVE, width, _HEIGHT)
            for place in range(len(data) + 2)
        ]
        for name, panel in zip(data, axes, strict=False):
            _draw_profiles(panel, [surface for surface in story.profiles if surface.data == name])
            panel.set(title=f"around each, on {clean(name)}", xlabel="distance along the direction")
            panel.set_ylabel("loss (nats per token)")
        _draw_line(axes[-2], story.line)
        _draw_forgetting(axes[-1], story.kept)
        for panel in axes:
            open_axes(panel)
        axes[0].legend(loc="upper center", fontsize=7)
        axes[-2].legend(loc="upper center", fontsize=7)
        return sheet.figure


def _draw_profiles(axes: Any, surfaces: Sequence[Surface]) -> None:
    for order, name in enumerate(dict.fromkeys(surface.name for surface in surfaces)):
        own = [surface for surface in surfaces if surface.name == name]
        x, (mean, half) = own[0].axes[0], profile_bands(np.stack([surface.loss for surface in own]))
        axes.fill_between(x, mean - half, mean + half, color=COLORS[order], alpha=0.2, linewidth=0)
        axes.plot(x, mean, LINES[order], color=COLORS[order], label=clean(name))


def _draw_line(axes: Any, surfaces: Sequence[Surface]) -> None:
    for order, surface in enumerate(surfaces):
        lowest = min(marker.loss for marker in surface.markers)
        color = COLORS[2 + order]
        axes.plot(surface.axes[0], surface.loss - lowest, LINES[order], color=color, label=clean(surface.data))
        for marker in surface.markers:
            axes.plot(marker.coordinates[0], marker.loss - lowest, "o", color=color, markersize=4)
    names = [clean(marker.name) for marker in surfaces[0].markers]
    axes.set_xticks([marker.coordinates[0] for marker in surfaces[0].markers], names)
    axes.set(title="on the line between them", ylabel="rise of the loss (nats per token)")


def _draw_forgetting(axes: Any, results: Sequence[Forgetting]) -> None:
    names = [task.name for task in results[0].tasks]
    for order, result in enumerate(results):
        for place, task in enumerate(result.tasks):
            at = len(names) - 1 - place + 0.14 - 0.28 * order
            axes.plot(task.forgetting_interval, [at, at], color=COLORS[order], linewidth=1.4)
            axes.plot(task.forgetting, at, "os"[order % 2], color=COLORS[order], markersize=4)
    axes.axvline(0, color="0.6", linewidth=0.6)
    axes.set_yticks(range(len(names)), [clean(name).replace("_", "\n") for name in reversed(names)])
    axes.set_ylim(-0.5, len(names) - 0.5)
    axes.set(title="what each learned and forgot", xlabel="rise of the loss (nats per token)")
