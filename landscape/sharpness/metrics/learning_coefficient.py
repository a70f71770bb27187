"""The local learning coefficient: how many directions the loss constrains around the weights, by Langevin sampling."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from landscape.errors import InputError
from landscape.linalg.sampling import interval_of
from landscape.sharpness.registry import metric
from landscape.sharpness.result import CONFIDENCE, Measurement
from landscape.sharpness.site import Site, check_positive, dot

_ACCEPTED = 0.574  # the acceptance at which Langevin proposals explore fastest (Roberts and Rosenthal 1998)
# The largest ratio of spreads at which chains count as samples of one distribution (Vehtari et al. 2021, section 4). At
# the older 1.1, four of 30 runs on a quadratic of 100 weights were called converged at half of its closed form.
_AGREE = 1.01


@metric(
    "local_learning_coefficient",
    formula="n b (E L(w + s) - L(w)), s ~ exp(-n b L(w + s) - gamma |s|^2 / 2), b = 1 / log n",
    cost="2 * chains * steps gradients",
    invariance="rotations and shifts of the weights",
    source="Lau et al. 2023 (arXiv 2308.12108); on language models: Hoogland et al. 2024 (arXiv 2402.02364)",
)
def local_learning_coefficient(
    site: Site, *, nbeta: float | None = None, gamma: float = 100.0, chains: int = 4, steps: int = 100
) -> Measurement:
    """Half the number of directions in which the loss constrains the weights, counted at a temperature.

    At a minimum with the Hessian eigenvalues h the value is 1/2 sum h / (h + gamma / nbeta): d / 2 for a regular model
    and nbeta -> infinity, and less where the loss is flatter than a quadratic: for w_1^2 w_2^2 it tends to 1/2, not 1.
    `nbeta` is n b; None for n / log n with the n loss terms of the data. `gamma` keeps the chains near w.

    Each chain starts at w and takes `steps` Langevin steps that adapt their length, and as many that count. Gradients
    are those of all the data, and a Metropolis test accepts or refuses each step, so that steps of finite length bring
    no bias: the source takes batches and no test (SGLD). The interval is over chains. The value is marked as not
    converged where chains, or the halves of a chain, disagree (split R-hat above 1.01), and where it is not positive:
    then w is no minimum, and the value means nothing. What is not converged has no interval: chains that all start at w
    and have not yet gone far share a bias, mostly downwards, that their spread (`stderr`) does not know of.
    """
    check_positive(gamma=gamma)
    if chains < 2 or steps < 4:
        raise InputError(f"chains={chains}, steps={steps}; it takes at least 2 chains of 4 steps.")
    center = site.center
    if nbeta is None:
        terms = site.objective.loss_weight()
        if not terms >= 3:
            raise InputError(f"nbeta is n / log n by default, and n is {terms:g} loss terms; give it.")
        nbeta = terms / math.log(terms)
    check_positive(nbeta=nbeta)
    site.set_total(2 * chains * steps)
    draws, accepted = zip(*(_chain(site, nbeta, gamma, steps, chain) for chain in range(chains)), strict=True)
    rises = nbeta * (np.array(draws) - center)
    value, stderr, interval = interval_of(rises.mean(1), CONFIDENCE)
    disagreement = split_rhat(rises)
    converged = disagreement <= _AGREE and value > 0
    return Measurement(
        value,
        stderr,
        center + value / nbeta,
        converged,
        chains,
        {"nbeta": nbeta, "rhat": disagreement, "accepted": float(np.mean(accepted)), "dimension": site.layout.size},
        interval if converged else None,
    )


def split_rhat(draws: np.ndarray) -> float:
    """Return how much wider all draws are spread than the halves of a chain: 1 where they agree, inf where none moved.

    Args:
        draws: Draws of each chain, shape (chains, steps).

    Source:
        Vehtari, Gelman, Simpson, Carpenter and Buerkner 2021 (arXiv 1903.08008), section 2.

    Example:
        >>> round(split_rhat(np.array([[0.0, 1.0, 0.0, 1.0], [5.0, 6.0, 5.0, 6.0]])), 1)
        4.1
    """
    length = draws.shape[1] // 2
    halves = np.concatenate([draws[:, :length], draws[:, -length:]])
    within = float(halves.var(axis=1, ddof=1).mean())
    between = float(halves.mean(axis=1).var(ddof=1))
    return math.sqrt((length - 1) / length + between / within) if within else math.inf


def _chain(site: Site, nbeta: float, gamma: float, steps: int, chain: int) -> tuple[list[float], float]:
    """Return the losses along one chain after its adaptation, and the share of its steps that was accepted."""
    uniform = np.random.default_rng([site.seed, chain])
    length = 2.0 / (gamma * site.layout.size ** (1 / 3))

    def energy_at(step: Tensor) -> tuple[float, float, Tensor]:
        loss, gradient = site.gradient_at(step)
        return loss, nbeta * loss + gamma / 2 * dot(step, step), nbeta * gradient + gamma * step

    position = site.layout.empty().zero_()
    loss, energy, slope = energy_at(position)
    draws, accepted = [], []
    for index in range(2 * steps):
        noise = site.noise(f"langevin {chain}", index)
        proposal = position - length / 2 * slope + math.sqrt(length) * noise
        proposed = energy_at(proposal)
        back = position - proposal + length / 2 * proposed[2]
        log_ratio = energy - proposed[1] + dot(noise, noise) / 2 - dot(back, back) / (2 * length)
        probability = math.exp(min(0.0, log_ratio)) if math.isfinite(log_ratio) else 0.0
        if uniform.random() < probability:
            position, (loss, energy, slope) = proposal, proposed
        if index < steps:
            length *= math.exp((probability - _ACCEPTED) * max(0.1, 2 / math.sqrt(index + 1)))
        else:
            draws.append(loss)
            accepted.append(probability)
    return draws, float(np.mean(accepted))
