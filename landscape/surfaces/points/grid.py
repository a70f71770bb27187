"""Coordinates of a surface's grid points."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import index

import numpy as np

from landscape.errors import InputError, as_typed
from landscape.surfaces.options import check_points


def grid_axis(low: float, high: float, points: int) -> np.ndarray:
    """`points` equidistant coordinates; the one nearest zero is exactly zero where rounding alone moved it."""
    axis = np.linspace(low, high, points)
    axis[np.abs(axis) < 1e-12 * (high - low)] = 0.0
    return axis


def axes_around(places: Sequence[tuple[float, ...]], margin: float, counts: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Axes that span `places`, and around them a border of `margin` times their extent along each axis.

    Args:
        places: Coordinates of points.
        margin: Width of the border, as a fraction of the extent.
        counts: Number of grid points along each axis.
    """
    low, high = np.min(places, axis=0), np.max(places, axis=0)
    border = margin * (high - low)
    bounds = zip(low - border, high + border, counts, strict=True)
    return tuple(grid_axis(float(lo), float(hi), count) for lo, hi, count in bounds)


def with_points(axis: np.ndarray, wanted: Sequence[float]) -> np.ndarray:
    """`axis` with the wanted coordinates inside its range on it exactly, moved there or added."""
    for t in wanted:
        if axis[0] <= t <= axis[-1]:
            nearest = int(np.abs(axis - t).argmin())
            if abs(axis[nearest] - t) < 1e-9:
                axis[nearest] = t
            else:
                axis = np.insert(axis, np.searchsorted(axis, t), t)
    return axis


def ends(span: float | tuple[float, float] | str) -> tuple[float, float]:
    """(low, high) of a span given as s for [-s, s] or as a pair.

    Raises:
        InputError: The span is neither, or it is empty or not finite.
    """
    wrong = InputError(f"{as_typed('span', span)} is neither a number, a pair (low, high) nor 'auto'.")
    if isinstance(span, str):
        raise wrong
    try:
        low, high = (-float(span), float(span)) if np.ndim(span) == 0 else map(float, span)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise wrong from error
    if not (math.isfinite(high - low) and low < high):
        raise InputError(f"{as_typed('span', span)} is empty or not finite; it needs low < high, or a positive number.")
    return low, high


def per_axis(points: int | Sequence[int], dim: int) -> list[int]:
    """Number of points for each of `dim` axes.

    Raises:
        InputError: `points` is neither a whole number of at least 2 nor one for each axis.
    """
    try:
        counts = [index(points)] * dim if np.ndim(points) == 0 else [index(n) for n in points]  # type: ignore
    except (TypeError, ValueError) as error:
        raise InputError(f"{as_typed('points', points)} is neither a whole number nor one for each axis.") from error
    if len(counts) != dim:
        raise InputError(f"{as_typed('points', tuple(counts))} for {dim} axes.")
    if min(counts) < 2:
        raise InputError(f"{as_typed('points', points)}; an axis takes at least 2.")
    check_points(counts)
    return counts
