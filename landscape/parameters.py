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
from transformers.pytorch_utils import Conv1D

from landscape.errors import InputError

Vector = Mapping[str, Tensor]  # parameter name -> tensor of that parameter's shape; absent names are zero

NORMALIZATIONS = ("filter", "unit", "head", "layer", "none")

# Linear maps that write into the residual stream: their units are inputs (SCIENCE 2.2: the input unit is what a
# function-preserving rescaling of the preceding value or up projection divides).
_OUTPUT_PROJECTIONS = {
    "o_proj",
    "out_proj",
    "c_proj",
    "dense_4h_to_h",
    "down_proj",
    "fc2",
    "fc_out",
    "wo",
    "w2",
}
_HEAD_INPUTS = {
    "q_proj",
    "k_proj",
    "v_proj",
    "qkv_proj",
    "c_attn",
    "query_key_value",
    "query",
    "key",
    "value",
    "Wqkv",
}
_HEAD_OUTPUTS = {"o_proj", "out_proj", "c_proj", "dense", "wo"}
_CHUNK = 2**24  # elements perturbed at a time: bounds the float64 temporaries to 128 MiB each


@dataclasses.dataclass(frozen=True)
class Filters:
    """How one tensor divides into filters: one filter per index of `axes`, or per `block` indices of a single axis.

    `axes=()` is one filter for the whole tensor.
    """

    axes: tuple[int, ...]
    block: int = 1

    def norms(self, tensor: Tensor) -> Tensor:
        """l2 norm of each filter, shaped to broadcast against `tensor`."""
        others = [axis for axis in range(tensor.ndim) if axis not in self.axes]
        norms = torch.linalg.vector_norm(tensor, dim=others, keepdim=True) if others else tensor.abs()
        if self.block > 1:
            (axis,) = self.axes
            blocks = norms.unflatten(axis, (-1, self.block))
            merged = torch.linalg.vector_norm(blocks, dim=axis + 1, keepdim=True)
            norms = merged.expand_as(blocks).flatten(axis, axis + 1)
        return norms


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
    parameters with `requires_grad=False` only with `frozen=True`.

    Raises InputError where nothing is left, naming the reason.
    """

    def __init__(self, model: nn.Module, patterns: str | Sequence[str] | None = None, *, frozen: bool = False):
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
                raise InputError(f"parameter {entry.name} has no data (it is on the meta device).")
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
        return filters_of(self._by_name[name], mode, _head_dimension(self.model) if mode == "head" else None)


def distinct_parameters(model: nn.Module) -> list[NamedParameter]:
    """Every parameter of `model` once, ties merged: the same object, or the same memory in the same layout."""
    first: dict[tuple, str] = {}
    found: dict[str, tuple[nn.Parameter, nn.Module, list[str]]] = {}
    for name, tensor in model.named_parameters(remove_duplicate=False):
        owner = model.get_submodule(name.rpartition(".")[0])
        key: tuple = (id(tensor),)
        if not tensor.is_meta and tensor.numel():
            key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if key in first:
            found[first[key]][2].append(name)
        else:
            first[key] = name
            found[name] = (tensor, owner, [])
    return [NamedParameter(name, t, owner, tuple(aliases)) for name, (t, owner, aliases) in found.items()]


# --- filters ------------------------------------------------------------------------------------------------


def filters_of(entry: NamedParameter, mode: str, head_dimension: int | None = None) -> Filters:
    """The filters of one tensor.

    filter  output units: rows of Linear, tokens of embeddings and heads, columns of GPT-2's Conv1D, output
            channels of convolutions; (expert, row) of stacked experts.
    unit    as filter, but input units of projections into the residual stream (o_proj, down_proj).
    head    as unit, but attention heads: blocks of `head_dimension` output units of q, k, v and of input units
            of the attention output. A tensor that does not divide into such blocks keeps its units.
    layer   the whole tensor.

    1-D tensors (gains, biases) are one filter in every mode. Raises InputError for an unknown mode.
    """
    if mode not in ("filter", "unit", "head", "layer"):
        raise InputError(f"normalize={mode!r} is none of {', '.join(NORMALIZATIONS)}.")
    tensor = entry.tensor
    if tensor.ndim < 2 or mode == "layer":
        return Filters(())
    out_axis, in_axis = _matrix_axes(entry)
    stack = (0,) if tensor.ndim == 3 and 0 not in (out_axis, in_axis) else ()  # stacked experts
    path = entry.name.split(".")
    leaf = path[-2] if path[-1] in ("weight", "bias") and len(path) > 1 else path[-1]
    parent = path[-3] if path[-1] in ("weight", "bias") and len(path) > 2 else ""
    in_attention = "att" in parent.lower()  # self_attn, attn, attention, SelfAttention
    writes_residual = leaf in _OUTPUT_PROJECTIONS or (leaf == "dense" and in_attention)
    if mode == "head" and head_dimension and not stack:
        axis = None
        if leaf in _HEAD_INPUTS:
            axis = out_axis
        elif leaf in _HEAD_OUTPUTS and in_attention:
            axis = in_axis
        if axis is not None and tensor.shape[axis] % head_dimension == 0:
            return Filters((axis,), head_dimension)
    if mode in ("unit", "head") and writes_residual:
        return Filters((*stack, in_axis))
    return Filters((*stack, out_axis))


def _matrix_axes(entry: NamedParameter) -> tuple[int, int]:
    """(output axis, input axis) of a tensor of two or more dimensions."""
    owner, tensor = entry.owner, entry.tensor
    if isinstance(owner, Conv1D):
        return 1, 0
    if isinstance(owner, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)):
        return 1, 0
    is_convolution = isinstance(owner, (nn.Conv1d, nn.Conv2d, nn.Conv3d))
    if tensor.ndim == 3 and not is_convolution and hasattr(owner, "num_experts"):
        # transformers stacks experts as (E, out, in), or (E, in, out) where it says is_transposed
        return (2, 1) if getattr(owner, "is_transposed", False) else (1, 2)
    return 0, 1


def _head_dimension(model: nn.Module) -> int:
    config = getattr(model, "config", None)
    heads = getattr(config, "num_attention_heads", None)
    if not heads:
        raise InputError("normalize='head' needs a transformers model whose config has num_attention_heads.")
    return getattr(config, "head_dim", None) or config.hidden_size // heads  # type: ignore[union-attr]


# --- linear algebra and noise -------------------------------------------------------------------------------


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest float the device computes in: perturbations and inner products are formed in it."""
    return torch.float32 if device.type == "mps" else torch.float64


def inner_product(u: Vector, v: Vector) -> float:
    """Sum over shared names of u*v, accumulated in float64."""
    total = 0.0
    for name in u:
        if name in v:
            left, right = u[name], v[name]
            wide = wide_dtype(left.device)
            total += float((left.to(wide) * right.to(left.device, wide)).sum())
    return total


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


def vector_digest(vector: Vector) -> str:
    """SHA-256 over names, types, shapes and bytes: tells whether weights or directions are the ones they were."""
    digest = hashlib.sha256()
    for name, tensor in vector.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor in C order, whatever its type and device."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


# --- perturb and restore ------------------------------------------------------------------------------------


class Excursion:
    """Moves a model's parameters, always from the exact base, never by accumulating steps. See `excursion`."""

    def __init__(self, parameters: Parameters):
        self._parameters = parameters
        self._base: dict[str, Tensor] = {}  # copies of the tensors that moved; the others are their own
        self._moved: set[str] = set()

    @torch.no_grad()
    def move(self, terms: Sequence[tuple[float, Vector]], base_coefficient: float = 1.0) -> Fidelity:
        """Set the parameters to base_coefficient * base + the sum of coefficient * vector.

        The sum is formed in float64 (float32 where the device has no more) and rounded once, to the weights'
        own type; so (1 - t) base + t other is `other` bit for bit at t = 1. Returns the fidelity of the step
        from the base that the rounded weights really took.
        """
        terms = [(coefficient, vector) for coefficient, vector in terms if coefficient != 0]
        touched = [e.name for e in self._parameters if base_coefficient != 1 or any(e.name in v for _, v in terms)]
        self._remember([name for name in touched if name not in self._base])
        sums: Tensor | None = None  # |intended|^2, |realized|^2, <intended, realized>
        for entry in self._parameters:
            active = [(c, vector[entry.name]) for c, vector in terms if entry.name in vector]
            if not active and base_coefficient == 1:
                self._restore(entry.name)
                continue
            self._moved.add(entry.name)
            part = _move_tensor(entry.tensor, self._base[entry.name], base_coefficient, active)
            sums = part.cpu() if sums is None else sums + part.cpu()
        if sums is None or sums[0] == 0:
            return EXACT
        intended, realized, product = (float(s) for s in sums)
        if realized == 0:
            return Fidelity(0.0, 0.0)
        return Fidelity((realized / intended) ** 0.5, product / (intended**0.5 * realized**0.5))

    def _remember(self, names: Sequence[str]) -> None:
        if names:
            self.restore()  # tensors may share memory: what is copied must not show another's step
            self._base |= {name: self._parameters[name].detach().clone() for name in names}

    @torch.no_grad()
    def restore(self) -> None:
        """Set every parameter back to the base, bit for bit."""
        for name in list(self._moved):
            self._restore(name)

    def _restore(self, name: str) -> None:
        if name in self._moved:
            self._parameters[name].detach().copy_(self._base[name])
            self._moved.discard(name)


def _move_tensor(
    tensor: Tensor, base: Tensor, base_coefficient: float, active: Sequence[tuple[float, Tensor]]
) -> Tensor:
    """Write the combination into `tensor`, chunk by chunk; returns the three sums that fidelity needs."""
    wide = wide_dtype(tensor.device)
    target = tensor.detach()
    in_place = target.is_contiguous()
    base_flat = base.reshape(-1)
    flat = target.view(-1) if in_place else torch.empty_like(base_flat)
    vectors = [(coefficient, vector.reshape(-1)) for coefficient, vector in active]
    sums = torch.zeros(3, dtype=wide, device=tensor.device)
    for start in range(0, base_flat.numel(), _CHUNK):
        piece = slice(start, start + _CHUNK)
        origin = base_flat[piece].to(wide)
        place = base_coefficient * origin
        for coefficient, vector in vectors:
            place += coefficient * vector[piece].to(origin.device, wide)
        flat[piece] = place.to(tensor.dtype)
        intended, realized = place - origin, flat[piece].to(wide) - origin
        sums += torch.stack([intended.dot(intended), realized.dot(realized), intended.dot(realized)])
    if not in_place:
        target.copy_(flat.view(base.shape))
    return sums


@contextlib.contextmanager
def excursion(parameters: Parameters) -> Iterator[Excursion]:
    """Perturb a model inside the block; afterwards its weights are bit-identical, also when the block raises."""
    trip = Excursion(parameters)
    try:
        yield trip
    finally:
        trip.restore()


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Evaluation mode and no gradients inside the block; afterwards flags, gradients, buffers and RNG as before."""
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
        yield
    finally:
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
