"""The public functions that draw eigenvalues, traces, spectral densities and curvature by layer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.plotting.basics import clean
from landscape.plotting.curvature.shared import (
    arrange_densities,
    arrange_layers,
    density_caption,
    density_panel,
    eigenvalues_caption,
    layers_caption,
    trace_caption,
)
from landscape.plotting.files import write_figure, write_page

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from landscape.curvature.results import Eigenvalues, LayerCurvature, SpectralDensity, TraceEstimate


# --- spectral density ---------------------------------------------------------------------------------------


def plot_density(densities: Sequence[SpectralDensity], *, caption: str | None = None, style: str = "paper") -> Figure:
    """Draw smoothed spectral densities on a logarithmic scale: a panel per data set, a line per checkpoint.

    All lines of a panel have the same kernel. Ticks at the foot show the largest and the smallest node of every probe.

    Args:
        densities: What to draw. All have to be of the same matrix, and of equally many parameters.
        caption: Replaces the text under the figure; "" leaves it out.
        style: What the figure is for: "paper", "talk" or "notebook", see `plot_surfaces`.

    Returns:
        A matplotlib figure that does not belong to pyplot, so it need not be closed.

    Raises:
        InputError: If the densities are not comparable (other data under one name, another matrix, other or differently
            many parameters), if two have the same name and data, if one is not finite, or if there is no such `style`.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> density = landscape.hessian_density(model, data, probes=2, steps=3)
        >>> figure = landscape.plot_density([density])
        >>> figure.axes[0].get_xlabel()
        'eigenvalue'
    """
    places = arrange_densities(densities)
    panels = {data: density_panel(places.of_data(data)) for data in places.data}
    text = density_caption(places, panels) if caption is None else clean(caption)
    from landscape.plotting.curvature import paper
    from landscape.plotting.paper_style import style_named

    return paper.draw_densities(places, panels, text, style_named(style))


def density_html(
    densities: Sequence[SpectralDensity], *, caption: str | None = None, title: str = "Spectral densities"
) -> str:
    """Draw the same densities as an HTML page on which a reader can zoom and read values.

    Args:
        densities: What to draw, as for `plot_density`.
        caption: Replaces the text under the plot; "" leaves it out.
        title: The heading of the page.

    Returns:
        A complete page that loads nothing from the network.

    Raises:
        InputError: As `plot_density` does.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> density = landscape.hessian_density(model, data, probes=2, steps=3)
        >>> "<h1>Spectral densities</h1>" in landscape.density_html([density])
        True
    """
    places = arrange_densities(densities)
    panels = {data: density_panel(places.of_data(data)) for data in places.data}
    text = density_caption(places, panels) if caption is None else clean(caption)
    from landscape.plotting.curvature.interactive import density_section
    from landscape.plotting.page import page_html

    return page_html(title, [density_section(places, panels, text)])


def write_density_figures(
    densities: Sequence[SpectralDensity], stem: Path | str, *, style: str = "paper"
) -> list[Path]:
    """Write `densities` to files as `write_figures` writes surfaces."""
    figure, page = plot_density(densities, style=style), density_html(densities)
    return [*write_figure(figure, stem), write_page(page, stem)]


# --- layers -------------------------------------------------------------------------------------------------


def plot_layers(tables: Sequence[LayerCurvature], *, caption: str | None = None, style: str = "paper") -> Figure:
    """Draw trace and largest eigenvalue of every layer as bars.

    Each checkpoint has a colour, and each data set a row of panels. Layers stand in the model's order from top to
    bottom. Bars of eigenvalues that did not converge are hollow.

    Args:
        tables: What to draw. All have to be of the same matrix and of the same layers.
        caption: Replaces the text under the figure; "" leaves it out.
        style: What the figure is for: "paper", "talk" or "notebook", see `plot_surfaces`.

    Returns:
        A matplotlib figure that does not belong to pyplot, so it need not be closed.

    Raises:
        InputError: If the tables are not comparable (other data under one name, another matrix, other layers), if two
            have the same name and data, if one has no layer, or if there is no such `style`.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> table = landscape.hessian_layers(model, data, rtol=0.5)
        >>> figure = landscape.plot_layers([table])
        >>> [axes.get_xlabel() for axes in figure.axes]
        ['trace', 'largest eigenvalue']
    """
    places = arrange_layers(tables)
    text = layers_caption(places) if caption is None else clean(caption)
    from landscape.plotting.curvature import paper
    from landscape.plotting.paper_style import style_named

    return paper.draw_layers(places, text, style_named(style))


def layers_html(
    tables: Sequence[LayerCurvature], *, caption: str | None = None, title: str = "Curvature by layer"
) -> str:
    """Draw the same bars as an HTML page on which a reader can zoom and read values.

    Args:
        tables: What to draw, as for `plot_layers`.
        caption: Replaces the text under the plot; "" leaves it out.
        title: The heading of the page.

    Returns:
        A complete page that loads nothing from the network.

    Raises:
        InputError: As `plot_layers` does.

    Example:
        >>> import torch, landscape
        >>> model, data = torch.nn.Linear(2, 2), [(torch.eye(2), torch.tensor([0, 1]))]
        >>> table = landscape.hessian_layers(model, data, rtol=0.5)
        >>> "<h1>Curvature by layer</h1>" in landscape.layers_html([table])
        True
    """
    places = arrange_layers(tables)
    text = layers_caption(places) if caption is None else clean(caption)
    from landscape.plotting.curvature.interactive import layers_section
    from landscape.plotting.page import page_html

    return page_html(title, [layers_section(places, text)])


def write_layer_figures(tables: Sequence[LayerCurvature], stem: Path | str, *, style: str = "paper") -> list[Path]:
    """Write `tables` to files as `write_figures` writes surfaces."""
    figure, page = plot_layers(tables, style=style), layers_html(tables)
    return [*write_figure(figure, stem), write_page(page, stem)]


# --- single results -----------------------------------------------------------------------------------------


def plot_eigenvalues(result: Eigenvalues, *, caption: str | None = None, style: str = "paper") -> Figure:
    """Draw eigenvalues with their residual norms as error bars; those that did not converge are hollow.

    Args:
        result: What `hessian_eigenvalues` returned.
        caption: Replaces the text under the figure; "" leaves it out.
        style: What the figure is for: "paper", "talk" or "notebook", see `plot_surfaces`.

    Returns:
        A matplotlib figure that does not belong to pyplot, so it need not be closed.

    Raises:
        InputError: If there is no such style.
    """
    text = eigenvalues_caption(result) if caption is None else clean(caption)
    from landscape.plotting.curvature import paper
    from landscape.plotting.paper_style import style_named

    return paper.draw_eigenvalues(result, text, style_named(style))


def plot_trace(result: TraceEstimate, *, caption: str | None = None, style: str = "paper") -> Figure:
    """Draw a histogram of what single probes estimate, with their mean and its confidence interval.

    Args:
        result: What `hessian_trace` returned.
        caption: Replaces the text under the figure; "" leaves it out.
        style: What the figure is for: "paper", "talk" or "notebook", see `plot_surfaces`.

    Returns:
        A matplotlib figure that does not belong to pyplot, so it need not be closed.

    Raises:
        InputError: If there is no such style.
    """
    text = trace_caption(result) if caption is None else clean(caption)
    from landscape.plotting.curvature import paper
    from landscape.plotting.paper_style import style_named

    return paper.draw_trace(result, text, style_named(style))
