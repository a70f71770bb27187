"""What noise on the weights says of any step: the bound of randomized smoothing on a share of right answers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from scipy import optimize, stats

from landscape.errors import InputError


@dataclasses.dataclass(frozen=True)
class SmoothingBound:
    """A lower bound on the smoothed height S(w) = E h(w + sigma e), e standard normal in every weight that moves.

    For any h between 0 and 1, the inverse normal distribution function of S changes by at most |step| / sigma, so that
    S(w + step) >= Phi(Phi^-1(S(w)) - |step| / sigma) whatever the step within the weights that have noise, a
    fine-tuning or an attack. It speaks of the model with noise on its weights, not of the model itself: only where
    noise of this size leaves the height as it is (`smoothed` close to `center`) does the one stand for the other.

    Attributes:
        sigma: Standard deviation of the noise on every weight.
        draws: Number of draws of the noise.
        center: The height without noise.
        smoothed: Its mean over the draws.
        lower: A lower bound on S(w), with the confidence, over draws of the noise on these same examples.
        distance: Length of the step.
        bound: The lower bound on S(w + step).
        confidence: Of `lower` and so of `bound`.

    Source:
        Chen et al. 2025 (arXiv 2505.17646) for weights; the inequality is Lemma 2 of Salman et al. 2019 (arXiv
        1906.04584) and, for classes, Theorem 1 of Cohen et al. 2019 (arXiv 1902.02918); `lower` is the bound of
        Hoeffding 1963, Theorem 1, for means of numbers between 0 and 1.
    """

    sigma: float
    draws: int
    center: float
    smoothed: float
    lower: float
    distance: float
    bound: float
    confidence: float


def smoothing_bound(
    values: Sequence[float], *, center: float, sigma: float, distance: float, confidence: float = 0.95
) -> SmoothingBound:
    """Bound a smoothed height after a step from its values under noise.

    Args:
        values: The height at each draw of the noise, between 0 and 1.
        center: The height without noise.
        sigma: Standard deviation of the noise on every weight.
        distance: Length of the step, in the same units.
        confidence: Of the bound.

    Raises:
        InputError: A value is not between 0 and 1, so that the bound does not hold.

    Example:
        >>> certified = smoothing_bound([1.0] * 100, center=1.0, sigma=0.1, distance=0.1)
        >>> round(certified.lower, 4), round(certified.bound, 4)  # 0.05^(1/100), and Phi(Phi^-1(0.9705) - 1)
        (0.9705, 0.8127)
    """
    numbers = np.asarray(values, dtype=np.float64)
    if not len(numbers) or not bool(((numbers >= 0) & (numbers <= 1)).all()):
        raise InputError("the smoothing bound is of heights between 0 and 1, such as an accuracy.")
    mean = float(numbers.mean())
    lower = _lower_bound(mean, math.log(1 / (1 - confidence)) / len(numbers))
    bound = float(stats.norm.cdf(stats.norm.ppf(lower) - distance / sigma))
    return SmoothingBound(sigma, len(numbers), center, mean, lower, distance, bound, confidence)


def _lower_bound(mean: float, budget: float) -> float:
    """Return the smallest p below `mean` with the relative entropy KL(mean || p) at most `budget`."""
    if mean == 0:
        return 0.0

    def excess(p: float) -> float:
        rest = (1 - mean) * math.log((1 - mean) / (1 - p)) if mean < 1 else 0.0
        return mean * math.log(mean / p) + rest - budget

    return float(optimize.brentq(excess, 1e-300, mean)) if excess(1e-300) > 0 else 0.0
