"""Worst-case sharpness: how high the loss gets within a ball around the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from landscape.data.batches import Batch, rows_of, take_rows
from landscape.data.tokens import TokenData
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.parallel.sharding import whole
from landscape.sharpness.registry import metric
from landscape.sharpness.result import Measurement
from landscape.sharpness.site import Site, check_positive, dot, norm_of, same
from landscape.weights.perturbation import Fidelity


@dataclasses.dataclass(frozen=True)
class Ball:
    """All steps d = T u with |u| <= radius.

    Attributes:
        radius: The largest length of u.
        norm: "l2" or "linf".
        scale: The diagonal of T, shape (size,).
    """

    radius: float
    norm: str
    scale: Tensor

    def vertex(self, gradient: Tensor) -> Tensor:
        """Return the u that is furthest along `gradient`: radius T g / |T g|, or radius sign(T g)."""
        along = self.scale * gradient
        if self.norm == "linf":
            return self.radius * torch.sign(along)
        length = norm_of(along)
        return along * (self.radius / length) if length else torch.zeros_like(along)

    def project(self, u: Tensor) -> Tensor:
        """Return the nearest u of the ball."""
        if self.norm == "linf":
            return u.clamp(-self.radius, self.radius)
        length = norm_of(u)
        return u * (self.radius / length) if length > self.radius else u

    def random(self, noise: Tensor) -> Tensor:
        """Return a random u on the boundary."""
        return self.project(noise * math.inf).nan_to_num(0.0) if self.norm == "linf" else self._onto(noise)

    def _onto(self, noise: Tensor) -> Tensor:
        return noise * (self.radius / norm_of(noise))


@dataclasses.dataclass
class Climb:
    """The highest point so far, and what the steps to it brought.

    Attributes:
        u: The point.
        loss: The loss there.
        gradient: The gradient there; None where it was not taken.
        gains: What every step gained, in nats.
        gap: radius |T g| - g'd at the highest point whose gradient is known: what first order still promises.
    """

    u: Tensor
    loss: float
    gradient: Tensor | None
    gains: list[float]
    gap: float


@metric(
    "worst_case",
    formula="max of L(w + d) - L(w) over |d / c| <= rho, c = 1 or |w|",
    cost="steps times restarts gradients",
    invariance="l2: rotations of the weights only; adaptive: also rescaling single weights",
    source="Foret et al. 2021 (arXiv 2010.01412), eq. 2; adaptive: Kwon et al. 2021 (arXiv 2102.11600)",
)
def worst_case(
    site: Site,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    norm: str = "l2",
    steps: int = 20,
    restarts: int = 1,
    m: int | None = None,
) -> Measurement:
    """The highest rise of the loss within a ball around the weights: the sharpness that SAM minimizes.

    c = 1, or |w| with `adaptive` (Kwon et al. 2021, eta = 0). Projected gradient ascent that only ever moves up: every
    step first tries the point of the ball furthest along the gradient (which cannot go down where the loss is convex);
    where that does not climb, ever smaller steps. The first step is SAM's, so `steps=1, restarts=1` is one-step
    sharpness, and more is never less. `norm="linf"` takes the box |d_i| <= rho c_i (Andriushchenko et al. 2023).

    The value is a lower bound of the true maximum. `details` say how much it could still be missing: what the last
    quarter of the steps gained, what restarts from random points of the boundary gained over the first start, and
    what the gradient at the end still promises within the ball (0 at a stationary point). Where the gradient at w
    is zero, the first start is a random one.

    With `m` it is the mean over groups of m examples of each group's own maximum (m-sharpness, Foret et al. 2021,
    section 4). That depends on the order of the data. Groups of plain batches end where those do, so there batching
    changes it.
    """
    check_positive(rho=rho)
    if norm not in ("l2", "linf"):
        raise InputError(f"norm={norm!r} is none of l2, linf.")
    if steps < 1 or restarts < 1:
        raise InputError(f"steps={steps}, restarts={restarts}; both must be at least 1.")
    ball = Ball(rho, norm, site.scale("adaptive" if adaptive else None))
    if m is None:
        return highest_rise(site, ball, steps, restarts)
    if m < 1:
        raise InputError(f"m={m} examples per group; it takes at least 1.")
    return _mean_over_groups(site, ball, steps, restarts, m)


def highest_rise(site: Site, ball: Ball, steps: int, restarts: int) -> Measurement:
    """Return the highest rise found in the ball, from w and from `restarts` - 1 random points of its boundary."""
    site.set_total(steps * restarts)
    center, gradient = site.gradient_at()
    flat = norm_of(ball.scale * gradient) == 0
    best: Climb | None = None
    first = 0.0
    for start in range(restarts):
        if start == 0 and not flat:
            climb = _ascend(site, ball, torch.zeros_like(gradient), center, gradient, steps)
        else:
            u = ball.random(site.noise("restart", start))
            loss, slope = site.gradient_at(ball.scale * u)
            climb = _ascend(site, ball, u, loss, slope, steps - 1)
            if not climb.loss > center:
                climb = dataclasses.replace(climb, u=torch.zeros_like(u), loss=center)
        if best is None or climb.loss > best.loss:
            best = climb
        if start == 0:
            first = best.loss
    assert best is not None
    late = best.gains[-max(1, len(best.gains) // 4) :]
    return Measurement(
        value=best.loss - center,
        perturbed_loss=best.loss,
        details={
            "gain_of_last_steps": sum(late) if len(best.gains) > 1 else None,
            "gain_of_restarts": best.loss - first if restarts > 1 else None,
            "first_order_gap": best.gap,
            "zero_gradient": flat,
        },
    )


def _ascend(site: Site, ball: Ball, u: Tensor, loss: float, gradient: Tensor, steps: int) -> Climb:
    """Climb from u, whose loss and gradient are given, with at most `steps` evaluations."""
    climb = Climb(u, loss, gradient, [], _gap(ball, u, gradient))
    damped = ball.radius
    try_furthest = True  # whether the furthest point of the ball is still worth a try
    for remaining in range(steps - 1, -1, -1):
        along = ball.scale * gradient
        if try_furthest:
            tried = ball.vertex(gradient)
        elif ball.norm == "linf":
            tried = ball.project(climb.u + damped * torch.sign(along))
        else:
            length = norm_of(along)
            tried = ball.project(climb.u + along * (damped / length)) if length else climb.u
        if same(tried, climb.u):
            break
        if remaining:
            higher, slope = site.gradient_at(ball.scale * tried)
        else:
            higher, slope = site.loss_at(ball.scale * tried), None
        gain = higher - climb.loss
        climb.gains.append(max(gain, 0.0) if gain == gain else 0.0)
        if gain > 0:
            climb.u, climb.loss = tried, higher
            if slope is not None:
                gradient = slope
                climb.gap = _gap(ball, tried, slope)
        elif try_furthest:
            try_furthest = False
        else:
            damped /= 2
        if slope is None:
            break
    return climb


def _gap(ball: Ball, u: Tensor, gradient: Tensor) -> float:
    """Return the maximum over the ball of g'(d - d_u), which is zero where first order sees nothing higher."""
    along = ball.scale * gradient
    furthest = ball.radius * (float(whole(along.double().abs().sum())) if ball.norm == "linf" else norm_of(along))
    return max(furthest - dot(along, u), 0.0)


def _mean_over_groups(site: Site, ball: Ball, steps: int, restarts: int, m: int) -> Measurement:
    """Return the mean over groups of `m` examples of each group's own rise."""
    of_all = site.objective

    def part(share: Share) -> tuple[list[tuple[int, float, float, float]], Fidelity]:
        """Return number, loss terms, rise and perturbed loss of this share's groups, and the worst rounding."""
        climbed = []
        for index, group in share.of(_groups(of_all, m)):
            site.objective = of_all.restricted(group)
            try:
                with torch.no_grad():
                    terms = sum(float(weight) for _, weight in site.objective.over_batches(site.objective.evaluate))
                if terms:
                    rise = highest_rise(site, ball, steps, restarts)
                    climbed.append((index, terms, rise.value, rise.perturbed_loss or 0.0))
            finally:
                site.objective = of_all
        return climbed, site.fidelity

    parts = distributed.gathered(part)
    total = weight = perturbed = 0.0
    groups = sorted(group for climbed, _ in parts for group in climbed)
    for _, terms, rise, loss in groups:
        total += rise * terms
        perturbed += loss * terms
        weight += terms
    for _, fidelity in parts:
        site.fidelity = site.fidelity.worse(fidelity)
    return Measurement(total / weight, perturbed_loss=perturbed / weight, details={"groups": len(groups)})


def _groups(objective: Objective, m: int) -> Iterator[Iterable[Batch]]:
    """Yield the examples in groups of `m`, each as batches; groups of plain batches end where those do."""
    if isinstance(objective.data, TokenData):
        examples = objective.data.examples
        for start in range(0, len(examples), m):
            yield dataclasses.replace(objective.data, examples=examples[start : start + m])
        return
    for batch in objective.data:
        rows = rows_of(batch)
        if rows is None:
            raise InputError("m-sharpness needs batches that can be cut into examples: tensors with rows.")
        for start in range(0, rows, m):
            yield [take_rows(batch, slice(start, start + m), rows)]


@metric(
    "keskar",
    formula="100 (max L - L(w)) / (1 + L(w)) over |d_i| <= epsilon (|w_i| + 1)",
    cost="steps times restarts gradients",
    invariance="none: the box is |w| + 1, between absolute and relative",
    source="Keskar et al. 2017 (arXiv 1609.04836), eq. 4 with A = identity",
)
def keskar(site: Site, *, epsilon: float = 1e-3, steps: int = 10, restarts: int = 1) -> Measurement:
    """The highest relative rise of the loss within a box around the weights, in percent.

    The maximum is sought as for `worst_case`, not by L-BFGS-B as in the source.
    """
    check_positive(epsilon=epsilon)
    ball = Ball(epsilon, "linf", site.weights().abs() + 1)
    rise = highest_rise(site, ball, steps, restarts)
    return dataclasses.replace(
        rise, value=100 * rise.value / (1 + site.center), details=rise.details | {"rise": rise.value}
    )
