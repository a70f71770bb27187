"""Maps of heads for papers, drawn by matplotlib."""

from __future__ import annotations

from matplotlib.figure import Figure

from landscape.plotting.basics import clean, shorten
from landscape.plotting.instruction_vectors.shared import Maps
from landscape.plotting.paper_style import Sheet, Style, fitted, points, set_linear_ticks

_LEFT, _TOP, _GAP, _RIGHT = 0.85, 0.35, 0.3, 0.85  # inches
_LEAST_WIDTH, _MOST_WIDTH = 1.1, 1.7
_LEAST_HEIGHT, _MOST_HEIGHT = 1.2, 2.6


def draw_maps(maps: Maps, caption: str, style: Style) -> Figure:
    """The figure of maps, with the text under them."""
    room = (style.double if len(maps.names) > 1 else style.single) - _LEFT - _RIGHT
    panel = min(max(room / len(maps.names) - _GAP, _LEAST_WIDTH), _MOST_WIDTH)
    layers, heads = next(iter(maps.cells.values())).mean_effects.shape
    height = min(_MOST_HEIGHT, max(_LEAST_HEIGHT, panel * layers / heads))
    width = _LEFT + len(maps.names) * (panel + _GAP) + _RIGHT
    with style.context():
        sheet = Sheet(style, width, _TOP + len(maps.tasks) * (height + _GAP) + 0.35, caption)
        for row, task in enumerate(maps.tasks):
            top = _TOP + row * (height + _GAP)
            sheet.text(0.1, top + height / 2, shorten(clean(task), 24), rotation=90, va="center", fontsize=points(8))
            for column, name in enumerate(maps.names):
                vector = maps.cells.get((name, task))
                if vector is None:
                    continue
                axes = sheet.axes(_LEFT + column * (panel + _GAP), top, panel, height)
                image = axes.imshow(
                    vector.mean_effects,
                    cmap="RdBu_r",
                    vmin=-maps.limit,
                    vmax=maps.limit,
                    aspect="auto",
                    interpolation="nearest",
                    origin="lower",
                )
                axes.plot(
                    [head for _, head in vector.heads],
                    [layer for layer, _ in vector.heads],
                    linestyle="none",
                    marker="o",
                    markersize=points(3),
                    markerfacecolor="none",
                    markeredgecolor="black",
                    markeredgewidth=points(0.6),
                )
                set_linear_ticks(axes.xaxis, 0, heads - 1, 4)
                set_linear_ticks(axes.yaxis, 0, layers - 1, 5)
                if row == 0:
                    axes.set_title(fitted(clean(name), panel + 0.8 * _GAP, 8))
                if column == 0:
                    axes.set_ylabel("layer")
                else:
                    axes.set_yticklabels([])
                if row == len(maps.tasks) - 1:
                    axes.set_xlabel("head")
                else:
                    axes.set_xticklabels([])
        bar = sheet.axes(width - _RIGHT, _TOP, 0.12, height)
        sheet.figure.colorbar(image, cax=bar, label="effect")
    return sheet.figure
