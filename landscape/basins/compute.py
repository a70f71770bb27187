"""The one function that measures a basin."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from landscape.basins.radius import Radius, find_radius
from landscape.basins.rays import NOISE, STEP, WORST, Rays, step_of
from landscape.basins.result import Basin
from landscape.basins.smoothing import SmoothingBound, smoothing_bound
from landscape.checkpoints import Checkpoint, identify
from landscape.data.batches import Batch
from landscape.errors import InputError, as_typed
from landscape.heights.finding import find_heights
from landscape.heights.given import HeightFunction
from landscape.heights.height import Height, Reading
from landscape.heights.predictions import KLDivergence
from landscape.objective.ascent import steepest_direction
from landscape.objective.given import batches_of
from landscape.objective.identity import journal_of, provenance_of
from landscape.objective.loss_functions import loss_name
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.results import Journal
from landscape.surfaces.points.geometry import Member
from landscape.surfaces.points.sweep import Sweep, sweeping
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import Vector, vector_norm

_NATS = 0.1  # the drop of a loss and of a divergence, unless asked otherwise
END_OF_STEP = 2.0  # of the ray along the step, in steps: whether it would leave soon after is worth knowing


def compute_basin(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    height: str | Height | HeightFunction = "loss",
    drop: float | None = None,
    directions: int = 16,
    base: nn.Module | Checkpoint | None = None,
    sigma: float | None = None,
    normalize: str = "filter",
    seed: int = 0,
    scope: Scope = Scope(),
    run: Run = Run(progress=False),
) -> Basin:
    """Measure how far from a model a height stays within a drop, along random rays, the worst case, and its own step.

    Along each ray the steps double from 1/128 of the weights' norm to all of it, and the first fall is then enclosed
    to 5%. What never fell is censored, and counts as infinite in the median. That norm is of all the weights that
    `scope.parameters` selects, also of biases and of norms' weights, which random rays leave where they are unless
    `include_1d` says otherwise. The model comes back bit-identical.

    Args:
        model: A module or a checkpoint.
        data: Batches; questions (`load_questions`) for heights of answers.
        height: What has to hold, as for `compute_surface`.
        drop: How far it may fall, or for a loss or a divergence rise. None takes 0.1 nat for these two, and two
            standard errors of the height at the centre for all others.
        directions: Number of random rays. The interval of their median needs six.
        base: The model that this one was fine-tuned from. The height is then also followed from the base along the step
            that fine-tuning took, to twice its length.
        sigma: Expected length of Gaussian noise over the norm of the weights, for the bound of randomized smoothing
            (see `SmoothingBound`), around the base where there is one; None leaves it out. It needs a height
            between 0 and 1, takes as many draws as there are rays, and with a base every tensor that was tuned has to
            be among `parameters`.
        normalize: The scale of the parts of random rays, see `random_directions`; "none" is isotropic.
        seed: Seed of the first random ray; the others have those after it.
        scope: `parameters`, `loss_fn` and `include_1d` have a use here.
        run: `journal` has a use here.

    Returns:
        The radii and what they are measured in.

    Raises:
        InputError: The height has no standard error to take the drop from, a model that guesses answers among choices
            would be within the drop (what guessing is worth is known for no other height), the noise for the bound
            leaves out a tensor that was tuned, an argument makes no sense, or the base is another architecture.

    Source:
        Chen et al. 2025 (arXiv 2505.17646): basins of capabilities along most directions, the worst and the step.

    Example:
        The loss of a single weight w is w^2. From w = 1 it rises as (1 + t)^2 - 1, by 0.21 at t = 0.1:

        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from landscape import Scope, compute_basin, supervised_loss
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.ones_(model.weight)
        >>> data = [(torch.ones(1, 1), torch.zeros(1, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(mse_loss))
        >>> basin = compute_basin(model, data, drop=0.21, directions=6, scope=scope)
        >>> round(basin.worst.value, 2)
        0.1
    """
    scope.only("compute_basin", "parameters", "loss_fn", "include_1d")
    run.only("compute_basin", "journal", "progress")
    if directions < 1:
        raise InputError(f"{as_typed('directions', directions)} must be at least 1.")
    if drop is not None and not 0 < drop < math.inf:
        raise InputError(f"{as_typed('drop', drop)} must be positive and finite.")
    if sigma is not None and not 0 < sigma < math.inf:
        raise InputError(f"{as_typed('sigma', sigma)} must be positive and finite.")
    data = batches_of(data, model)
    heights = find_heights(height, data)
    if base is not None and any(isinstance(h, KLDivergence) and h.reference is None for h in heights):
        raise InputError("kl is from the model itself, and has no fall from the base; give KLDivergence(base).")
    member = Member(model)
    moved = Parameters(member.module, scope.parameters)
    weight_norm = vector_norm(moved.values())
    elements = sum(tensor.numel() for tensor in moved.tensors)
    origin, step_norm = (
        (None, None) if base is None else step_of(member.parameters, Parameters(identify(base)[0], frozen=True))
    )
    if sigma is not None and origin is not None:
        _check_covered(moved, member.parameters, origin)
    settings: dict[str, Any] = {
        "height": [h.identity() for h in heights] or "loss",
        "directions": directions,
        "normalize": normalize,
        "sigma": sigma,
        "parameters": scope.parameters if isinstance(scope.parameters, (str, type(None))) else list(scope.parameters),
        "include_1d": scope.include_1d,
        "loss": loss_name(scope.loss_fn),
        "base": None if base is None else Member(base).description,
    }
    rays = Rays(
        member.module,
        directions,
        normalize,
        seed,
        scope,
        weight_norm,
        lambda: steepest_direction(Objective(member.module, data, scope.loss_fn), moved),
        origin,
        0.0 if sigma is None else sigma * weight_norm / math.sqrt(elements),
    )

    def open_journal(objective: Objective) -> Journal:
        assert run.journal is not None
        identity = {"settings": settings, "seed": seed}
        return journal_of(run.journal, objective, member.parameters, settings["loss"], identity, weights=member.digest)

    with sweeping(
        member.parameters,
        data,
        rays.place,
        loss_fn=scope.loss_fn,
        run=Run(),
        open_journal=None if run.journal is None else open_journal,
        heights=heights,
        model=model,
    ) as sweep:
        read = _reader(sweep, heights)
        rays.open(0)
        center = read((0.0, 0.0))
        least = _drop_of(heights, center) if drop is None else drop
        _refuse_guessing(heights, data, center, least, member.name)
        before = None if origin is None else read((rays.number(STEP), 0.0))
        if before is not None:
            _refuse_guessing(heights, data, before, least, "the base")
        sign = 1.0 if heights and heights[0].higher_is_better else -1.0

        def radius(ray: float, start: Reading, most: float = 1.0) -> Radius:
            return find_radius(lambda t: not sign * (start.value - read((ray, t)).value) <= least, most)

        radii = []
        for number in range(directions):
            sweep.restore()
            rays.open(number)
            radii.append(radius(float(number), center))
        sweep.restore()
        worst = None if rays.worst is None else radius(rays.number(WORST), center)
        step = None if before is None else radius(rays.number(STEP), before, END_OF_STEP)
        bound = None if sigma is None else _bound(read, rays, before or center, step_norm or 0.0)
        fidelity = sweep.checked_fidelity()
        return Basin(
            name=member.name,
            data=str(getattr(data, "source", "data")),
            height=heights[0].name if heights else "loss",
            unit=heights[0].unit if heights else "nats per term",
            center=center.value,
            center_stderr=center.stderr,
            drop=least,
            radii=tuple(radii),
            worst=worst,
            step=step,
            base_value=None if before is None else before.value,
            step_norm=step_norm,
            weight_norm=weight_norm,
            bound=bound,
            normalize=normalize,
            seed=seed,
            fidelity=fidelity,
            weight=center.weight,
            provenance=provenance_of(sweep.objective, settings, seed, member.description, sweep.seconds),
        )


def _check_covered(moved: Parameters, all_parameters: Parameters, base: Vector) -> None:
    """Raise InputError where the step changes a tensor on which there would be no noise: the bound does not hold."""
    for name, tensor in all_parameters.values().items():
        if name not in moved.names and not torch.equal(tensor, base[name].to(tensor)):
            raise InputError(
                f"fine-tuning changed {name}, which {as_typed('parameters')} leaves without noise, so that the bound "
                f"of randomized smoothing says nothing of this step; leave {as_typed('sigma')} out, or select every "
                "tensor that was tuned."
            )


def _refuse_guessing(heights: list[Height], data: Iterable[Batch], start: Reading, drop: float, name: str) -> None:
    """Raise InputError where a model that only guesses would still be within the drop."""
    if not heights:
        return
    height = heights[0]
    guessing = height.guessing(data)
    if start.value - drop <= guessing:  # NaN is not
        raise InputError(
            f"{height.name} of {name} is {start.value:.3g}, and guessing, with {guessing:.3g}, is within the drop of "
            f"{drop:.3g}: it has no such capability to lose. Take data that it can do, more questions, or a smaller "
            f"{as_typed('drop')}."
        )


def _reader(sweep: Sweep, heights: list[Height]) -> Callable[[tuple[float, float]], Reading]:
    """Return what reads the height, or the loss where there is none, at a step along a ray."""

    def read(place: tuple[float, float]) -> Reading:
        if heights:
            return sweep.reading_at(place, heights[0].name)
        return Reading(sweep.loss_at(place), math.nan, sweep.weight)

    return read


def _drop_of(heights: list[Height], center: Reading) -> float:
    """Return the drop that is meant where none is given."""
    if not heights or isinstance(heights[0], KLDivergence):
        return _NATS
    if not center.stderr > 0:
        raise InputError(
            f"{heights[0].name} is {center.value:.4g} at the centre without a standard error above 0, from which a "
            f"drop could be taken; give {as_typed('drop')}."
        )
    return 2 * center.stderr


def _bound(
    read: Callable[[tuple[float, float]], Reading], rays: Rays, start: Reading, distance: float
) -> SmoothingBound:
    """Return the smoothing bound over as many draws of noise as there are rays."""
    values = [read((rays.number(NOISE), float(draw))).value for draw in range(rays.count)]
    return smoothing_bound(values, center=start.value, sigma=rays.sigma, distance=distance)
