"""Directions in parameter space: random filter-normalized, and between checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from landscape.errors import InputError, first_line
from landscape.parallel.sharding import cut_like, whole
from landscape.results import replacing
from landscape.weights.filters import NORMALIZATIONS
from landscape.weights.noise import noise_like
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import Vector, inner_product, vector_norm


@dataclasses.dataclass(frozen=True)
class Direction:
    """A direction in parameter space: a tensor by parameter name (absent names are zero), and how it was made."""

    tensors: Vector
    kind: str  # "random" | "difference" | "eigen"
    label: str  # for an axis
    normalize: str | None = None
    seed: int | None = None

    @property
    def norm(self) -> float:
        """l2 norm over all tensors."""
        return vector_norm(self.tensors)

    def cosine(self, other: Direction) -> float:
        """Cosine of the angle to `other`; NaN where one of the two is zero."""
        lengths = self.norm * other.norm
        return inner_product(self.tensors, other.tensors) / lengths if lengths else math.nan


def random_directions(
    model: nn.Module,
    count: int = 2,
    *,
    normalize: str = "filter",
    seed: int = 0,
    parameters: str | Sequence[str] | None = None,
    include_1d: bool = False,
    on_host: bool = False,
) -> list[Direction]:
    """`count` Gaussian directions, each filter scaled to the norm of the model's filter: d_f <- d_f |w_f| / |d_f|.

    Li et al. 2018 (arXiv 1712.09913), sec. 4. The draws are made orthogonal to each other first, so they are
    nearly so after scaling. What a filter is: `normalize`, see `filters.filters_of`; "none" keeps the raw
    N(0, I). 1-D tensors (gains, biases) stay out, as Li et al. leave them, unless `include_1d`, which treats each
    as one filter. The draw depends on `seed` and the tensors' names and shapes only: two checkpoints of one
    architecture get the same draw, each scaled to its own weights.

    One direction is one sample of a filter-weighted trace of the Hessian, with a relative spread of 35 to 53% on
    small transformers (SCIENCE 2.2): compare draws before believing a difference.

    A direction is as large as the tensors it moves, in float32 or wider; with `on_host` it is kept on the host.

    Raises InputError for an unknown `normalize`, a `count` below 1 or above the number of weights, or where no tensor
    is left to perturb.
    """
    if normalize not in NORMALIZATIONS:
        raise InputError(f"normalize={normalize!r} is none of {', '.join(NORMALIZATIONS)}.")
    if count < 1:
        raise InputError(f"count={count} directions; it takes at least one.")
    selected = Parameters(model, parameters)
    names = [entry.name for entry in selected if include_1d or entry.tensor.ndim >= 2]
    if not names:
        raise InputError("only 1-D tensors are selected, and random directions leave them out; set include_1d.")
    weights = sum(selected[name].numel() for name in names)
    if count > weights:
        raise InputError(f"count={count} directions in a space of {weights} weights.")
    directions: list[Direction] = []
    raw: list[dict[str, Tensor]] = []
    for index in range(count):
        draw = {name: _noise(selected[name], seed, f"direction {index}", name, on_host) for name in names}
        for earlier in raw:
            _remove_component(draw, earlier)
        raw.append(draw)
    for index, draw in enumerate(raw):
        if normalize != "none":
            _normalize(draw, selected, normalize, on_host)
        directions.append(Direction(draw, "random", f"random direction {index + 1}", normalize, seed))
    return directions


def _noise(tensor: Tensor, seed: int, stream: str, name: str, on_host: bool) -> Tensor:
    noise = noise_like(tensor, seed=seed, stream=stream, name=name)
    return _placed(noise.to(torch.promote_types(tensor.dtype, torch.float32)), on_host)


def _placed(tensor: Tensor, on_host: bool) -> Tensor:
    """The tensor, with `on_host` there; a sharded one stays where it is, a slice in each process."""
    return tensor.cpu() if on_host and not isinstance(tensor, DTensor) else tensor


def _remove_component(vector: dict[str, Tensor], other: Vector) -> None:
    """vector <- vector - <vector, other> / |other|^2 other, in place (Gram-Schmidt)."""
    coefficient = inner_product(vector, other) / inner_product(other, other)
    for name in vector:
        vector[name].sub_(other[name], alpha=coefficient)


def _normalize(draw: dict[str, Tensor], parameters: Parameters, mode: str, on_host: bool) -> None:
    """Scale every filter to the norm of the model's, a tensor at a time: there is never a second copy of the draw."""
    for name, drawn in draw.items():
        filters = parameters.filters(name, mode)
        weights = parameters[name].detach().to(drawn.dtype)
        noise = drawn.to(weights.device)
        ratio = filters.norms(weights) / filters.norms(noise)
        if isinstance(noise, DTensor):
            ratio = cut_like(ratio.expand(noise.shape), noise)
        draw[name] = _placed(noise * ratio, on_host)


def difference_direction(a: nn.Module, b: nn.Module, label: str = "a to b") -> Direction:
    """The direction from model `a` to model `b`: theta_b - theta_a over all distinct parameters, in float32 or wider.

    Raises InputError naming the first tensor whose shape differs.
    """
    values_a, values_b = Parameters(a, frozen=True).values(), Parameters(b, frozen=True).values()
    check_same_tensors(values_a, values_b)
    difference = {}
    for name, value in values_a.items():
        dtype = torch.promote_types(value.dtype, torch.float32)
        difference[name] = cut_like(values_b[name], value).to(value.device, dtype) - value.to(dtype)
    return Direction(difference, "difference", label)


def check_directions(directions: Sequence[Direction], parameters: Parameters) -> None:
    """Raise InputError where a direction does not fit `parameters`: names, shapes, values, or nothing but zeros."""
    for direction in directions:
        for name, tensor in direction.tensors.items():
            entry = parameters.named(name)
            if entry is None:
                raise InputError(f"{direction.label} has a tensor {name}, which is no parameter of the model.")
            if entry.name != name:
                raise InputError(
                    f"{direction.label} has a tensor {name}; tied, it goes by its first name, {entry.name}."
                )
            if entry.tensor.shape != tensor.shape:
                found, wanted = tuple(tensor.shape), tuple(entry.tensor.shape)
                raise InputError(f"{direction.label}: tensor {name} is {found}, the model's is {wanted}.")
            if not bool(whole(torch.isfinite(tensor).all())):
                raise InputError(f"{direction.label}: tensor {name} has values that are not finite.")
        if direction.norm == 0:
            first = next(iter(direction.tensors), "none")
            why = "; so are the weights it is scaled to" if direction.normalize not in (None, "none") else ""
            raise InputError(f"{direction.label} is zero in all its tensors ({first}, ...){why}.")


def check_same_tensors(a: Vector, b: Vector) -> None:
    """Raise InputError naming the first tensor that two models do not share, with both shapes."""
    for name in dict.fromkeys((*a, *b)):
        shape_a = tuple(a[name].shape) if name in a else "absent"
        shape_b = tuple(b[name].shape) if name in b else "absent"
        if shape_a != shape_b:
            raise InputError(f"the models differ: {name} is {shape_a} in the first and {shape_b} in the second.")


# --- files --------------------------------------------------------------------------------------------------


def save_directions(directions: Sequence[Direction], path: Path | str) -> None:
    """Write directions to a .safetensors file; `load_directions` reads them back bit for bit."""
    tensors = {
        f"{index}:{name}": whole(tensor.detach()).cpu().contiguous()
        for index, direction in enumerate(directions)
        for name, tensor in direction.tensors.items()
    }
    said = [[d.kind, d.label, d.normalize, d.seed] for d in directions]
    with replacing(path) as temporary:
        save_file(tensors, temporary, metadata={"directions": json.dumps(said)})


def load_directions(path: Path | str, model: nn.Module) -> list[Direction]:
    """Directions that `save_directions` wrote, on the device of each of `model`'s parameters.

    Raises InputError where the file is not of directions, or of another model's.
    """
    parameters = Parameters(model, frozen=True)
    try:
        with safe_open(path, framework="pt") as file:
            said = json.loads((file.metadata() or {})["directions"])
            tensors: list[dict[str, Tensor]] = [{} for _ in said]
            for key in file.keys():  # noqa: SIM118 - not a dict
                index, _, name = key.partition(":")
                tensors[int(index)][name] = file.get_tensor(key)
    except (OSError, KeyError, ValueError, IndexError, SafetensorError) as error:
        raise InputError(f"{path} does not hold directions: {first_line(error)}") from error
    placed = [
        {name: tensor.to(parameters[name].device) if name in parameters.names else tensor for name, tensor in t.items()}
        for t in tensors
    ]
    directions = [Direction(t, *rest) for t, rest in zip(placed, said, strict=True)]
    check_directions(directions, parameters)
    return directions
