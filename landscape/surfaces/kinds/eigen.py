"""Surfaces along eigenvectors of the Hessian, of the largest and of the lowest eigenvalue."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from landscape.surfaces.kind import AlongDirections, Span, register

if TYPE_CHECKING:
    from torch import nn

    from landscape.checkpoints import Checkpoint
    from landscape.data.batches import Batch
    from landscape.objective.scope import Run, Scope
    from landscape.weights.directions import Direction


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class EigenSurface(AlongDirections):
    """A surface of one model along unit eigenvectors of the Hessian of its own loss on the data.

    Random planes show mean curvature and hide saddles; the two eigenvectors show the extremes.

    Args:
        dim: As for `AlongDirections`; with 1 the direction is that of the largest eigenvalue.
        points: As for `SurfaceKind`.
        span: As for `AlongDirections`, a distance in parameter space. How far the loss rises within a distance differs
            by orders of magnitude between models, so the default is `"auto"`.
        directions: As for `AlongDirections`.
        seed: The seed of the start vector of Lanczos.

    Source:
        Boettcher and Wheeler 2024 (arXiv 2208.13219).
    """

    name = "eigen"
    help = "The surface lies along Hessian eigenvectors, of the largest and of the lowest eigenvalue."
    scope_options = ("parameters", "loss_fn", "curvature")
    run_options = (*AlongDirections.run_options, "method", "hvp", "basis_device")
    shared_axis_label = "distance along the eigenvector"
    own_directions = "Hessian eigenvector"
    kept_directions = "eigenvectors"

    span: Span = "auto"
    seed: int = 0

    @classmethod
    def region(cls, dim: int) -> str:
        """Where the points of a surface with `dim` axes lie, for a caption."""
        return "along a Hessian eigenvector" if dim == 1 else "over two Hessian eigenvectors"

    def find_directions(
        self, model: nn.Module | Checkpoint, data: Iterable[Batch], scope: Scope, run: Run
    ) -> list[Direction]:
        """Find the eigenvectors, which takes some tens of products with the Hessian."""
        from landscape.curvature.eigenvalues import eigen_directions

        search = dataclasses.replace(run, autocast=None, offload_base=False)
        return eigen_directions(model, data, self.dim, seed=self.seed, scope=scope, run=search)
