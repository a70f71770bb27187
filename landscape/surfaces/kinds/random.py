"""Surfaces along random directions, each filter scaled to the model's own (Li et al. 2018)."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Self

from landscape.surfaces.kind import AlongDirections, register

if TYPE_CHECKING:
    from torch import nn

    from landscape.checkpoints import Checkpoint
    from landscape.data.batches import Batch
    from landscape.objective.scope import Run, Scope
    from landscape.weights.directions import Direction


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class RandomSurface(AlongDirections):
    """A surface of one model along random directions: the same draw for every checkpoint of an architecture.

    Args:
        dim: As for `AlongDirections`.
        points: As for `SurfaceKind`.
        span: As for `AlongDirections`; 1 moves every filter by its own norm.
        directions: As for `AlongDirections`.
        normalize: The scale of the directions, see `random_directions`.
        seed: The seed of the draw.

    Source:
        Li et al. 2018 (arXiv 1712.09913), section 4.
    """

    name = "random"
    help = "The surface lies along one or two random directions through each checkpoint."
    is_random = True

    normalize: str = "filter"
    seed: int = 0

    def draws(self, count: int) -> list[Self]:
        """Return the kind with its own seed and those after it, one for each draw."""
        return [dataclasses.replace(self, seed=self.seed + number) for number in range(count)]

    @classmethod
    def region(cls, dim: int) -> str:
        """Where the points of a surface with `dim` axes lie, for a caption."""
        return "along one random direction" if dim == 1 else "over two random directions"

    def identity(self, digests: Sequence[str]) -> dict[str, Any]:
        """As `AlongDirections.identity`, with what the draw depends on."""
        return super().identity(digests) | {"normalize": self.normalize, "seed": self.seed}

    def find_directions(
        self, model: nn.Module | Checkpoint, data: Iterable[Batch], scope: Scope, run: Run
    ) -> list[Direction]:
        """Draw the directions; they depend on the seed and the model's tensors, not on the data."""
        from landscape.checkpoints import identify
        from landscape.weights.directions import random_directions

        return random_directions(
            identify(model)[0],
            self.dim,
            normalize=self.normalize,
            seed=self.seed,
            parameters=scope.parameters,
            include_1d=scope.include_1d,
            on_host=run.offload_base,
        )

    def settings_of(self, directions: Sequence[Direction], scope: Scope) -> dict[str, Any]:
        """What the provenance says of the directions: what was drawn, which seed and normalization then fix."""
        if self.directions is not None:
            return super().settings_of(directions, scope)
        globs = scope.parameters
        return {
            "parameters": globs if globs is None or isinstance(globs, str) else list(globs),
            "include_1d": scope.include_1d,
        }
