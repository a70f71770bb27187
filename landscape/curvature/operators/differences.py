"""Curvature from differences: of gradients, and of losses alone."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.weights.flat import Layout, flat_length, flat_norm
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import EXACT, Excursion, Fidelity, excursion
from landscape.weights.vectors import vector_norm


@dataclasses.dataclass(frozen=True)
class Difference:
    """A product from differences of gradients.

    Attributes:
        product: The product, shape (size,).
        error: |difference at the step - difference at half of it| / |the latter|.
        step: The length of the longer step.
        fidelity: What rounding left of the steps, at the worst.
    """

    product: Tensor
    error: float
    step: float
    fidelity: Fidelity


def central_difference(objective: Objective, parameters: Parameters, vector: Tensor, step: float) -> Difference:
    """Return (g(w + h v) - g(w - h v)) / 2h along the unit vector v, extrapolated from two step sizes that agree.

    No step suits all vectors: the best one was 0.03 along a random unit vector and 0.001 along the top eigenvector of
    one and the same model. So every vector is tried at a step and at half of it. Steps are halved, or doubled, while
    that brings the two closer and they differ by more than a thousandth.

    Args:
        objective: The loss whose gradient g is taken.
        parameters: The weights w that move.
        vector: The vector, shape (size,), of any length.
        step: The longer step h that is tried first.

    Returns:
        The product of the Hessian with `vector`, with its estimated error.
    """
    layout = Layout(parameters)
    norm = flat_norm(vector)
    if norm == 0:
        return Difference(torch.zeros_like(vector), 0.0, step, EXACT)
    unit = layout.named(vector / norm)
    slopes: dict[float, Tensor] = {}
    fidelity = EXACT
    with excursion(parameters) as moved:

        def slope(h: float) -> Tensor:
            nonlocal fidelity
            if h not in slopes:
                fidelity = fidelity.worse(moved.move([(h, unit)]))
                ahead = layout.flat(objective.gradient(parameters)[1])
                fidelity = fidelity.worse(moved.move([(-h, unit)]))
                slopes[h] = ahead.sub_(layout.flat(objective.gradient(parameters)[1])).div_(2 * h)
            return slopes[h]

        def discrepancy(h: float) -> float:
            size = flat_norm(slope(h / 2))
            apart = flat_norm(slope(h) - slope(h / 2))
            return apart / size if size else apart

        error = discrepancy(step)
        for factor in (0.5, 2.0):
            while error > 1e-3 and len(slopes) < 12:
                tried = discrepancy(step * factor)
                if not tried < error:
                    break
                step, error = step * factor, tried
        # the leading error falls fourfold with half the step (Richardson 1911)
        product = (4 * slope(step / 2) - slope(step)) * (norm / 3)
    return Difference(product, error, step, fidelity)


class SecondDifferences:
    """v'Hv = (L(w + hv) - 2 L(w) + L(w - hv)) / h^2, without a backward pass, in the memory of inference.

    The step h is chosen on one vector. It is long enough that the rounding of the losses does not show: the loss rises
    by 1e-4 of itself, where float32 losses are good to about 1e-7. Twice the step shows how much truncation is left.

    Args:
        objective: The loss L.
        parameters: The weights w that move.
        moved: What moves them, already open.

    Raises:
        InputError: The loss at the weights is not finite.
    """

    def __init__(self, objective: Objective, parameters: Parameters, moved: Excursion):
        self._objective, self._parameters, self._excursion = objective, parameters, moved
        self._layout = Layout(parameters)
        self._center = objective.loss().mean
        if not math.isfinite(self._center):
            raise InputError(f"the loss at the weights is {self._center}; it has no curvature to measure.")
        self.step = 0.0
        self.fidelity: Fidelity = EXACT

    def _curvature(self, unit: dict[str, Tensor], h: float) -> float:
        ends = 0.0
        for sign in (h, -h):
            self.fidelity = self.fidelity.worse(self._excursion.move([(sign, unit)]))
            ends += self._objective.loss().mean - self._center
        return ends / h**2

    def find_step(self, vector: Tensor, rise: float = 1e-4) -> None:
        """Set the step, in units of the vector's length, so that the mean rise at both ends is `rise` of the loss."""
        unit = self._unit(vector)
        goal = rise * max(abs(self._center), 1e-12)
        h = 1e-3 * max(vector_norm(self._parameters.values()), 1e-6)
        for _ in range(8):
            risen = abs(self._curvature(unit, h)) * h**2 / 2
            if goal / 4 <= risen <= goal * 4:
                break
            h *= min(max((goal / risen) ** 0.5 if risen > 0 else 8.0, 1 / 8), 8.0)
        self.step = h

    def _unit(self, vector: Tensor) -> dict[str, Tensor]:
        return self._layout.named(vector / flat_length(vector))

    def value(self, vector: Tensor) -> float:
        """Return v'Hv at the step."""
        return self._curvature(self._unit(vector), self.step) * flat_norm(vector) ** 2

    def at_both_steps(self, vector: Tensor) -> tuple[float, float]:
        """Return v'Hv at the step and at twice the step."""
        unit, square = self._unit(vector), flat_norm(vector) ** 2
        return self._curvature(unit, self.step) * square, self._curvature(unit, 2 * self.step) * square
