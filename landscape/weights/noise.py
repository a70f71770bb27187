"""Seeded noise, the same for a tensor's name on every machine and in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from landscape.parallel.sharding import cut_like


def gaussian_noise(shape: Sequence[int], *, seed: int, stream: str, name: str) -> Tensor:
    """Draw standard normal noise that depends on `seed`, `stream` and the tensor's `name` and on nothing else.

    The generator is counter-based and keyed by a hash of the three, so the draw is the same on every machine and
    device, in whatever order tensors are drawn.

    Args:
        shape: Shape of the tensor.
        seed: Seed of the measurement.
        stream: Name of the draw, such as "direction 0".
        name: Name of the tensor.

    Returns:
        Noise in float32, on the host.

    Source:
        Philox: Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".

    Example:
        >>> first = gaussian_noise((2, 3), seed=0, stream="direction 0", name="weight")
        >>> torch.equal(first, gaussian_noise((2, 3), seed=0, stream="direction 0", name="weight"))
        True
    """
    key = hashlib.sha256(f"{seed}\0{stream}\0{name}".encode()).digest()[:16]
    generator = np.random.Generator(np.random.Philox(key=np.frombuffer(key, dtype=np.uint64)))
    return torch.from_numpy(generator.standard_normal(tuple(shape), dtype=np.float32))


def noise_like(tensor: Tensor, *, seed: int, stream: str, name: str) -> Tensor:
    """Draw `gaussian_noise` in the shape of `tensor`, on its device.

    For a sharded tensor this is the process's own slice of the draw for the whole tensor.
    """
    noise = gaussian_noise(tensor.shape, seed=seed, stream=stream, name=name)
    return cut_like(noise, tensor).to(tensor.device)
