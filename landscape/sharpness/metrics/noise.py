"""Sharpness under random perturbations: mean rise of the loss, and how much noise it takes."""

from __future__ import annotations

import math

import numpy as np

from landscape.errors import InputError
from landscape.linalg.sampling import interval_of, sample_mean, student_interval
from landscape.sharpness.registry import metric
from landscape.sharpness.result import CONFIDENCE, Measurement
from landscape.sharpness.site import Site, check_positive

NORMALIZATIONS = ("filter", "unit", "head", "layer")


def _weighting(adaptive: bool, normalize: str | None) -> str | None:
    """Return the weighting of perturbations that two options ask for; raise InputError where they contradict."""
    if normalize is None:
        return "adaptive" if adaptive else None
    if normalize not in NORMALIZATIONS:
        raise InputError(f"normalize={normalize!r} is none of {', '.join(NORMALIZATIONS)}.")
    if adaptive:
        raise InputError("adaptive=True and normalize are two scales; choose one.")
    return normalize


@metric(
    "average_case",
    formula="E[L(w + d)] - L(w), d ~ N(0, rho^2 diag(c^2)), c = 1 or |w|",
    cost="samples + 1 losses",
    invariance="isotropic: rotations and shifts of the weights; adaptive: rescaling and permuting single weights; "
    "normalize: rescaling and permuting whole filters, and rotations within them",
    source="Andriushchenko et al. 2023 (arXiv 2302.07011)",
)
def average_case(
    site: Site,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    normalize: str | None = None,
    samples: int = 32,
    rtol: float | None = None,
) -> Measurement:
    """The mean rise of the loss under random perturbations of the weights.

    c = 1, or |w| with `adaptive`. `normalize="filter"` (or "unit", "head", "layer") takes c = |w_f| / sqrt(n_f) in
    every filter f of tensors of at least two dimensions, and 0 in biases and norms' weights: rho is then the length of
    the step relative to each filter. Perturbations come in antithetic pairs
    +d and -d, which removes odd orders of the loss exactly; the standard error is over pairs. To second order the value
    is rho^2 / 2 sum_i c_i^2 H_ii.

    `samples` is the number of perturbations, rounded up to pairs. With `rtol` it is the largest number; sampling ends
    when half the 95% interval is at most rtol times the value.
    """
    check_positive(rho=rho)
    if samples < 4:
        raise InputError(f"samples={samples}; it takes at least two pairs.")
    weighting = _weighting(adaptive, normalize)
    center = site.center

    def draw(start: int, stop: int) -> np.ndarray:
        return np.array([_pair(site, "average", i, rho, weighting) - center for i in range(start, stop)])

    pairs = math.ceil(samples / 2)
    if rtol is None:
        site.set_total(2 * pairs)
        value, stderr, interval = interval_of(draw(0, pairs), CONFIDENCE)
        return Measurement(value, stderr, center + value, None, 2 * pairs, confidence_interval=interval)
    mean = sample_mean(
        draw, rtol=rtol, confidence=CONFIDENCE, max_samples=pairs, set_total=lambda n: site.set_total(2 * n)
    )
    return Measurement(
        mean.value,
        mean.stderr,
        center + mean.value,
        mean.converged,
        2 * mean.samples,
        confidence_interval=mean.interval,
    )


def _pair(site: Site, stream: str, index: int, rho: float, weighting: str | None, times: float = 1.0) -> float:
    """Return the mean loss at both ends of one perturbation."""

    def evaluate() -> float:
        step = site.random_step(stream, index, rho, weighting)
        return (site.loss_at(step, times) + site.loss_at(step, -times)) / 2

    return site.journaled(f"{stream} {index} {times!r}", evaluate)


@metric(
    "low_pass",
    formula="E[L(w + z)], z ~ N(0, sigma^2 I)",
    cost="samples + 1 losses",
    invariance="rotations and shifts of the weights",
    source="Bisla, Wang and Choromanska 2022 (arXiv 2201.08025), eq. 2",
)
def low_pass(site: Site, *, sigma: float = 0.01, samples: int = 32) -> Measurement:
    """The loss after a Gaussian low-pass filter over the weights.

    It contains the loss itself, and so correlates with it by construction; `details["rise"]` is the rise alone.
    Perturbations come in antithetic pairs.
    """
    average = average_case(site, rho=sigma, samples=samples)
    assert average.confidence_interval is not None
    low, high = average.confidence_interval
    return Measurement(
        site.center + average.value,
        average.stderr,
        average.perturbed_loss,
        None,
        average.samples,
        {"rise": average.value},
        (site.center + low, site.center + high),
    )


@metric(
    "pac_bayes",
    formula="1 / sigma^2 for the largest sigma with E[L(w + sigma c z)] - L(w) <= target, z ~ N(0, I)",
    cost="about 10 to 20 times samples losses",
    invariance="adaptive: rescaling and permuting single weights; isotropic: rotations and shifts of the weights",
    source="Jiang et al. 2020 (arXiv 1912.02178)",
)
def pac_bayes(
    site: Site, *, target: float = 0.1, adaptive: bool = True, samples: int = 16, tolerance: float = 0.01
) -> Measurement:
    """The PAC-Bayes sharpness: how little noise raises the loss by a target.

    `target` is a rise of the loss in nats, where the source takes a fall in accuracy. c = |w| with `adaptive`
    (magnitude-aware, without the source's epsilon), else 1. The largest sigma is found by bisection, to `tolerance`,
    with the same z for every sigma. The standard error carries that of the mean rise over, by its slope, and so does
    the interval.
    """
    check_positive(target=target, tolerance=tolerance)
    weighting = _weighting(adaptive, None)
    center = site.center
    pairs = max(2, math.ceil(samples / 2))

    def rises(sigma: float) -> np.ndarray:
        return np.array([_pair(site, "pac-bayes", i, 1.0, weighting, sigma) - center for i in range(pairs)])

    def over(sigma: float) -> bool:
        return not rises(sigma).mean() <= target  # a loss that is not finite counts as risen

    low, high = 0.0, 0.05 if adaptive else 0.001
    while not over(high):
        low, high = high, 2 * high
        if high > 1e6:
            return Measurement(0.0, details={"sigma": math.inf, "target": target}, converged=False, samples=2 * pairs)
    while low == 0:
        if over(high / 2):
            high /= 2
            if high < 1e-12:
                return Measurement(
                    math.inf, details={"sigma": 0.0, "target": target}, converged=False, samples=2 * pairs
                )
        else:
            low = high / 2
    while high - low > tolerance * low:
        middle = (low * high) ** 0.5
        low, high = (low, middle) if over(middle) else (middle, high)
    at_low, at_high = rises(low), rises(high)
    sigma = low
    rise, error, _ = interval_of(at_low, CONFIDENCE)
    slope = (float(at_high.mean()) - rise) / (high - low)
    spread = error / slope if slope > 0 else math.nan
    value, stderr = 1 / sigma**2, 2 * spread / sigma**3
    return Measurement(
        value,
        stderr=stderr,
        perturbed_loss=center + rise,
        converged=True,
        samples=2 * pairs,
        details={"sigma": sigma, "sigma_stderr": spread},
        confidence_interval=student_interval(value, stderr, pairs, CONFIDENCE),
    )
