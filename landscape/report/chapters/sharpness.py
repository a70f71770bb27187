"""Sharpness: a row per checkpoint, a column per metric, with error bars."""

from __future__ import annotations

from collections.abc import Sequence

from landscape.plotting.page import Cell, Section, Table
from landscape.report.reading import Chapter, Found, Part, by_place, results_of, titled
from landscape.report.words import mark_of, of_error, provenance_tables
from landscape.sharpness import Sharpness


def _part(found: list[Found[Sharpness]]) -> Part:
    whole, places = Part(), by_place(found)
    for place, here in places.items():
        results = [one.content for one in here]
        columns = _columns(results)
        tables = [_values(columns, data) for data in dict.fromkeys(result.data for result in results)]
        caption = (
            "± is a standard error over samples or probes, and the bar shows it; numbers without one have no sampling "
            "error. * has not met its tolerance. The unit of a column is that of its metric."
        )
        folded = [_explained(columns), *provenance_tables(here)]
        title = titled("Sharpness", place, places)
        whole.sections.append(Section(title, (), caption, tables, folded))
        open_ = sum(result.converged is False for result in results)
        whole.sentences.append(
            f"Sharpness by {len(columns)} metric{'s' if len(columns) > 1 else ''}. None of them is the sharpness: most "
            "move when weights are rescaled and the function stays the same, and the section says which do."
            + (f" {open_} of {len(results)} numbers have not met their tolerance." if open_ else "")
        )
    return whole


def _columns(results: Sequence[Sharpness]) -> dict[str, list[Sharpness]]:
    """The results by metric; metrics that come with several options have them in their names."""
    options = {result.metric: dict[str, None]() for result in results}
    for result in results:
        options[result.metric][_options(result)] = None
    columns: dict[str, list[Sharpness]] = {}
    for result in results:
        several = len(options[result.metric]) > 1
        name = f"{result.metric} ({_options(result)})" if several else result.metric
        columns.setdefault(name, []).append(result)
    return columns


def _options(result: Sharpness) -> str:
    logits = ["logits normalized"] if result.normalized_logits else []
    return ", ".join([f"{name}={value}" for name, value in result.options.items() if value is not None] + logits)


def _values(columns: dict[str, list[Sharpness]], data: str) -> Table:
    cells = {name: {r.name: r for r in results if r.data == data} for name, results in columns.items()}
    names = list(dict.fromkeys(name for of_metric in cells.values() for name in of_metric))
    rows: list[list[str | Cell]] = []
    for name in names:
        own = [of_metric.get(name) for of_metric in cells.values()]
        loss = next(result.loss for result in own if result is not None)
        rows.append([name, Cell(f"{loss:.4f}", loss), *map(_cell, own)])
    return Table(["checkpoint", "loss", *cells], rows, f"On {data}")


def _cell(result: Sharpness | None) -> str | Cell:
    if result is None:
        return ""
    return of_error(result.value, result.stderr, mark_of(result.converged, unknown=""))


def _explained(columns: dict[str, list[Sharpness]]) -> Table:
    rows = [
        [name, _options(results[0]) or "none", results[0].invariance, str(results[0].details.get("bound", ""))]
        for name, results in columns.items()
    ]
    return Table(["metric", "settings", "unchanged by", "bound"], rows, "What each metric is, and what leaves it alone")


CHAPTER = Chapter(results_of(Sharpness), _part)
