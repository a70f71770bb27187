"""The direction in which a loss rises fastest, found by repeated gradients."""

from __future__ import annotations

from landscape.objective.objective import Objective
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import excursion
from landscape.weights.preservation import preserved
from landscape.weights.vectors import Vector, vector_norm

ASCENT_GRADIENTS = 5  # that the search takes, the one at the centre among them
_REACH = 0.01  # of the weights' norm: where those gradients are taken


def steepest_direction(objective: Objective, parameters: Parameters) -> Vector | None:
    """Return the direction of the steepest rise of a loss around the weights, of length 1.

    u <- g(w + r u) / |g(w + r u)| with r = 1% of the weights' norm, starting from the gradient at w: the ascent of SAM
    repeated, which turns towards the directions of largest curvature. A longer search may find a worse direction.

    Args:
        objective: The loss. The model comes back bit for bit.
        parameters: The weights that move.

    Returns:
        The direction; None where the gradient at the centre is zero.

    Source:
        Foret et al. 2021 (arXiv 2010.01412), eq. 2, for the single step.
    """
    reach = _REACH * vector_norm(parameters.values())
    direction: Vector | None = None
    with preserved(objective.model), excursion(parameters) as trip:
        for _ in range(ASCENT_GRADIENTS):
            trip.move([(reach, direction)] if direction else [])
            gradient = objective.gradient(parameters)[1]
            norm = vector_norm(gradient)
            if not norm > 0:
                break
            direction = {name: tensor / norm for name, tensor in gradient.items()}
    return direction
