"""The direction in which an optimizer would move a model next, with the state that it has."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable

import torch
from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.errors import InputError
from landscape.objective.scope import Scope
from landscape.objective.subject import Subject
from landscape.parallel.sharding import is_sharded, whole
from landscape.weights.directions import Direction
from landscape.weights.preservation import preserved

_OPEN = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD  # parameters that a caller can leave out


def optimizer_direction(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    *,
    scope: Scope = Scope(),
) -> Direction:
    """Return the next update of an optimizer at learning rate 1, with the gradient of the mean loss of the data.

    The optimizer's moments, weight decay and whatever else it does enter as they are: the step is taken, noted and
    undone. Model and optimizer come back bit-identical. An optimizer without state yet takes its first step. The step
    is taken on weights and moments widened to float64: a step of 1e-7 from weights around 1 is a few units in the last
    place of float32, and the difference over the learning rate would be off by a fifth. Sharded weights step in their
    own type, and a step too small for that is refused.
    `compute_sharpness(metric="critical", direction=...)` then says at which learning rate this update raises the loss.

    Args:
        model: A module or a loaded checkpoint, of whose parameters the optimizer has some or all.
        data: Batches that can be read again and again.
        optimizer: Any torch optimizer that steps without a closure. One whose state was saved is made anew and given it
            with `optimizer.load_state_dict(torch.load("optimizer.pt", weights_only=True))`.
        scope: `loss_fn` is taken.

    Returns:
        The update over the largest learning rate of the optimizer's groups; parameters that it does not have are zero.

    Raises:
        InputError: The optimizer has no parameter of the model, or no positive learning rate, or steps by a closure.
            The step of sharded weights is less than 100 units in their last place.

    Source:
        Kalra et al. 2026 (arXiv 2601.16979): critical sharpness along the update of the optimizer in use.

    Example:
        The first step of Adam is as long as its learning rate in every weight.

        >>> from landscape import supervised_loss
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> adam = torch.optim.Adam(model.parameters(), lr=0.01)
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> step = optimizer_direction(model, data, adam, scope=Scope(loss_fn=supervised_loss(nn.MSELoss())))
        >>> step.tensors["weight"].round(decimals=3).tolist()
        [[-1.0, 1.0]]
    """
    scope.only("optimizer_direction", "loss_fn")
    subject = Subject(model, data, scope)
    owned = {id(tensor) for group in optimizer.param_groups for tensor in group["params"]}
    entries = {entry.name: entry.tensor for entry in subject.parameters if id(entry.tensor) in owned}
    if not entries:
        raise InputError("the optimizer has none of the trainable parameters of the model.")
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    if not rate > 0:
        raise InputError(f"the largest learning rate of the optimizer is {rate}; its update has no direction.")
    if any(p.default is p.empty for p in inspect.signature(optimizer.step).parameters.values() if p.kind not in _OPEN):
        raise InputError(f"a step of {type(optimizer).__name__} needs a closure; give an optimizer that steps without.")
    _, gradient = subject.objective.gradient(subject.parameters)
    state = copy.deepcopy(optimizer.state_dict())
    sharded = is_sharded(subject.objective.model)
    before = {name: tensor.detach().clone() if sharded else tensor.data for name, tensor in entries.items()}
    with preserved(subject.objective.model):
        try:
            optimizer.zero_grad(set_to_none=True)
            for name, tensor in entries.items():
                if not sharded:  # a sharded parameter cannot change its type in place
                    tensor.data = before[name].to(torch.float64, copy=True)
                tensor.grad = gradient[name].to(tensor.dtype)
            optimizer.load_state_dict(optimizer.state_dict())  # in the type that the weights have now
            optimizer.step()
            moved = {
                name: ((tensor.detach() - before[name]) / rate).to(before[name].dtype)
                for name, tensor in entries.items()
            }
        finally:
            for name, tensor in entries.items():
                tensor.grad = None
                if sharded:
                    tensor.data.copy_(before[name])
                else:
                    tensor.data = before[name]
            optimizer.load_state_dict(state)
    if sharded:
        for name, change in moved.items():
            least = 100 * torch.finfo(change.dtype).eps * float(whole(before[name].abs().max()))
            if float(whole(gradient[name].abs().max())) and rate * float(whole(change.abs().max())) < least:
                raise InputError(
                    f"the step of the sharded tensor {name} at the learning rate {rate:g} is less than 100 units in "
                    "the last place of its weights; load them in float32 or float64, or in one piece."
                )
    return Direction(moved, kind="difference", label=f"next step of {type(optimizer).__name__}")
