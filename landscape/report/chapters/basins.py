"""Basins: how far from each checkpoint a capability holds, along random directions, the worst case and its own step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from landscape.basins.result import Basin, in_words
from landscape.plotting.basics import clean, number
from landscape.plotting.basins.interactive import basins_figure
from landscape.plotting.page import Cell, Plot, Row, Section, Table
from landscape.report.reading import Chapter, Found, Part, by_place, grouped, results_of, titled
from landscape.report.words import FEW, of_error, provenance_tables


def _part(found: list[Found[Basin]]) -> Part:
    whole, places = Part(), by_place(found)
    for place, here in places.items():
        results = [one.content for one in here]
        groups = grouped(results, lambda basin: (basin.data, basin.height, f"{basin.drop:.4g}"))
        plots = [_plot(group) for group in groups.values()]
        caption = (
            "The share of random directions along which the height has not yet moved by the drop, over the length of "
            "the step; a triangle is the worst direction that repeated gradients found, and there may be worse. "
            "Medians have 95% intervals over directions. No step is longer than the weights."
        )
        title = titled("Basins: how far a capability holds", place, places)
        whole.sections.append(Section(title, plots, caption, [_table(results)], provenance_tables(here)))
        for group in groups.values():
            whole.sentences += _sentences(group)
    return whole


def _plot(group: Sequence[Basin]) -> Plot:
    first = group[0]
    words = f"Share of random directions along which {first.height} on {first.data} holds, of {len(group)} checkpoints"
    title = f"{first.height} on {first.data}, drop {number(first.drop)}"
    return Plot(basins_figure(group), words, title=title, half=True)


def _table(results: Sequence[Basin]) -> Table:
    with_step = any(basin.step is not None for basin in results)
    with_bound = any(basin.bound is not None for basin in results)
    header = ["checkpoint", "data", "height", "at centre", "drop", "median radius", "held to end", "worst case"]
    header += ["in steps of tuning", "left base's basin"] if with_step else []
    header += ["with noise", "at least, after the step"] if with_bound else []
    rows: list[Row] = []
    for b in results:
        low, high = b.interval
        row: list[str | Cell] = [b.name, b.data, b.height, of_error(b.center, b.center_stderr)]
        median = f"{in_words(b.median)} [{number(low)}, {'∞' if math.isinf(high) else number(high)}]"
        row += [Cell(number(b.drop), b.drop), Cell(median, b.median, low, high)]
        row += [Cell(f"{b.censored} of {len(b.radii)}", b.censored)]
        row += [Cell("") if b.worst is None else Cell(in_words(b.worst.value), b.worst.value)]
        if with_step:
            row += [Cell("") if b.steps is None else Cell(number(b.steps), b.steps), _of_step(b)]
        if with_bound:
            row += [of_error(b.bound.smoothed, None), of_error(b.bound.bound, None)] if b.bound else ["", ""]
        rows.append(row)
    return Table(header, rows, "Radii are lengths of steps over the norm of the weights")


def _of_step(basin: Basin) -> str:
    if basin.step is None:
        return ""
    return "yes" if basin.has_left else "no"


def _sentences(group: Sequence[Basin]) -> list[str]:
    """The median radii with their intervals, and whether these lie apart, if that is not the extremes of many."""
    first = group[0]
    about = f"{first.height} on {first.data} (drop {number(first.drop)})"
    said = []
    if len(group) <= FEW:
        each = ", ".join(f"{clean(b.name)} {_median(b)}" for b in group)
    else:
        medians = [b.median for b in group]
        each = f"{in_words(min(medians))} to {in_words(max(medians))} over {len(group)} checkpoints"
    apart = max(b.interval[0] for b in group) > min(b.interval[1] for b in group)
    compared = ""
    if len(group) > 1 and not apart:
        compared = "; no two of the intervals lie apart"
    elif len(group) == 2:
        compared = "; the intervals lie apart"  # Of more, the two extremes may by chance: intervals are of one each.
    said.append(f"Median radius of {about}, in norms of the weights along random directions: {each}{compared}.")
    left = [b for b in group if b.has_left is not None]
    if left:
        count = sum(bool(b.has_left) for b in left)
        said.append(f"The step of tuning left the base's basin of {about} for {count} of {len(left)} checkpoints.")
    return said


def _median(basin: Basin) -> str:
    low, high = basin.interval
    return f"{in_words(basin.median)} [{number(low)}, {'∞' if math.isinf(high) else number(high)}]"


CHAPTER = Chapter(results_of(Basin), _part)
