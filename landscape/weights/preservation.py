"""Leaving a model as it was: flags, gradients, buffers and random states come back."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from landscape.parallel.sharding import settle


@contextlib.contextmanager
def preserved(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, without gradients, inside the block, and everything back afterwards.

    What comes back, also when the block raises, are the training flags, `requires_grad`, gradients, buffers and the
    global random states of Python, NumPy and torch. A caller's autocast is off inside the block, because it would reach
    into gradients of gradients too. (Weights are not put back: see `perturbation.excursion`.)

    Args:
        model: Any module.

    Example:
        >>> model = nn.Dropout().train()
        >>> with preserved(model):
        ...     model.training
        False
        >>> model.training
        True
    """
    settle(model)
    kinds = {"cpu", *(parameter.device.type for parameter in model.parameters())} - {"meta"}
    training = [(module, module.training) for module in model.modules()]
    requires_grad = [(p, p.requires_grad) for p in model.parameters()]
    gradients = [(p, p.grad) for p in model.parameters()]
    buffers = [(module, name, buffer, buffer.detach().clone()) for module, name, buffer in _buffers(model)]
    python_state, torch_state = random.getstate(), torch.get_rng_state()
    numpy_state = np.random.get_state()  # noqa: NPY002 - this is the global state of others
    cuda_states = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        model.eval()
        for parameter, _ in gradients:
            parameter.grad = None  # A backward() in the block would add to the caller's tensor in place.
        with contextlib.ExitStack() as exact:
            for kind in kinds:
                exact.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        settle(model)
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
    """Yield every buffer with its module and its name there."""
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None:
                yield module, name, buffer
