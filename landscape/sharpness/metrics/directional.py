"""Sharpness along one direction, from losses alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from landscape.errors import InputError
from landscape.sharpness.registry import metric
from landscape.sharpness.result import Measurement
from landscape.sharpness.site import Site, check_positive, norm_of
from landscape.weights.directions import Direction

ADAM_EPSILON = 1e-8  # torch's default

_LARGEST = 2.0**40


def _along(site: Site, direction: Any) -> tuple[Tensor, str]:
    """Return a direction to go along (downhill for "gradient" and "adamw"), and its name."""
    if isinstance(direction, Direction):
        return site.layout.flat(direction.tensors), direction.label
    if isinstance(direction, Mapping):
        return site.layout.flat(direction), "given"
    if direction == "gradient":
        return -site.gradient_at()[1], "down the gradient"
    if direction == "adamw":
        gradient = site.gradient_at()[1]
        return -gradient / (gradient.abs() + ADAM_EPSILON), "first step of AdamW, fresh moments"
    if direction == "displacement":
        if site.displacement is None:
            raise InputError("direction='displacement' leads from the base to the model; give base.")
        return site.displacement, "from the base"
    raise InputError(
        f"direction={direction!r} is none of 'gradient', 'adamw', 'displacement', a Direction, tensors by name."
    )


@metric(
    "critical",
    formula="2 / eta for the smallest eta > 0 with L(w + eta d) > L(w)",
    cost="1 gradient and about 10 losses",
    invariance="along the gradient: rotations and shifts of the weights; "
    "along the first step of AdamW: permutations and shifts of the weights; "
    "along the displacement: every linear map and shift of both checkpoints that preserves their functions",
    source="Kalra et al. 2026 (arXiv 2601.16979)",
)
def critical(site: Site, *, direction: Any = "gradient", tolerance: float = 1 / 16) -> Measurement:
    """Critical sharpness: how short a step along a direction already raises the loss.

    `direction` is d: "gradient" for one step of gradient descent; "adamw" for the first step of AdamW at learning rate
    1, g / (|g| + 1e-8) of the data's gradient with fresh moments and no weight decay; a `Direction` or tensors by name,
    such as the update of an optimizer with its own state (`optimizer_direction`), or the update of another task, which
    makes it the relative form; "displacement" with `base`. `eta` in the details is a learning rate where d is a step at
    learning rate 1: a larger one raises the loss.

    The step is doubled and bisected to `tolerance` of eta. This finds a crossing; an earlier one within the first step
    tried would be missed. For a quadratic and d = -g the value is g'Hg / g'g. It is infinite where d goes up from the
    start, as another task's update may, for which `budget_radius` stays finite. It is zero where no crossing is found.
    """
    check_positive(tolerance=tolerance)
    step, name = _along(site, direction)
    if norm_of(step) == 0:
        raise InputError(f"the direction ({name}) is zero: there is nothing to go along.")
    center = site.center

    def exceeds(eta: float) -> bool:
        return not site.loss_at(step, eta) <= center

    low, high = 0.0, 1.0
    if exceeds(high):
        while exceeds(high / 2):
            high /= 2
            if high < 1 / _LARGEST:
                return Measurement(math.inf, converged=False, details={"eta": 0.0, "direction": name})
        low = high / 2
    else:
        while not exceeds(2 * high):
            high *= 2
            if high > _LARGEST:
                return Measurement(0.0, converged=False, details={"eta": math.inf, "direction": name})
        low, high = high, 2 * high
    while high - low > tolerance * low:
        middle = (low + high) / 2
        low, high = (low, middle) if exceeds(middle) else (middle, high)
    eta = (low + high) / 2
    return Measurement(2 / eta, converged=True, details={"eta": eta, "direction": name})


@metric(
    "budget_radius",
    formula="min |s| with L(w + s d / |d|) - L(w) = tau, over both signs of s",
    cost="1 gradient and about 25 losses",
    invariance="along the gradient: rotations and shifts of the weights; "
    "along the first step of AdamW: permutations and shifts of the weights; "
    "along the displacement: rotations and shifts of both checkpoints",
    source="the finite form of relative critical sharpness, Kalra et al. 2026 (arXiv 2601.16979)",
)
def budget_radius(site: Site, *, direction: Any = "gradient", tau: float = 0.1, tolerance: float = 0.01) -> Measurement:
    """The distance along a direction at which the loss has risen by a budget; smaller is sharper.

    It is the smaller of the distances found for both signs, where the rise reaches `tau` nats. It is defined also where
    d goes up from the start. At the minimum of a x^2 / 2 it is sqrt(2 tau / a). `direction` is as for `critical`.
    """
    check_positive(tau=tau, tolerance=tolerance)
    step, name = _along(site, direction)
    length = norm_of(step)
    if length == 0:
        raise InputError(f"the direction ({name}) is zero: there is nothing to go along.")
    center = site.center
    reach = {sign: _reach(site, step, sign / length, center + tau, tolerance) for sign in (1.0, -1.0)}
    value = min(reach.values())
    details = {"forward": reach[1.0], "backward": reach[-1.0], "direction": name}
    return Measurement(value, perturbed_loss=center + tau, converged=math.isfinite(value), details=details)


def _reach(site: Site, step: Tensor, unit: float, level: float, tolerance: float) -> float:
    """Return the distance at which the loss along `unit * step` is first seen at `level`; infinite for never."""

    def reached(distance: float) -> bool:
        return not site.loss_at(step, unit * distance) < level

    low, high = 0.0, 0.1
    while not reached(high):
        low, high = high, 2 * high
        if high > 2.0**20:
            return math.inf
    while low == 0.0:
        if reached(high / 2):
            high /= 2
            if high < 1e-9:
                return high
        else:
            low = high / 2
    while high - low > tolerance * low:
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high
