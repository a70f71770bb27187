"""Pictures of results: matplotlib for papers, plotly for looking around.

Neither library is imported before something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError
from landscape.plotting.common import caption_for, require_comparable
from landscape.results import replacing, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscape.surface import Surface

__all__ = ["caption_for", "plot", "plot_surfaces", "require_comparable", "surfaces_html", "write_figures"]


def plot(result: Any, **options: Any) -> Figure:
    """A matplotlib figure of any result that has a picture; `options` are those of its own plot function.

    Raises InputError where the result has no picture.
    """
    draw = _PICTURES.get(getattr(result, "kind_of_result", ""))
    if draw is None:
        raise InputError(f"there is no picture of a {type(result).__name__}.")
    return draw(result, **options)


def plot_surfaces(
    surfaces: Sequence[Surface],
    *,
    log: bool = False,
    levels: int | Sequence[float] = 20,
    caption: str | None = None,
) -> Figure:
    """The surfaces of several checkpoints in one figure for a paper.

    Two dimensions: a column per checkpoint; for each data set a row of 3D views above a row of contours, with
    one colour scale per data set. One dimension: a panel per data set, a line per checkpoint.

    Args:
        log: draw the logarithm of the loss; ticks stay in units of loss.
        levels: how many contours, or the losses to draw them at.
        caption: replaces the text under the figure (`caption_for`); "" leaves it out.

    Save it with `figure.savefig("name.pdf")` or `.png`; fonts are embedded.
    Raises InputError where the surfaces are not comparable, where two have the same name and data, where
    `log` meets a loss that is not positive, and for unusable `levels`.
    """
    from landscape.plotting import paper

    return paper.surface_figure(surfaces, log=log, levels=levels, caption=caption)


def surfaces_html(
    surfaces: Sequence[Surface],
    *,
    log: bool = False,
    caption: str | None = None,
    title: str = "Loss surfaces",
) -> str:
    """The same surfaces as a complete HTML page to turn, zoom and read values from; it needs no network.

    Raises InputError as `plot_surfaces` does.
    """
    from landscape.plotting import interactive

    return interactive.surface_page(surfaces, log=log, caption=caption, title=title)


def write_figures(
    surfaces: Sequence[Surface],
    stem: Path | str,
    *,
    log: bool = False,
    levels: int | Sequence[float] = 20,
    caption: str | None = None,
    title: str = "Loss surfaces",
) -> list[Path]:
    """Write `stem`.png, `stem`.pdf and `stem`.html of `surfaces`; each is there completely or not at all.

    The same surfaces give the same bytes. Raises InputError as `plot_surfaces` does, before writing anything.
    """
    stem = Path(stem)
    figure = plot_surfaces(surfaces, log=log, levels=levels, caption=caption)
    page = surfaces_html(surfaces, log=log, caption=caption, title=title)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf", "html")]
    with replacing(paths[0]) as temporary:
        figure.savefig(temporary)
    with replacing(paths[1]) as temporary:
        figure.savefig(temporary, metadata={"CreationDate": None})
    write_text(paths[2], page)
    return paths


# By name, not by type: knowing the types would import the numerics, and with them torch.
_PICTURES = {
    "surface": lambda surface, **options: plot_surfaces([surface], **options),
}
