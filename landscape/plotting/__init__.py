"""Pictures of results: matplotlib for papers, plotly for looking around.

Neither library is imported before something is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError
from landscape.plotting.surfaces.shared import caption_for, require_comparable
from landscape.results import replacing, write_text

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from landscape.curvature.results import Eigenvalues, LayerCurvature, SpectralDensity, TraceEstimate
    from landscape.surfaces.result import Surface

__all__ = [
    "caption_for",
    "correlations_html",
    "density_html",
    "layers_html",
    "plot",
    "plot_correlation_scatter",
    "plot_correlations",
    "plot_density",
    "plot_eigenvalues",
    "plot_layers",
    "plot_surfaces",
    "plot_trace",
    "require_comparable",
    "surfaces_html",
    "write_correlation_figures",
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
    from landscape.plotting.surfaces import paper

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
    from landscape.plotting.surfaces import interactive

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
    from landscape.plotting.curvature import paper

    return paper.density_figure(densities, caption)


def density_html(
    densities: Sequence[SpectralDensity], *, caption: str | None = None, title: str = "Spectral densities"
) -> str:
    """The same densities as a complete HTML page; it needs no network. Raises InputError as `plot_density` does."""
    from landscape.plotting.curvature import interactive

    return interactive.density_page(densities, caption, title)


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
    from landscape.plotting.curvature import paper

    return paper.layers_figure(tables, caption)


def layers_html(
    tables: Sequence[LayerCurvature], *, caption: str | None = None, title: str = "Curvature by layer"
) -> str:
    """The same bars as a complete HTML page; it needs no network. Raises InputError as `plot_layers` does."""
    from landscape.plotting.curvature import interactive

    return interactive.layers_page(tables, caption, title)


def write_layer_figures(tables: Sequence[LayerCurvature], stem: Path | str) -> list[Path]:
    """Write `stem`.png, `stem`.pdf and `stem`.html of `tables`, as `write_figures` does for surfaces."""
    return _write(plot_layers(tables), layers_html(tables), stem)


def plot_eigenvalues(result: Eigenvalues, *, caption: str | None = None) -> Figure:
    """Eigenvalues with their residual norms; those that did not converge are hollow. `caption` as elsewhere."""
    from landscape.plotting.curvature import paper

    return paper.eigenvalues_figure(result, caption)


def plot_trace(result: TraceEstimate, *, caption: str | None = None) -> Figure:
    """Histogram of what single probes estimate, with the mean and its confidence interval. `caption` as elsewhere."""
    from landscape.plotting.curvature import paper

    return paper.trace_figure(result, caption)


def plot_correlations(
    result: pandas.DataFrame,
    table: pandas.DataFrame | Path | str | None = None,
    *,
    color: str | None = None,
    caption: str | None = None,
) -> Figure:
    """A forest plot of what `correlate` returned; with `table`, what it was made of in scatter plots below.

    The strongest correlation at the top, with its interval; filled where q < 0.05; a lighter diamond for the partial
    correlation. Metrics without an interval, then those without a number and why, stand at the bottom.
    `color` as in `plot_correlation_scatter`; `caption` replaces the text under the figure, "" leaves it out.

    Raises InputError where `result` is no result of `correlate`, and as `plot_correlation_scatter` does.
    """
    from landscape.plotting.correlation import paper

    return paper.correlation_figure(result, _frame(table), color, caption)


def plot_correlation_scatter(
    result: pandas.DataFrame,
    table: pandas.DataFrame | Path | str,
    *,
    color: str | None = None,
    caption: str | None = None,
) -> Figure:
    """Each metric of `result` against forgetting, a panel per metric and a point per row of `table`.

    Panels have one outcome axis and stand in the order of the forest plot; a metric that is positive and spans more
    than two decades has a logarithmic axis. `color` is a column whose values points are coloured by, `optimizer` if
    there is one. `caption` as elsewhere.

    Raises InputError where `table` lacks a column, or has more values of `color` than can be told apart.
    """
    from landscape.correlation import read_table
    from landscape.plotting.correlation import paper

    return paper.scatter_figure(result, read_table(table), color, caption)


def correlations_html(
    result: pandas.DataFrame,
    table: pandas.DataFrame | Path | str | None = None,
    *,
    color: str | None = None,
    caption: str | None = None,
    title: str = "Flatness against forgetting",
) -> str:
    """The same as a complete HTML page, checkpoints' names on hover; it needs no network.

    Raises InputError as `plot_correlations` does.
    """
    from landscape.plotting.correlation import interactive

    return interactive.correlation_page(result, _frame(table), color, caption, title)


def write_correlation_figures(
    result: pandas.DataFrame, table: pandas.DataFrame | Path | str, folder: Path | str, *, color: str | None = None
) -> list[Path]:
    """Write forest.png, forest.pdf, scatter.png, scatter.pdf and correlate.html to `folder`.

    Each is there completely or not at all, and the same result gives the same bytes. Raises InputError as
    `plot_correlations` does, before writing anything.
    """
    folder, table = Path(folder), _frame(table)
    forest, scatter = plot_correlations(result), plot_correlation_scatter(result, table, color=color)
    page = correlations_html(result, table, color=color)
    write_text(folder / "correlate.html", page)
    return [*_save(forest, folder / "forest"), *_save(scatter, folder / "scatter"), folder / "correlate.html"]


def _frame(table: Any) -> Any:
    from landscape.correlation import read_table

    return None if table is None else read_table(table)


def _write(figure: Figure, page: str, stem: Path | str) -> list[Path]:
    stem = Path(stem)
    paths = [*_save(figure, stem), stem.with_name(f"{stem.name}.html")]
    write_text(paths[-1], page)
    return paths


def _save(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_name(f"{stem.name}.{suffix}") for suffix in ("png", "pdf")]
    with replacing(paths[0]) as temporary:
        figure.savefig(temporary)
    with replacing(paths[1]) as temporary:
        figure.savefig(temporary, metadata={"CreationDate": None})
    return paths


# By name, not by type: knowing the types would import the numerics, and with them torch.
_PICTURES: dict[str, Any] = {
    "surface": lambda surface, **options: plot_surfaces([surface], **options),
    "density": lambda density, **options: plot_density([density], **options),
    "layers": lambda table, **options: plot_layers([table], **options),
    "eigenvalues": plot_eigenvalues,
    "trace": plot_trace,
}
