"""Perturb a model and restore it bit for bit, and measure how much of a step the rounded weights took."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from landscape.linalg.precision import wide_dtype
from landscape.parallel.sharding import cut_like, own_part, settle, slice_of, summed_like
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import Vector

# Elements perturbed at a time: temporaries that stay in the cache of a CPU, or are bounded on a GPU.
_CHUNK_CPU, _CHUNK = 2**17, 2**24
_NARROW = (torch.float32, torch.bfloat16, torch.float16)


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How much of an intended perturbation the weights took; both numbers are 1 where rounding did no harm.

    A step smaller than half a unit in the last place of a weight vanishes when it is rounded, which is common in half
    precision.

    Attributes:
        norm_ratio: |realized step| / |intended step|.
        cosine: Cosine of the angle between the realized and the intended step.
    """

    norm_ratio: float
    cosine: float

    @property
    def faithful(self) -> bool:
        """Whether norm and direction are right to one percent: a perturbation lost to rounding measures nothing."""
        return self.cosine >= 0.99 and abs(self.norm_ratio - 1) <= 0.01

    def worse(self, other: Fidelity) -> Fidelity:
        """Return the worse of two, in norm and in direction; NaN is worst (the step left the finite values)."""
        ratio = max(self.norm_ratio, other.norm_ratio, key=lambda r: math.inf if math.isnan(r) else abs(r - 1))
        return Fidelity(ratio, min(self.cosine, other.cosine, key=lambda c: -math.inf if math.isnan(c) else c))


EXACT = Fidelity(1.0, 1.0)


class Excursion:
    """Moves a model's parameters, always from the exact base and never by accumulating steps. See `excursion`.

    Args:
        parameters: The parameters to move.
        offload_base: Whether the copy of the base is kept in the host's memory.
    """

    def __init__(self, parameters: Parameters, offload_base: bool = False):
        self._parameters = parameters
        self._offload = offload_base
        self._base: dict[str, Tensor] = {}  # copies of the tensors (slices) that moved; the others are their own
        self._moved: set[str] = set()
        # two chunks of float32 for each device: memory asked for anew at each step costs more than the arithmetic
        self._scratch: dict[torch.device, list[Tensor]] = {}

    @torch.no_grad()
    def move(self, terms: Sequence[tuple[float, Vector]], base_coefficient: float = 1.0) -> Fidelity:
        """Set the parameters to base_coefficient * base + the sum of coefficient * vector.

        A step from the base is formed in float32, added to it in float32 and rounded once to the weights' own type.
        Where all coefficients sum to 1, as on the line from the base to another model, the step is the sum of
        coefficient * (vector - base), and a single vector with coefficient 1 is taken bit for bit. With float64 weights
        or vectors, or other coefficients, everything is formed in float64 (float32 where the device has no more).

        Args:
            terms: Pairs of a coefficient and a vector. A vector's tensors are asked for one at a time, in the order of
                the parameters.
            base_coefficient: Coefficient of the base.

        Returns:
            The fidelity of the step from the base that the rounded weights really took.
        """
        settle(self._parameters.model)
        terms = [(coefficient, vector) for coefficient, vector in terms if coefficient != 0]
        touched = [e.name for e in self._parameters if base_coefficient != 1 or any(e.name in v for _, v in terms)]
        self._remember([name for name in touched if name not in self._base])
        for name in self._moved.difference(touched):
            self._restore(name)
        if not touched:
            return EXACT
        is_between = abs(base_coefficient + sum(coefficient for coefficient, _ in terms) - 1) < 1e-12
        narrow = base_coefficient == 1 or (is_between and all(name in v for name in touched for _, v in terms))
        sums = self._step(touched, terms, base_coefficient, narrow=narrow)
        if narrow and not 1e-20 < sums[0] < 1e20:  # squares may have left float32
            sums = self._step(touched, terms, base_coefficient, narrow=False)
        intended, realized, product = sums
        if intended == 0:
            return EXACT
        if realized == 0:
            return Fidelity(0.0, 0.0)
        return Fidelity((realized / intended) ** 0.5, product / (intended**0.5 * realized**0.5))

    def _step(
        self, names: Sequence[str], terms: Sequence[tuple[float, Vector]], base_coefficient: float, *, narrow: bool
    ) -> list[float]:
        """Move the tensors `names`; return |intended|^2, |realized|^2 and <intended, realized> over all of them."""
        parts: dict[
            torch.device, list[Tensor]
        ] = {}  # No sum leaves its device before the end, because that would wait for it.
        for name in names:
            tensor = self._parameters[name]
            target, base = own_part(tensor), self._base[name]
            active = [(c, own_part(cut_like(vector[name], tensor))) for c, vector in terms if name in vector]
            sums = parts.setdefault(target.device, [])
            self._moved.add(name)  # before it is written to: what ends this half-way must not leave it so
            if narrow and all(t.dtype in _NARROW for t in (target, *(v for _, v in active))):
                sums += _step_tensor(target, base, base_coefficient, active, self._scratch_for(target))
            else:
                sums += _move_tensor(target, base, base_coefficient, active)
        total = torch.zeros(3, dtype=torch.float64)
        for device_sums in parts.values():
            if device_sums:
                total += torch.stack(device_sums).view(-1, 3).cpu().double().sum(0)
        return summed_like(total, self._parameters[names[0]]).tolist()

    def _scratch_for(self, target: Tensor) -> list[Tensor]:
        """Return the two scratch tensors of a device, made when they are first needed."""
        if target.device not in self._scratch:
            largest = max(own_part(t).numel() for t in self._parameters.tensors if own_part(t).device == target.device)
            size = max(1, min(largest, _chunk(target)))  # a process may hold no slice of any of them
            self._scratch[target.device] = [torch.empty(size, device=target.device) for _ in range(2)]
        return self._scratch[target.device]

    def base(self, name: str) -> Tensor:
        """Return the exact base of a tensor, on its device, wherever the model has been moved since."""
        tensor = self._parameters[name].detach()
        if name not in self._moved:
            return tensor
        part = self._base[name].to(own_part(tensor).device)
        return slice_of(part, tensor) if isinstance(tensor, DTensor) else part

    def _remember(self, names: Sequence[str]) -> None:
        """Copy the base of tensors that will be moved for the first time."""
        if names:
            self.restore()  # tensors may share memory: what is copied must not show another's step
            self._base |= {name: self._copied(own_part(self._parameters[name])) for name in names}

    def _copied(self, tensor: Tensor) -> Tensor:
        """Copy a tensor, to the host where `offload_base` asks for it."""
        if not self._offload or tensor.device.type == "cpu":
            return tensor.clone()
        pinned = torch.empty_like(tensor, device="cpu", pin_memory=tensor.device.type == "cuda")
        return pinned.copy_(tensor)

    @torch.no_grad()
    def restore(self) -> None:
        """Set every parameter back to the base, bit for bit."""
        settle(self._parameters.model)
        for name in list(self._moved):
            self._restore(name)

    def _restore(self, name: str) -> None:
        """Set one tensor back to the base where it was moved."""
        if name in self._moved:
            own_part(self._parameters[name]).copy_(self._base[name])
            self._moved.discard(name)


def _chunk(target: Tensor) -> int:
    """Return the number of elements that are perturbed at a time."""
    return _CHUNK_CPU if target.device.type == "cpu" else _CHUNK


@contextlib.contextmanager
def _flat(target: Tensor) -> Iterator[Tensor]:
    """Yield `target` as one row that can be written to."""
    if target.is_contiguous():
        yield target.view(-1)
    else:
        row = torch.empty(target.numel(), dtype=target.dtype, device=target.device)
        yield row
        target.copy_(row.view(target.shape))


def _step_tensor(
    target: Tensor,
    base: Tensor,
    base_coefficient: float,
    active: Sequence[tuple[float, Tensor]],
    scratch: Sequence[Tensor],
) -> list[Tensor]:
    """Write base + the step into `target`, in float32; return three sums of fidelity for each chunk.

    With the base coefficient 1 the step is the sum of the terms, and otherwise that of coefficient * (vector - base).
    What lives on another device comes to the target's a chunk at a time, in its own type.
    """
    base, sums = base.reshape(-1), []
    vectors = [(coefficient, vector.reshape(-1)) for coefficient, vector in active]
    is_between = base_coefficient != 1
    is_other = is_between and len(active) == 1 and active[0][0] == 1
    chunk = scratch[0].numel()
    with _flat(target) as flat:
        for start in range(0, flat.numel(), chunk):
            piece = slice(start, start + chunk)
            place, origin = flat[piece], base[piece].to(target.device)
            step, realized = (part[: place.numel()] for part in scratch)
            for index, (coefficient, vector) in enumerate(vectors):
                part = vector[piece].to(target.device)
                if is_between:
                    part = torch.sub(part.float(), origin, out=realized)
                if index == 0:
                    torch.mul(part.float(), coefficient, out=step)
                else:
                    step.add_(part, alpha=coefficient)
            if is_other:
                place.copy_(vectors[0][1][piece])  # base + (other - base) may be a rounding away
            else:
                torch.add(origin, step, out=place)  # in float32, rounded on the way
            torch.sub(place.float(), origin, out=realized)
            sums += [step.dot(step), realized.dot(realized), step.dot(realized)]
    return sums


def _move_tensor(
    target: Tensor, base: Tensor, base_coefficient: float, active: Sequence[tuple[float, Tensor]]
) -> list[Tensor]:
    """Write base_coefficient * base + the terms into `target`, in float64; otherwise as `_step_tensor`."""
    wide, sums = wide_dtype(target.device), []
    base, active = base.reshape(-1), [(c, v.reshape(-1)) for c, v in active]
    with _flat(target) as flat:
        for start in range(0, base.numel(), _chunk(target)):
            piece = slice(start, start + _chunk(target))
            origin = base[piece].to(target.device).to(wide)
            place = base_coefficient * origin
            intended = (base_coefficient - 1) * origin  # summed apart: beside the base, a tiny step would vanish
            for coefficient, vector in active:
                term = coefficient * vector[piece].to(target.device).to(wide)
                place += term
                intended += term
            flat[piece] = place.to(target.dtype)
            realized = flat[piece].to(wide) - origin
            sums += [intended.dot(intended), realized.dot(realized), intended.dot(realized)]
    return sums


@contextlib.contextmanager
def excursion(parameters: Parameters, *, offload_base: bool = False) -> Iterator[Excursion]:
    """Perturb a model inside the block; afterwards its weights are bit-identical, also when the block raises.

    Args:
        parameters: The parameters to move.
        offload_base: Whether the copy of the weights that move is kept in the host's memory, rather than beside them.

    Yields:
        The excursion, whose `move` sets the weights.

    Example:
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> before = model.weight.item()
        >>> with excursion(Parameters(model)) as trip:
        ...     fidelity = trip.move([(0.5, {"weight": torch.ones(1, 1)})])
        ...     moved = model.weight.item()
        >>> round(moved - before, 4), fidelity.faithful, model.weight.item() == before
        (0.5, True, True)
    """
    trip = Excursion(parameters, offload_base)
    try:
        yield trip
    finally:
        trip.restore()
