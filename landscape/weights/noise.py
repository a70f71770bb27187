"""Seeded noise: the same draw for a tensor's name on every machine, in any order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from landscape.parallel.sharding import cut_like


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
