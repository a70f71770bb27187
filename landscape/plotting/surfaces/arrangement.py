"""Which surfaces a figure shows, in which order, and whether they may stand in one figure."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from landscape.errors import InputError, as_typed
from landscape.plotting.basics import Places, clean, label_of, number, places_of, require_same_data

if TYPE_CHECKING:  # a picture needs no more of a result than its fields, so importing this stays cheap
    from landscape.surfaces.result import Surface


def shared_label(surfaces: Sequence[Surface], axis: int) -> str:
    """The label of an axis that several surfaces share, though lines to other checkpoints have others."""
    labels = list(dict.fromkeys(clean(surface.axis_labels[axis]) for surface in surfaces))
    differ = len(labels) > 1 or differ_in_eigenvectors(surfaces)
    return (surfaces[0].kind_type.shared_axis_label if differ else "") or " / ".join(labels)


def differ_in_eigenvectors(surfaces: Sequence[Surface]) -> bool:
    """Whether every checkpoint has its own eigenvectors along the axes, so that each panel needs its own labels."""
    return bool(surfaces[0].kind_type.own_directions) and len({surface.axis_labels for surface in surfaces}) > 1


def marked_places(surfaces: Sequence[Surface]) -> dict[float, list[str]]:
    """The names of the checkpoints that lie at each place of a line."""
    places: dict[float, dict[str, None]] = {}
    for surface in surfaces:
        for marker in surface.markers:
            places.setdefault(marker.coordinates[0], {})[clean(marker.name)] = None
    return {place: list(names) for place, names in places.items()}


def aspect(surface: Surface) -> float:
    """Height over width of a plane. Steps along both axes look equally long, unless that makes a strip."""
    wide, high = (axis[-1] - axis[0] for axis in surface.axes)
    return float(np.clip(high / wide, 0.6, 1.0))


@dataclasses.dataclass(frozen=True)
class Arrangement(Places["Surface"]):
    """The surfaces of a figure and how they are drawn."""

    dim: int
    log: bool


def with_heights(surfaces: Sequence[Surface]) -> list[Surface]:
    """The panels of `surfaces`: the loss of each, and for each of its heights a panel with the height in its place.

    A panel of the loss has no heights, and one of a height has that alone; its data are called "data: height".

    Raises:
        InputError: If two surfaces have different heights.
    """
    panels = [dataclasses.replace(surface, heights=()) for surface in surfaces]
    names = [[grid.name for grid in surface.heights] for surface in surfaces]
    if any(own != names[0] for own in names):
        raise InputError(f"the surfaces have different heights: {' against '.join(map(str, names[:2]))}.")
    if not names[0]:
        return panels
    for surface in surfaces:
        for grid in surface.heights:
            at = zip(surface.markers, grid.markers, strict=True)
            panels.append(
                dataclasses.replace(
                    surface,
                    data=f"{surface.data}: {grid.name}",
                    loss=grid.values,
                    center=grid.center,
                    markers=tuple(dataclasses.replace(marker, loss=value) for marker, value in at),
                    weight=grid.weight,
                    heights=(grid,),
                )
            )
    order = list(dict.fromkeys(surface.data for surface in surfaces))
    return sorted(panels, key=lambda panel: next(i for i, d in enumerate(order) if panel.data in _data_names(d, names)))


def only_heights(arrangement: Arrangement) -> Arrangement:
    """The panels of heights alone, without those of the loss."""
    cells = {place: panel for place, panel in arrangement.cells.items() if panel.heights}
    data = [name for name in arrangement.data if any(place[1] == name for place in cells)]
    return dataclasses.replace(arrangement, data=data, cells=cells)


def _data_names(data: str, names: Sequence[Sequence[str]]) -> list[str]:
    """What the panels of one data set are called."""
    return [data, *(f"{data}: {name}" for name in names[0])]


def shown_name(panel: Surface) -> str:
    """What a panel shows: the loss or a height."""
    return panel.heights[0].name if panel.heights else "loss"


def band_of(panel: Surface) -> tuple[np.ndarray, np.ndarray] | None:
    """A standard error to either side of a line; None where the panel has none."""
    if not panel.heights or not np.isfinite(panel.heights[0].stderr).any():
        return None
    return panel.loss - panel.heights[0].stderr, panel.loss + panel.heights[0].stderr


def _drawn_band(panel: Surface) -> tuple[np.ndarray, np.ndarray] | None:
    """The band where a picture has one: of lines, not of planes."""
    return band_of(panel) if panel.loss.ndim == 1 else None


def arrange(surfaces: Sequence[Surface], log: bool = False) -> Arrangement:
    """Check that `surfaces` fit in one figure, and find the place of each, and of each of their heights.

    Raises:
        InputError: If there are no surfaces, if they are not comparable, if two have the same name and data, if they
            have neither one nor two dimensions, or if `log` meets a loss that is not positive.
    """
    if not surfaces:
        raise InputError("no surface to plot; give at least one.")
    require_comparable(surfaces)
    if not 1 <= (dim := len(surfaces[0].axes)) <= 2:
        raise InputError(f"{label_of(surfaces[0])} has {dim} dimensions; only one or two can be drawn.")
    if min(len(axis) for axis in surfaces[0].axes) < 2:
        raise InputError(f"{label_of(surfaces[0])} has an axis of one point; a picture needs at least two.")
    if log and any(surface.heights for surface in surfaces):
        raise InputError(f"{as_typed('log')} is of losses; it does not go with {as_typed('height')}.")
    places = places_of(with_heights(surfaces), "surfaces")
    for surface in surfaces:
        if log and len(finite := finite_losses([surface])) and finite.min() <= 0:
            raise InputError(
                f"a logarithmic scale needs losses above 0, but {label_of(surface)} reaches {finite.min():.4g}."
            )
    return Arrangement(places.names, places.data, places.cells, dim, log)


def require_comparable(surfaces: Sequence[Surface]) -> None:
    """Check that all `surfaces` may stand in one figure.

    They have to agree in dimension, kind, normalization, seed and grid, in the parameters that moved and in the loss
    function. Two that name their data alike have to have been measured on the same data.

    Args:
        surfaces: What to compare.

    Raises:
        InputError: If two surfaces differ. The message names both, and what they differ in.
    """
    for first, other in itertools.pairwise(surfaces):
        for what, a, b in (
            ("dimension", len(first.axes), len(other.axes)),
            ("kind", first.kind, other.kind),
            ("normalization", first.normalize, other.normalize),
            ("seed", first.seed, other.seed),
            *((name, value, other.conventions[name]) for name, value in first.conventions.items()),
        ):
            if a != b:
                raise InputError(f"{label_of(first)} and {label_of(other)} differ in {what}: {a} against {b}.")
        if not all(np.array_equal(a, b) for a, b in zip(first.axes, other.axes, strict=True)):
            raise InputError(
                f"{label_of(first)} and {label_of(other)} differ in their axes: {grid_text(first)} with "
                f"{extent_text(first)} against {grid_text(other)} with {extent_text(other)}; measure both on one grid."
            )
    require_same_data(surfaces)


def grid_text(surface: Surface) -> str:
    """The number of points of a grid, in words."""
    return "\N{MULTIPLICATION SIGN}".join(str(len(axis)) for axis in surface.axes) + " points"


def extent_text(surface: Surface) -> str:
    """Where the axes of a grid end, in words."""
    spans = [f"{number(axis[0])} to {number(axis[-1])}" for axis in surface.axes]
    return f"{spans[0]} on both axes" if len(spans) == 2 and spans[0] == spans[1] else " and ".join(spans)


def finite_losses(surfaces: Iterable[Surface]) -> np.ndarray:
    """All finite losses of `surfaces`, flat."""
    drawn = [part for surface in surfaces for part in (surface.loss, *(_drawn_band(surface) or ()))]
    losses = [part[np.isfinite(part)] for part in drawn]
    return np.concatenate(losses) if losses else np.empty(0)
