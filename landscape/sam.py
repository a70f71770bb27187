"""Sharpness-aware minimization (Foret et al. 2021, arXiv 2010.01412), as an optimizer and inside the Trainer."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from landscape.errors import InputError, MeasurementWarning
from landscape.parameters import EXACT, Fidelity, wide_dtype


@dataclasses.dataclass(frozen=True)
class Ascent:
    """Weights before SAM's ascent step, and how faithfully the step was taken."""

    weights: list[tuple[Tensor, Tensor]]  # parameter, its value before the step
    radius: float  # l2 norm of the realized step
    fidelity: Fidelity

    @torch.no_grad()
    def undo(self) -> None:
        """Put the weights back, bit for bit."""
        for parameter, before in self.weights:
            parameter.copy_(before)


@torch.no_grad()
def ascend(parameters: Iterable[Tensor], rho: float, adaptive: bool = False) -> Ascent:
    """Move `parameters` by eps = rho g / |g|, g being their `.grad` and |g| the l2 norm over all of them.

    Foret et al. 2021, eq. 2. With `adaptive`, eps = rho T^2 g / |T g|, T = diag|w| (Kwon et al. 2021, 2102.11600,
    with eta = 0). A gradient of zero, or rho = 0, moves nothing. MeasurementWarning where rounding to the weights'
    type swallowed part of the step.
    """
    return ascend_groups([(parameters, rho, adaptive)])


@torch.no_grad()
def ascend_groups(groups: Iterable[tuple[Iterable[Tensor], float, bool]]) -> Ascent:
    """Move each group (parameters, rho, adaptive) by eps_k = rho_k T_k^2 g_k / |T g|, T_k the identity or diag|w_k|.

    |T g| is the l2 norm over all groups with rho > 0: groups of one rho and one kind are SAM of them all together,
    and a group with rho = 0 neither moves nor counts. Otherwise as `ascend`.
    """
    moving = [(p, rho, adaptive) for group, rho, adaptive in groups if rho > 0 for p in group if p.grad is not None]
    norm = sum(float(_direction(p, adaptive, power=1).square().sum()) for p, _, adaptive in moving) ** 0.5
    if norm == 0:
        return Ascent([], 0.0, EXACT)
    before = [(parameter, parameter.detach().clone()) for parameter, _, _ in moving]
    intended = realized = product = 0.0
    for (parameter, rho, adaptive), (_, base) in zip(moving, before, strict=True):
        step = _direction(parameter, adaptive, power=2) * (rho / norm)
        origin = base.to(step.dtype)
        parameter.copy_(origin + step)
        taken = parameter.to(step.dtype) - origin
        intended += float(step.square().sum())
        realized += float(taken.square().sum())
        product += float((step * taken).sum())
    cosine = product / (intended**0.5 * realized**0.5) if realized else 0.0
    fidelity = Fidelity((realized / intended) ** 0.5, cosine)
    if not fidelity.faithful:
        warnings.warn(
            f"SAM's ascent step was rounded to the weights' type (cosine {cosine:.4f}, norm ratio "
            f"{fidelity.norm_ratio:.4f}); keep the weights in float32 or raise rho.",
            MeasurementWarning,
            stacklevel=2,
        )
    return Ascent(before, realized**0.5, fidelity)


def _direction(parameter: Tensor, adaptive: bool, power: int) -> Tensor:
    """T^power g in the widest float; T is the identity unless adaptive."""
    wide = wide_dtype(parameter.device)
    assert parameter.grad is not None
    gradient = parameter.grad.to(wide)
    return gradient * parameter.to(wide).abs() ** power if adaptive else gradient


def _check_radius(rho: float) -> None:
    if not 0 <= rho < math.inf:
        raise InputError(f"rho={rho} is not a radius; it must be at least 0 and finite.")


class SAM(torch.optim.Optimizer):
    """SAM around any torch optimizer: the descent step uses the gradient at w + rho g / |g|.

    base_optimizer  a class, `SAM(model.parameters(), torch.optim.AdamW, rho=0.05, lr=1e-5)`
    rho             radius of the ascent step, l2 norm over all parameters of the optimizer
    adaptive        Kwon et al. 2021: the radius is relative to |w|, element by element

    A parameter group may have its own `rho` and `adaptive`: group k moves by rho_k g_k / |g|, see `ascend_groups`.

    Either `step(closure)`, the closure clearing gradients, computing the loss, calling backward and returning the
    loss: it is called twice, at w and at w + eps. Or, with gradients at w in place: `first_step()`, gradients
    anew, `second_step()`. Weight decay, momentum and all else are the base optimizer's. Raises InputError for a
    rho that is negative or not finite.
    """

    def __init__(
        self,
        params: Any,
        base_optimizer: type[torch.optim.Optimizer],
        rho: float = 0.05,
        adaptive: bool = False,
        **kwargs: Any,
    ):
        _check_radius(rho)
        super().__init__(params, {"rho": rho, "adaptive": adaptive, **kwargs})
        self.base_optimizer = base_optimizer(self.param_groups, **kwargs)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)
        self.ascent: Ascent | None = None  # of the last step: radius and fidelity

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _check_radius(param_group.get("rho", 0))
        super().add_param_group(param_group)

    def first_step(self) -> Ascent:
        """Move to w + eps; the gradients in place must be those at w."""
        self.ascent = ascend_groups((g["params"], g["rho"], g["adaptive"]) for g in self.param_groups)
        return self.ascent

    def second_step(self) -> None:
        """Move back to w exactly, and take the base optimizer's step with the gradients in place."""
        if self.ascent is not None:
            self.ascent.undo()
            self.ascent = dataclasses.replace(self.ascent, weights=[])  # frees the copy, keeps the certificate
        self.base_optimizer.step()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One SAM step from two calls of `closure`; returns the loss at w."""
        if closure is None:
            raise InputError("SAM takes two gradients a step: call step(closure), or first_step and second_step.")
        with torch.enable_grad():
            loss = closure()
        ascent = self.first_step()
        try:
            with torch.enable_grad():
                closure()
        except BaseException:
            ascent.undo()  # an interrupted step leaves the weights where they were
            raise
        self.second_step()
        return loss

    def state_dict(self) -> dict:
        """The base optimizer's state; SAM itself keeps none between steps."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self.base_optimizer.load_state_dict(state_dict)
        self.param_groups = self.base_optimizer.param_groups


class SAMTrainer(Trainer):
    """`transformers.Trainer` whose gradient is taken at w + rho g / |g| of each batch.

    Two forward and backward passes a step. Gradient clipping acts on the second gradient. Raises InputError with
    gradient accumulation, whose ascent direction would be that of a part of the batch, and on several devices.
    """

    def __init__(self, *args: Any, rho: float = 0.05, adaptive: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        _check_radius(rho)
        if self.args.gradient_accumulation_steps > 1:
            raise InputError("SAMTrainer does not take gradient_accumulation_steps > 1.")
        if self.args.n_gpu > 1 or self.args.world_size > 1:
            raise InputError("SAMTrainer runs on one device; set CUDA_VISIBLE_DEVICES to one.")
        self.rho, self.adaptive = rho, adaptive

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        # both passes draw the same dropout: the second gradient must be of the same function
        random_state = torch.get_rng_state()
        cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        loss = super().training_step(model, inputs, num_items_in_batch)
        ascent = ascend(model.parameters(), self.rho, self.adaptive)
        model.zero_grad()
        torch.set_rng_state(random_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)
        try:
            super().training_step(model, inputs, num_items_in_batch)
        finally:
            ascent.undo()
        return loss
