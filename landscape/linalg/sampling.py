"""The mean of independent samples, taken until it is known to a requested relative precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from scipy import stats

from landscape.errors import InputError, as_typed

FIRST_LOOK = 16  # samples; the sampling ends there only where half of the requested width is reached by then
MIN_SAMPLES = 32  # otherwise: with fewer, intervals of skewed samples cover too little


@dataclasses.dataclass(frozen=True)
class SampleMean:
    """A mean, how well it is known, and whether that is as well as was asked for.

    Attributes:
        value: The mean of the samples.
        stderr: The standard deviation over samples / sqrt(samples).
        confidence: The confidence of the interval, such as 0.95.
        interval: (low, high), two-sided, by Student's t with samples - 1 degrees of freedom.
        samples: The number of samples drawn.
        converged: Whether half the interval is at most rtol * |value|.
    """

    value: float
    stderr: float
    confidence: float
    interval: tuple[float, float]
    samples: int
    converged: bool

    @property
    def half_width(self) -> float:
        """Half the width of the interval."""
        return (self.interval[1] - self.interval[0]) / 2


def student_interval(value: float, stderr: float, samples: int, confidence: float) -> tuple[float, float]:
    """Return the two-sided interval of an estimate with that standard error, by Student's t.

    Args:
        value: The estimate.
        stderr: Its standard error over samples.
        samples: The number of independent samples; the distribution has one degree of freedom less.
        confidence: The confidence of the interval, between 0 and 1.

    Returns:
        (low, high).

    Example:
        With many samples the interval is 1.96 standard errors on each side.

        >>> low, high = student_interval(10.0, 1.0, 10**6, 0.95)
        >>> round(low, 2), round(high, 2)
        (8.04, 11.96)
    """
    half = float(stats.t.ppf(0.5 + confidence / 2, samples - 1)) * stderr
    return value - half, value + half


def interval_of(samples: np.ndarray, confidence: float) -> tuple[float, float, tuple[float, float]]:
    """Return the mean, its standard error and its interval for independent samples, shape (n,).

    One sample has no standard error: NaN, and an interval without bounds.
    """
    n = len(samples)
    mean = float(np.mean(samples))
    if n < 2:
        return mean, math.nan, (-math.inf, math.inf)
    stderr = float(np.std(samples, ddof=1) / math.sqrt(n))
    return mean, stderr, student_interval(mean, stderr, n, confidence)


def check_precision(rtol: float, confidence: float, max_samples: int) -> None:
    """Raise InputError for a precision that cannot be asked for."""
    if not rtol > 0:
        raise InputError(f"{as_typed('rtol', rtol)} must be positive.")
    if not 0 < confidence < 1:
        raise InputError(f"{as_typed('confidence', confidence)} must be between 0 and 1.")
    if max_samples < 2:
        raise InputError(f"{max_samples} samples have no standard error; take at least 2.")


def sample_mean(
    draw: Callable[[int, int], np.ndarray],
    *,
    rtol: float,
    confidence: float = 0.95,
    max_samples: int = 1000,
    block: int = 1,
    set_total: Callable[[int], None] = lambda _: None,
) -> SampleMean:
    """Draw samples until half the confidence interval of their mean is at most `rtol` of it, or `max_samples`.

    Looking at the interval after every sample and stopping when it happens to be short makes it cover less than it
    says. So the number of samples is planned from the spread of the first ones, for a relative width, and drawn in one
    go. It is planned again only where the spread turned out larger. In simulations of v'Av with relative spreads of
    0.2 to 1, as skewed as a trace dominated by one eigenvalue, the 95% interval covered 91 to 95% of the time; a first
    look at 16 samples alone came down to 89%.

    Args:
        draw: `draw(start, stop)` returns the samples start..stop-1, shape (stop - start,).
        rtol: Half the width of the interval over the absolute value of the mean.
        confidence: The confidence of the interval.
        max_samples: The largest number of samples.
        block: The number of samples that are cheap to draw together.
        set_total: A function that is called with the number of samples that is planned, for a progress bar.

    Returns:
        The mean, its interval, and whether it converged.

    Raises:
        InputError: `rtol`, `confidence` or `max_samples` make no sense.

    Source:
        C. Stein 1945, "A two-sample test for a linear hypothesis whose power is independent of the variance", Ann.
        Math. Statist. 16.

    Example:
        Equal samples have no spread, so the first 16 are enough.

        >>> mean = sample_mean(lambda start, stop: np.full(stop - start, 3.0), rtol=0.01)
        >>> mean.value, mean.stderr, mean.samples, mean.converged
        (3.0, 0.0, 16, True)
    """
    check_precision(rtol, confidence, max_samples)
    count = min(max_samples, FIRST_LOOK)
    set_total(count)
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
        set_total(count)
        samples = np.concatenate([samples, draw(len(samples), count)])
