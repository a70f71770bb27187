"""What figures of surfaces say in words: the caption, the loss at the centre, warnings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from landscape.plotting.basics import amount, clean, listing, number, of_tokens, with_minus_sign
from landscape.plotting.surfaces.arrangement import (
    Arrangement,
    arrange,
    extent_text,
    grid_text,
    shown_name,
)

if TYPE_CHECKING:
    from landscape.surfaces.result import HeightGrid, Surface


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
    kind, grid = surface.kind_type, f"{grid_text(surface)}, {extent_text(surface)}"
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
