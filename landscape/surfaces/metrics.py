"""Scalars from a loss grid: curvature, gradient and barrier, and the grid they hold for."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from landscape.errors import InputError

DEFINITION = "reconstruction-1"


@dataclasses.dataclass(frozen=True)
class SurfaceMetrics:
    """Flatness of a surface f in numbers: means over the grid, in nats per unit of the axes.

    Li et al. 2024 (arXiv 2406.04836) name "surface curvature", "average gradient" and "mean absolute gradient",
    lower meaning flatter, and define them in an appendix that is not openly quoted. These are our
    reconstructions of the names, not their formulas. In two dimensions, with subscripts for derivatives by
    second-order finite differences (`np.gradient`, `edge_order=2`):

    average_gradient         mean sqrt(fx^2 + fy^2)
    mean_absolute_gradient   mean (|fx| + |fy|) / 2
    surface_curvature        mean |kappa|, the mean curvature of the graph,
                             kappa = ((1+fy^2) fxx - 2 fx fy fxy + (1+fx^2) fyy) / (2 (1+fx^2+fy^2)^(3/2))
    mean_absolute_laplacian  mean |fxx + fyy| / 2
    center_curvature         kappa at the origin; None where the grid has no point there
    center_gaussian_curvature  (fxx fyy - fxy^2) / (1+fx^2+fy^2)^2 at the origin

    In one dimension: mean |f'| for both gradients, kappa = f'' / (1+f'^2)^(3/2), |f''| for the Laplacian.

    barrier           max over [0, 1] of f(t) - ((1-t) f(0) + t f(1)) (Entezari et al. 2021, 2110.06296)
    barrier_to_mean   max over [0, 1] of f(t) - (f(0) + f(1)) / 2 (Frankle et al. 2020, 1912.05671)
                      both for interpolations whose grid covers [0, 1], else None; infinite where f is not finite

    All depend on range, resolution and normalization of the grid, on the loss and on which parameters move, which is
    why `grid` travels with them and `compare_metrics` refuses to mix grids. `nonfinite` counts the points whose loss
    is not finite. Where there are any, the means are NaN: over the points that are left, a surface with infinite
    walls would look flatter than one with finite ones. At the origin only its neighbourhood matters.

    Example:
        The mean curvature of f(x, y) = (2 x^2 + 4 y^2) / 2 at the origin is (2 + 4) / 2, and second-order differences
        are exact on a parabola:

        >>> import numpy as np
        >>> from landscape.surfaces.metrics import surface_metrics
        >>> x, y = np.linspace(-1, 1, 5), np.linspace(-1, 1, 3)
        >>> metrics = surface_metrics((x, y), x[:, None] ** 2 + 2 * y[None, :] ** 2, grid={})
        >>> metrics.center_curvature, metrics.center_gaussian_curvature
        (3.0, 8.0)
    """

    average_gradient: float
    mean_absolute_gradient: float
    surface_curvature: float
    mean_absolute_laplacian: float
    center_curvature: float | None
    center_gaussian_curvature: float | None
    barrier: float | None
    barrier_to_mean: float | None
    nonfinite: int
    grid: dict
    definition: str = DEFINITION

    def values(self) -> dict[str, float | None]:
        """The numbers by name, without grid and definition."""
        left_out = ("grid", "definition", "nonfinite")
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in left_out}

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of every number that the surface has."""
        missing = f"undefined: {self.nonfinite} points are not finite"
        return [
            (f"{name.replace('_', ' ')} ({self.definition})", missing if math.isnan(value) else f"{value:.6g}")
            for name, value in self.values().items()
            if value is not None
        ]


def surface_metrics(
    axes: Sequence[np.ndarray],
    loss: np.ndarray,
    grid: Mapping[str, Any],
    ends_of_line: tuple[float, float] | None = None,
) -> SurfaceMetrics:
    """Metrics of a loss over a grid; see `SurfaceMetrics` for the definitions.

    Args:
        axes: One or two increasing arrays.
        loss: The loss at every grid point, shape tuple(len(axis) for axis in axes).
        grid: What the metrics depend on beside the losses; it is kept beside them, see `compare_metrics`.
        ends_of_line: f(0) and f(1) of an interpolation; None where there is no barrier.

    Raises:
        InputError: An axis has fewer than 3 points, so that there is no second derivative.
    """
    if min(loss.shape) < 3:
        raise InputError(f"a grid of {loss.shape} has no second derivative; surface metrics take 3 points an axis.")
    f = np.where(np.isfinite(loss), loss, np.nan)
    origin = _origin(axes)
    gaussian = None
    with np.errstate(all="ignore"):
        if len(axes) == 1:
            (fx,) = _derivatives(f, axes)
            (fxx,) = _derivatives(fx, axes)
            steepness = absolute = np.abs(fx)
            kappa, laplacian = fxx / (1 + fx**2) ** 1.5, np.abs(fxx)
        else:
            fx, fy = _derivatives(f, axes)
            fxx, fxy = _derivatives(fx, axes)
            _, fyy = _derivatives(fy, axes)
            slope = 1 + fx**2 + fy**2
            steepness, absolute = np.sqrt(fx**2 + fy**2), (np.abs(fx) + np.abs(fy)) / 2
            kappa = ((1 + fy**2) * fxx - 2 * fx * fy * fxy + (1 + fx**2) * fyy) / (2 * slope**1.5)
            laplacian = np.abs(fxx + fyy) / 2
            gaussian = (fxx * fyy - fxy**2) / slope**2
    covered = axes[0][0] <= 0 and axes[0][-1] >= 1
    barrier, to_mean = _barriers(axes[0], f, ends_of_line) if ends_of_line and covered else (None, None)
    return SurfaceMetrics(
        average_gradient=float(steepness.mean()),
        mean_absolute_gradient=float(absolute.mean()),
        surface_curvature=float(np.abs(kappa).mean()),
        mean_absolute_laplacian=float(laplacian.mean()),
        center_curvature=None if origin is None else float(kappa[origin]),
        center_gaussian_curvature=None if origin is None or gaussian is None else float(gaussian[origin]),
        barrier=barrier,
        barrier_to_mean=to_mean,
        nonfinite=int((~np.isfinite(loss)).sum()),
        grid=dict(grid),
    )


def _derivatives(f: np.ndarray, axes: Sequence[np.ndarray]) -> list[np.ndarray]:
    """First derivative along each axis; second order also at the border (numpy's default is first there)."""
    derivatives = np.gradient(f, *axes, edge_order=2)
    return list(derivatives) if isinstance(derivatives, (tuple, list)) else [derivatives]


def _origin(axes: Sequence[np.ndarray]) -> tuple[int, ...] | None:
    """The indices of the grid point at the origin; None where there is none."""
    places = [np.flatnonzero(axis == 0.0) for axis in axes]
    return tuple(int(p[0]) for p in places) if all(len(p) for p in places) else None


def _barriers(t: np.ndarray, f: np.ndarray, ends: tuple[float, float]) -> tuple[float, float]:
    """Barriers above the chord between the ends, and above their mean."""
    inside = (t >= 0) & (t <= 1)
    t, f = t[inside], f[inside]
    if not np.isfinite(f).all():
        return math.inf, math.inf  # a wall that is not finite is no low barrier
    chord = (1 - t) * ends[0] + t * ends[1]
    return float(max(0.0, (f - chord).max())), float((f - sum(ends) / 2).max())


def compare_metrics(metrics: Mapping[str, SurfaceMetrics]) -> dict[str, dict[str, float | None]]:
    """The numbers of several surfaces, by the name of the surface.

    Args:
        metrics: The metrics of each surface, by its name.

    Returns:
        The value of every metric, None where the surface has none, by the name of the surface.

    Raises:
        InputError: The grids or the definitions differ, so that the numbers do not compare.

    Example:
        >>> import numpy as np
        >>> from landscape import compare_metrics
        >>> from landscape.surfaces.metrics import surface_metrics
        >>> t = np.linspace(-1, 1, 5)
        >>> lines = (("flat", 1), ("sharp", 3))
        >>> measured = {name: surface_metrics((t,), a * t**2, grid={"span": 1}) for name, a in lines}
        >>> {name: values["center_curvature"] for name, values in compare_metrics(measured).items()}
        {'flat': 2.0, 'sharp': 6.0}
    """
    (first_name, first), *others = metrics.items()
    for name, other in others:
        for what in ("definition", "grid"):
            if getattr(first, what) != getattr(other, what):
                raise InputError(
                    f"surface metrics of {first_name} and {name} do not compare: their {what}s are "
                    f"{getattr(first, what)} and {getattr(other, what)}."
                )
    return {name: m.values() for name, m in metrics.items()}
