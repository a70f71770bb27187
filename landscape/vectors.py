"""The selected parameters side by side as one flat vector, and the random probes that live there."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.parameters import Parameters, Vector, gaussian_noise


class Layout:
    """The parameters side by side as one vector of length `size`, in the order of their names."""

    def __init__(self, parameters: Parameters):
        self.names = parameters.names
        self.shapes = [tuple(t.shape) for t in parameters.tensors]
        self.devices = [t.device for t in parameters.tensors]
        self.lengths = [t.numel() for t in parameters.tensors]
        self.size = sum(self.lengths)
        self.device = parameters.tensors[0].device
        self.dtype = torch.float32
        for tensor in parameters.tensors:
            self.dtype = torch.promote_types(self.dtype, tensor.dtype)

    def views(self, flat: Tensor) -> list[Tensor]:
        """Views of a flat vector, shape (size,), in the shapes of the parameters."""
        return [part.view(shape) for part, shape in zip(flat.split(self.lengths), self.shapes, strict=True)]

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """The same by parameter name."""
        return dict(zip(self.names, self.views(flat), strict=True))

    def flat(self, vector: Vector) -> Tensor:
        """One vector from tensors by name; absent names are zero. Raises InputError for names and shapes not here."""
        unknown = [name for name in vector if name not in self.names]
        if unknown:
            raise InputError(f"the vector has {unknown[0]}, which is not among the selected parameters.")
        out = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for name, part in self.named(out).items():
            if name in vector:
                if vector[name].shape != part.shape:
                    raise InputError(
                        f"the vector's {name} is {tuple(vector[name].shape)}, the parameter {tuple(part.shape)}."
                    )
                part.copy_(vector[name])
        return out

    def random(self, seed: int, stream: str, rademacher: bool = False) -> Tensor:
        """A standard normal or Rademacher vector from seed, stream and tensor names only (DESIGN, law 5)."""
        out = torch.empty(self.size, dtype=self.dtype, device=self.device)
        for name, part in self.named(out).items():
            part.copy_(gaussian_noise(part.shape, seed=seed, stream=stream, name=name))
        return torch.where(out >= 0, 1.0, -1.0).to(self.dtype) if rademacher else out


def probe_scale(parameters: Parameters, weighting: str) -> Tensor:
    """The diagonal D, shape (size,), for which the trace of D H D is a weighted trace of H.

    adaptive               |w_i|: sum_i w_i^2 H_ii, the small-radius limit of adaptive average-case sharpness
                           (Andriushchenko et al. 2023, arXiv 2302.07011)
    filter|unit|head|layer |w_f| / sqrt(n_f) for every weight of filter f: sum_f |w_f|^2 / n_f tr H_ff, the mean
                           curvature along filter-normalized random directions (Li et al. 2018; SCIENCE 2.2). 1-D
                           tensors get 0, as those directions leave them out.
    """
    layout = Layout(parameters)
    scale = torch.zeros(layout.size, dtype=layout.dtype, device=layout.device)
    for name, part in layout.named(scale).items():
        weights = parameters[name].detach().to(part.dtype)
        if weighting == "adaptive":
            part.copy_(weights.abs())
        elif weights.ndim >= 2:
            filters = parameters.filters(name, weighting)
            norms = filters.norms(weights)
            count = weights.numel() / norms.numel() * filters.block
            part.copy_((norms / math.sqrt(count)).expand_as(weights))
    return scale
