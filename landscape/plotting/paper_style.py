"""What all figures for papers share: the look, and a sheet measured in inches. Drawn by matplotlib.

Nothing here uses pyplot, so drawing touches no global state and starts no window.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font_names
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator

from landscape.plotting.basics import clean, shorten
from landscape.plotting.ticks import linear_ticks

FONTS = ("Arial", "Helvetica", "Liberation Sans", "DejaVu Sans")  # matplotlib brings the last one
STYLE: dict[str, Any] = {
    "font.family": ["sans-serif", "DejaVu Sans"],  # the second lends the glyphs that the first lacks
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.linewidth": 0.6,
    "axes.edgecolor": "0.2",
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.color": "0.88",
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "hatch.linewidth": 0.5,
    "image.cmap": "viridis",  # perceptually uniform, safe for colour-blind readers and in grey
    "text.hinting": "none",  # with hints, letters are wider by up to 7% at some resolutions than at others
    "text.parse_math": False,  # a checkpoint called "a$b$" is a name, not a formula
    "figure.dpi": 150,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text, and no journal refuses it
    "ps.fonttype": 42,
}
CAPTION_SIZE = 7  # points
LEGEND_WIDTH = 2.4  # inches of text that fit into the figure beside the lines of a legend under a single panel
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # 7 x 5 lines before one comes twice


class PaperFigure(Figure):
    """A figure that keeps its look, and embeds its fonts, however the settings stand when it is saved."""

    def savefig(self, *args: Any, **options: Any) -> None:
        """Save as matplotlib does, in our style."""
        with style():
            super().savefig(*args, **options)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=150)
        return buffer.getvalue()


def style() -> Any:
    """A context in which matplotlib draws in our style, whatever the user's settings are."""
    return matplotlib.style.context(["default", STYLE | {"font.sans-serif": _fonts()}])


def _fonts() -> list[str]:
    """Return those of our fonts that are there; matplotlib warns of each other one, for every text."""
    there = set(get_font_names())
    return [name for name in FONTS if name in there]


def wrapped(text: str, width: float, size: float) -> list[str]:
    """Break a text into lines by its measured width, because the fonts that a machine has differ in theirs.

    Args:
        text: The text; white space is folded.
        width: The longest that a line may be, in inches; a single word may be longer.
        size: The size of the font, in points.

    Returns:
        The lines; none for an empty text.

    Example:
        >>> wrapped("one two three", 0.5, 7)
        ['one two', 'three']
    """
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and text_width(longer, size) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def text_width(text: str, size: float) -> float:
    """Return the width of a line of text in inches, at a size in points, in the font that this machine has."""
    font = FontProperties(family=[*_fonts(), *STYLE["font.family"][1:]], size=size)
    figure = Figure(dpi=300)
    measure = FigureCanvasAgg(figure).get_renderer()
    with matplotlib.rc_context({"text.hinting": STYLE["text.hinting"]}):
        dots, _, _ = measure.get_text_width_height_descent(text, font, ismath=False)
    return dots / figure.dpi


class Sheet:
    """A figure addressed in inches from its top left corner, with a caption under it."""

    def __init__(self, width: float, height: float, caption: str):
        """Make an empty figure of `width` by `height` inches, with room for the caption below."""
        lines = wrapped(caption, width - 0.2, CAPTION_SIZE)
        self.width, self.height = width, height + 0.135 * len(lines) + (0.12 if lines else 0)
        self.figure = PaperFigure(figsize=(self.width, self.height))
        FigureCanvasAgg(self.figure)
        if lines:
            self.text(0.1, height + 0.02, "\n".join(lines), fontsize=CAPTION_SIZE, color="0.25", linespacing=1.25)

    def axes(self, left: float, top: float, width: float, height: float, **options: Any) -> Any:
        """Add axes whose corner lies `left` and `top` inches from the corner of the sheet."""
        bottom = self.height - top - height
        rectangle = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(rectangle, **options)

    def text(self, left: float, top: float, text: str, **options: Any) -> None:
        """Write `text` at a place; `options` are those of matplotlib's text."""
        options = {"va": "top", "ha": "left"} | options
        self.figure.text(left / self.width, 1 - top / self.height, text, **options)


def open_axes(axes: Axes) -> None:
    """Leave out the upper and the right edge of a panel, and draw its grid behind everything else."""
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def set_ticks(axis: Any, positions: Sequence[float], texts: Sequence[str]) -> None:
    """Give an axis exactly these ticks and labels."""
    axis.set_major_locator(FixedLocator(positions))
    axis.set_major_formatter(FixedFormatter(texts))
    axis.set_minor_locator(NullLocator())


def set_linear_ticks(axis: Any, low: float, high: float, count: int) -> None:
    """Give an axis round ticks from `low` to `high`, see `linear_ticks`."""
    set_ticks(axis, *linear_ticks(low, high, count))


def legend_below(axes: Axes, handles: Sequence[Any], texts: Sequence[str], height: float) -> None:
    """Draw a legend under the label of the horizontal axis; `height` is the panel's, in inches."""
    axes.legend(
        handles,
        texts,
        loc="upper left",
        bbox_to_anchor=(-0.02, -0.34 / height),
        borderaxespad=0,
        handlelength=2.6,
        labelspacing=0.3,
    )


def legend_text(name: str, remarks: Sequence[str]) -> str:
    """A name and remarks as the lines of a legend beside a panel's width; each remark stays on one line."""
    unbroken = [remark.replace(" ", "\xa0") for remark in remarks]
    lines: list[str] = []
    for part in textwrap.wrap(", ".join([shorten(clean(name), 100), *unbroken]), 50):
        lines += wrapped_anywhere(part, LEGEND_WIDTH, STYLE["legend.fontsize"])
    return "\n".join(lines).replace("\xa0", " ")


def wrapped_anywhere(text: str, width: float, size: float) -> list[str]:
    """Break a text into lines by its measured width, after a hyphen or inside a word where it has no space."""
    lines = []
    while text and text_width(text, size) > width:
        fits = max(n for n in range(1, len(text) + 1) if n == 1 or text_width(text[:n], size) <= width)
        after = max(text.rfind(mark, 0, fits) + 1 for mark in " -_/")
        cut = after if after > fits // 2 else fits
        lines.append(text[:cut].rstrip())
        text = text[cut:].lstrip()
    return [*lines, text] if text else lines
