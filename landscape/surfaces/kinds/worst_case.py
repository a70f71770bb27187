"""Surfaces along the direction in which the loss rises fastest."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from landscape.errors import InputError
from landscape.surfaces.kind import AlongDirections, Span, register

if TYPE_CHECKING:
    from torch import nn

    from landscape.checkpoints import Checkpoint
    from landscape.data.batches import Batch
    from landscape.objective.scope import Run, Scope
    from landscape.weights.directions import Direction


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class WorstCaseSurface(AlongDirections):
    """A line from one model along the worst direction that repeated gradients of its own loss find.

    Args:
        dim: As for `AlongDirections`; always 1.
        points: As for `SurfaceKind`.
        span: As for `AlongDirections`, a distance in parameter space; the default is `"auto"`.
        directions: As for `AlongDirections`.

    Source:
        Chen et al. 2025 (arXiv 2505.17646), who draw capabilities along most directions and along the worst.
    """

    name = "worst_case"
    help = "The surface is a line along the direction in which each checkpoint's loss rises fastest."
    dims = (1,)
    scope_options = ("parameters", "loss_fn")
    run_options = AlongDirections.run_options
    shared_axis_label = "distance along the worst-case direction"
    own_directions = "worst-case direction"
    kept_directions = "worst_direction"

    dim: int = 1
    span: Span = "auto"

    @classmethod
    def region(cls, dim: int) -> str:
        """Where the points of a surface lie, for a caption."""
        return "along the worst-case direction"

    def find_directions(
        self, model: nn.Module | Checkpoint, data: Iterable[Batch], scope: Scope, run: Run
    ) -> list[Direction]:
        """Find the direction, which takes five gradients."""
        from landscape.checkpoints import identify
        from landscape.objective.ascent import steepest_direction
        from landscape.objective.objective import Objective
        from landscape.weights.directions import Direction
        from landscape.weights.parameters import Parameters

        module, name, _ = identify(model)
        found = steepest_direction(Objective(module, data, scope.loss_fn), Parameters(module, scope.parameters))
        if found is None:
            raise InputError(f"the gradient of the loss of {name} is zero: there is no worst direction to first order.")
        return [Direction(dict(found), self.name, "worst-case direction")]
