"""Surfaces over the plane through three checkpoints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from landscape.errors import InputError
from landscape.surfaces.kind import AroundCheckpoints, register

if TYPE_CHECKING:
    from landscape.data.batches import Batch
    from landscape.objective.scope import Run, Scope
    from landscape.surfaces.points.geometry import Geometry, Member
    from landscape.surfaces.points.sweep import Place
    from landscape.weights.vectors import Vector


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class PlaneSurface(AroundCheckpoints):
    """The plane through three models: P(x, y) = w1 + x u + y v, with u and v orthonormal.

    u and v come from Gram-Schmidt on w2 - w1 and w3 - w1, so both axes are distances in parameter space.

    Args:
        dim: As for `AroundCheckpoints`.
        points: As for `SurfaceKind`.
        margin: As for `AroundCheckpoints`.

    Source:
        Garipov et al. 2018 (arXiv 1802.10026).
    """

    name = "plane"
    help = "The surface is the plane through three checkpoints."
    fewest = most = 3
    center_name = "origin"

    @classmethod
    def region(cls, dim: int) -> str:
        """Where the points of a surface with `dim` axes lie, for a caption."""
        return "over the plane through the marked checkpoints"

    def geometry(self, members: Sequence[Member], data: Iterable[Batch], scope: Scope, run: Run) -> Geometry:
        """The plane through the three models, with a margin around them."""
        from landscape.surfaces.points.geometry import Geometry, check_distinct
        from landscape.surfaces.points.grid import axes_around
        from landscape.weights.directions import check_same_tensors

        check_distinct(members)
        first, second, third = members
        for other in (second, third):
            check_same_tensors(first.weights, other.weights)
        corners, coefficients = _plane(first.weights, second.weights, third.weights)

        def place(x: Sequence[float]) -> Place:
            b, c = coefficients(*x)
            return 1.0 - b - c, [(b, second.weights), (c, third.weights)]

        names = [member.name for member in members]
        return Geometry(
            kind=self.name,
            name=", ".join(names),
            title="plane",
            place=place,
            axes=axes_around(corners, self.margin, self.counts),
            axis_labels=(f"towards {names[1]}", f"towards {names[2]}"),
            markers=tuple(zip(names, corners, strict=True)),
            direction_cosine=0.0,
            other_digests=lambda: [second.digest, third.digest],
        )


def _plane(
    first: Vector, second: Vector, third: Vector
) -> tuple[list[tuple[float, float]], Callable[[float, float], tuple[float, float]]]:
    """Coordinates of three points in their plane, and the map from coordinates to weights of `second` and `third`."""
    from landscape.linalg.precision import wide_dtype
    from landscape.weights.vectors import inner_product, vector_norm

    origin = {name: tensor.to(wide_dtype(tensor.device)) for name, tensor in first.items()}
    u, w = ({name: point[name].to(start) - start for name, start in origin.items()} for point in (second, third))
    length = vector_norm(u)
    if length == 0:
        raise InputError("the first two checkpoints are equal; a plane needs three points.")
    along = inner_product(w, u) / length**2
    v = {name: w[name] - along * u[name] for name in first}
    height = vector_norm(v)
    if height <= 1e-6 * vector_norm(w):
        raise InputError("the three checkpoints lie on one line; plot them with interpolation.")

    def coefficients(x: float, y: float) -> tuple[float, float]:
        return x / length - along * (y / height), y / height

    return [(0.0, 0.0), (length, 0.0), (along * length, height)], coefficients
