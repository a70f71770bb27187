"""Weights sharded by FSDP2 (`fully_shard`): every process holds a slice of each tensor, as a `DTensor`.

This is all that the other rooms need to know of it. What is made for one tensor is made for the whole tensor and then
cut, so that nothing depends on how many processes hold it. What is summed over slices has to pass through `whole`,
because a `DTensor`'s own `float()` is that of its slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from landscape.errors import InputError

T = TypeVar("T")


def is_sharded(model: nn.Module) -> bool:
    """Whether `fully_shard` was called on the model, or on a part of it."""
    return any(isinstance(module, FSDPModule) for module in model.modules())


def settle(model: nn.Module) -> None:
    """Make the model's parameters its shards again, because FSDP2 leaves the outermost gathered after a forward pass.

    What is written to the shards then counts from the next pass on.
    """
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def check_sharding(names: Sequence[str], tensors: Sequence[Tensor]) -> None:
    """Raise InputError where tensors are not all whole, or all cut along one dimension over the same processes."""
    cut = [isinstance(tensor, DTensor) for tensor in tensors]
    if not any(cut):
        return
    if not all(cut):
        raise InputError(
            f"parameter {names[cut.index(False)]} is whole and {names[cut.index(True)]} is sharded; call fully_shard "
            "on the whole model."
        )
    first = tensors[0]
    assert isinstance(first, DTensor)
    for name, tensor in zip(names, tensors, strict=True):
        assert isinstance(tensor, DTensor)
        shards = [p for p in tensor.placements if type(p) is Shard]
        others = [p for p in tensor.placements if type(p) is not Shard and not p.is_replicate()]
        if len(shards) != 1 or others or tensor.device_mesh != first.device_mesh:
            raise InputError(
                f"parameter {name} is sharded as {tensor.placements}; only FSDP2's own sharding (fully_shard, one "
                "mesh, with or without replication) can be measured."
            )


def own_part(tensor: Tensor) -> Tensor:
    """Return the slice that this process holds, sharing its memory; the tensor itself where it is whole."""
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """Return the tensor, sum or norm that the slices make together; every process has to call this."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def cut_like(full: Tensor, like: Tensor) -> Tensor:
    """Cut `full` in the way in which `like` is cut.

    Returns:
        A copy of this process's slice, on the device of `like`; `full` itself where `like` is whole.
    """
    if not isinstance(like, DTensor) or isinstance(full, DTensor):
        return full
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    part = full
    for axis, (start, length) in enumerate(zip(offset, shape, strict=True)):
        part = part.narrow(axis, min(start, part.shape[axis]), length)
    return slice_of(part.to(own_part(like).device, copy=True).contiguous(), like)


def slice_of(part: Tensor, like: DTensor) -> DTensor:
    """Return `part` as this process's slice of a tensor that has the shape and the cut of `like`."""
    stride = torch.empty(like.shape, device="meta").stride()
    return DTensor.from_local(part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=stride)


def flat_slice(part: Tensor, size: int, like: DTensor) -> DTensor:
    """Return `part` as this process's slice of a vector of `size` elements over the processes that hold `like`."""
    placements = [Replicate() if p.is_replicate() else Shard(0) for p in like.placements]
    shape = torch.Size((size,))
    return DTensor.from_local(part, like.device_mesh, placements, run_check=False, shape=shape, stride=(1,))


def summed_like(numbers: Tensor, like: Tensor) -> Tensor:
    """Sum `numbers` (float64) of this process's slices over all slices of tensors that are cut as `like` is."""
    if not isinstance(like, DTensor):
        return numbers
    mesh = like.device_mesh
    placements = [Replicate() if p.is_replicate() else Partial() for p in like.placements]
    return DTensor.from_local(numbers.to(mesh.device_type), mesh, placements, run_check=False).full_tensor().cpu()


def placed_like(tensor: Tensor, like: Tensor) -> Tensor:
    """`tensor` cut over the processes as `like` is; itself where one of them is whole. Every process has to call."""
    if isinstance(tensor, DTensor) and isinstance(like, DTensor):
        return tensor.redistribute(placements=like.placements)
    return tensor


def summed_over_all(sums: Iterable[tuple[Tensor, Tensor]], terms: int) -> list[float]:
    """Sums over tensors that may be cut in different ways, each over all of its slices.

    There is one reduction for each way of cutting and one copy from each device, not one for each tensor.

    Args:
        sums: Pairs of a tensor and `terms` numbers (shape (terms,), the same floating type throughout) of the slice of
            it that this process holds.
        terms: How many numbers there are; it gives the shape where `sums` is empty.
    """
    groups: dict[Any, tuple[Tensor, Tensor]] = {}
    for tensor, numbers in sums:
        cut = (tensor.device_mesh, tensor.placements) if isinstance(tensor, DTensor) else None
        key = (cut, numbers.device)
        groups[key] = (tensor, groups[key][1] + numbers if key in groups else numbers)
    total = torch.zeros(terms, dtype=torch.float64)
    for tensor, numbers in groups.values():
        total += summed_like(numbers, tensor).cpu().double()
    return total.tolist()


def everywhere(tensor: Tensor, like: Tensor) -> Tensor:
    """Return a tensor that all processes hold in a form that can be multiplied with what is cut as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    return DTensor.from_local(tensor, like.device_mesh, [Replicate()] * like.device_mesh.ndim, run_check=False)


def _mesh_of(model: nn.Module) -> DeviceMesh:
    """Return the mesh of the processes that hold the sharded model."""
    return next(tensor.device_mesh for tensor in model.parameters() if isinstance(tensor, DTensor))


def by_first_holder(function: Callable[[], T], model: nn.Module) -> T:
    """Call `function` in the first of the processes that hold the model, and return in all of them what it returned.

    All of these processes have to call this. Where the function raises, the others raise InputError with its message.
    """
    mesh = _mesh_of(model)
    outcome: tuple[Any, str | None] | None = None
    raised: Exception | None = None
    if not any(mesh.get_coordinate() or ()):
        try:
            outcome = function(), None
        except Exception as error:  # The others are told first, because they wait for this process.
            raised, outcome = error, (None, str(error))
    for group in mesh.get_all_groups():  # The outcome travels along one dimension of the mesh after the other.
        held: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(held, outcome, group=group)
        outcome = next((other for other in held if other is not None), None)
    if raised is not None:
        raise raised
    assert outcome is not None
    returned, message = outcome
    if message is not None:
        raise InputError(message)
    return returned


def agreed(value: object, model: nn.Module) -> bool:
    """Whether the processes that hold the model have the same `value`; all of them have to call this."""
    settle(model)
    for group in _mesh_of(model).get_all_groups():
        held: list[object] = [None] * dist.get_world_size(group)
        dist.all_gather_object(held, value, group=group)
        if any(other != value for other in held):
            return False
    return True
