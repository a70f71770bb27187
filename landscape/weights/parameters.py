"""A model's parameters as one vector: names, ties, filters, inner products, seeded noise; a model left as it was."""

from __future__ import annotations

import contextlib
import dataclasses
import fnmatch
import hashlib
import random
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from landscape.errors import InputError
from landscape.parallel.sharding import check_sharding, cut_like, own_part, settle, summed_like, whole
from landscape.weights.filters import Filters, filters_of, head_dimension_of

Vector = Mapping[str, Tensor]  # parameter name -> tensor of that parameter's shape; absent names are zero


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
