"""The HTML page around interactive plots, of one result or of many: sections of plots and of tables that sort.

`page.html.j2` is the page, `page.css` its look in light and dark, and `page.js` draws plots when they come into view,
turns scenes together and sorts tables. Texts that come from outside are escaped here, and only here.
"""

from __future__ import annotations

import base64
import dataclasses
import functools
import hashlib
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from landscape.plotting.basics import clean

if TYPE_CHECKING:
    import jinja2
    import plotly.graph_objects as go

FONT = "Arial, Helvetica, 'Liberation Sans', sans-serif"
_BAR = 110  # pixels to the error bar in a cell of a table


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plotly figure on a page.

    Attributes:
        figure: What is drawn.
        described: What a screen reader says in its place.
        title: The text above it; empty for none.
        remarks: Smaller texts below the title.
        turns: Whether it is a scene, which turns together with the other scenes of its section.
        starts_row: Whether it begins a new row of scenes.
        least: The width in pixels below which it does not shrink; narrower windows scroll it.
        half: Whether half the page is wide enough, so that two stand side by side where there is room.
    """

    figure: go.Figure
    described: str
    title: str = ""
    remarks: Sequence[str] = ()
    turns: bool = False
    starts_row: bool = False
    least: int = 300
    half: bool = False


@dataclasses.dataclass(frozen=True)
class Cell:
    """A cell of a table that sorts by a number, and shows its interval as a bar.

    Attributes:
        text: What is written.
        value: The number that it sorts by; cells without one come last.
        low: The lower end of its interval; NaN for none.
        high: The upper end.
    """

    text: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan


Row = Sequence[str | Cell]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table whose columns sort.

    Attributes:
        header: The headings of the columns.
        rows: The cells of each row; a text sorts as a text.
        caption: The text above it.
    """

    header: Sequence[str]
    rows: Sequence[Row]
    caption: str = ""


@dataclasses.dataclass(frozen=True)
class Section:
    """What a page shows of one thing.

    Attributes:
        title: The heading; empty where the page has this section alone.
        plots: What is drawn.
        caption: The text under the plots.
        tables: The tables under the caption.
        folded: Tables that are folded away at first, such as those of settings; each has a caption.
    """

    title: str = ""
    plots: Sequence[Plot] = ()
    caption: str = ""
    tables: Sequence[Table] = ()
    folded: Sequence[Table] = ()


def page_html(title: str, sections: Sequence[Section], summary: Sequence[str] = (), origin: str = "") -> str:
    """Make a complete page, which loads nothing from the network.

    Args:
        title: The heading.
        sections: What the page shows, in order.
        summary: Sentences between the heading and the sections.
        origin: The text at the end of the page.

    Returns:
        HTML. All texts are escaped; what plotly reads as HTML in a figure has to be escaped with `plotly_text` before.
    """
    environment = _environment()
    program = environment.loader.get_source(environment, "page.js")[0]  # type: ignore[union-attr]
    library = _library()
    return environment.get_template("page.html.j2").render(
        title=title,
        sections=sections,
        summary=summary,
        origin=origin,
        font=FONT,
        program=program,
        library=library,
        # A second lock behind the escaping: the browser runs these two scripts, and no other that got into the page.
        allowed=" ".join(_digest(script) for script in (library, program)),
        bars=[[_bars(table) for table in section.tables] for section in sections],
    )


@functools.cache
def _environment() -> jinja2.Environment:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__name__, "."),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"clean": clean, "figure": _figure_json}
    return environment


@functools.cache
def _library() -> str:
    import plotly.offline

    return plotly.offline.get_plotlyjs()


def _digest(script: str) -> str:
    """The word by which a content security policy allows a script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _figure_json(figure: go.Figure) -> str:
    """The JSON of a figure as the content of an element, which no text in it can close."""
    import plotly.io

    return plotly.io.to_json(figure, validate=False).replace("<", "\\u003c")


@dataclasses.dataclass(frozen=True)
class _Bar:
    """The error bar of a cell, in pixels."""

    low: float
    high: float
    value: float
    zero: float | None


def _bars(table: Table) -> list[list[_Bar | None]]:
    """The error bars of all cells of a table; those of a column have one scale."""
    columns = list(zip(*table.rows, strict=True))
    return [list(row) for row in zip(*map(_bars_of_column, columns), strict=True)]


def _bars_of_column(cells: Sequence[str | Cell]) -> list[_Bar | None]:
    shown = [c for c in cells if isinstance(c, Cell) and all(map(math.isfinite, (c.value, c.low, c.high)))]
    if not shown:
        return [None] * len(cells)
    ends = [end for cell in shown for end in (cell.low, cell.high, cell.value)]
    low, high = min(ends), max(ends)
    width = (high - low) or 1.0

    def place(number: float) -> float:
        return round(4 + (_BAR - 8) * (number - low) / width, 1)

    zero = place(0.0) if low < 0 < high else None
    return [
        _Bar(place(c.low), place(c.high), place(c.value), zero) if isinstance(c, Cell) and c in shown else None
        for c in cells
    ]
