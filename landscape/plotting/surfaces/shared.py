"""What pictures of surfaces share, whichever library draws them: order, loss scale, words."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from landscape.errors import InputError, as_typed
from landscape.plotting.basics import (
    Places,
    amount,
    clean,
    label_of,
    listing,
    number,
    of_tokens,
    places_of,
    require_same_data,
    with_minus_sign,
)
from landscape.plotting.ticks import linear_ticks, log_ticks
from landscape.surfaces.options import MOST_LEVELS

if TYPE_CHECKING:  # a picture needs no more of a result than its fields, so importing this stays cheap
    from landscape.surfaces.result import HeightGrid, Surface


# --- names and order ----------------------------------------------------------------------------------------


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
                f"{label_of(first)} and {label_of(other)} differ in their axes: {_grid(first)} with "
                f"{_extent(first)} against {_grid(other)} with {_extent(other)}; measure both on one grid."
            )
    require_same_data(surfaces)


def _grid(surface: Surface) -> str:
    return "\N{MULTIPLICATION SIGN}".join(str(len(axis)) for axis in surface.axes) + " points"


def _extent(surface: Surface) -> str:
    spans = [f"{number(axis[0])} to {number(axis[-1])}" for axis in surface.axes]
    return f"{spans[0]} on both axes" if len(spans) == 2 and spans[0] == spans[1] else " and ".join(spans)


# --- the loss scale -----------------------------------------------------------------------------------------


def finite_losses(surfaces: Iterable[Surface]) -> np.ndarray:
    """All finite losses of `surfaces`, flat."""
    drawn = [part for surface in surfaces for part in (surface.loss, *(_drawn_band(surface) or ()))]
    losses = [part[np.isfinite(part)] for part in drawn]
    return np.concatenate(losses) if losses else np.empty(0)


@dataclasses.dataclass(frozen=True)
class LossScale:
    """One scale for the losses of several surfaces, which draws a loss at the height `heights(loss)`."""

    low: float  # heights
    high: float
    levels: np.ndarray  # heights of the contours, increasing
    chosen: bool  # whether a person chose the levels
    log: bool
    empty: bool  # there is no finite loss to draw
    shown: str = "loss"  # or the height that is drawn in its place

    @property
    def name(self) -> str:
        """The label of an axis with this scale."""
        return f"{self.shown} (log scale)" if self.log else self.shown

    def heights(self, loss: np.ndarray | float) -> np.ndarray:
        """Heights at which to draw `loss`: the loss itself or its log10, and NaN where that is not finite."""
        loss = np.asarray(loss, dtype=np.float64)
        drawable = np.isfinite(loss) & ((loss > 0) | (not self.log))
        heights = np.where(drawable, loss, np.nan)
        return np.log10(heights) if self.log else heights

    def losses(self, heights: Sequence[float] | np.ndarray) -> list[float]:
        """The inverse of `heights`, for an axis that is logarithmic by itself."""
        return [float(10**height if self.log else height) for height in heights]

    def ticks(self, count: int) -> tuple[list[float], list[str]]:
        """Heights of round losses, at most about `count` of them, and their labels in units of loss."""
        if self.empty:
            return [], []
        losses, texts = (log_ticks if self.log else linear_ticks)(self.low, self.high, count)
        return [float(self.heights(loss)) for loss in losses], texts

    def bar_ticks(self, count: int = 9) -> tuple[list[float], list[str]]:
        """Ticks of the colour bar: the levels if a person chose them, otherwise about `count` round losses."""
        if self.chosen and len(self.levels) <= 12:
            return list(self.levels), [f"{loss:.6g}" for loss in self.losses(self.levels)]
        low, high = self.levels[0], self.levels[-1]
        inside = [(at, text) for at, text in zip(*self.ticks(count), strict=True) if low <= at <= high]
        return [at for at, _ in inside], [text for _, text in inside]


def loss_scale(surfaces: Sequence[Surface], log: bool, levels: int | Sequence[float] = 20) -> LossScale:
    """The scale that `surfaces` share.

    Args:
        surfaces: All surfaces that are drawn on this scale.
        log: Whether the scale is logarithmic.
        levels: The number of contours, or the losses to draw them at.

    Raises:
        InputError: If `levels` are neither.
    """
    finite = finite_losses(surfaces)
    empty = len(finite) == 0
    bounds = (1.0, 10.0) if empty else (float(finite.min()), float(finite.max()))
    low, high = (math.log10(bound) for bound in bounds) if log else bounds
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all alike up to rounding: give it room to be seen in
        pad = 0.05 * max(abs(low), 1.0 if log or low == 0 else 0.0)
        low, high = low - pad, high + pad
    if isinstance(levels, int):
        if not 2 <= levels <= MOST_LEVELS:
            raise InputError(
                f"{as_typed('levels', levels)} is neither a count from 2 to {MOST_LEVELS:,} nor an increasing list of "
                "losses."
            )
        heights = np.linspace(low, high, levels)
    else:
        heights = np.asarray(levels, dtype=np.float64)
        is_list = heights.ndim == 1 and 2 <= len(heights) <= MOST_LEVELS and bool(np.isfinite(heights).all())
        if not is_list or (np.diff(heights) <= 0).any():
            raise InputError(
                f"{as_typed('levels', levels)} is neither a number nor an increasing list of at most {MOST_LEVELS:,} "
                "losses."
            )
        if log:
            if heights[0] <= 0:
                raise InputError(f"{as_typed('levels', levels)} do not fit a logarithmic scale; give losses above 0.")
            heights = np.log10(heights)
    return LossScale(low, high, heights, not isinstance(levels, int), log, empty, shown_name(surfaces[0]))


# --- words --------------------------------------------------------------------------------------------------


def center_name(surface: Surface) -> str:
    """The name for the place of the unperturbed model, which is the start of a line or plane and the end of a path."""
    return surface.kind_type.center_name


def center_text(surface: Surface) -> str:
    """The loss of the unperturbed model, in words."""
    place = center_name(surface)
    value = f"{surface.center:.3f}" if math.isfinite(surface.center) else "not finite"
    error = surface.heights[0].center_stderr if surface.heights else math.nan
    value += f" ± {error:.3f}" if math.isfinite(error) and error > 0 else ""
    return with_minus_sign(f"{shown_name(surface)} at {place} {value}")


def notes(surface: Surface) -> list[str]:
    """Warnings that belong beside a surface. Usually there are none."""
    warnings = []
    if surface.nonfinite:
        warnings.append(f"{surface.nonfinite} of {surface.loss.size} points not finite")
    if surface.path:
        warnings.append(f"plane explains {sum(surface.path.explained):.1%} of the path's variance")
    if not surface.fidelity.faithful:
        which, value = ("norm ratio", surface.fidelity.norm_ratio)
        if not surface.fidelity.cosine >= 0.99:  # NaN is not good enough either
            which, value = ("cosine", surface.fidelity.cosine)
        warnings.append(f"perturbation rounded ({which} {value:.2f})")
    return warnings


def caption_for(surfaces: Sequence[Surface], *, log: bool = False) -> str:
    """Describe a figure of `surfaces` to its reader: data, grid, directions, what panels share, precision.

    Args:
        surfaces: The surfaces of the figure.
        log: Whether the figure draws the logarithm of the loss.

    Returns:
        The text that stands under the figure.

    Raises:
        InputError: If the surfaces cannot be drawn in one figure.
    """
    arrangement = arrange(surfaces, log)
    panels = list(arrangement.cells.values())
    dim, shown = arrangement.dim, [panel for panel in panels if not panel.heights]
    first = shown[0]
    data = listing([f"{clean(d)} ({amount(s)})" for d, s in {s.data: s for s in shown}.items()])
    several = len(arrangement.names) > 1
    unit = " (nats per supervised token)" if all(of_tokens(surface) for surface in shown) else ""
    sentences = [f"Loss{unit} on {data}, {_region(first)}"]
    if beside := {panel.heights[0].name: panel.heights[0] for panel in panels if panel.heights}:
        sentences.append(_heights(list(beside.values()), dim))
    if first.kind_type.own_directions:
        sentences.append(_eigenvectors(arrangement))
    if first.path:
        sentences.append(_path(first))

    drawn = first.kind_type.is_random and first.seed is not None
    if drawn:
        own = "" if first.normalize in (None, "none") else ", normalized to its own weights"
        subject = "Each checkpoint" if several else "The checkpoint"
        sentences.append(f"{subject} moves along {'the same' if several else 'a'} random draw{own}")
    if several or len(arrangement.data) > 1:
        colours = " and colour scale" if dim == 2 and len(arrangement.data) == 1 else ""
        sentences.append(f"Axes{colours} are shared")
    if dim == 2 and len(arrangement.data) > 1:
        sentences.append("There is one colour scale per data set")
    if drawn:
        sentences.append("The directions are one draw" if dim == 2 else "The direction is one draw")

    cosines = [abs(s.direction_cosine) for s in shown if s.direction_cosine is not None]
    if cosines and max(cosines) > 0.1:
        sentences.append(f"The two directions are not orthogonal (cosine up to {max(cosines):.2f})")
    if log:
        sentences.append("The loss scale is logarithmic")
    if any(surface.nonfinite for surface in shown):
        sentences.append("Holes: loss not finite" if dim == 2 else "Gaps: loss not finite")
    sentences.append(f"The weights are in {listing(list(dict.fromkeys(s.provenance.dtype for s in shown)))}")
    return ". ".join(sentences) + "."


def _region(surface: Surface) -> str:
    """The grid in words, with kind, normalization and seed."""
    normalized = "not normalized" if surface.normalize == "none" else f"{surface.normalize}-normalized"
    draw = [normalized] if surface.normalize else []
    draw += [f"seed {surface.seed}"] if surface.seed is not None else []
    moved = surface.conventions["parameters"]
    draw += [f"only {clean(moved if isinstance(moved, str) else ', '.join(moved))} moved"] if moved else []
    draw += ["1-D tensors too"] if surface.conventions["include_1d"] else []
    kind, grid = surface.kind_type, f"{_grid(surface)}, {_extent(surface)}"
    details = [part for part in (", ".join(draw), grid, kind.axis_note) if part]
    return f"{kind.region(len(surface.axes))} ({'; '.join(details)})"


def _heights(grids: Sequence[HeightGrid], dim: int) -> str:
    """What the panels beside the loss show, and how sure it is."""
    named = [f"{clean(grid.name)} ({clean(grid.unit)})" if grid.unit else clean(grid.name) for grid in grids]
    known = [grid for grid in grids if np.isfinite(grid.stderr).any()]
    if dim == 1:
        errors = "; bands are one standard error over examples to either side" if known else ""
    else:
        most = [f"{clean(grid.name)} {number(float(np.nanmax(grid.stderr)))}" for grid in known]
        errors = f"; standard errors over examples are at most: {listing(most)}" if known else ""
    return f"At the same points: {listing(named)}{errors}"


def _path(surface: Surface) -> str:
    """How much of a path lies outside its plane, and how much a plane explains of a random walk."""
    path = surface.path
    assert path is not None
    return (
        f"The plane explains {sum(path.explained):.1%} of the path's variance about its end "
        f"({path.explained[0]:.1%} the first direction); a random walk of as many steps gives "
        f"{sum(path.random_walk):.0%} ({path.random_walk[0]:.0%}; about its mean a long one gives 61%, Antognini & "
        f"Sohl-Dickstein 2018). Points are projections of checkpoints up to {number(max(path.residuals))} beside the "
        f"plane, of up to {number(max(path.distances))} from the end"
    )


def _eigenvectors(arrangement: Arrangement) -> str:
    """Whose eigenvectors the axes of a figure are."""
    first = next(iter(arrangement.cells.values()))
    several, sides = len(arrangement.names) > 1, all(axis[0] < 0 < axis[-1] for axis in first.axes)
    axes = "axis is the distance along a" if len(first.axes) == 1 else "axes are distances along"
    plural = "" if len(first.axes) == 1 else "s"
    whose = f"{'each' if several else 'the'} checkpoint's own"
    sentence = f"The {axes} unit {first.kind_type.own_directions}{plural} of {whose} loss"
    drawn = {(s.name, str(s.provenance.settings.get("directions"))) for s in arrangement.cells.values()}
    if len(drawn) < len(arrangement.cells):
        sentence += " (the same on more than one data set)"
    return sentence + (f"; both signs of the direction{plural} are shown" if sides else "")
