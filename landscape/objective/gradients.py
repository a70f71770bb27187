"""How gradients are taken, of whole and of sharded weights."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from landscape.parallel.sharding import settle


def _from_graph(loss_sum: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    return torch.autograd.grad(loss_sum, tensors, allow_unused=True)


def _from_backward(loss_sum: Tensor, tensors: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """Gradients of shards, which FSDP2 has for backward() alone."""
    loss_sum.backward()
    found = tuple(tensor.grad for tensor in tensors)
    for tensor in tensors:
        tensor.grad = None
    return found


@contextlib.contextmanager
def _untouched(model: nn.Module) -> Iterator[None]:
    """Inside the block the model's `.grad`s are none; afterwards they are what they were."""
    settle(model)
    held = [(tensor, tensor.grad) for tensor in model.parameters()]
    try:
        for tensor, _ in held:
            tensor.grad = None
        yield
    finally:
        settle(model)
        for tensor, gradient in held:
            tensor.grad = gradient


@contextlib.contextmanager
def differentiable(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside the block `tensors` take gradients; their flags are as before afterwards."""
    frozen = [t for t in tensors if not t.requires_grad]
    try:
        for tensor in frozen:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)
