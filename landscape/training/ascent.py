"""The ascent step of sharpness-aware minimization: from w to w + eps along the gradients in place, and exactly back."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.linalg.precision import wide_dtype
from landscape.parallel.sharding import own_part, placed_like, summed_over_all
from landscape.weights.perturbation import EXACT, Fidelity


@dataclasses.dataclass(frozen=True)
class Ascent:
    """The weights before SAM's ascent step, and how faithfully the step was taken.

    Attributes:
        weights: Each parameter that moved with its value before the step. Of a sharded parameter it is the slice that
            this process holds. The list is empty once the weights are back.
        radius: l2 norm of the realized step over the whole model. It is NaN where the gradient was not finite and no
            step was taken.
        fidelity: How close the realized step is to the intended one, over the whole model.
    """

    weights: list[tuple[Tensor, Tensor]]
    radius: float
    fidelity: Fidelity

    @torch.no_grad()
    def undo(self) -> None:
        """Put the weights back, bit for bit."""
        for parameter, before in self.weights:
            parameter.copy_(before)


def check_radius(rho: float) -> None:
    """Raise InputError unless `rho` is a radius: at least 0 and finite."""
    if not 0 <= rho < math.inf:
        raise InputError(f"{as_typed('rho', rho)} is not a radius; it must be at least 0 and finite.")


@torch.no_grad()
def ascend(parameters: Iterable[Tensor], rho: float, adaptive: bool = False) -> Ascent:
    """Move parameters to w + eps, where eps = rho g / |g| and g are their gradients.

    With `adaptive`, eps = rho T^2 g / |T g| with T = diag|w|. A gradient that is zero or not finite moves nothing.

    |g| is the l2 norm over all parameters of the whole model. Where FSDP2 (`fully_shard`) or tensor parallelism shards
    them, the sums of squares are reduced over the processes, so every process has to call. The gradients have to be
    reduced over the processes already, as DDP and FSDP2 do in `backward()`.

    Args:
        parameters: Tensors with their gradient in `.grad`; those without a gradient do not move.
        rho: Radius of the step, at least 0; 0 moves nothing.
        adaptive: Whether each weight moves in proportion to its square, which makes the radius relative to |w|.

    Returns:
        What is needed to go back, and how faithful the step was.

    Raises:
        InputError: A gradient is sparse.

    Warns:
        MeasurementWarning: Rounding to the weights' type changed the step by more than 1%.

    Source:
        Foret et al. 2021 (arXiv 2010.01412), eq. 2; Kwon et al. 2021 (arXiv 2102.11600), eq. 7, with eta = 0.
    """
    return ascend_groups([(parameters, rho, adaptive)])


@torch.no_grad()
def ascend_groups(groups: Iterable[tuple[Iterable[Tensor], float, bool]]) -> Ascent:
    """Move each group of parameters by its own radius: eps_k = rho_k T_k^2 g_k / |T g|.

    T_k is the identity or, where the group is adaptive, diag|w_k|. |T g| is the l2 norm over all groups with rho > 0.
    Groups of one radius and one kind are therefore the SAM of all of them together, and a group with rho = 0 neither
    moves nor counts.

    Args:
        groups: A tuple (parameters, rho, adaptive) for each group, each as in `ascend`.

    Returns:
        As `ascend`.

    Raises:
        InputError: A gradient is sparse.

    Warns:
        MeasurementWarning: As `ascend`.
    """
    moving = [(p, rho, adaptive) for group, rho, adaptive in groups if rho > 0 for p in group if p.grad is not None]
    (square,) = summed_over_all(((p, _squared_norm(p, adaptive)) for p, _, adaptive in moving), terms=1)
    norm = math.sqrt(square)
    if norm == 0 or not math.isfinite(norm):  # float16 overflows, for example; its scaler then skips the step
        return Ascent([], norm - norm, EXACT)
    before = [(own_part(parameter), own_part(parameter).clone()) for parameter, _, _ in moving]
    moves = (
        (parameter, _move(parameter, base, rho / norm, adaptive))
        for (parameter, rho, adaptive), (_, base) in zip(moving, before, strict=True)
    )
    ascent = Ascent(before, math.nan, EXACT)
    try:
        intended, realized, product = summed_over_all(moves, terms=3)
        cosine = product / math.sqrt(intended * realized) if realized else 0.0
        ascent = Ascent(before, math.sqrt(realized), Fidelity(math.sqrt(realized / intended), cosine))
        if not ascent.fidelity.faithful:  # The text never varies, so that Python shows it once and not at every step.
            warnings.warn(
                "SAM's ascent step was rounded to the weights' type, which changed its norm or direction by more than "
                "1% (see ascent.fidelity); keep the weights in float32 or raise rho.",
                MeasurementWarning,
                stacklevel=2,
            )
    except BaseException:  # Ctrl-C, or a warning that is an error: only here is it known how to go back.
        ascent.undo()
        raise
    return ascent


def _pieces(parameter: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Yield rows of this process's slice with their weights and gradients, a few at a time to bound temporaries."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise InputError("SAM takes no sparse gradients; build the embedding with sparse=False.")
    gradient = placed_like(gradient, parameter)
    weight, gradient = torch.atleast_1d(own_part(parameter)), torch.atleast_1d(own_part(gradient))
    size = (
        2**16 if weight.device.type == "cpu" else 2**24
    )  # CPU: what a cache holds. GPU: few kernel launches, 64 MiB each.
    rows = max(1, size * len(weight) // max(1, weight.numel()))
    for start in range(0, len(weight), rows):
        piece = slice(start, start + rows)
        yield piece, weight[piece], gradient[piece]


def _direction(weight: Tensor, gradient: Tensor, adaptive: bool, power: int) -> Tensor:
    """Return T^power g in float32, or in float64 for float64 weights; T is the identity unless adaptive."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    gradient = gradient.to(wide)
    return gradient * weight.to(wide).abs() ** power if adaptive else gradient


def _square(vector: Tensor) -> Tensor:
    """Return |vector|^2, summed in the widest float without a copy of the vector in that type."""
    return torch.linalg.vector_norm(vector, dtype=wide_dtype(vector.device)).square()


def _squared_norm(parameter: Tensor, adaptive: bool) -> Tensor:
    """Return |T g|^2 of this process's slice, shape (1,)."""
    here = own_part(parameter).device
    total = torch.zeros(1, dtype=wide_dtype(here), device=here)
    for _, weight, gradient in _pieces(parameter):
        total += _square(_direction(weight, gradient, adaptive, power=1))
    return total


def _move(parameter: Tensor, base: Tensor, scale: float, adaptive: bool) -> Tensor:
    """Move this process's slice from `base` by scale T^2 g.

    Returns:
        |intended step|^2, |realized step|^2 and the inner product of the two, shape (3,).
    """
    base, total = torch.atleast_1d(base), torch.zeros(3, dtype=wide_dtype(base.device), device=base.device)
    for rows, weight, gradient in _pieces(parameter):
        step = _direction(weight, gradient, adaptive, power=2) * scale
        weight.copy_(base[rows] + step)
        taken = weight.to(step.dtype) - base[rows]
        total += torch.stack([_square(step), _square(taken), step.flatten().dot(taken.flatten()).to(total.dtype)])
    return total
