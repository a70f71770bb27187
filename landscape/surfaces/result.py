"""What a surface is: losses over a grid, and what was on it."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import numpy as np

from landscape.errors import InputError
from landscape.results import Provenance, Result
from landscape.surfaces.kind import SurfaceKind
from landscape.surfaces.kinds import SURFACE_KINDS
from landscape.surfaces.kinds.given import GivenSurface
from landscape.surfaces.metrics import SurfaceMetrics, surface_metrics
from landscape.surfaces.points.sweep import Autocast
from landscape.weights.perturbation import Fidelity


@dataclasses.dataclass(frozen=True)
class Marker:
    """A checkpoint at its place on the surface."""

    name: str
    coordinates: tuple[float, ...]
    loss: float


@dataclasses.dataclass(frozen=True)
class HeightGrid:
    """Another outcome than the loss at the points of a surface, such as an accuracy.

    Attributes:
        name: The name of the height.
        unit: What its values are in.
        higher_is_better: Whether a model gets better as the value rises.
        values: One for each grid point, shaped as `Surface.loss`; NaN and infinities as computed.
        stderr: The standard error of each over the examples; NaN where it is not known.
        center: The value of the unperturbed model.
        center_stderr: Its standard error.
        markers: The value at each of the surface's markers.
        weight: Number of terms (questions, tokens) behind each value.
    """

    name: str
    unit: str
    higher_is_better: bool
    values: np.ndarray
    stderr: np.ndarray
    center: float
    center_stderr: float
    markers: tuple[float, ...]
    weight: float


@dataclasses.dataclass(frozen=True)
class PathFit:
    """What a plane through the end of a path holds of it. Variances are mean squared distances from the end."""

    names: tuple[str, ...]  # of the checkpoints along the path, the end last
    explained: tuple[float, ...]  # fraction of the variance along each axis
    random_walk: tuple[float, ...]  # the same of a random walk of as many even steps, see `random_walk_variance`
    distances: tuple[float, ...]  # of each checkpoint from the end
    residuals: tuple[float, ...]  # of each checkpoint from the plane


@dataclasses.dataclass(frozen=True)
class Surface(Result):
    """Loss over a grid: `loss[i, j]` belongs to `(axes[0][i], axes[1][j])` (`loss[i]` in one dimension).

    It comes from `measure_surface` or one of the `compute_` functions, and from files by `Surface.load`.

    Example:
        The loss of a single weight w is w^2. Around w = 2, along the direction 1, it is (2 + x)^2:

        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from landscape import Direction, Run, Scope, compute_surface, supervised_loss
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.constant_(model.weight, 2.0)
        >>> data = [(torch.ones(1, 1), torch.zeros(1, 1))]
        >>> direction = Direction({"weight": torch.ones(1, 1)}, "given", "w")
        >>> scope = Scope(loss_fn=supervised_loss(mse_loss))
        >>> surface = compute_surface(model, data, [direction], points=3, scope=scope, run=Run())
        >>> surface.center, surface.nonfinite, surface.coordinates.tolist()
        (4.0, 0, [[-1.0], [0.0], [1.0]])
        >>> surface.kind, surface.kind_type.center_name
        ('given', 'centre')
    """

    kind_of_result: ClassVar[str] = "surface"

    name: str  # of the checkpoint, or "a to b"
    data: str  # name of the data set
    kind: str  # a name in `SURFACE_KINDS`, or "given"
    axes: tuple[np.ndarray, ...]  # one or two increasing 1-D arrays
    axis_labels: tuple[str, ...]
    loss: np.ndarray  # shape tuple(len(axis) for axis in axes); nats per supervised token; NaN/inf as computed
    center: float  # loss of the unperturbed model (at the origin, whether or not the grid contains it)
    markers: tuple[Marker, ...]
    normalize: str | None  # of random directions: "filter" | "unit" | "head" | "layer" | "none"
    seed: int | None
    direction_cosine: float | None  # between the two directions as used
    fidelity: Fidelity  # the worst over the grid
    weight: float  # number of loss terms (supervised tokens) behind each loss
    provenance: Provenance
    path: PathFit | None = None  # of a trajectory
    autocast: Autocast | None = None  # where forward passes ran in a lower precision than the weights
    heights: tuple[HeightGrid, ...] = ()  # other outcomes at the same points

    @property
    def kind_type(self) -> type[SurfaceKind]:
        """The kind of the surface, which says how it is shown; given directions where the kind is not known."""
        return SURFACE_KINDS.get(self.kind, GivenSurface)

    @property
    def coordinates(self) -> np.ndarray:
        """Array of shape `loss.shape + (dim,)`: the coordinates of every grid point."""
        return np.stack(np.meshgrid(*self.axes, indexing="ij"), axis=-1)

    def height(self, name: str) -> HeightGrid:
        """Another outcome at the same points, by its name.

        Raises:
            InputError: The surface was measured without it.
        """
        for grid in self.heights:
            if grid.name == name:
                return grid
        known = ", ".join(grid.name for grid in self.heights) or "only the loss"
        raise InputError(f"the surface of {self.name} has no height {name!r}; it has {known}.")

    @property
    def nonfinite(self) -> int:
        """Number of grid points whose loss is NaN or infinite."""
        return int((~np.isfinite(self.loss)).sum())

    @property
    def conventions(self) -> dict[str, Any]:
        """What else two surfaces have to agree in to compare: what moved, along which draws, and the loss."""
        settings = self.provenance.settings
        agreed = {key: settings.get(key) for key in ("parameters", "include_1d", "tensors", "loss", "autocast")}
        return agreed | {"draws": list(self.axis_labels) if self.kind_type.is_random else None}

    def metrics(self) -> SurfaceMetrics:
        """Curvature and gradient of the surface; see `SurfaceMetrics` for the definitions.

        Raises:
            InputError: An axis has fewer than 3 points.
        """
        grid = {
            "kind": self.kind,
            "axes": [[float(axis[0]), float(axis[-1]), len(axis)] for axis in self.axes],
            "normalize": self.normalize,
            "seed": self.seed,
            **self.conventions,
        }
        ends_of_line = (self.markers[0].loss, self.markers[1].loss) if self.kind_type.has_barrier else None
        return surface_metrics(self.axes, self.loss, grid, ends_of_line)

    def rows(self) -> list[tuple[str, str]]:
        """Name and value of what a person wants to see first."""
        finite = self.loss[np.isfinite(self.loss)]
        shape = " x ".join(str(len(axis)) for axis in self.axes)
        spans = ", ".join(f"[{axis[0]:.4g}, {axis[-1]:.4g}]" for axis in self.axes)
        seen = f"{finite.min():.4f} to {finite.max():.4f}" if finite.size else "nowhere finite"
        if self.nonfinite:
            seen += f" ({self.nonfinite} of {self.loss.size} points not finite)"
        rows = [
            ("surface", f"{self.name} on {self.data}, {self.kind}"),
            ("grid", f"{shape} over {spans}, normalize={self.normalize}, seed={self.seed}"),
            ("loss at centre", f"{self.center:.6f} nats per token over {self.weight:.0f} tokens"),
            ("loss", seen),
            *((m.name, f"{m.loss:.6f} at {', '.join(f'{c:.4g}' for c in m.coordinates)}") for m in self.markers),
        ]
        for grid in self.heights:
            finite = grid.values[np.isfinite(grid.values)]
            seen = f"{finite.min():.4f} to {finite.max():.4f}" if finite.size else "nowhere finite"
            error = "" if np.isnan(grid.center_stderr) else f" ± {grid.center_stderr:.4f}"
            of = f"{grid.unit}, " if grid.unit else ""
            rows.append((grid.name, f"{grid.center:.4f}{error} at centre, {seen} ({of}{grid.weight:.0f} terms)"))
        if self.autocast:
            rows.append(
                ("autocast", f"{self.autocast.dtype}, which moves the loss at centre by {self.autocast.deviation:+.1e}")
            )
        if self.path:
            off = max(self.path.residuals)
            rows.append(("plane", f"{sum(self.path.explained):.1%} of the path's variance, up to {off:.4g} beside it"))
        if not self.fidelity.faithful:
            rows.append(
                (
                    "rounding",
                    f"steps were rounded: cosine {self.fidelity.cosine:.4f}, norm x{self.fidelity.norm_ratio:.4f}",
                )
            )
        return rows + (self.metrics().rows() if min(self.loss.shape) >= 3 else [])
