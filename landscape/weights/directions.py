"""Directions in parameter space: random ones, scaled to a model's weights, and those from one model to another."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from landscape.errors import InputError, as_typed, first_line
from landscape.parallel.sharding import cut_like, whole
from landscape.results import replacing, save_tensors
from landscape.weights.filters import NORMALIZATIONS
from landscape.weights.noise import noise_like
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import Vector, inner_product, vector_norm


@dataclasses.dataclass(frozen=True, eq=False)
class Direction:
    """A direction in parameter space, and how it was made.

    Attributes:
        tensors: A tensor by parameter name, in the shape of the parameter; absent names are zero.
        kind: "random", "difference" or "eigen".
        label: Words for an axis.
        normalize: How a random direction was scaled (see `random_directions`); None for other kinds.
        seed: Seed of a random direction; None for other kinds.

    Example:
        >>> along_x = Direction({"weight": torch.tensor([3.0, 0.0])}, kind="difference", label="x")
        >>> diagonal = Direction({"weight": torch.tensor([1.0, 1.0])}, kind="difference", label="x + y")
        >>> along_x.norm, round(along_x.cosine(diagonal), 4)
        (3.0, 0.7071)
    """

    tensors: Vector
    kind: str
    label: str
    normalize: str | None = None
    seed: int | None = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Direction):
            return NotImplemented
        if self._made() != other._made() or self.tensors.keys() != other.tensors.keys():
            return False
        return all(torch.equal(tensor, other.tensors[name]) for name, tensor in self.tensors.items())

    def __hash__(self) -> int:
        return hash((self._made(), frozenset(self.tensors)))

    def _made(self) -> tuple[str, str, str | None, int | None]:
        """Return how it was made."""
        return self.kind, self.label, self.normalize, self.seed

    @property
    def norm(self) -> float:
        """l2 norm over all tensors."""
        return vector_norm(self.tensors)

    def cosine(self, other: Direction) -> float:
        """Return the cosine of the angle to `other`; NaN where one of the two is zero."""
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
    """Draw Gaussian directions and scale each filter to the norm of the model's filter: d_f <- d_f |w_f| / |d_f|.

    The draws are made orthogonal to each other before they are scaled, and are nearly orthogonal afterwards. A draw
    depends only on `seed` and on the tensors' names and shapes, so two checkpoints of one architecture get the same
    draw, each scaled to its own weights.

    One direction is one sample of a filter-weighted trace of the Hessian. `metrics_over_draws` measures how far the
    numbers of surfaces along several draws differ; compare several before you believe a difference.

    Args:
        model: Any module.
        count: Number of directions.
        normalize: What a filter is: "filter" (an output unit), "unit" (an output unit, but an input unit for
            projections into the residual stream), "head" (an attention head where there is one) or "layer" (a whole
            tensor); see `filters.filters_of`. "none" keeps the raw draw from N(0, I).
        seed: Seed of the draws.
        parameters: Shell globs over parameter names; None takes all trainable tensors.
        include_1d: Whether 1-D tensors (gains, biases) take part, each as one filter. Li et al. leave them out.
        on_host: Whether the directions are kept in the host's memory. Each is as large as the tensors it moves, in
            float32 or wider.

    Returns:
        `count` directions.

    Raises:
        InputError: `normalize` is unknown, `count` is below 1 or above the number of weights, or no tensor is left to
            perturb.

    Source:
        Li, Xu, Taylor, Studer and Goldstein 2018 (arXiv 1712.09913), section 4.

    Example:
        >>> model = nn.Linear(4, 2)
        >>> (direction,) = random_directions(model, 1, seed=3)
        >>> list(direction.tensors)  # the bias is 1-D, and stays where it is
        ['weight']
        >>> torch.allclose(direction.tensors["weight"].norm(dim=1), model.weight.norm(dim=1))
        True
    """
    if normalize not in NORMALIZATIONS:
        raise InputError(f"{as_typed('normalize', normalize)} is none of {', '.join(NORMALIZATIONS)}.")
    if count < 1:
        raise InputError(f"count={count} is too small: at least one direction is needed.")
    selected = Parameters(model, parameters)
    names = [entry.name for entry in selected if include_1d or entry.tensor.ndim >= 2]
    if not names:
        raise InputError("only 1-D tensors are selected, and random directions leave them out; set include_1d.")
    weights = sum(selected[name].numel() for name in names)
    if count > weights:
        raise InputError(
            f"count={count} directions in a space of {weights} weights cannot be orthogonal to each other."
        )
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
    """Draw standard normal noise shaped as `tensor`, in float32 or wider."""
    noise = noise_like(tensor, seed=seed, stream=stream, name=name)
    return _placed(noise.to(torch.promote_types(tensor.dtype, torch.float32)), on_host)


def _placed(tensor: Tensor, on_host: bool) -> Tensor:
    """Return the tensor, on the host where `on_host` asks for it; a sharded one stays, a slice in each process."""
    return tensor.cpu() if on_host and not isinstance(tensor, DTensor) else tensor


def _remove_component(vector: dict[str, Tensor], other: Vector) -> None:
    """Subtract <vector, other> / |other|^2 other from `vector`, in place (Gram-Schmidt)."""
    coefficient = inner_product(vector, other) / inner_product(other, other)
    for name in vector:
        vector[name].sub_(other[name], alpha=coefficient)


def _normalize(draw: dict[str, Tensor], parameters: Parameters, mode: str, on_host: bool) -> None:
    """Scale every filter to the norm of the model's, a tensor at a time to spare a second copy of the draw."""
    for name, drawn in draw.items():
        filters = parameters.filters(name, mode)
        weights = parameters[name].detach().to(drawn.dtype)
        noise = drawn.to(weights.device)
        ratio = filters.norms(weights) / filters.norms(noise)
        if isinstance(noise, DTensor):
            ratio = cut_like(ratio.expand(noise.shape), noise)
        draw[name] = _placed(noise * ratio, on_host)


def difference_direction(a: nn.Module, b: nn.Module, label: str = "a to b") -> Direction:
    """Return the direction from model `a` to model `b`: theta_b - theta_a over all distinct parameters.

    Args:
        a: The model at which the direction begins.
        b: The model at which it ends, of the same architecture.
        label: Words for an axis.

    Returns:
        The difference, in float32 or wider, on the devices of `a`.

    Raises:
        InputError: The models differ in a tensor's name or shape; the message names the first one.

    Example:
        >>> a, b = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
        >>> _ = a.weight.data.fill_(2.0), b.weight.data.fill_(5.0)
        >>> difference_direction(a, b).tensors["weight"].item()
        3.0
    """
    values_a, values_b = Parameters(a, frozen=True).values(), Parameters(b, frozen=True).values()
    check_same_tensors(values_a, values_b)
    difference = {}
    for name, value in values_a.items():
        dtype = torch.promote_types(value.dtype, torch.float32)
        difference[name] = cut_like(values_b[name], value).to(value.device, dtype) - value.to(dtype)
    return Direction(difference, "difference", label)


def check_directions(directions: Sequence[Direction], parameters: Parameters) -> None:
    """Check that directions fit the parameters of a model.

    Raises:
        InputError: A direction has a name or a shape that the parameters do not have, a value that is not finite, or
            only zeros.
    """
    for direction in directions:
        for name, tensor in direction.tensors.items():
            entry = parameters.named(name)
            if entry is None:
                raise InputError(f"{direction.label} has a tensor {name}, which is no parameter of the model.")
            if entry.name != name:
                raise InputError(
                    f"{direction.label} has a tensor {name}, which is tied; use its first name, {entry.name}."
                )
            if entry.tensor.shape != tensor.shape:
                given, needed = tuple(tensor.shape), tuple(entry.tensor.shape)
                raise InputError(f"{direction.label}: tensor {name} is {given}, the model's is {needed}.")
            if not bool(whole(torch.isfinite(tensor).all())):
                raise InputError(f"{direction.label}: tensor {name} has values that are not finite.")
        if direction.norm == 0:
            first = next(iter(direction.tensors), "none")
            why = "; so are the weights it is scaled to" if direction.normalize not in (None, "none") else ""
            raise InputError(f"{direction.label} is zero in all its tensors ({first}, ...){why}.")


def check_same_tensors(a: Vector, b: Vector) -> None:
    """Raise InputError where two models differ in a tensor, naming the first such tensor and both shapes."""
    for name in dict.fromkeys((*a, *b)):
        shape_a = tuple(a[name].shape) if name in a else "absent"
        shape_b = tuple(b[name].shape) if name in b else "absent"
        if shape_a != shape_b:
            raise InputError(f"the models differ: {name} is {shape_a} in the first and {shape_b} in the second.")


# --- files --------------------------------------------------------------------------------------------------


def save_directions(directions: Sequence[Direction], path: Path | str) -> None:
    """Write directions to a file, from which `load_directions` reads them back bit for bit.

    Args:
        directions: Directions of any kinds.
        path: The `.safetensors` file.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(4, 2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_directions(random_directions(model, 2), Path(folder, "axes.safetensors"))
        ...     [direction.label for direction in load_directions(Path(folder, "axes.safetensors"), model)]
        ['random direction 1', 'random direction 2']
    """
    tensors = {
        f"{index}:{name}": whole(tensor.detach()).cpu().contiguous()
        for index, direction in enumerate(directions)
        for name, tensor in direction.tensors.items()
    }
    descriptions = [[d.kind, d.label, d.normalize, d.seed] for d in directions]
    with replacing(path) as temporary:
        save_tensors(tensors, temporary, metadata={"directions": json.dumps(descriptions)})


def load_directions(path: Path | str, model: nn.Module) -> list[Direction]:
    """Read the directions that `save_directions` wrote.

    Args:
        path: The file.
        model: The model whose parameters the directions move.

    Returns:
        The directions, each tensor on the device of its parameter.

    Raises:
        InputError: The file does not hold directions, or holds those of another model.

    Example:
        >>> import tempfile
        >>> model = nn.Linear(4, 2)
        >>> (direction,) = random_directions(model, 1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_directions([direction], Path(folder, "axis.safetensors"))
        ...     (loaded,) = load_directions(Path(folder, "axis.safetensors"), model)
        >>> torch.equal(loaded.tensors["weight"], direction.tensors["weight"])
        True
    """
    parameters = Parameters(model, frozen=True)
    try:
        with safe_open(path, framework="pt") as file:
            descriptions = json.loads((file.metadata() or {})["directions"])
            tensors: list[dict[str, Tensor]] = [{} for _ in descriptions]
            for key in file.keys():  # noqa: SIM118 - not a dict
                index, _, name = key.partition(":")
                tensors[int(index)][name] = file.get_tensor(key)
    except (OSError, KeyError, ValueError, IndexError, SafetensorError) as error:
        raise InputError(f"{path} does not hold directions: {first_line(error)}") from error
    placed = [
        {name: tensor.to(parameters[name].device) if name in parameters.names else tensor for name, tensor in t.items()}
        for t in tensors
    ]
    directions = [Direction(t, *rest) for t, rest in zip(placed, descriptions, strict=True)]
    check_directions(directions, parameters)
    return directions
