"""The selected parameters side by side as one flat vector, and the random probes that live there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from landscape.errors import InputError
from landscape.linalg.operator import length
from landscape.parallel.sharding import cut_like, flat_slice, own_part, slice_of, whole
from landscape.weights.noise import gaussian_noise
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import Excursion
from landscape.weights.vectors import Vector


def flat_length(vector: Tensor) -> Tensor:
    """Return the Euclidean length of a flat vector, over all its slices, as a tensor without dimensions.

    Args:
        vector: Shape (n,); a `DTensor` where the model is sharded.

    Example:
        >>> float(flat_length(torch.tensor([3.0, 4.0])))
        5.0
    """
    return whole(torch.linalg.vector_norm(vector)) if isinstance(vector, DTensor) else length(vector)


def flat_norm(vector: Tensor) -> float:
    """Return `flat_length` as a number."""
    return float(flat_length(vector))


class Layout:
    """The parameters side by side as one vector of length `size`, in the order of their names.

    The vector is on the device of the parameters; where these are on several devices it is on the host, because none of
    the devices need have the room. For a sharded model it is a `DTensor` of the slices of the parameters side by side:
    numbers that are made of it are partial until they pass through `sharding.whole`.

    Example:
        >>> layout = Layout(Parameters(torch.nn.Linear(3, 2)))
        >>> layout.size, layout.shapes
        (8, [(2, 3), (2,)])
    """

    def __init__(self, parameters: Parameters):
        self.names = parameters.names
        self.shapes = [tuple(t.shape) for t in parameters.tensors]
        self.devices = [t.device for t in parameters.tensors]
        self.lengths = [t.numel() for t in parameters.tensors]
        self.size = sum(self.lengths)
        self.device = self.devices[0] if len(set(self.devices)) == 1 else torch.device("cpu")
        self.dtype = torch.float32
        for tensor in parameters.tensors:
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)
        self._sharded = [t for t in parameters.tensors if isinstance(t, DTensor)]  # all of them or none
        self._own_shapes = [tuple(own_part(t).shape) for t in parameters.tensors]
        self._own_lengths = [own_part(t).numel() for t in parameters.tensors]
        self.own_size = sum(self._own_lengths)  # what this process holds of it

    def empty(self) -> Tensor:
        """Return a vector, shape (size,), whose values are to be filled in."""
        own = torch.empty(self.own_size, dtype=self.dtype, device=self.device)
        return flat_slice(own, self.size, self._sharded[0]) if self._sharded else own

    def views(self, flat: Tensor) -> list[Tensor]:
        """Return views of a flat vector, shape (size,), in the shapes of the parameters."""
        parts = own_part(flat).split(self._own_lengths) if self._sharded else flat.split(self.lengths)
        views = [part.view(shape) for part, shape in zip(parts, self._own_shapes, strict=True)]
        if self._sharded:
            return [slice_of(view, like) for view, like in zip(views, self._sharded, strict=True)]
        return views

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the same views by parameter name."""
        return dict(zip(self.names, self.views(flat), strict=True))

    def flat(self, vector: Vector) -> Tensor:
        """Make one flat vector of tensors by name.

        Args:
            vector: Tensors by parameter name; absent names are zero.

        Returns:
            A new vector, shape (size,).

        Raises:
            InputError: A name or a shape is not one of the parameters'.
        """
        unknown = [name for name in vector if name not in self.names]
        if unknown:
            raise InputError(f"the vector has {unknown[0]}, which is not among the selected parameters.")
        out = self.empty().zero_()
        for name, part in self.named(out).items():
            if name in vector:
                if vector[name].shape != part.shape:
                    raise InputError(
                        f"the vector's {name} is {tuple(vector[name].shape)}, the parameter {tuple(part.shape)}."
                    )
                part.copy_(cut_like(vector[name], part))
        return out

    def random(self, seed: int, stream: str, rademacher: bool = False) -> Tensor:
        """Draw a random vector that depends only on the seed, the stream and the tensors' names.

        Args:
            seed: Seed of the measurement.
            stream: Name of the draw, such as "probe 3".
            rademacher: Whether the elements are +1 and -1 with equal probability, rather than standard normal.

        Returns:
            A vector, shape (size,).
        """
        out = self.empty()
        for name, part in self.named(out).items():
            part.copy_(cut_like(gaussian_noise(part.shape, seed=seed, stream=stream, name=name), part))
        return torch.where(out >= 0, 1.0, -1.0).to(self.dtype) if rademacher else out


def probe_scale(parameters: Parameters, weighting: str) -> Tensor:
    """Return the diagonal D for which the trace of D H D is a weighted trace of the Hessian H.

    Args:
        parameters: The parameters that H is taken in.
        weighting: The weights of the trace.

            - "adaptive": D_i = |w_i|. The trace is sum_i w_i^2 H_ii, the small-radius limit of adaptive average-case
              sharpness.
            - "filter", "unit", "head" or "layer": D_i = |w_f| / sqrt(n_f) for each of the n_f weights of filter f. The
              trace is sum_f |w_f|^2 / n_f tr H_ff, the mean curvature along filter-normalized random directions. 1-D
              tensors get 0, because those directions leave them out.

    Returns:
        The diagonal, shape (size,).

    Source:
        "adaptive": Andriushchenko et al. 2023 (arXiv 2302.07011). The others: the directions are those of Li et al.
        2018 (arXiv 1712.09913), section 4; E[d'Hd] follows from E[d d'] = D^2 for them.
    """
    layout = Layout(parameters)
    scale = layout.empty().zero_()
    for name, part in layout.named(scale).items():
        weights = parameters[name].detach().to(part.dtype)
        part.copy_(tensor_scale(parameters, name, weights, weighting))
    return scale


def tensor_scale(parameters: Parameters, name: str, weights: Tensor, weighting: str) -> Tensor:
    """Return the part of `probe_scale` that belongs to tensor `name`, given its weights in float32 or wider."""
    if weighting == "adaptive":
        return weights.abs()
    if weights.ndim < 2:
        return torch.zeros_like(weights)
    filters = parameters.filters(name, weighting)
    norms = filters.norms(weights)
    count = weights.numel() / norms.numel() * filters.block
    return cut_like((norms / math.sqrt(count)).expand(weights.shape), weights)


class RandomStep(Mapping[str, Tensor]):
    """A random step rho c z, z standard normal, whose tensors are drawn when they are asked for and are not kept.

    The numbers are those of vectors of the whole model, in the memory of one tensor. Where the model is not on a CPU,
    the draw is kept on the host for the other end of an antithetic pair: drawing anew, on one core, would take longer
    than what the model does with it.

    Args:
        parameters: The parameters that the step moves.
        trip: The excursion that will make the step; c is taken from the weights at its base.
        rho: Size of the step.
        weighting: The diagonal c, a weighting of `probe_scale`; None for 1.
        seed: Seed of the draw.
        stream: Name of the draw.
    """

    def __init__(
        self, parameters: Parameters, trip: Excursion, *, rho: float, weighting: str | None, seed: int, stream: str
    ):
        self._parameters, self._trip = parameters, trip
        self._rho, self._weighting, self._seed, self._stream = rho, weighting, seed, stream
        self._dtype = Layout(parameters).dtype
        self._kept: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        noise = self._noise(name).to(self._dtype)
        if self._weighting is None:
            return noise * self._rho
        weights = self._trip.base(name).to(self._dtype)
        return tensor_scale(self._parameters, name, weights, self._weighting) * self._rho * noise

    def _noise(self, name: str) -> Tensor:
        """Return the draw for a tensor, on its device."""
        tensor = self._parameters[name]
        part = self._kept.get(name)
        if part is None:
            drawn = cut_like(gaussian_noise(tensor.shape, seed=self._seed, stream=self._stream, name=name), tensor)
            part = own_part(drawn)
            if tensor.device.type != "cpu":
                self._kept[name] = part.cpu()
        part = part.to(tensor.device)
        return slice_of(part, tensor) if isinstance(tensor, DTensor) else part

    def __contains__(self, name: object) -> bool:
        return name in self._parameters.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._parameters.names)

    def __len__(self) -> int:
        return len(self._parameters.names)
