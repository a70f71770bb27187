"""What models can do over their surfaces: accuracies and other heights that were measured at the same points."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from landscape.plotting.basics import clean, number
from landscape.plotting.page import Cell, Row, Table
from landscape.plotting.surfaces.arrangement import arrange, only_heights
from landscape.plotting.surfaces.captions import caption_for, center_name
from landscape.plotting.surfaces.interactive import surface_section
from landscape.report.chapters.surfaces import first_draw, part_of_groups
from landscape.report.reading import Chapter, File, Found, Part, results_of
from landscape.report.words import FEW, of_error, provenance_tables
from landscape.surfaces.result import HeightGrid, Surface

_read_surface = results_of(Surface)


def _read(file: File) -> Surface | None:
    surface = _read_surface(file)
    return surface if surface is not None and surface.heights else None


def _part(found: list[Found[Surface]]) -> Part:
    return part_of_groups("Capabilities", found, _add)


def _add(whole: Part, title: str, found: Sequence[Found[Surface]]) -> None:
    """Add the section on the heights of surfaces that compare, and what each height is over its grid."""
    drawn = first_draw([one.content for one in found])
    section = surface_section(only_heights(arrange(drawn)), caption_for(drawn), title)
    tables = [_table(drawn)]
    whole.sections.append(dataclasses.replace(section, tables=tables, folded=provenance_tables(found)))
    for data in dict.fromkeys(surface.data for surface in drawn):
        whole.sentences += _sentences([surface for surface in drawn if surface.data == data])


def _table(surfaces: Sequence[Surface]) -> Table:
    rows: list[Row] = []
    for surface in surfaces:
        for grid in surface.heights:
            low, high = _range(grid)
            center = of_error(grid.center, grid.center_stderr)
            error = Cell(number(_error(grid)), _error(grid)) if np.isfinite(_error(grid)) else Cell("not known")
            row: list[str | Cell] = [
                surface.name,
                surface.data,
                grid.name,
                grid.unit,
                center,
                Cell(number(low, 4), low),
            ]
            rows.append([*row, Cell(number(high, 4), high), error, Cell(f"{grid.weight:,.0f}", grid.weight)])
    place = f"at {center_name(surfaces[0])}"
    header = ["checkpoint", "data", "height", "unit", place, "lowest", "highest", "largest standard error", "terms"]
    return Table(header, rows, "Over the grid, with standard errors over examples")


def _sentences(surfaces: Sequence[Surface]) -> list[str]:
    """What each height is at the checkpoints, and over which range it moves, with how sure a point of it is."""
    said = []
    for order, first in enumerate(surfaces[0].heights):
        grids = [surface.heights[order] for surface in surfaces]
        values = [value for surface in surfaces for value in _at_checkpoints(surface, surface.heights[order])]
        if len(values) <= FEW:
            each = ", ".join(f"{clean(name)} {text}" for name, _, text in values)
        else:
            each = f"{number(min(v for _, v, _ in values))} to {number(max(v for _, v, _ in values))} over "
            each += f"{len(values)} checkpoints"
        ranges = np.array([_range(grid) for grid in grids])
        errors = [_error(grid) for grid in grids if np.isfinite(_error(grid))]
        sure = f", where a point has a standard error of up to {number(max(errors), 2)}" if errors else ""
        said.append(
            f"{first.name} on {surfaces[0].data}: {each}. Over the grid it runs from "
            f"{number(np.nanmin(ranges[:, 0]))} to {number(np.nanmax(ranges[:, 1]))}{sure}."
        )
    return said


def _at_checkpoints(surface: Surface, grid: HeightGrid) -> list[tuple[str, float, str]]:
    """The name of each checkpoint on a surface, the height there, and that with its error where it is known."""
    if surface.markers:
        return [(m.name, value, number(value)) for m, value in zip(surface.markers, grid.markers, strict=True)]
    error = f" ± {number(grid.center_stderr, 2)}" if np.isfinite(grid.center_stderr) else ""
    return [(surface.name, grid.center, number(grid.center) + error)]


def _range(grid: HeightGrid) -> tuple[float, float]:
    finite = grid.values[np.isfinite(grid.values)]
    return (float(finite.min()), float(finite.max())) if finite.size else (float("nan"), float("nan"))


def _error(grid: HeightGrid) -> float:
    """The largest standard error of a point, which may be unknown."""
    return float(np.nanmax(grid.stderr)) if np.isfinite(grid.stderr).any() else float("nan")


CHAPTER = Chapter(_read, _part)
