"""The mean of independent samples, taken until it is known to a requested relative precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from landscape.errors import InputError

FIRST_LOOK = 16  # samples; the end only where half of what is asked is reached by then
MIN_SAMPLES = 32  # otherwise: with fewer, intervals of skewed samples cover too little


@dataclasses.dataclass(frozen=True)
class SampleMean:
    """A mean, how well it is known, and whether that was asked for."""

    value: float
    stderr: float  # standard deviation over samples / sqrt(samples)
    confidence: float  # of the interval
    interval: tuple[float, float]  # two-sided, Student's t with samples - 1 degrees of freedom
    samples: int
    converged: bool  # half the interval is at most rtol * |value|

    @property
    def half_width(self) -> float:
        return (self.interval[1] - self.interval[0]) / 2


def interval_of(samples: np.ndarray, confidence: float) -> tuple[float, float, tuple[float, float]]:
    """Mean, standard error and t-interval of independent samples, shape (n,); NaN and infinite for n = 1."""
    n = len(samples)
    mean = float(np.mean(samples))
    if n < 2:
        return mean, math.nan, (-math.inf, math.inf)
    stderr = float(np.std(samples, ddof=1) / math.sqrt(n))
    half = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * stderr
    return mean, stderr, (mean - half, mean + half)


def check_precision(rtol: float, confidence: float, max_samples: int) -> None:
    """Raise InputError for a precision that cannot be asked for."""
    if not rtol > 0:
        raise InputError(f"rtol={rtol} must be positive.")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must be between 0 and 1.")
    if max_samples < 2:
        raise InputError(f"{max_samples} samples have no standard error; take at least 2.")


def sample_mean(
    draw: Callable[[int, int], np.ndarray],
    *,
    rtol: float,
    confidence: float = 0.95,
    max_samples: int = 1000,
    block: int = 1,
    expecting: Callable[[int], None] = lambda _: None,
) -> SampleMean:
    """Draw samples until half the confidence interval of their mean is at most `rtol` of it, or `max_samples`.

    draw       `draw(start, stop)` gives samples start..stop-1, shape (stop - start,)
    block      samples that are cheap to draw together
    expecting  told how many samples it now looks like

    Looking at the interval after every sample and stopping when it happens to be short makes it cover less than
    it says. So the number is planned from the spread of the first samples and drawn in one go (Stein 1945, Ann. Math.
    Statist. 16, for a relative width), and planned again only where the spread turned out larger. In simulations of
    v'Av with relative spreads of 0.2 to 1, as skewed as a trace dominated by one eigenvalue, the 95% interval
    covered 91 to 95% of the time; a first look at 16 samples alone came down to 89%.
    """
    check_precision(rtol, confidence, max_samples)
    count = min(max_samples, FIRST_LOOK)
    expecting(count)
    samples = np.asarray(draw(0, count), dtype=np.float64)
    while True:
        mean, stderr, interval = interval_of(samples, confidence)
        half = (interval[1] - interval[0]) / 2
        converged = half <= rtol * abs(mean)
        enough = len(samples) >= MIN_SAMPLES or half <= rtol / 2 * abs(mean)
        if (converged and enough) or len(samples) >= max_samples or not math.isfinite(half):
            return SampleMean(mean, stderr, confidence, interval, len(samples), converged)
        # the half-width falls with the square root of the count
        wanted = len(samples) * (half / (rtol * abs(mean))) ** 2 if mean else math.inf
        wanted = max(len(samples) + 1, MIN_SAMPLES, min(wanted, max_samples))
        count = min(max_samples, math.ceil(wanted / block) * block)
        expecting(count)
        samples = np.concatenate([samples, draw(len(samples), count)])
