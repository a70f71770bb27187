"""Where rays from a model lead: random directions, the worst direction, and the step that fine-tuning took."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

from torch import nn

from landscape.errors import InputError
from landscape.objective.scope import Scope
from landscape.surfaces.points.sweep import Place
from landscape.weights.directions import check_same_tensors, random_directions
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import Vector, vector_norm

WORST, STEP, NOISE = "worst", "step", "noise"


@dataclasses.dataclass(frozen=True)
class Rays:
    """The rays of one model, by the numbers that a journal calls them.

    Random rays have the numbers from 0; the three others come after them. Along random and worst-case rays a step of 1
    is as long as the chosen weights; along the step 0 is the base and 1 the model.

    Attributes:
        module: The model.
        count: Number of random rays.
        normalize: The scale of their parts, see `random_directions`.
        seed: Seed of the first, each next having the seed after it.
        scope: Which weights move.
        weight_norm: The l2 norm of the chosen weights, also of those of one dimension that random rays leave alone.
        find_worst: Returns the worst direction, of length 1, or None where there is no gradient. It is called once,
            when the direction is first asked for, with the model at the centre.
        base: The weights of the base; None without one.
        sigma: Standard deviation of the noise, for points of noise.
    """

    module: nn.Module
    count: int
    normalize: str
    seed: int
    scope: Scope
    weight_norm: float
    find_worst: Callable[[], Vector | None]
    base: Vector | None = None
    sigma: float = 0.0

    @functools.cached_property
    def worst(self) -> Vector | None:
        """The worst direction; see `find_worst`."""
        return self.find_worst()

    def number(self, ray: str) -> float:
        """Return the number of one of the rays that are not random."""
        return float(self.count + (WORST, STEP, NOISE).index(ray))

    def place(self, coordinates: Sequence[float]) -> Place:
        """Return the point of weight space at (number of the ray, step); for noise, at (number, number of the draw)."""
        number, step = int(coordinates[0]), coordinates[1]
        if number < self.count:
            return 1.0, [(step, self._random(number))]
        ray = (WORST, STEP, NOISE)[number - self.count]
        if ray == WORST:
            assert self.worst is not None
            return 1.0, [(step * self.weight_norm, self.worst)]
        if ray == STEP:
            assert self.base is not None
            return step, [(1.0 - step, self.base)]
        noise = self._drawn("none", self.seed + int(step))
        if self.base is None:
            return 1.0, [(self.sigma, noise)]
        return 0.0, [(1.0, self.base), (self.sigma, noise)]

    def open(self, number: int) -> None:
        """Draw a random ray. Its parts are scaled to those of the model, which has to be at the centre."""
        self._drawn(self.normalize, self.seed + number)

    def _random(self, number: int) -> Vector:
        """Return a random direction as long as the weights."""
        drawn = self._drawn(self.normalize, self.seed + number)
        scale = self.weight_norm / vector_norm(drawn)
        return {name: tensor * scale for name, tensor in drawn.items()}

    @functools.cached_property
    def _latest(self) -> dict[tuple[str, int], Vector]:
        return {}

    def _drawn(self, normalize: str, seed: int) -> Vector:
        """Return a draw; the latest is kept, because a search along a ray asks for it again and again."""
        key = (normalize, seed)
        if key not in self._latest:
            self._latest.clear()
            (direction,) = random_directions(
                self.module,
                1,
                normalize=normalize,
                seed=seed,
                parameters=self.scope.parameters,
                include_1d=True if normalize == "none" else self.scope.include_1d,
            )
            self._latest[key] = direction.tensors
        return self._latest[key]


def step_of(parameters: Parameters, base: Parameters) -> tuple[Vector, float]:
    """Return the weights of the base by the model's names, and how far the model is from it.

    Raises:
        InputError: The base has other tensors, or is the same model.
    """
    ours, theirs = parameters.values(), base.values()
    check_same_tensors(ours, theirs)
    distance = vector_norm({name: tensor.double() - theirs[name].double() for name, tensor in ours.items()})
    if distance == 0:
        raise InputError("the base has the same weights as the model: there is no step between them.")
    return theirs, distance
