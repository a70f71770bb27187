"""The public functions that draw maps of heads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.plotting.basics import clean
from landscape.plotting.files import write_figure, write_page
from landscape.plotting.instruction_vectors.shared import arrange_maps, maps_caption

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscape.instruction_vectors.result import InstructionVector


def plot_instruction_vectors(
    vectors: Sequence[InstructionVector], *, caption: str | None = None, style: str = "paper"
) -> Figure:
    """Draw the effects of all heads as maps of layer by head: a row for each task, a column for each checkpoint.

    Args:
        vectors: What to draw, such as a base and what was tuned from it, side by side on one scale.
        caption: Replaces the text under the figure; "" leaves it out.
        style: What the figure is for: "paper", "talk" or "notebook", see `plot_surfaces`.

    Returns:
        A matplotlib figure that does not belong to pyplot, so it need not be closed.

    Raises:
        InputError: If there is nothing to draw, if two are of the same checkpoint and task, if the models have
            different numbers of layers or heads, or if there is no such `style`.

    Example:
        >>> from landscape import plot_instruction_vectors
        >>> try:
        ...     plot_instruction_vectors([])
        ... except ValueError as error:
        ...     print(error)
        there is no instruction vector to draw.
    """
    maps = arrange_maps(vectors)
    from landscape.plotting.instruction_vectors import paper
    from landscape.plotting.paper_style import style_named

    return paper.draw_maps(maps, maps_caption(maps) if caption is None else clean(caption), style_named(style))


def instruction_vectors_html(
    vectors: Sequence[InstructionVector], *, caption: str | None = None, title: str = "Heads of in-context tasks"
) -> str:
    """Draw the same maps as an HTML page on which a reader can read values.

    Args:
        vectors: What to draw, as for `plot_instruction_vectors`.
        caption: Replaces the text under the plot; "" leaves it out.
        title: The heading of the page.

    Returns:
        A complete page that loads nothing from the network.

    Raises:
        InputError: As `plot_instruction_vectors` does.

    Example:
        >>> from landscape import instruction_vectors_html
        >>> try:
        ...     instruction_vectors_html([])
        ... except ValueError as error:
        ...     print(error)
        there is no instruction vector to draw.
    """
    maps = arrange_maps(vectors)
    from landscape.plotting.instruction_vectors.interactive import maps_section
    from landscape.plotting.page import page_html

    return page_html(title, [maps_section(maps, maps_caption(maps) if caption is None else clean(caption))])


def write_instruction_vector_figures(
    vectors: Sequence[InstructionVector], stem: Path | str, *, style: str = "paper"
) -> list[Path]:
    """Write `vectors` to files as `write_figures` writes surfaces."""
    figure, page = plot_instruction_vectors(vectors, style=style), instruction_vectors_html(vectors)
    return [*write_figure(figure, stem), write_page(page, stem)]
