"""A finer grid for contours, where the measured points show that one may be drawn between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from landscape.plotting.surfaces.scale import LossScale
    from landscape.surfaces.result import Surface

_LEAST, _ENOUGH = 7, 50  # points on an axis: below, nothing can be left out; above, contours look smooth anyway
_FINE = 4  # points drawn for each measured one, on each axis


def finer_grid(
    axes: Sequence[np.ndarray], heights: np.ndarray, tolerance: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Interpolate heights by the cubic spline through all of them, where that is honest.

    It is where the spline through every second point alone comes within the tolerance of all the points that it was
    not given. Its grid is twice as coarse, and the error of a cubic spline of a smooth function 16 times as large, so
    that the contours of the finer grid are where more measurements would have put them.

    Args:
        axes: The two axes of the grid.
        heights: What is drawn, shape (len(axes[0]), len(axes[1])).
        tolerance: The largest error at a point left out, such as half the step between contours.

    Returns:
        The finer axes and the heights on them; None where the grid is small or fine, where a height is not finite, or
        where the spline misses a point.

    Source:
        de Boor 1978, A Practical Guide to Splines, chapter XVII (tensor products), by scipy's RectBivariateSpline.

    Example:
        >>> x = np.linspace(-1, 1, 9)
        >>> bowl = x[:, None] ** 2 + x[None, :] ** 2
        >>> fine_x, fine_y, fine = finer_grid((x, x), bowl, tolerance=0.05)
        >>> fine.shape, bool(np.allclose(fine, fine_x[:, None] ** 2 + fine_y[None, :] ** 2))
        ((33, 33), True)
        >>> finer_grid((x, x), np.where(x > 0, 1.0, 0.0) + bowl, tolerance=0.05) is None  # a cliff
        True
    """
    from scipy.interpolate import RectBivariateSpline

    x, y = axes
    if not all(_LEAST <= len(axis) <= _ENOUGH for axis in axes) or not np.isfinite(heights).all():
        return None
    every_second = [np.unique([*range(0, len(axis), 2), len(axis) - 1]) for axis in axes]
    kept = heights[np.ix_(*every_second)]
    coarse = RectBivariateSpline(x[every_second[0]], y[every_second[1]], kept)
    if np.abs(coarse(x, y) - heights).max() > tolerance:
        return None
    fine_x, fine_y = (
        np.interp(np.linspace(0, len(a) - 1, _FINE * (len(a) - 1) + 1), np.arange(len(a)), a) for a in axes
    )
    return fine_x, fine_y, RectBivariateSpline(x, y, heights)(fine_x, fine_y)


def finer_surface(surface: Surface, scale: LossScale) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """`finer_grid` of a plane on a loss scale, with half the smallest step between contours as the tolerance."""
    if surface.heights:  # shares of a few answers are steps, which a smooth interpolation would not show
        return None
    return finer_grid(surface.axes, scale.heights(surface.loss), float(np.diff(scale.levels).min()) / 2)


def interpolation_note(surfaces: Sequence[Surface], scales: dict[str, LossScale]) -> str:
    """The sentence of a caption that says which contours are interpolated; empty where none are."""
    finer = [finer_surface(surface, scales[surface.data]) is not None for surface in surfaces]
    if not any(finer):
        return ""
    which = "Contours" if all(finer) else "Contours of panels with dots"
    return f" {which} follow the cubic spline through the measured points (dots)."
