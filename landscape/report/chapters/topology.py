"""Topology: the minima of grids and the saddles between them, as persistence diagrams and in a table."""

from __future__ import annotations

from collections.abc import Sequence

from landscape.plotting.basics import clean, number
from landscape.plotting.page import Cell, Plot, Section, Table
from landscape.plotting.surfaces.interactive_persistence import persistence_figure
from landscape.report.reading import Chapter, Found, Part, by_place, grouped, results_of, titled
from landscape.report.words import FEW, provenance_tables
from landscape.surfaces.topology import Topology


def _part(found: list[Found[Topology]]) -> Part:
    whole, places = Part(), by_place(found)
    for place, here in places.items():
        results = sorted((one.content for one in here), key=lambda topology: topology.height != "loss")
        groups = grouped(results, lambda topology: (topology.data, topology.height))
        plots = [_plot(group) for group in groups.values()]
        caption = (
            "A point for each minimum of a grid, at its value and at that of the saddle where its basin runs into that "
            "of a deeper one; triangles: the lowest minimum. Points below a dotted line may be noise; where there is "
            "no such line, the noise is not known. They are minima of these grids, and need not be minima of the model."
        )
        title = titled("Topology: minima and saddles", place, places)
        whole.sections.append(Section(title, plots, caption, [_table(results)], provenance_tables(here)))
        whole.sentences += [_sentence(group) for group in groups.values()]
    return whole


def _plot(group: Sequence[Topology]) -> Plot:
    first = group[0]
    words = f"Persistence diagram of {first.height} on {first.data}, of {len(group)} surfaces"
    return Plot(persistence_figure(group), words, title=f"{first.height} on {first.data}", half=True)


def _table(results: Sequence[Topology]) -> Table:
    rows: list[list[str | Cell]] = [
        [
            t.name,
            t.data,
            t.height,
            Cell(str(t.minima), t.minima),
            Cell(number(t.lowest_value, 5), t.lowest_value),
            Cell(number(t.smad, 4), t.smad),
            Cell(number(t.pairs[0].persistence, 4), t.pairs[0].persistence) if t.pairs else Cell(""),
            Cell("not known") if t.surviving is None else Cell(f"{t.surviving} of {len(t.pairs)}", t.surviving),
        ]
        for t in results
    ]
    header = ["checkpoint", "data", "height", "minima", "lowest", "SMAD", "most persistent", "saddles above the noise"]
    negated = "; where higher is better, values are negated" if any(t.negated for t in results) else ""
    caption = f"SMAD: mean height of the saddles over their minima (Chen et al. 2026){negated}"
    return Table(header, rows, caption)


def _sentence(group: Sequence[Topology]) -> str:
    """How many minima the grids have, and how many of them no noise could have made."""
    first = group[0]
    if len(group) <= FEW:
        each = ", ".join(f"{clean(topology.name)} {topology.minima}" for topology in group)
    else:
        counts = [topology.minima for topology in group]
        each = f"{min(counts)} to {max(counts)} over {len(group)} checkpoints"
    said = f"Minima of {first.height} on {first.data}, on the grids that were measured: {each}"
    known = [topology for topology in group if topology.surviving is not None]
    if not known:
        return f"{said}; how many of them noise has made is not known."
    if not any(topology.pairs for topology in group):
        return f"{said}."
    surviving = sum(topology.surviving or 0 for topology in known)
    saddles = sum(len(topology.pairs) for topology in known)
    return f"{said}; of the {saddles} saddles between them, {surviving} are above the noise."


CHAPTER = Chapter(results_of(Topology), _part)
