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

    from landscape.hessian_results import Eigenvalues, LayerCurvature, SpectralDensity, TraceEstimate
    from landscape.surface import Surface

__all__ = [
    "caption_for",
    "density_html",
    "layers_html",
    "plot",
    "plot_density",
    "plot_eigenvalues",
    "plot_layers",
    "plot_surfaces",
    "plot_trace",
    "require_comparable",
    "surfaces_html",
    "write_density_figures",
    "write_figures",
    "write_layer_figures",
]


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
    figure = plot_surfaces(surfaces, log=log, levels=levels, caption=caption)
    return _write(figure, surfaces_html(surfaces, log=log, caption=caption, title=title), stem)


def plot_density(densities: Sequence[SpectralDensity], *, caption: str | None = None) -> Figure:
    """Smoothed spectral densities on a logarithmic scale: a panel per data set, a line per checkpoint.

    All lines of a panel have the same kernel. Ticks at the foot show the largest and smallest node of every probe.
    `caption` replaces the text under the figure; "" leaves it out.

    Raises InputError where the densities are not comparable (other data under one name, another matrix, other or
    differently many parameters), where two have the same name and data, and where one is not finite.
    """
    from landscape.plotting import curvature_paper

    return curvature_paper.density_figure(densities, caption)


def density_html(
    densities: Sequence[SpectralDensity], *, caption: str | None = None, title: str = "Spectral densities"
) -> str:
    """The same densities as a complete HTML page; it needs no network. Raises InputError as `plot_density` does."""
    from landscape.plotting import curvature_interactive

    return curvature_interactive.density_page(densities, caption, title)


def write_density_figures(densities: Sequence[SpectralDensity], stem: Path | str) -> list[Path]:
    """Write `stem`.png, `stem`.pdf and `stem`.html of `densities`, as `write_figures` does for surfaces."""
    return _write(plot_density(densities), density_html(densities), stem)


def plot_layers(tables: Sequence[LayerCurvature], *, caption: str | None = None) -> Figure:
    """Trace and largest eigenvalue of every layer as bars, a colour per checkpoint, a row of panels per data set.

    Layers stand in the model's order from top to bottom; eigenvalues that did not converge are hollow.
    `caption` replaces the text under the figure; "" leaves it out.

    Raises InputError where the tables are not comparable (other data under one name, another matrix, other layers),
    and where two have the same name and data.
    """
    from landscape.plotting import curvature_paper

    return curvature_paper.layers_figure(tables, caption)


def layers_html(
    tables: Sequence[LayerCurvature], *, caption: str | None = None, title: str = "Curvature by layer"
) -> str:
    """The same bars as a complete HTML page; it needs no network. Raises InputError as `plot_layers` does."""
    from landscape.plotting import curvature_interactive

    return curvature_interactive.layers_page(tables, caption, title)


def write_layer_figures(tables: Sequence[LayerCurvature], stem: Path | str) -> list[Path]:
    """Write `stem`.png, `stem`.pdf and `stem`.html of `tables`, as `write_figures` does for surfaces."""
    return _write(plot_layers(tables), layers_html(tables), stem)


def plot_eigenvalues(result: Eigenvalues, *, caption: str | None = None) -> Figure:
    """Eigenvalues with their residual norms; those that did not converge are hollow. `caption` as elsewhere."""
    from landscape.plotting import curvature_paper

    return curvature_paper.eigenvalues_figure(result, caption)


def plot_trace(result: TraceEstimate, *, caption: str | None = None) -> Figure:
    """Histogram of what single probes estimate, with the mean and its confidence interval. `caption` as elsewhere."""
    from landscape.plotting import curvature_paper

    return curvature_paper.trace_figure(result, caption)


def _write(figure: Figure, page: str, stem: Path | str) -> list[Path]:
    stem = Path(stem)
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf", "html")]
    with replacing(paths[0]) as temporary:
        figure.savefig(temporary)
    with replacing(paths[1]) as temporary:
        figure.savefig(temporary, metadata={"CreationDate": None})
    write_text(paths[2], page)
    return paths


# By name, not by type: knowing the types would import the numerics, and with them torch.
_PICTURES: dict[str, Any] = {
    "surface": lambda surface, **options: plot_surfaces([surface], **options),
    "density": lambda density, **options: plot_density([density], **options),
    "layers": lambda table, **options: plot_layers([table], **options),
    "eigenvalues": plot_eigenvalues,
    "trace": plot_trace,
}
