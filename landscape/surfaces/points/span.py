"""How far the axes of a surface reach where the loss has to say it: to where it has risen."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence

import numpy as np
from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.errors import MeasurementWarning
from landscape.objective.scope import Run, Scope
from landscape.surfaces.points.geometry import Member, directions_to_place
from landscape.surfaces.points.grid import ends, grid_axis
from landscape.surfaces.points.sweep import Sweep, sweeping
from landscape.weights.directions import Direction, check_directions


def auto_span(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    directions: Sequence[Direction],
    *,
    rise: float = 1.0,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> float:
    """The distance s at which the loss, averaged over +s and -s along each direction, is `rise` above the centre.

    It is found by doubling or halving from 0.25 and bisection to 5%. A loss that is not finite counts as risen.
    MeasurementWarning, and the last distance tried, where no rise is found within 2**8.

    Args:
        model: A module or a checkpoint. It comes back bit-identical.
        data: Batches.
        directions: One or two directions that fit the model.
        rise: The rise of the loss, in nats per term. The default of 1 makes a surface that is neither flat nor a wall.
        scope: `loss_fn` has a use here.
        run: `autocast` and `offload_base` have a use here.

    Returns:
        The distance in units of the directions, rounded to three digits.

    Raises:
        InputError: The directions do not fit the model.

    Example:
        The loss of a single weight w is w^2, so from w = 0 it has risen by 1 at a distance of 1:

        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from landscape import Direction, Scope, auto_span, supervised_loss
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> data = [(torch.ones(1, 1), torch.zeros(1, 1))]
        >>> direction = Direction({"weight": torch.ones(1, 1)}, "given", "w")
        >>> auto_span(model, data, [direction], scope=Scope(loss_fn=supervised_loss(mse_loss)))
        1.0
    """
    scope.only("auto_span", "loss_fn")
    run.only("auto_span", "offload_base", "autocast")
    member = Member(model)
    check_directions(directions, member.parameters)
    place = directions_to_place(directions)
    with sweeping(member.parameters, data, place, loss_fn=scope.loss_fn, run=run) as sweep:
        return distance_of_rise(sweep, len(directions), rise)


def axes_to_rise(sweep: Sweep, counts: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Axes from -s to s, with `counts` points each, to the distance s where the loss has risen by 1 nat."""
    low, high = ends(distance_of_rise(sweep, len(counts)))
    return tuple(grid_axis(low, high, count) for count in counts)


def distance_of_rise(sweep: Sweep, dim: int, rise: float = 1.0) -> float:
    """The distance along each of `dim` axes where the loss has risen by `rise` nats, see `auto_span`."""
    center = sweep.loss_at((0.0,) * dim)

    def risen(s: float) -> bool:
        steps = [tuple(sign * s * (i == k) for i in range(dim)) for k in range(dim) for sign in (1, -1)]
        mean = float(np.mean(sweep.losses(steps)))
        return not mean - center < rise  # NaN counts as risen

    low, high = 0.0, 0.25
    while not risen(high):
        if high >= 2**8:
            warnings.warn(
                f"the loss does not rise by {rise} within a distance of {high}; the span is that distance.",
                MeasurementWarning,
                stacklevel=3,
            )
            return high
        low, high = high, 2 * high
    if low == 0:
        while risen(high / 2) and high > 2**-20:
            high /= 2
        low = high / 2
    while high / low > 1.05:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if risen(middle) else (middle, high)
    return float(f"{high:.3g}")  # a round number, so that axes read well
