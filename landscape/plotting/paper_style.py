"""What all figures share: the styles of papers, talks and notebooks, and a sheet measured in inches, by matplotlib.

Nothing here uses pyplot, so drawing touches no global state and starts no window.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
from collections.abc import Sequence
from typing import Any

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg, RendererAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, get_font_names
from matplotlib.patheffects import withStroke
from matplotlib.text import Text
from matplotlib.ticker import FixedFormatter, FixedLocator, NullLocator
from matplotlib.transforms import Bbox

from landscape.errors import InputError, as_typed
from landscape.plotting.basics import clean, shorten
from landscape.plotting.ticks import linear_ticks

FONTS = ("Arial", "Helvetica", "Liberation Sans", "DejaVu Sans")  # matplotlib brings the last one
TEXT = 8.0  # points of a figure's text in the units of a layout, see `Style`
_SIZES: dict[str, float] = {  # in points, for text of 8 points
    "font.size": TEXT,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.pad": 3.5,
    "ytick.major.pad": 3.5,
    "axes.labelpad": 4.0,
    "axes.titlepad": 6.0,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.4,
    "patch.linewidth": 1.0,
    "hatch.linewidth": 0.5,
}
LOOK: dict[str, Any] = {
    "font.family": ["sans-serif", "DejaVu Sans"],  # the second lends the glyphs that the first lacks
    "legend.frameon": False,
    "axes.edgecolor": "0.2",
    "grid.color": "0.88",
    "image.cmap": "viridis",  # perceptually uniform, safe for colour-blind readers and in grey
    "text.hinting": "none",  # with hints, letters are wider by up to 7% at some resolutions than at others
    "text.parse_math": False,  # a checkpoint called "a$b$" is a name, not a formula
    "figure.dpi": 150,
    "pdf.fonttype": 42,  # TrueType: text in the PDF stays text, and no journal refuses it
    "ps.fonttype": 42,
}
CAPTION_SIZE = 7  # points
LEGEND_LINE = 0.35  # inches that the line of a legend takes beside its text
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))  # 7 x 5 lines before one comes twice


@dataclasses.dataclass(frozen=True)
class Style:
    """What a figure is for: how large its text is, and how wide the places are into which it has to fit.

    A layout is written in inches and points for text of 8 points. A style with larger text makes everything larger by
    `scale`, and what its columns leave for a panel is found with `single` and `double` in these same units.
    """

    text: float  # points
    columns: tuple[float, float]  # inches of a narrow and of a wide figure, as they are printed or shown
    dpi: int  # of a PNG
    has_caption: bool = True  # whether the figure itself shows it
    height: float = math.inf  # inches of the page, which nothing but a slide limits

    @property
    def scale(self) -> float:
        """How many printed inches an inch of a layout is."""
        return self.text / TEXT

    @property
    def single(self) -> float:
        """The width of a narrow figure, in the units of a layout."""
        return self.columns[0] / self.scale

    @property
    def double(self) -> float:
        """The width of a wide figure, in the units of a layout."""
        return self.columns[1] / self.scale

    def context(self) -> Any:
        """A context in which matplotlib draws in this style, whatever the user's settings are."""
        sizes = {name: size * self.scale for name, size in _SIZES.items()}
        return matplotlib.style.context(
            ["default", LOOK | sizes | {"savefig.dpi": self.dpi, "font.sans-serif": _fonts()}]
        )


STYLES = {
    # ICML's columns, which are within those of IEEE, ACM and Nature (3.3 to 3.5 and 7 to 7.2 inches).
    "paper": Style(text=8, columns=(3.25, 6.75), dpi=300),
    # Half a slide and a whole one, 13.33 by 7.5 inches with a margin. Who speaks to it says what the caption does.
    "talk": Style(text=16, columns=(6.4, 13.0), dpi=150, has_caption=False, height=7.2),
    # The text of a cell of Jupyter, 13 or 14 pixels high, at 100 pixels to the inch.
    "notebook": Style(text=10, columns=(5.0, 9.6), dpi=100),
}


def style_named(name: str) -> Style:
    """Look a style up.

    Raises:
        InputError: If there is none of that name.
    """
    if name not in STYLES:
        raise InputError(f"{as_typed('style', name)} is not one of {', '.join(STYLES)}.")
    return STYLES[name]


def points(size: float) -> float:
    """A size of a layout, in points, in the style that matplotlib draws in now."""
    return size * matplotlib.rcParams["font.size"] / TEXT


class PaperFigure(Figure):
    """A figure that keeps its look, and embeds its fonts, however the settings stand when it is saved."""

    style = STYLES["paper"]
    caption = ""  # the text for under the figure, whether it is drawn or not
    foot = 0.0  # the inches that it takes there
    drawn_caption: Text | None = None

    def savefig(self, *args: Any, **options: Any) -> None:
        """Save as matplotlib does, in our style."""
        with self.style.context():
            super().savefig(*args, **options)

    def savefig_without_caption(self, *args: Any, **options: Any) -> None:
        """Save the figure without the text under it, for a paper or a page that sets that text itself."""
        if self.drawn_caption is None:
            return self.savefig(*args, **options)
        self.drawn_caption.set_visible(False)
        try:
            width, height = self.get_size_inches()
            self.savefig(*args, bbox_inches=Bbox([[0, self.foot], [width, height]]), **options)
        finally:
            self.drawn_caption.set_visible(True)

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=min(self.style.dpi, 150))
        return buffer.getvalue()


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


def fitted(text: str, width: float, size: float) -> str:
    """Leave out the middle of a line of text until it is no wider than so many inches, at a size in points."""
    limit = len(text)
    while limit > 1 and (wide := text_width(shorten(text, limit), size)) > width:
        limit = max(1, min(limit - 1, int(limit * width / wide)))
    return shorten(text, limit)


def text_width(text: str, size: float) -> float:
    """Return the width of a line of text in inches, at a size in points, in the font that this machine has."""
    font = FontProperties(family=[*_fonts(), *LOOK["font.family"][1:]], size=size)
    with matplotlib.rc_context({"text.hinting": LOOK["text.hinting"]}):
        dots, _, _ = _measure().get_text_width_height_descent(text, font, ismath=False)
    return dots / 300


@functools.cache
def _measure() -> RendererAgg:
    """What measures texts, at 300 dots to the inch. It is kept, because making one takes longer than measuring."""
    return FigureCanvasAgg(Figure(figsize=(1, 1), dpi=300)).get_renderer()


class Sheet:
    """A figure addressed in the inches of a layout from its top left corner, with a caption under it."""

    def __init__(self, style: Style, width: float, height: float, caption: str):
        """Make an empty figure of `width` by `height`, with room for the caption below if the style shows one."""
        lines = wrapped(caption, width - 0.2, CAPTION_SIZE) if style.has_caption else []
        foot = 0.135 * len(lines) + (0.12 if lines else 0)
        self.width, self.height = width, height + foot
        self.figure = PaperFigure(figsize=(self.width * style.scale, self.height * style.scale))
        self.figure.style, self.figure.caption, self.figure.foot = style, caption, foot * style.scale
        FigureCanvasAgg(self.figure)
        if lines:
            options: dict[str, Any] = {"fontsize": points(CAPTION_SIZE), "color": "0.25", "linespacing": 1.25}
            self.figure.drawn_caption = self.text(0.1, height + 0.02, "\n".join(lines), **options)

    def axes(self, left: float, top: float, width: float, height: float, **options: Any) -> Any:
        """Add axes whose corner lies `left` and `top` from the corner of the sheet."""
        bottom = self.height - top - height
        rectangle = (left / self.width, bottom / self.height, width / self.width, height / self.height)
        return self.figure.add_axes(rectangle, **options)

    def text(self, left: float, top: float, text: str, **options: Any) -> Text:
        """Write `text` at a place; `options` are those of matplotlib's text."""
        options = {"va": "top", "ha": "left"} | options
        return self.figure.text(left / self.width, 1 - top / self.height, text, **options)


def halo(color: str = "white") -> list[withStroke]:
    """What makes a line or a text readable on any ground."""
    return [withStroke(linewidth=points(2), foreground=color)]


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


def panel_width(style: Style, columns: int, around: float, gap: float) -> float:
    """The width of each of so many panels side by side; `around` them and in each `gap` there are other things."""
    return ((style.single if columns == 1 else style.double) - around - (columns - 1) * gap) / columns


def legend_text(name: str, remarks: Sequence[str], width: float) -> str:
    """Return a name and remarks as the lines of a legend under a panel of this width, in inches.

    A remark that fits stays on one line, and a longer one breaks between its words, so that no number is broken.

    Example:
        >>> legend_text("run", ["loss 1.25", "0.5% of the step lost"], 1.3).splitlines()
        ['run, loss 1.25,', '0.5% of the step', 'lost']
    """
    size = _SIZES["legend.fontsize"]
    room = width - LEGEND_LINE - text_width(",", size)
    *lines, last = wrapped_anywhere(shorten(clean(name), 100), room, size) or [" "]
    for remark in remarks:
        if text_width(f"{last}, {remark}", size) <= room:
            last = f"{last}, {remark}"
        else:
            *before, rest = wrapped(remark, room, size) or [""]
            lines += [f"{last},", *before]
            last = rest
    return "\n".join([*lines, last])


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
