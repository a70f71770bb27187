"""Sharpness-aware minimization (Foret et al. 2021, arXiv 2010.01412), as an optimizer and inside the Trainer."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Partial, Replicate
from transformers import Trainer

from landscape.errors import InputError, MeasurementWarning
from landscape.weights.perturbation import EXACT, Fidelity
from landscape.weights.vectors import wide_dtype

ASCENTS = ("batch", "micro", "local")


@dataclasses.dataclass(frozen=True)
class Ascent:
    """Weights before SAM's ascent step, and how faithfully the step was taken.

    Of sharded parameters, `weights` are this rank's shards; radius and fidelity are of the whole model.
    """

    weights: list[tuple[Tensor, Tensor]]  # parameter, its value before the step
    radius: float  # l2 norm of the realized step; NaN where the gradient was not finite and no step was taken
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
    with eta = 0). A gradient of zero, one that is not finite, or rho = 0, moves nothing. MeasurementWarning where
    rounding to the weights' type swallowed part of the step.

    |g| is the norm over the whole model also where FSDP2 (`fully_shard`) or tensor parallelism shards it: the sums
    are reduced over the mesh, so every rank has to call. Gradients have to be reduced over the ranks already, as DDP
    and FSDP2 do in backward(). Raises InputError for sparse gradients.
    """
    return ascend_groups([(parameters, rho, adaptive)])


@torch.no_grad()
def ascend_groups(groups: Iterable[tuple[Iterable[Tensor], float, bool]]) -> Ascent:
    """Move each group (parameters, rho, adaptive) by eps_k = rho_k T_k^2 g_k / |T g|, T_k the identity or diag|w_k|.

    |T g| is the l2 norm over all groups with rho > 0: groups of one rho and one kind are SAM of them all together,
    and a group with rho = 0 neither moves nor counts. Otherwise as `ascend`.
    """
    moving = [(p, rho, adaptive) for group, rho, adaptive in groups if rho > 0 for p in group if p.grad is not None]
    (square,) = _totals(((p, _squared_norm(p, adaptive)) for p, _, adaptive in moving), terms=1)
    norm = math.sqrt(square)
    if norm == 0 or not math.isfinite(norm):  # an overflow of float16, say: its scaler then skips the step
        return Ascent([], norm - norm, EXACT)
    before = [(_local(parameter), _local(parameter).clone()) for parameter, _, _ in moving]
    moves = (
        (parameter, _move(parameter, base, rho / norm, adaptive))
        for (parameter, rho, adaptive), (_, base) in zip(moving, before, strict=True)
    )
    ascent = Ascent(before, math.nan, EXACT)
    try:
        intended, realized, product = _totals(moves, terms=3)
        cosine = product / math.sqrt(intended * realized) if realized else 0.0
        ascent = Ascent(before, math.sqrt(realized), Fidelity(math.sqrt(realized / intended), cosine))
        if not ascent.fidelity.faithful:  # the same words every time, so that Python shows them once, not every step
            warnings.warn(
                "SAM's ascent step was rounded to the weights' type, in norm or direction by more than 1% (see "
                "ascent.fidelity); keep the weights in float32 or raise rho.",
                MeasurementWarning,
                stacklevel=2,
            )
    except BaseException:  # Ctrl-C, or warnings that are errors: nobody but us could undo it
        ascent.undo()
        raise
    return ascent


def _local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this rank holds, sharing its memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def _pieces(parameter: Tensor) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Rows of this rank's part, their weights and their gradient; few at a time, to bound temporaries."""
    gradient = parameter.grad
    assert gradient is not None
    if gradient.layout != torch.strided:
        raise InputError("SAM takes no sparse gradients; build the embedding with sparse=False.")
    if isinstance(parameter, DTensor) and isinstance(gradient, DTensor):
        gradient = gradient.redistribute(placements=parameter.placements)
    weight, gradient = torch.atleast_1d(_local(parameter)), torch.atleast_1d(_local(gradient))
    size = 2**16 if weight.device.type == "cpu" else 2**24  # what a cache holds; few launches, 64 MiB each
    rows = max(1, size * len(weight) // max(1, weight.numel()))
    for start in range(0, len(weight), rows):
        piece = slice(start, start + rows)
        yield piece, weight[piece], gradient[piece]


def _direction(weight: Tensor, gradient: Tensor, adaptive: bool, power: int) -> Tensor:
    """T^power g in float32, of float64 weights in float64; T is the identity unless adaptive."""
    wide = torch.promote_types(weight.dtype, torch.float32)
    gradient = gradient.to(wide)
    return gradient * weight.to(wide).abs() ** power if adaptive else gradient


def _square(vector: Tensor) -> Tensor:
    """|vector|^2, summed in the widest float without a copy in it."""
    return torch.linalg.vector_norm(vector, dtype=wide_dtype(vector.device)).square()


def _squared_norm(parameter: Tensor, adaptive: bool) -> Tensor:
    """|T g|^2 of this rank's part, shape (1,)."""
    here = _local(parameter).device
    total = torch.zeros(1, dtype=wide_dtype(here), device=here)
    for _, weight, gradient in _pieces(parameter):
        total += _square(_direction(weight, gradient, adaptive, power=1))
    return total


def _move(parameter: Tensor, base: Tensor, scale: float, adaptive: bool) -> Tensor:
    """Move from `base` by scale T^2 g; |step|^2 intended and realized and their inner product, of this rank's part."""
    base, total = torch.atleast_1d(base), torch.zeros(3, dtype=wide_dtype(base.device), device=base.device)
    for rows, weight, gradient in _pieces(parameter):
        step = _direction(weight, gradient, adaptive, power=2) * scale
        weight.copy_(base[rows] + step)
        taken = weight.to(step.dtype) - base[rows]
        total += torch.stack([_square(step), _square(taken), step.flatten().dot(taken.flatten()).to(total.dtype)])
    return total


def _totals(sums: Iterable[tuple[Tensor, Tensor]], terms: int) -> list[float]:
    """Sums of (parameter, `terms` numbers) over all parameters and, where these are sharded, over their shards.

    One reduction for each way of sharding and one copy from each device, not one for each parameter.
    """
    groups: dict[Any, Tensor] = {}
    for parameter, numbers in sums:
        sharding = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
        key = (sharding, numbers.device)
        groups[key] = groups[key] + numbers if key in groups else numbers
    total = torch.zeros(terms, dtype=torch.float64)
    for (sharding, _), numbers in groups.items():
        if sharding:
            mesh, placements = sharding
            shares = [Replicate() if placement.is_replicate() else Partial() for placement in placements]
            numbers = DTensor.from_local(numbers, mesh, shares).full_tensor()
        total += numbers.cpu().double()
    return total.tolist()


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
    anew, `second_step()`. In between SAM keeps one copy of the weights that moved. Weight decay, momentum and all
    else are the base optimizer's. `ascent` has the realized radius and the fidelity of the last step.

    Under DDP and FSDP2 |g| is that of the whole model and the whole batch. Not FSDP1, whose flat shards torch shows as
    ordinary tensors: each rank would take its own norm.

    Raises InputError for a rho that is negative or not finite, and for steps out of order.
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
        self._share_state()
        self.defaults.update(self.base_optimizer.defaults)
        self.ascent: Ascent | None = None  # of the last step: radius and fidelity

    def _share_state(self) -> None:
        self.param_groups, self.state = self.base_optimizer.param_groups, self.base_optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        _check_radius(param_group.get("rho", 0))
        super().add_param_group(param_group)

    def first_step(self) -> Ascent:
        """Move to w + eps; the gradients in place must be those at w."""
        if self.ascent is not None and self.ascent.weights:
            raise InputError("SAM has taken its first step already: call second_step, or restore to go back to w.")
        self.ascent = ascend_groups((g["params"], g["rho"], g["adaptive"]) for g in self.param_groups)
        return self.ascent

    def restore(self) -> None:
        """Move back to w exactly, without a step."""
        if self.ascent is not None:
            self.ascent.undo()
            self.ascent = dataclasses.replace(self.ascent, weights=[])  # frees the copy, keeps the certificate

    def second_step(self) -> None:
        """Move back to w exactly, and take the base optimizer's step with the gradients in place."""
        if self.ascent is None:
            raise InputError("SAM's second_step comes after its first_step.")
        self.restore()
        self.base_optimizer.step()
        self._opt_called = True  # learning-rate schedulers look here for whether step was called before them

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One SAM step from two calls of `closure`; returns the loss at w."""
        if closure is None:
            raise InputError("SAM takes two gradients a step: call step(closure), or first_step and second_step.")
        with torch.enable_grad():
            loss = closure()
        self.first_step()
        try:
            with torch.enable_grad():
                closure()
        except BaseException:
            self.restore()  # an interrupted step leaves the weights where they were
            raise
        self.second_step()
        return loss

    def state_dict(self) -> dict:
        """The base optimizer's state; SAM itself keeps none between steps."""
        return self.base_optimizer.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        """Load a state of SAM or of the base optimizer alone, whose groups then get this SAM's rho and adaptive."""
        own = [{key: group[key] for key in ("rho", "adaptive")} for group in self.param_groups]
        self.base_optimizer.load_state_dict(state_dict)
        self._share_state()
        for group, ours in zip(self.param_groups, own, strict=True):
            group.update(ours | group)


class SAMTrainer(Trainer):
    """`transformers.Trainer` whose gradient is taken at w + rho g / |g|: two forward and backward passes a micro-batch.

    ascent  whose gradient g is. With gradient accumulation and several processes (DDP, FSDP2), of
            "batch"  the whole batch of the optimizer step, over all its micro-batches and processes: SAM as published
            "micro"  each micro-batch of each process: m-sharpness, m = per_device_train_batch_size
            "local"  each process's micro-batches of the step, together, without synchronization
            With "micro" and "local" the second gradients, taken at different weights, are averaged. Not with FSDP,
            where no process has weights of its own.

    The loss, its normalization by the step's number of items, and the loss logged (at w) are the Trainer's own.
    Clipping acts on the second gradient, and both passes of a micro-batch draw the same dropout. The weights' copy is
    the only extra memory; "micro" needs a gradient's more for a moment, at the ascent. float16's scaled gradients have
    the same direction; where one overflows there is no ascent and the scaler skips the step. `sam_radius` is logged
    beside the loss: the realized radius of the last ascent, of the logging process.

    Raises InputError for a rho that is no radius, an unknown ascent, DataParallel (several devices in one process),
    DeepSpeed, FSDP1, models sharded at load time, context and sequence parallelism, and optimizers that step inside
    backward().
    """

    def __init__(self, *args: Any, rho: float = 0.05, adaptive: bool = False, ascent: str = "batch", **kwargs: Any):
        super().__init__(*args, **kwargs)
        _check_radius(rho)
        if ascent not in ASCENTS:
            raise InputError(f"ascent={ascent!r} is none of {', '.join(ASCENTS)}.")
        self.rho, self.adaptive, self.ascent_over = rho, adaptive, ascent
        self.ascent: Ascent | None = None  # the last: radius and fidelity
        self._waiting: list[tuple[Any, _RandomState]] = []  # micro-batches whose second pass is due
        self._batches_an_ascent = 1
        self._refuse_what_would_be_wrong()

    def _refuse_what_would_be_wrong(self) -> None:
        sharded, optim = self.is_fsdp_enabled, str(self.args.optim).lower()
        refused = {
            "several devices in one process; set CUDA_VISIBLE_DEVICES or use torchrun": self.args.n_gpu > 1,
            "DeepSpeed; use FSDP2": self.is_deepspeed_enabled,
            "FSDP1; set version to 2 in fsdp_config": sharded and not self.accelerator.is_fsdp2,
            "FSDP on XLA": self.is_fsdp_xla_enabled,
            f"ascent={self.ascent_over!r} with FSDP; use 'batch'": sharded and self.ascent_over != "batch",
            "a model sharded at load time": getattr(self, "is_distributed_loading_by_transformers", False),
            "context or sequence parallelism": self.get_cp_size() > 1 or self.get_sp_size() > 1,
            f"{optim}, which steps inside backward()": "lomo" in optim or "layerwise" in optim,
        }
        for what, found in refused.items():
            if found:
                raise InputError(f"SAMTrainer does not take {what}.")

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._waiting = []
        self._batches_an_ascent = 1 if self.ascent_over == "micro" else len(batches)
        return batches, items

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of one micro-batch at w; with the last of an ascent, of all of them at w + eps."""
        if self.rho == 0:
            return super().training_step(model, inputs, num_items_in_batch)
        if not self._waiting:
            # gradients are here already if micro-batches had their ascent before, or an epoch's end tore a step
            self._held = [(p, p.grad) for p in model.parameters() if p.grad is not None]
            model.zero_grad()
        self._waiting.append((inputs, _RandomState()))
        own = self.ascent_over != "batch"
        with self.accelerator.no_sync(model) if own else contextlib.nullcontext():
            loss = super().training_step(model, inputs, num_items_in_batch)
        if len(self._waiting) == self._batches_an_ascent:
            self.ascent = ascend(model.parameters(), self.rho, self.adaptive)
            try:
                model.zero_grad()
                for parameter, gradient in self._held:
                    parameter.grad = gradient
                self._second_passes(model, num_items_in_batch)
            finally:
                self.ascent.undo()
                self.ascent = dataclasses.replace(self.ascent, weights=[])
                self._waiting, self._held = [], []
        return loss

    def _second_passes(self, model: Any, num_items_in_batch: Any) -> None:
        last = len(self._waiting) - 1
        for index, (inputs, random_state) in enumerate(self._waiting):
            random_state.restore()  # the same dropout: the second gradient must be of the same function
            # the last one synchronizes the processes' gradients, or not, as the Trainer called for
            with self.accelerator.no_sync(model) if index < last else contextlib.nullcontext():
                super().training_step(model, inputs, num_items_in_batch)

    def floating_point_ops(self, inputs: Any) -> int:
        return super().floating_point_ops(inputs) * (1 if self.rho == 0 else 2)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self.ascent is not None:
            logs["sam_radius"] = self.ascent.radius
        super().log(logs, *args, **kwargs)


class _RandomState:
    """Where the generators that dropout draws from stand."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
        self._mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None

    def restore(self) -> None:
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
