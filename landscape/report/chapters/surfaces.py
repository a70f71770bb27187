"""Loss surfaces: scenes side by side, profiles with bands, and numbers over draws of directions."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from landscape.errors import InputError
from landscape.plotting.basics import clean
from landscape.plotting.page import Plot, Table
from landscape.plotting.surfaces.arrangement import arrange
from landscape.plotting.surfaces.captions import caption_for
from landscape.plotting.surfaces.interactive import surface_section
from landscape.plotting.surfaces.interactive_profiles import profile_caption, profile_figure
from landscape.report.reading import Chapter, Found, Part, by_place, grouped, results_of, titled
from landscape.report.words import of_error, of_interval, provenance_tables, signed_interval
from landscape.results import digest_of
from landscape.surfaces.draws import metrics_over_draws
from landscape.surfaces.result import Surface

_KINDS = {
    "random": "along random directions",
    "interpolate": "on the line between checkpoints",
    "plane": "on the plane through checkpoints",
    "eigen": "along eigenvectors",
    "trajectory": "along a training run",
    "worst_case": "along the worst-case direction",
}
_METRIC = "surface_curvature"


def _part(found: list[Found[Surface]]) -> Part:
    return part_of_groups("Loss surfaces", found, _add)


def part_of_groups(
    title: str, found: Sequence[Found[Surface]], add: Callable[[Part, str, Sequence[Found[Surface]]], None]
) -> Part:
    """The part of a page that has a section for each group of surfaces that compare.

    Args:
        title: The start of the titles, before the words for the kind of the surfaces.
        found: The surfaces.
        add: Adds the section of one group, under a title, to the part.
    """
    whole = Part()
    groups = [(place, alike) for place, here in by_place(found).items() for alike in _comparable(here)]
    titles = [f"{title} {_KINDS.get(alike[0].content.kind, 'along given directions')}" for _, alike in groups]
    for (place, alike), of_kind in zip(groups, titles, strict=True):
        try:
            add(whole, titled(of_kind, place, [same for same in titles if same == of_kind]), alike)
        except InputError as error:
            whole.problems.append(f"{place or 'the folder itself'}: {error}")
    return whole


def _comparable(found: Sequence[Found[Surface]]) -> list[list[Found[Surface]]]:
    """Surfaces that may stand in one figure, but for the draw of their directions."""

    def settings(one: Found[Surface]) -> str:
        surface = one.content
        conventions = {name: value for name, value in surface.conventions.items() if name != "draws"}
        heights = [height.name for height in surface.heights]
        return digest_of([surface.kind, surface.normalize, list(surface.axes), conventions, heights])

    return list(grouped(found, settings).values())


def _add(whole: Part, title: str, found: Sequence[Found[Surface]]) -> None:
    """Add the section on surfaces that differ in their checkpoints, data and draws alone."""
    names = list(dict.fromkeys(one.content.name for one in found))
    losses = [dataclasses.replace(one.content, heights=()) for one in found]
    surfaces = sorted(losses, key=lambda s: (names.index(s.name), s.seed or 0))
    seeds = sorted({surface.seed for surface in surfaces if surface.seed is not None})
    drawn = first_draw(surfaces)
    arrangement, data_sets = arrange(drawn), list(dict.fromkeys(surface.data for surface in drawn))
    section = surface_section(arrangement, caption_for(drawn), title)
    plots, tables = list(section.plots), list(section.tables)
    if len(seeds) > 1 and drawn[0].kind_type.is_random:
        if arrangement.dim == 1:
            plots += [_profile(surfaces, data) for data in data_sets]
        for data in data_sets:
            table, sentences = _over_draws([surface for surface in surfaces if surface.data == data])
            tables.append(table)
            whole.sentences += sentences
    elif drawn[0].kind_type.is_random and len(arrangement.names) > 1:
        whole.sentences.append(
            f"The surfaces of {_listed(arrangement.names)} are one draw of random directions. A difference between "
            "them may be that of the draw, and is no evidence that one is flatter: landscape plot --draws 8 tells."
        )
    missing = sum(surface.nonfinite for surface in surfaces)
    if missing:
        points = sum(surface.loss.size for surface in surfaces)
        whole.sentences.append(f"{missing} of {points} points of the surfaces have a loss that is not finite.")
    folded = provenance_tables(found)
    whole.sections.append(dataclasses.replace(section, plots=plots, tables=tables, folded=folded))


def first_draw(surfaces: Sequence[Surface]) -> list[Surface]:
    """The surfaces of the lowest seed, or all where no directions were drawn."""
    seeds = sorted({surface.seed for surface in surfaces if surface.seed is not None})
    return [surface for surface in surfaces if not seeds or surface.seed == seeds[0]]


def _listed(names: Sequence[str]) -> str:
    return ", ".join(map(clean, names)) if len(names) <= 4 else f"{len(names)} checkpoints"


def _profile(surfaces: Sequence[Surface], data: str) -> Plot:
    of_data = [surface for surface in surfaces if surface.data == data]
    caption = profile_caption(of_data)
    return Plot(profile_figure(of_data), caption, title=f"Profiles on {data}", remarks=[caption])


def _over_draws(surfaces: Sequence[Surface]) -> tuple[Table, list[str]]:
    """The numbers of surfaces on one data set over draws, and what differs between checkpoints in words."""
    over, data = metrics_over_draws(surfaces), surfaces[0].data
    first, draws = over["name"].iloc[0], int(over["draws"].iloc[0])
    rows = [
        [
            str(row["name"]),
            str(row["metric"]).replace("_", " "),
            of_error(row["mean"], row["stderr"]),
            f"{row['spread']:.1%}",
            of_interval(row["difference"], (row["low"], row["high"])) if row["name"] != first else "",
        ]
        for _, row in over.iterrows()
    ]
    header = ["checkpoint", "metric", "mean ± standard error", "spread of one draw", f"difference to {first}"]
    caption = f"On {data}, over {draws} draws of directions; differences draw by draw, with 95% intervals (each alone)"
    sentences = []
    of_one = over[(over["metric"] == _METRIC) & (over["name"] != first)]
    for _, row in of_one.iterrows():
        ends = signed_interval(row["difference"], row["low"], row["high"])
        which = "less" if row["high"] < 0 else "more" if row["low"] > 0 else ""
        said = f"curves {which} than" if which else "shows no difference in curvature from"
        sentences.append(
            f"Over {draws} draws on {data}, the surface of {row['name']} {said} that of {first} ({ends}, 95%, among "
            "random directions of this normalization; other measures of flatness may say otherwise)."
        )
    return Table(header, rows, caption), sentences if len(sentences) <= 4 else []


CHAPTER = Chapter(results_of(Surface), _part)
