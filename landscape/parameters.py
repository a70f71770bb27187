"""A model's parameters as one vector: names, ties, filters, inner products, seeded noise, exact perturb and restore."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import math
import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from landscape.errors import InputError
from landscape.filters import Filters, filters_of, head_dimension_of
from landscape.sharding import check_sharding, cut_like, own_part, settle, slice_of, summed_like, whole

Vector = Mapping[str, Tensor]  # parameter name -> tensor of that parameter's shape; absent names are zero

# Elements perturbed at a time: float64 temporaries that stay in the cache of a CPU (2 MiB), or are bounded on a GPU.
_CHUNK_CPU, _CHUNK = 2**18, 2**24


@dataclasses.dataclass(frozen=True)
class NamedParameter:
    """One distinct tensor of the model, under its first name; tied names are `aliases`."""

    name: str
    tensor: nn.Parameter
    owner: nn.Module
    aliases: tuple[str, ...] = ()

    def matches(self, globs: Sequence[str]) -> bool:
        """Whether any of its names matches any of the shell globs."""
        return any(fnmatch.fnmatchcase(name, glob) for glob in globs for name in (self.name, *self.aliases))


@dataclasses.dataclass(frozen=True)
class Fidelity:
    """How much of an intended perturbation the weights took; both are 1 where rounding did no harm."""

    norm_ratio: float  # |realized step| / |intended step|
    cosine: float  # between realized and intended step

    @property
    def faithful(self) -> bool:
        """Whether norm and direction are right to one percent (DESIGN, law 4)."""
        return self.cosine >= 0.99 and abs(self.norm_ratio - 1) <= 0.01

    def worse(self, other: Fidelity) -> Fidelity:
        """The worse of two, in norm and in direction; NaN, of a step to where nothing is finite, is worst."""
        ratio = max(self.norm_ratio, other.norm_ratio, key=lambda r: math.inf if math.isnan(r) else abs(r - 1))
        return Fidelity(ratio, min(self.cosine, other.cosine, key=lambda c: -math.inf if math.isnan(c) else c))


EXACT = Fidelity(1.0, 1.0)


class Parameters:
    """The distinct trainable tensors of a model, as one vector.

    `patterns` are shell globs over names (`"model.layers.*.mlp.*"`). Tied tensors appear once; buffers never;
    parameters with `requires_grad=False` only with `frozen=True`. Those of a model that `fully_shard` cut are
    `DTensor`s: shapes and `numel` are those of the whole tensors.

    Raises InputError where nothing is left, naming the reason, and for weights that are not on a device.
    """

    def __init__(self, model: nn.Module, patterns: str | Sequence[str] | None = None, *, frozen: bool = False):
        settle(model)
        self.model = model
        globs = [patterns] if isinstance(patterns, str) else patterns
        entries = [entry for entry in distinct_parameters(model) if frozen or entry.tensor.requires_grad]
        if not entries:
            raise InputError("the model has no trainable parameter (requires_grad is False for all of them).")
        if globs is not None:
            entries = [e for e in entries if e.matches(globs)]
            if not entries:
                raise InputError(f"parameters={patterns!r} matches no trainable parameter of the model.")
        for entry in entries:
            if entry.tensor.is_meta:
                raise InputError(
                    f"parameter {entry.name} has no data on a device: it is on meta, or offloaded to the host or disk "
                    "by its device_map; spread the model over devices that hold it, or shard it with fully_shard."
                )
        check_sharding([entry.name for entry in entries], [entry.tensor for entry in entries])
        self.entries = tuple(entries)
        self._by_name = {entry.name: entry for entry in entries}

    def __iter__(self) -> Iterator[NamedParameter]:
        return iter(self.entries)

    def __getitem__(self, name: str) -> Tensor:
        return self._by_name[name].tensor

    def named(self, name: str) -> NamedParameter | None:
        """The entry that has `name`, or to which it is tied; None where there is none."""
        return self._by_name.get(name) or next((entry for entry in self.entries if name in entry.aliases), None)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._by_name)

    @property
    def tensors(self) -> tuple[nn.Parameter, ...]:
        return tuple(entry.tensor for entry in self.entries)

    @property
    def numel(self) -> int:
        return sum(entry.tensor.numel() for entry in self.entries)

    def values(self) -> dict[str, Tensor]:
        """Detached views of the current tensors by name (no copy)."""
        return {entry.name: entry.tensor.detach() for entry in self.entries}

    def filters(self, name: str, mode: str) -> Filters:
        """The filters of tensor `name` under normalization `mode` (SCIENCE 2.2; Li et al. 2018, sec. 4)."""
        return filters_of(self._by_name[name], mode, head_dimension_of(self.model) if mode == "head" else None)


def distinct_parameters(model: nn.Module) -> list[NamedParameter]:
    """Every parameter of `model` once, ties merged: the same object, or the same memory in the same layout."""
    first: dict[tuple, str] = {}
    found: dict[str, tuple[nn.Parameter, nn.Module, list[str]]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        owner = model.get_submodule(name.rpartition(".")[0])
        key: tuple = (id(tensor),)
        part = own_part(tensor)
        if not part.is_meta and part.numel():
            key = (part.device, part.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key in first:
            found[first[key]][2].append(name)
        else:
            first[key] = name
            found[name] = (tensor, owner, [])
    return [NamedParameter(name, t, owner, tuple(aliases)) for name, (t, owner, aliases) in found.items()]


# --- linear algebra and noise -------------------------------------------------------------------------------


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest float the device computes in: perturbations and inner products are formed in it."""
    return torch.float32 if device.type == "mps" else torch.float64


def inner_product(u: Vector, v: Vector) -> float:
    """Sum over shared names of u*v, accumulated in float64."""
    total = 0.0
    shared: Tensor | None = None  # a tensor of the first of them
    for name in u:
        if name in v:
            shared = u[name] if shared is None else shared
            left, right = own_part(u[name]), own_part(v[name])
            wide = wide_dtype(left.device)
            total += float((left.to(wide) * right.to(left.device, wide)).sum())
    return total if shared is None else float(summed_like(torch.tensor(total, dtype=torch.float64), shared))


def vector_norm(u: Vector) -> float:
    """l2 norm over all tensors, accumulated in float64."""
    return inner_product(u, u) ** 0.5


def gaussian_noise(shape: Sequence[int], *, seed: int, stream: str, name: str) -> Tensor:
    """Standard normal float32 noise that depends on `seed`, `stream` and the tensor's `name` and on nothing else.

    Counter-based (Philox, Salmon et al. 2011), keyed by a hash: the same on every machine and device, in any order.
    """
    key = hashlib.sha256(f"{seed}\0{stream}\0{name}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def noise_like(tensor: Tensor, *, seed: int, stream: str, name: str) -> Tensor:
    """`gaussian_noise` shaped as `tensor`, on its device; of a sharded one this process's slice of the whole draw."""
    noise = gaussian_noise(tensor.shape, seed=seed, stream=stream, name=name)
    return cut_like(noise, tensor).to(tensor.device)


def vector_digest(vector: Vector) -> str:
    """SHA-256 over names, types, shapes and bytes: tells whether weights or directions are the ones they were."""
    digest = hashlib.sha256()
    for name, tensor in vector.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in C order, whatever its type and device; of all of a sharded one."""
    return whole(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


# --- perturb and restore ------------------------------------------------------------------------------------


class Excursion:
    """Moves a model's parameters, always from the exact base, never by accumulating steps. See `excursion`."""

    def __init__(self, parameters: Parameters, offload_base: bool = False):
        self._parameters = parameters
        self._offload = offload_base
        self._base: dict[str, Tensor] = {}  # copies of the tensors (slices) that moved; the others are their own
        self._moved: set[str] = set()

    @torch.no_grad()
    def move(self, terms: Sequence[tuple[float, Vector]], base_coefficient: float = 1.0) -> Fidelity:
        """Set the parameters to base_coefficient * base + the sum of coefficient * vector.

        A step from the base of float32 weights is summed in float32 and added to it; anything else is formed in
        float64 (float32 where the device has no more) and rounded once, to the weights' own type. So (1 - t) base +
        t other is `other` bit for bit at t = 1. Returns the fidelity of the step from the base that the rounded
        weights really took.

        A vector's tensors are asked for one at a time, in the order of the parameters.
        """
        settle(self._parameters.model)
        terms = [(coefficient, vector) for coefficient, vector in terms if coefficient != 0]
        touched = [e.name for e in self._parameters if base_coefficient != 1 or any(e.name in v for _, v in terms)]
        self._remember([name for name in touched if name not in self._base])
        sums: Tensor | None = None  # |intended|^2, |realized|^2, <intended, realized>
        for entry in self._parameters:
            active = [(c, cut_like(vector[entry.name], entry.tensor)) for c, vector in terms if entry.name in vector]
            if not active and base_coefficient == 1:
                self._restore(entry.name)
                continue
            self._moved.add(entry.name)
            moved = own_part(entry.tensor)
            part = _move_tensor(moved, self._base[entry.name], base_coefficient, [(c, own_part(v)) for c, v in active])
            sums = part.cpu() if sums is None else sums + part.cpu()
        if sums is not None:
            sums = summed_like(sums, self._parameters.tensors[0])
        if sums is None or sums[0] == 0:
            return EXACT
        intended, realized, product = (float(s) for s in sums)
        if realized == 0:
            return Fidelity(0.0, 0.0)
        return Fidelity((realized / intended) ** 0.5, product / (intended**0.5 * realized**0.5))

    def base(self, name: str) -> Tensor:
        """The exact base of a tensor, on its device, wherever the model is by now."""
        tensor = self._parameters[name].detach()
        if name not in self._moved:
            return tensor
        part = self._base[name].to(own_part(tensor).device)
        return slice_of(part, tensor) if isinstance(tensor, DTensor) else part

    def _remember(self, names: Sequence[str]) -> None:
        if names:
            self.restore()  # tensors may share memory: what is copied must not show another's step
            self._base |= {name: self._copied(own_part(self._parameters[name])) for name in names}

    def _copied(self, tensor: Tensor) -> Tensor:
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
        if name in self._moved:
            own_part(self._parameters[name]).copy_(self._base[name])
            self._moved.discard(name)


def _move_tensor(
    target: Tensor, base: Tensor, base_coefficient: float, active: Sequence[tuple[float, Tensor]]
) -> Tensor:
    """Write the combination into `target`, chunk by chunk; returns the three sums that fidelity needs.

    What lives elsewhere comes to the target's device a chunk at a time, in its own type.
    """
    wide = wide_dtype(target.device)
    steps_in_float32 = base_coefficient == 1 and {target.dtype, *(v.dtype for _, v in active)} == {torch.float32}
    in_place = target.is_contiguous()
    base_flat = base.reshape(-1)
    flat = target.view(-1) if in_place else torch.empty_like(base_flat, device=target.device)
    vectors = [(coefficient, vector.reshape(-1)) for coefficient, vector in active]
    sums = torch.zeros(3, dtype=wide, device=target.device)
    chunk = _CHUNK_CPU if target.device.type == "cpu" else _CHUNK
    for start in range(0, base_flat.numel(), chunk):
        piece = slice(start, start + chunk)
        if steps_in_float32:
            origin = base_flat[piece].to(target.device)
            intended = _combined([(c, v[piece].to(target.device)) for c, v in vectors])
            realized = torch.add(origin, intended, out=flat[piece]) - origin
            square = intended.dot(intended)
            if 1e-20 < square < 1e20:  # else squares may leave float32
                sums += torch.stack([square, realized.dot(realized), intended.dot(realized)])
                continue
        origin = base_flat[piece].to(target.device).to(wide)
        place = base_coefficient * origin
        for coefficient, vector in vectors:
            place += coefficient * vector[piece].to(target.device).to(wide)
        flat[piece] = place.to(target.dtype)
        intended, realized = place.sub_(origin), flat[piece].to(wide) - origin
        sums += torch.stack([intended.dot(intended), realized.dot(realized), intended.dot(realized)])
    if not in_place:
        target.copy_(flat.view(base.shape))
    return sums


def _combined(terms: Sequence[tuple[float, Tensor]]) -> Tensor:
    (coefficient, vector), *others = terms
    step = coefficient * vector
    for coefficient, vector in others:
        step.add_(vector, alpha=coefficient)
    return step


@contextlib.contextmanager
def excursion(parameters: Parameters, *, offload_base: bool = False) -> Iterator[Excursion]:
    """Perturb a model inside the block; afterwards its weights are bit-identical, also when the block raises.

    Needs one copy of the weights that move, beside them; with `offload_base` on the host.
    """
    trip = Excursion(parameters, offload_base)
    try:
        yield trip
    finally:
        trip.restore()


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside the block; afterwards flags, gradients, buffers and RNG as before.

    A caller's autocast is off inside the block: it would reach into gradients of gradients too.
    """
    settle(model)
    kinds = {"cpu", *(parameter.device.type for parameter in model.parameters())} - {"meta"}
    training = [(module, module.training) for module in model.modules()]
    requires_grad = [(p, p.requires_grad) for p in model.parameters()]
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(module, name, buffer, buffer.detach().clone()) for module, name, buffer in _buffers(model)]
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002 - others' global state, kept for them
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        model.eval()
        for parameter, _ in gradients:
            parameter.grad = None  # a backward() in the block would add to the caller's tensor in place
        with contextlib.ExitStack() as exact:
            for kind in kinds:
                exact.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        settle(model)
        for module, flag in training:
            module.training = flag
        for parameter, flag in requires_grad:
            parameter.requires_grad_(flag)
        for parameter, gradient in gradients:
            parameter.grad = gradient
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                module._buffers[name] = buffer
                buffer.copy_(value)
        random.setstate(python_state)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)
        if cuda_states is not None:
            torch.cuda.set_rng_state_all(cuda_states)


def _buffers(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer
