"""How gradients are taken, of whole and of sharded weights, so that a caller's gradients and flags stay as they are."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from landscape.errors import InputError, first_line
from landscape.parallel.sharding import settle

Gradients = tuple[Tensor | None, ...]  # one for each tensor; None where the loss does not depend on it


def gradients_of_whole(loss_sum: Tensor, tensors: Sequence[Tensor]) -> Gradients:
    """Return the gradients of a loss in whole tensors.

    Raises:
        InputError: The model's own code does not allow it, such as one that writes over what its gradient needs.
    """
    try:
        return torch.autograd.grad(loss_sum, tensors, allow_unused=True)
    except RuntimeError as error:
        if "inplace operation" not in str(error) and "derivative for" not in str(error):
            raise
        raise InputError(f"the gradient of this model cannot be taken: {first_line(error)}") from error


def gradients_of_shards(loss_sum: Tensor, tensors: Sequence[Tensor]) -> Gradients:
    """Return the gradients of a loss in shards, which FSDP2 makes for backward() alone."""
    loss_sum.backward()
    gradients = tuple(tensor.grad for tensor in tensors)
    for tensor in tensors:
        tensor.grad = None
    return gradients


@contextlib.contextmanager
def preserved_gradients(model: nn.Module) -> Iterator[None]:
    """Take away the `.grad` of the model's parameters inside the block, and give it back afterwards."""
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
    """Let `tensors` take gradients inside the block; their flags are as before afterwards.

    Example:
        >>> weight = torch.ones(2)
        >>> with differentiable([weight]):
        ...     weight.requires_grad
        True
        >>> weight.requires_grad
        False
    """
    frozen = [t for t in tensors if not t.requires_grad]
    try:
        for tensor in frozen:
            tensor.requires_grad_(True)
        yield
    finally:
        for tensor in frozen:
            tensor.requires_grad_(False)
