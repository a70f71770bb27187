"""How far along one ray a height stays within a drop, and the median over rays of which some were not long enough."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

MOST = 1.0  # a ray ends where the step is as long as the weights
_RUNGS = 7  # of the ladder, each twice the one before: the first is MOST / 128
_LEAST = 2.0**-30
_RATIO = 1.05  # between what is seen inside and what is seen outside, at the end of the search


@dataclasses.dataclass(frozen=True)
class Radius:
    """Where a height leaves the basin along one ray.

    Attributes:
        inside: The longest step before the first fall that was seen, at which the height still holds.
        outside: The step at which it has fallen; infinite where it never did.
    """

    inside: float
    outside: float

    @property
    def censored(self) -> bool:
        """Whether the height held to the end of the ray: the radius is longer than what was tried."""
        return math.isinf(self.outside)

    @property
    def value(self) -> float:
        """The geometric mean of both ends, at most 2.5% from either; infinite where the radius is censored."""
        return math.inf if self.censored else math.sqrt(self.inside * self.outside)


def find_radius(has_fallen: Callable[[float], bool], most: float = MOST) -> Radius:
    """Find the first step at which something falls, going out along a ladder of doubled steps, and then bisecting.

    A basin that closes again between two rungs of the ladder is not seen: what is found is the first fall at this
    resolution, a factor of two.

    Args:
        has_fallen: Whether it has fallen at a step.
        most: The longest step.

    Example:
        >>> radius = find_radius(lambda step: step > 0.3)
        >>> radius.inside <= 0.3 < radius.outside, round(radius.value, 1)
        (True, 0.3)
    """
    rungs = [most / 2**number for number in range(_RUNGS, -1, -1)]
    outside = next((step for step in rungs if has_fallen(step)), math.inf)
    if math.isinf(outside):
        return Radius(most, math.inf)
    inside = outside / 2
    if outside == rungs[0]:
        while has_fallen(inside):
            if inside < _LEAST * most:
                return Radius(0.0, inside)
            inside, outside = inside / 2, inside
    while outside / inside > _RATIO:
        middle = math.sqrt(inside * outside)
        inside, outside = (inside, middle) if has_fallen(middle) else (middle, outside)
    return Radius(inside, outside)


def median_radius(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Return the median of radii and its interval, by order statistics; infinite radii are those that are censored.

    The interval runs from the k-th smallest to the k-th largest value, with the largest k for which a binomial count
    with p = 1/2 says that it holds the true median with the confidence, whatever the distribution. Of too few values
    there is no such k, and it is from 0 to infinity.

    Source:
        David and Nagaraja 2003, Order Statistics, section 7.1.

    Example:
        >>> median_radius([0.1, 0.2, 0.3, 0.4, 0.5, float("inf")])
        (0.35, 0.1, inf)
    """
    ordered = np.sort(values)
    count = len(ordered)
    k = int(stats.binom.ppf((1 - confidence) / 2, count, 0.5))
    while k > 0 and stats.binom.cdf(k - 1, count, 0.5) > (1 - confidence) / 2:
        k -= 1
    low, high = (float(ordered[k - 1]), float(ordered[count - k])) if k > 0 else (0.0, math.inf)
    below, above = ordered[(count - 1) // 2], ordered[count // 2]
    return (float(below) if below == above else float((below + above) / 2)), low, high
