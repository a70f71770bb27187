"""Batches: mappings, pairs or nestings of tensors, moved and cut without knowing what they mean."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

Batch = Any  # a mapping of tensors, or an (inputs, targets) pair


def on_device(batch: Batch, device: torch.device) -> Batch:
    """Return `batch` with its tensors on `device`, whatever nesting of mappings, lists and tuples it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: on_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        moved = [on_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def rows_of(batch: Batch) -> int | None:
    """Return the number of examples in a batch: the first dimension of its first tensor, None where it has none.

    Example:
        >>> rows_of({"input_ids": torch.zeros(3, 7), "labels": torch.zeros(3, 7)})
        3
    """
    if isinstance(batch, Tensor):
        return len(batch) if batch.ndim else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (tuple, list)) else ()
    return next((rows for part in parts if (rows := rows_of(part)) is not None), None)


def take_rows(batch: Batch, rows: slice | Tensor, of: int) -> Batch:
    """Return the examples `rows` of a batch.

    Args:
        batch: A batch of any nesting.
        rows: The examples to take, as a slice or as their numbers.
        of: The number of examples in the batch. Tensors of another length belong to all examples and are kept whole.

    Example:
        >>> take_rows((torch.arange(4), torch.tensor([7.0])), slice(1, 3), 4)
        (tensor([1, 2]), tensor([7.]))
    """
    if isinstance(batch, Tensor):
        return batch[rows] if batch.ndim and len(batch) == of else batch
    if isinstance(batch, Mapping):
        return {key: take_rows(value, rows, of) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        taken = [take_rows(value, rows, of) for value in batch]
        return type(batch)(*taken) if hasattr(batch, "_fields") else type(batch)(taken)
    return batch
