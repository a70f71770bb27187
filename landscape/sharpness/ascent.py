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
from landscape.sharpness.registry import Found, Site, check_positive, dot, metric, norm_of, same
from landscape.weights.perturbation import Fidelity


@dataclasses.dataclass(frozen=True)
class Ball:
    """All steps d = T u with |u| <= radius in the norm, T the diagonal `scale`."""

    radius: float
    norm: str  # "l2" | "linf"
    scale: Tensor

    def vertex(self, gradient: Tensor) -> Tensor:
        """The u that is furthest along `gradient`: radius T g / |T g|, or radius sign(T g)."""
        along = self.scale * gradient
        if self.norm == "linf":
            return self.radius * torch.sign(along)
        length = norm_of(along)
        return along * (self.radius / length) if length else torch.zeros_like(along)

    def project(self, u: Tensor) -> Tensor:
        if self.norm == "linf":
            return u.clamp(-self.radius, self.radius)
        length = norm_of(u)
        return u * (self.radius / length) if length > self.radius else u

    def random(self, noise: Tensor) -> Tensor:
        """A random u on the boundary."""
        return self.project(noise * math.inf).nan_to_num(0.0) if self.norm == "linf" else self._onto(noise)

    def _onto(self, noise: Tensor) -> Tensor:
        return noise * (self.radius / norm_of(noise))


@dataclasses.dataclass
class Climb:
    """The highest point found so far, and how it was found."""

    u: Tensor
    loss: float
    gradient: Tensor | None
    gains: list[float]  # of every step, in nats
    gap: float  # radius |T g| - g'd at the highest point whose gradient is known: what first order still promises


@metric(
    "worst_case",
    invariance="l2: rotations of the weights only; adaptive: also rescaling single weights",
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
) -> Found:
    """max of L(w + d) - L(w) over |T^-1 d| <= rho; T = 1, or |w| with `adaptive` (Kwon et al. 2021, eta = 0).

    Projected gradient ascent that only ever moves up. Every step first tries the point of the ball furthest along
    the gradient (which cannot go down where the loss is convex); where that does not climb, ever smaller steps. The
    first step is SAM's, so `steps=1, restarts=1` is one-step sharpness (Foret et al. 2021, eq. 2), and more is never
    less. `norm="linf"` takes the box |d_i| <= rho T_i (Andriushchenko et al. 2023).

    The value is a lower bound of the true maximum. `details` say how much it could still be missing: what the last
    quarter of the steps gained, what restarts from random points of the boundary gained over the first start, and
    what the gradient at the end still promises within the ball (0 at a stationary point). Where the gradient at w
    is zero, the first start is a random one.

    m  examples per group: the mean over groups of each group's own maximum (m-sharpness, Foret et al. 2021, sec. 4);
       depends on the order of the data; groups of plain batches end where those do, so there batching changes it
    """
    check_positive(rho=rho)
    if norm not in ("l2", "linf"):
        raise InputError(f"norm={norm!r} is none of l2, linf.")
    if steps < 1 or restarts < 1:
        raise InputError(f"steps={steps}, restarts={restarts}; both must be at least 1.")
    ball = Ball(rho, norm, site.scale("adaptive" if adaptive else None))
    if m is None:
        return climb(site, ball, steps, restarts)
    if m < 1:
        raise InputError(f"m={m} examples per group; it takes at least 1.")
    return _mean_over_groups(site, ball, steps, restarts, m)


def climb(site: Site, ball: Ball, steps: int, restarts: int) -> Found:
    """The highest rise found in the ball, from w and from `restarts` - 1 random points of its boundary."""
    site.expect(steps * restarts)
    center, gradient = site.gradient_at()
    flat = norm_of(ball.scale * gradient) == 0
    best: Climb | None = None
    first = 0.0
    for start in range(restarts):
        if start == 0 and not flat:
            found = _ascend(site, ball, torch.zeros_like(gradient), center, gradient, steps)
        else:
            u = ball.random(site.noise("restart", start))
            loss, slope = site.gradient_at(ball.scale * u)
            found = _ascend(site, ball, u, loss, slope, steps - 1)
            if not found.loss > center:
                found = dataclasses.replace(found, u=torch.zeros_like(u), loss=center)
        if best is None or found.loss > best.loss:
            best = found
        if start == 0:
            first = best.loss
    assert best is not None
    late = best.gains[-max(1, len(best.gains) // 4) :]
    return Found(
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
    """At most `steps` evaluations upwards from u, whose loss and gradient are given."""
    found = Climb(u, loss, gradient, [], _gap(ball, u, gradient))
    damped = ball.radius
    whole = True  # whether the furthest point is still worth trying
    for remaining in range(steps - 1, -1, -1):
        along = ball.scale * gradient
        if whole:
            tried = ball.vertex(gradient)
        elif ball.norm == "linf":
            tried = ball.project(found.u + damped * torch.sign(along))
        else:
            length = norm_of(along)
            tried = ball.project(found.u + along * (damped / length)) if length else found.u
        if same(tried, found.u):
            break
        if remaining:
            higher, slope = site.gradient_at(ball.scale * tried)
        else:
            higher, slope = site.loss_at(ball.scale * tried), None
        gain = higher - found.loss
        found.gains.append(max(gain, 0.0) if gain == gain else 0.0)
        if gain > 0:
            found.u, found.loss = tried, higher
            if slope is not None:
                gradient = slope
                found.gap = _gap(ball, tried, slope)
        elif whole:
            whole = False
        else:
            damped /= 2
        if slope is None:
            break
    return found


def _gap(ball: Ball, u: Tensor, gradient: Tensor) -> float:
    """max over the ball of g'(d - d_u): zero where first order sees nothing higher."""
    along = ball.scale * gradient
    furthest = ball.radius * (float(whole(along.double().abs().sum())) if ball.norm == "linf" else norm_of(along))
    return max(furthest - dot(along, u), 0.0)


def _mean_over_groups(site: Site, ball: Ball, steps: int, restarts: int, m: int) -> Found:
    whole = site.objective

    def part(share: Share) -> tuple[list[tuple[int, float, float, float]], Fidelity]:
        """Number, loss terms, rise and perturbed loss of this share's groups that have any; and the worst rounding."""
        climbed = []
        for index, group in share.of(_groups(whole, m)):
            site.objective = Objective(site.module, group, whole.loss_fn)
            try:
                with torch.no_grad():
                    terms = sum(float(weight) for _, weight in site.objective.over_batches(site.objective.evaluate))
                if terms:
                    found = climb(site, ball, steps, restarts)
                    climbed.append((index, terms, found.value, found.perturbed_loss or 0.0))
            finally:
                site.objective = whole
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
    return Found(total / weight, perturbed_loss=perturbed / weight, details={"groups": len(groups)})


def _groups(objective: Objective, m: int) -> Iterator[Iterable[Batch]]:
    """The examples in groups of `m`, each as batches; of plain batches groups end where those do."""
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


@metric("keskar", invariance="none: the box is |w| + 1, between absolute and relative")
def keskar(site: Site, *, epsilon: float = 1e-3, steps: int = 10, restarts: int = 1) -> Found:
    """100 (max L - L) / (1 + L) over the box |d_i| <= epsilon (|w_i| + 1) (Keskar et al. 2017, eq. 4, A = identity).

    The maximum is sought as for `worst_case`, not by L-BFGS-B.
    """
    check_positive(epsilon=epsilon)
    ball = Ball(epsilon, "linf", site.weights().abs() + 1)
    found = climb(site, ball, steps, restarts)
    return dataclasses.replace(
        found, value=100 * found.value / (1 + site.center), details=found.details | {"rise": found.value}
    )
