"""Worst-case sharpness: how high the loss gets within a ball around the weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator
from typing import Any

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

STARTS = 3  # of a search that takes more than one step, unless asked otherwise


@dataclasses.dataclass(frozen=True)
class Ball:
    """All steps d = T u with |u| <= radius.

    Attributes:
        radius: The largest length of u.
        norm: "l2" or "linf".
        scale: The diagonal of T, shape (size,); None where all of it is 1.
    """

    radius: float
    norm: str
    scale: Tensor | None

    def stretched(self, u: Tensor) -> Tensor:
        """Return T u, which may be u itself."""
        return u if self.scale is None else self.scale * u

    def vertex(self, gradient: Tensor) -> Tensor:
        """Return the u that is furthest along `gradient`: radius T g / |T g|, or radius sign(T g)."""
        along = self.stretched(gradient)
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


def _resolved(options: dict[str, Any]) -> dict[str, Any]:
    """Fill in the number of starts: one for SAM's one step, three for a longer search."""
    if options["restarts"] is not None:
        return options
    return options | {"restarts": 1 if options["steps"] == 1 else STARTS}


def _starts(steps: int, restarts: int | None) -> int:
    """Return the checked number of starts."""
    starts = _resolved({"steps": steps, "restarts": restarts})["restarts"]
    _check_count(steps=steps, restarts=starts)
    return int(starts)


@metric(
    "worst_case",
    formula="max of L(w + d) - L(w) over |d / c| <= rho, c = 1 or |w|",
    cost="steps times restarts gradients: 60 by default, 2 for steps=1",
    invariance="l2: rotations and shifts of the weights; linf: permutations and shifts of the weights; "
    "adaptive: rescaling and permuting single weights",
    source="Foret et al. 2021 (arXiv 2010.01412), eq. 2; adaptive: Kwon et al. 2021 (arXiv 2102.11600)",
    resolve=_resolved,
)
def worst_case(
    site: Site,
    *,
    rho: float = 0.05,
    adaptive: bool = False,
    norm: str = "l2",
    steps: int = 20,
    restarts: int | None = None,
    m: int | None = None,
) -> Measurement:
    """The highest rise of the loss within a ball around the weights: the sharpness that SAM minimizes.

    c = 1, or |w| with `adaptive` (Kwon et al. 2021, eta = 0). Projected gradient ascent that only ever moves up: every
    step first tries the point of the ball furthest along the gradient (which cannot go down where the loss is convex);
    where that does not climb, ever smaller steps. The first step is SAM's, so `steps=1` is one-step sharpness, and more
    is never less. `norm="linf"` takes the box |d_i| <= rho c_i (Andriushchenko et al. 2023).

    `restarts` is the number of starts: w, and then random points of the boundary. It is 3, but 1 for `steps=1`, unless
    given. Where the gradient at w is zero, the first start is a random one too.

    The value is a lower bound of the true maximum, and nothing here bounds that from above: starts that agree may all
    have missed it. `details` say what is known: the number of starts; what the restarts gained over the first start and
    how far the starts lie apart; what the last quarter of the steps gained; and what the gradient at the end still
    promises within the ball (0 at a stationary point, which may be a lower hill). Of r independent random starts, the
    chance that one more would end higher than all of them is at most 1 / (r + 1).

    With `m` it is the mean over groups of m examples, each weighted by its loss terms, of the group's own maximum
    (m-sharpness, Foret et al. 2021, section 4). That depends on the order of the data. Groups of plain batches end
    where those do, so there batching changes it.
    """
    check_positive(rho=rho)
    if norm not in ("l2", "linf"):
        raise InputError(f"norm={norm!r} is none of l2, linf.")
    starts = _starts(steps, restarts)
    ball = Ball(rho, norm, site.scale("adaptive") if adaptive else None)
    if m is None:
        return highest_rise(site, ball, steps, starts)
    _check_count(m=m)
    return _mean_over_groups(site, ball, steps, starts, m)


def _check_count(**numbers: Any) -> None:
    """Raise InputError naming the first option that is not a whole number of at least 1."""
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{name}={value!r} must be a whole number of at least 1.")


def highest_rise(site: Site, ball: Ball, steps: int, starts: int) -> Measurement:
    """Return the highest rise found in the ball, from w and from `starts` - 1 random points of its boundary."""
    site.set_total(steps * starts)
    center, gradient = site.gradient_at()
    flat = norm_of(ball.stretched(gradient)) == 0
    best: Climb | None = None
    reached = []
    for start in range(starts):
        if start == 0 and not flat:
            climb = _ascend(site, ball, torch.zeros_like(gradient), center, gradient, steps)
        else:
            u = ball.random(site.noise("restart", start))
            loss, slope = site.gradient_at(ball.stretched(u))
            climb = _ascend(site, ball, u, loss, slope, steps - 1)
            if not climb.loss > center:
                climb = dataclasses.replace(climb, u=torch.zeros_like(u), loss=center)
        reached.append(climb.loss)
        if best is None or climb.loss > best.loss:
            best = climb
    assert best is not None
    late = best.gains[-max(1, len(best.gains) // 4) :]
    return Measurement(
        value=best.loss - center,
        perturbed_loss=best.loss,
        details={
            "starts": starts,
            "gain_of_restarts": best.loss - reached[0] if starts > 1 else None,
            "spread_of_starts": best.loss - min(reached) if starts > 1 else None,
            "gain_of_last_steps": sum(late) if len(best.gains) > 1 else None,
            "first_order_gap": best.gap,
            "zero_gradient": flat,
            "bound": _bound(starts, starts if flat else starts - 1),
        },
    )


def _bound(starts: int, random_starts: int) -> str:
    """Return in words what a search from so many starts shows, and what it does not."""
    searched = "from one start" if starts == 1 else f"the best of {starts} starts"
    chance = f"a chance of up to 1 in {random_starts + 1}"
    more = f"one more random start would end higher with {chance}" if random_starts else "other starts may end higher"
    return f"a lower bound of the maximum, {searched}; {more}"


def _ascend(site: Site, ball: Ball, u: Tensor, loss: float, gradient: Tensor, steps: int) -> Climb:
    """Climb from u, whose loss and gradient are given, with at most `steps` evaluations."""
    climb = Climb(u, loss, gradient, [], _gap(ball, u, gradient))
    damped = ball.radius
    try_furthest = True  # whether the furthest point of the ball is still worth a try
    for remaining in range(steps - 1, -1, -1):
        if try_furthest:
            tried = ball.vertex(gradient)
        elif ball.norm == "linf":
            tried = ball.project(climb.u + damped * torch.sign(ball.stretched(gradient)))
        else:
            along = ball.stretched(gradient)
            length = norm_of(along)
            tried = ball.project(climb.u + along * (damped / length)) if length else climb.u
        if same(tried, climb.u):
            break
        if remaining:
            higher, slope = site.gradient_at(ball.stretched(tried))
        else:
            higher, slope = site.loss_at(ball.stretched(tried)), None
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
    along = ball.stretched(gradient)
    furthest = ball.radius * (float(whole(along.double().abs().sum())) if ball.norm == "linf" else norm_of(along))
    return max(furthest - dot(along, u), 0.0)


def _mean_over_groups(site: Site, ball: Ball, steps: int, starts: int, m: int) -> Measurement:
    """Return the mean over groups of `m` examples of each group's own rise."""
    of_all = site.objective

    def part(share: Share) -> tuple[list[tuple[int, float, list[float]]], Fidelity]:
        """Return number, loss terms and what is averaged of this share's groups, and the worst rounding."""
        climbed = []
        for index, group in share.of(_groups(of_all, m)):
            site.objective = of_all.restricted(group)
            try:
                with torch.no_grad():
                    terms = sum(float(weight) for _, weight in site.objective.over_batches(site.objective.evaluate))
                if terms:
                    rise = highest_rise(site, ball, steps, starts)
                    between = [rise.details[name] or 0.0 for name in ("gain_of_restarts", "spread_of_starts")]
                    climbed.append((index, terms, [rise.value, rise.perturbed_loss or 0.0, *between]))
            finally:
                site.objective = of_all
        return climbed, site.fidelity

    parts = distributed.gathered(part)
    groups = sorted(group for climbed, _ in parts for group in climbed)
    weight = sum(terms for _, terms, _ in groups)
    columns = zip(*([terms * number for number in numbers] for _, terms, numbers in groups), strict=True)
    value, perturbed, gain, spread = (sum(column) / weight for column in columns)
    for _, fidelity in parts:
        site.fidelity = site.fidelity.worse(fidelity)
    details = {
        "groups": len(groups),
        "starts": starts,
        "gain_of_restarts": gain if starts > 1 else None,
        "spread_of_starts": spread if starts > 1 else None,
        "bound": f"a lower bound of the mean of the groups' maxima; number of starts in each: {starts}",
    }
    return Measurement(value, perturbed_loss=perturbed, details=details)


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
    cost="steps times restarts gradients: 30 by default",
    invariance="permutations of the weights",
    source="Keskar et al. 2017 (arXiv 1609.04836), eq. 4 with A = identity",
    resolve=_resolved,
)
def keskar(site: Site, *, epsilon: float = 1e-3, steps: int = 10, restarts: int | None = None) -> Measurement:
    """The highest relative rise of the loss within a box around the weights, in percent.

    The box is between an absolute and a relative one, and so neither rotations nor rescalings leave it as it is. The
    maximum is sought as for `worst_case`, with as many starts, and not by L-BFGS-B as in the source.
    """
    check_positive(epsilon=epsilon)
    ball = Ball(epsilon, "linf", site.weights().abs() + 1)
    starts = _starts(steps, restarts)
    rise = highest_rise(site, ball, steps, starts)
    return dataclasses.replace(
        rise, value=100 * rise.value / (1 + site.center), details=rise.details | {"rise": rise.value}
    )
