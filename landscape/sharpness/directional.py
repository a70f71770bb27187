"""Sharpness along one direction, from losses alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from landscape.errors import InputError
from landscape.sharpness.registry import Found, Site, check_positive, metric, norm_of
from landscape.weights.directions import Direction

_LARGEST = 2.0**40


def _along(site: Site, direction: Any) -> tuple[Tensor, str]:
    """A direction to go along (downhill for "gradient"), and its name."""
    if isinstance(direction, Direction):
        return site.layout.flat(direction.tensors), direction.label
    if isinstance(direction, Mapping):
        return site.layout.flat(direction), "given"
    if direction == "gradient":
        return -site.gradient_at()[1], "down the gradient"
    if direction == "displacement":
        if site.displacement is None:
            raise InputError("direction='displacement' leads from the base to the model; give base.")
        return site.displacement, "from the base"
    raise InputError(f"direction={direction!r} is none of 'gradient', 'displacement', a Direction, tensors by name.")


@metric("critical", invariance="that of its direction")
def critical(site: Site, *, direction: Any = "gradient", tolerance: float = 1 / 16) -> Found:
    """2 / eta for the smallest step eta found at which L(w + eta d) exceeds L(w) (Kalra et al. 2026, 2601.16979).

    direction  d: "gradient" for one step of gradient descent; a `Direction` or tensors by name, such as an optimizer's
               update, or the update of another task, which makes it the relative form; "displacement" with `base`

    Doubling and bisection to `tolerance` of eta, about 6 losses. It finds a crossing; an earlier one within the first
    step tried would be missed. For a quadratic and d = -g it is g'Hg / g'g. Infinite where d goes up from the
    start, as another task's update may: `budget_radius` stays finite. Zero where no crossing is found.
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
                return Found(math.inf, converged=False, details={"eta": 0.0, "direction": name})
        low = high / 2
    else:
        while not exceeds(2 * high):
            high *= 2
            if high > _LARGEST:
                return Found(0.0, converged=False, details={"eta": math.inf, "direction": name})
        low, high = high, 2 * high
    while high - low > tolerance * low:
        middle = (low + high) / 2
        low, high = (low, middle) if exceeds(middle) else (middle, high)
    eta = (low + high) / 2
    return Found(2 / eta, converged=True, details={"eta": eta, "direction": name})


@metric("budget_radius", invariance="that of its direction, and of its length")
def budget_radius(site: Site, *, direction: Any = "gradient", tau: float = 0.1, tolerance: float = 0.01) -> Found:
    """The smallest distance |s| found, of both signs, at which L(w + s d / |d|) - L(w) reaches tau nats.

    The finite form of relative critical sharpness: defined also where d goes up from the start. Smaller is sharper. At
    the minimum of a x^2 / 2 it is sqrt(2 tau / a). `direction` as for `critical`.
    """
    check_positive(tau=tau, tolerance=tolerance)
    step, name = _along(site, direction)
    length = norm_of(step)
    if length == 0:
        raise InputError(f"the direction ({name}) is zero: there is nothing to go along.")
    center = site.center
    found = {sign: _reach(site, step, sign / length, center + tau, tolerance) for sign in (1.0, -1.0)}
    value = min(found.values())
    details = {"forward": found[1.0], "backward": found[-1.0], "direction": name}
    return Found(value, perturbed_loss=center + tau, converged=math.isfinite(value), details=details)


def _reach(site: Site, step: Tensor, unit: float, level: float, tolerance: float) -> float:
    """The distance at which the loss along `unit * step` first seen to be at `level`; infinite where it never is."""

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
