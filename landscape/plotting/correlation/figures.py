"""The public functions that draw correlations of flatness with forgetting.

The statistics are imported inside the functions, as the plotting libraries are: they take long to load.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from landscape.plotting.basics import clean
from landscape.plotting.files import write_figure, write_page

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

    from landscape.plotting.correlation.shared import Forest, Scatter


def plot_correlations(
    result: pandas.DataFrame,
    table: pandas.DataFrame | Path | str | None = None,
    *,
    color: str | None = None,
    caption: str | None = None,
    style: str = "paper",
) -> Figure:
    """Draw a forest plot of what `correlate` returned, and the points behind it as scatter plots below.

    The strongest correlation stands at the top with its interval. It is filled where q < 0.05 and the interval leaves
    out zero, and a lighter diamond shows the partial correlation. At the bottom stand metrics without an interval, then
    those without a number, with the reason.

    Args:
        result: What `correlate` returned, or the CSV file of it read again.
        table: The table that was correlated, or its CSV file. Without it there are no scatter plots.
        color: As for `plot_correlation_scatter`.
        caption: Replaces the text under the figure; "" leaves it out.
        style: What the figure is for: "paper", "talk" or "notebook", see `plot_surfaces`.

    Returns:
        A matplotlib figure that does not belong to pyplot, so it need not be closed.

    Raises:
        InputError: If `result` is no result of `correlate`, if there is no such `style`, or as
            `plot_correlation_scatter` does.

    Example:
        >>> import pandas, landscape
        >>> table = pandas.DataFrame({"trace": [1, 2, 3, 4, 5, 6], "forgetting": [1, 3, 2, 4, 6, 5]})
        >>> result = landscape.correlate(table, resampling=landscape.Resampling(resamples=99))
        >>> figure = landscape.plot_correlations(result)
        >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
        ['trace']
    """
    from landscape.plotting.correlation import paper
    from landscape.plotting.paper_style import style_named

    forest, points, text = contents(result, table, color, caption)
    return paper.draw_correlations(result, forest, points and points[1], text, style_named(style))


def plot_correlation_scatter(
    result: pandas.DataFrame,
    table: pandas.DataFrame | Path | str,
    *,
    color: str | None = None,
    caption: str | None = None,
    style: str = "paper",
) -> Figure:
    """Draw each metric of `result` against forgetting: a panel per metric, a point per row of `table`.

    All panels have the same outcome axis, and they stand in the order of the forest plot. A metric that is positive
    and spans more than two decades has a logarithmic axis.

    Args:
        result: What `correlate` returned.
        table: The table that was correlated, or its CSV file.
        color: The column by whose values points are coloured. The default is `optimizer`, if there is such a column.
        caption: Replaces the text under the figure; "" leaves it out.
        style: What the figure is for: "paper", "talk" or "notebook", see `plot_surfaces`.

    Returns:
        A matplotlib figure that does not belong to pyplot, so it need not be closed.

    Raises:
        InputError: If `table` lacks a column, or has more values of `color` than can be told apart, or if there is no
            such `style`.

    Example:
        >>> import pandas, landscape
        >>> table = pandas.DataFrame({"trace": [1, 2, 3, 4, 5, 6], "forgetting": [1, 3, 2, 4, 6, 5]})
        >>> result = landscape.correlate(table, resampling=landscape.Resampling(resamples=99))
        >>> figure = landscape.plot_correlation_scatter(result, table)
        >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
        ('trace', 'forgetting')
    """
    from landscape.correlation import read_table
    from landscape.plotting.correlation import paper
    from landscape.plotting.correlation.shared import scatter_caption, scatter_of
    from landscape.plotting.paper_style import style_named

    scatter = scatter_of(result, read_table(table), color)
    return paper.draw_scatter(
        result, scatter, scatter_caption(result, scatter) if caption is None else clean(caption), style_named(style)
    )


def correlations_html(
    result: pandas.DataFrame,
    table: pandas.DataFrame | Path | str | None = None,
    *,
    color: str | None = None,
    caption: str | None = None,
    title: str = "Flatness against forgetting",
) -> str:
    """Draw the same as an HTML page that shows the names of checkpoints under the mouse.

    Args:
        result: What `correlate` returned.
        table: The table that was correlated, or its CSV file. Without it there are no scatter plots.
        color: As for `plot_correlation_scatter`.
        caption: Replaces the text under the plots; "" leaves it out.
        title: The heading of the page.

    Returns:
        A complete page that loads nothing from the network.

    Raises:
        InputError: As `plot_correlations` does.

    Example:
        >>> import pandas, landscape
        >>> table = pandas.DataFrame({"trace": [1, 2, 3, 4, 5, 6], "forgetting": [1, 3, 2, 4, 6, 5]})
        >>> result = landscape.correlate(table, resampling=landscape.Resampling(resamples=99))
        >>> "<h1>Flatness against forgetting</h1>" in landscape.correlations_html(result, table)
        True
    """
    from landscape.plotting.correlation.interactive import correlation_section
    from landscape.plotting.page import page_html

    return page_html(title, [correlation_section(result, *contents(result, table, color, caption))])


def write_correlation_figures(
    result: pandas.DataFrame,
    table: pandas.DataFrame | Path | str,
    folder: Path | str,
    *,
    color: str | None = None,
    style: str = "paper",
) -> list[Path]:
    """Write forest and scatter plots as `write_figures` writes surfaces, and correlate.html.

    Each file is there completely or not at all, and the same result gives the same bytes.

    Args:
        result: What `correlate` returned.
        table: The table that was correlated, or its CSV file.
        folder: Where the files go.
        color: As for `plot_correlation_scatter`.
        style: As for `plot_surfaces`.

    Returns:
        The paths of the files.

    Raises:
        InputError: As `plot_correlations` does, before anything is written.
    """
    from landscape.correlation import read_table

    folder, table = Path(folder), read_table(table)
    forest = plot_correlations(result, style=style)
    scatter = plot_correlation_scatter(result, table, color=color, style=style)
    page = write_page(correlations_html(result, table, color=color), folder / "correlate")
    return [*write_figure(forest, folder / "forest"), *write_figure(scatter, folder / "scatter"), page]


def contents(
    result: pandas.DataFrame, table: pandas.DataFrame | Path | str | None, color: str | None, caption: str | None
) -> tuple[Forest, tuple[pandas.DataFrame, Scatter] | None, str]:
    """The forest plot, the table with the scatter plots of it if there is one, and the text under both."""
    from landscape.correlation import read_table
    from landscape.plotting.correlation.shared import forest_caption, forest_of, scatter_caption, scatter_of

    forest, points = forest_of(result), None
    sentences = [forest_caption(result, forest)]
    if table is not None:
        frame = read_table(table)
        points = frame, scatter_of(result, frame, color)
        sentences.append(scatter_caption(result, points[1]))
    return forest, points, " ".join(sentences) if caption is None else clean(caption)
