"""The public functions that draw loss surfaces: for papers, as a page, and into files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.plotting.basics import clean
from landscape.plotting.files import write_figure, write_page
from landscape.plotting.surfaces.arrangement import arrange
from landscape.plotting.surfaces.captions import caption_for
from landscape.plotting.surfaces.interpolation import interpolation_note
from landscape.plotting.surfaces.scale import loss_scale

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscape.surfaces.result import Surface


def plot_surfaces(
    surfaces: Sequence[Surface],
    *,
    log: bool = False,
    levels: int | Sequence[float] = 20,
    caption: str | None = None,
    style: str = "paper",
) -> Figure:
    """Draw the surfaces of several checkpoints in one figure for a paper.

    Surfaces of two dimensions get a column per checkpoint, and for each data set a row of 3D views above a row of
    contours with one colour scale. Surfaces of one dimension get a panel per data set, with a line per checkpoint.
    Save the figure with `figure.savefig("name.pdf")` or `.png`; its fonts are embedded.

    Args:
        surfaces: What to draw. All have to agree in kind, grid, normalization and seed.
        log: Whether to draw the logarithm of the loss. The ticks stay in units of loss.
        levels: The number of contours, or an increasing list of the losses to draw them at.
        caption: Replaces the text under the figure, which is `caption_for(surfaces)` by default; "" leaves it out.
        style: What the figure is for. "paper" is as wide as a column or a page (3.25 or 6.75 inches, those of ICML)
            with text of 8 points. "talk" is as wide as half a slide or a whole one (16:9) with text of 16 points, and
            leaves its caption to the speaker. "notebook" has text of the size that Jupyter shows.

    Returns:
        A matplotlib figure that does not belong to pyplot, so it need not be closed.

    Raises:
        InputError: If the surfaces are not comparable, if two have the same name and data, if `log` meets a loss that
            is not positive, if `levels` cannot be used, or if there is no such `style`.

    Example:
        The figure of one plane has a view, a contour panel and a colour bar.

        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> surface = landscape.compute_surface(model, data, points=5)
        >>> figure = landscape.plot_surfaces([surface], levels=10)
        >>> len(figure.axes)
        3
    """
    arrangement = arrange(surfaces, log)
    scales = {data: loss_scale(arrangement.of_data(data), log, levels) for data in arrangement.data}
    text = caption_for(surfaces, log=log) if caption is None else clean(caption)
    if caption is None and arrangement.dim == 2:
        text += interpolation_note(list(arrangement.cells.values()), scales)
    from landscape.plotting.paper_style import style_named
    from landscape.plotting.surfaces import paper

    return paper.draw_surfaces(arrangement, scales, text, style_named(style))


def surfaces_html(
    surfaces: Sequence[Surface],
    *,
    log: bool = False,
    caption: str | None = None,
    title: str = "Loss surfaces",
) -> str:
    """Draw the same surfaces as an HTML page on which a reader can turn, zoom and read values.

    Args:
        surfaces: What to draw, as for `plot_surfaces`.
        log: Whether to draw the logarithm of the loss. The ticks stay in units of loss.
        caption: Replaces the text under the plot, which is `caption_for(surfaces)` by default; "" leaves it out.
        title: The heading of the page.

    Returns:
        A complete page that loads nothing from the network.

    Raises:
        InputError: As `plot_surfaces` does.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> surface = landscape.compute_surface(model, data, dim=1, points=5)
        >>> page = landscape.surfaces_html([surface], title="My model")
        >>> "<title>My model</title>" in page
        True
    """
    arrangement = arrange(surfaces, log)
    text = caption_for(surfaces, log=log) if caption is None else clean(caption)
    from landscape.plotting.page import page_html
    from landscape.plotting.surfaces.interactive import surface_section

    return page_html(title, [surface_section(arrangement, text)])


def write_figures(
    surfaces: Sequence[Surface],
    stem: Path | str,
    *,
    log: bool = False,
    levels: int | Sequence[float] = 20,
    caption: str | None = None,
    title: str = "Loss surfaces",
    style: str = "paper",
) -> list[Path]:
    r"""Write `surfaces` to `stem`.png, `stem`.pdf and `stem`.html, and the caption to `stem`.txt and `stem`.tex.

    The PDF leaves out the caption, which LaTeX sets where a paper has \input{stem.tex} under the picture.

    Each file is there completely or not at all, and the same surfaces give the same bytes.

    Args:
        surfaces: What to draw.
        stem: The path of the files without their suffix.
        log: As for `plot_surfaces`.
        levels: As for `plot_surfaces`.
        caption: As for `plot_surfaces`.
        title: The heading of the page.
        style: As for `plot_surfaces`.

    Returns:
        The paths of the files; without a caption there is none of it.

    Raises:
        InputError: As `plot_surfaces` does, before anything is written.
    """
    figure = plot_surfaces(surfaces, log=log, levels=levels, caption=caption, style=style)
    page = surfaces_html(surfaces, log=log, caption=caption, title=title)
    return [*write_figure(figure, stem), write_page(page, stem)]
