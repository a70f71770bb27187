"""Vectors of weights as tensors by parameter name: inner products, norms, digests."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from landscape.linalg.precision import wide_dtype
from landscape.parallel.sharding import own_part, summed_like, whole

Vector = Mapping[str, Tensor]  # parameter name -> tensor of that parameter's shape; absent names are zero


def inner_product(u: Vector, v: Vector) -> float:
    """Return the inner product of two vectors over the names that both have, accumulated in float64.

    Example:
        >>> inner_product({"a": torch.tensor([1.0, 2.0]), "b": torch.ones(1)}, {"a": torch.tensor([3.0, 4.0])})
        11.0
    """
    total = 0.0
    shared: Tensor | None = None  # a tensor of the first name that both have
    for name in u:
        if name in v:
            shared = u[name] if shared is None else shared
            left, right = own_part(u[name]), own_part(v[name])
            wide = wide_dtype(left.device)
            total += float((left.to(wide) * right.to(left.device, wide)).sum())
    return total if shared is None else float(summed_like(torch.tensor(total, dtype=torch.float64), shared))


def vector_norm(u: Vector) -> float:
    """Return the l2 norm over all tensors, accumulated in float64."""
    return inner_product(u, u) ** 0.5


def vector_digest(vector: Vector) -> str:
    """Return the SHA-256 (hex) of names, types, shapes and bytes, which tells whether weights are the same."""
    digest = hashlib.sha256()
    for name, tensor in vector.items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        digest.update(tensor_bytes(tensor))
    return digest.hexdigest()


def tensor_bytes(tensor: Tensor) -> memoryview:
    """Return the bytes of a tensor in C order, whatever its type and device; all of them for a sharded one."""
    return whole(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
