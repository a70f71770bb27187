"""What a caller gives as data and as a loss function: made into batches, or refused with the right call named."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.loss import _Loss

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.data.tokens import Example, TokenData, load_data
from landscape.errors import InputError


def batches_of(data: Any, model: nn.Module | Checkpoint) -> Iterable[Batch]:
    """Return data as batches: as they are given, or made of the records or examples in a list.

    Args:
        data: Batches; or a list of records as `load_data` takes them, for which the tokenizer of the checkpoint is
            known; or a list of examples, each a mapping with `input_ids` and `labels` that are lists of whole numbers
            or tensors of one dimension.
        model: What the data are for.

    Raises:
        InputError: `data` is a path or another thing that holds no batches; or it is a list of records, and `model` is
            no checkpoint.
    """
    if isinstance(data, (str, bytes)) or hasattr(data, "__fspath__"):
        raise InputError(f"the data is the path {str(data)!r}; give load_data({str(data)!r}, tokenizer).")
    if isinstance(data, (Mapping, Tensor)):
        raise InputError(f"the data is a single {type(data).__name__}; give a list of batches, such as [batch].")
    if not isinstance(data, Iterable):
        raise InputError(f"the data is a {type(data).__name__}, not batches; see load_data.")
    if isinstance(data, Sequence) and len(data) and all(isinstance(item, Mapping) for item in data):
        if all(_is_record(item) for item in data):
            if not isinstance(model, Checkpoint):
                raise InputError(
                    "the data is a list of records, and a module has no tokenizer to read them with; give "
                    "load_data(records, tokenizer), or a Checkpoint (see load_checkpoint)."
                )
            return load_data(data, model.tokenizer, max_length=_positions(model.model))
        if all(_is_example(item) for item in data):
            return TokenData("examples", tuple(_example(item, number) for number, item in enumerate(data, start=1)))
    return data


def _is_record(item: Mapping[str, Any]) -> bool:
    """Whether a mapping holds texts, rather than tensors."""
    return any(isinstance(item.get(key), str) for key in ("text", "prompt", "question")) or isinstance(
        item.get("messages"), (list, tuple)
    )


def _is_example(item: Mapping[str, Any]) -> bool:
    """Whether a mapping holds the token ids of one example, rather than of a batch of them."""
    ids = item.get("input_ids")
    if isinstance(ids, Tensor):
        return ids.ndim == 1
    return isinstance(ids, (list, tuple)) and all(isinstance(token, int) for token in ids)


def _example(item: Mapping[str, Any], number: int) -> Example:
    """Return one example as `load_data` would make it."""
    if item.get("labels") is None:
        raise InputError(f"example {number} has no 'labels'; labels equal to input_ids take a loss on every token.")
    ids, labels = (torch.as_tensor(item[key]) for key in ("input_ids", "labels"))
    mask = item.get("attention_mask")
    if mask is not None and not bool(torch.as_tensor(mask).bool().all()):
        raise InputError(f"example {number} is padded (its attention_mask has zeros); give it without padding.")
    if ids.shape != labels.shape or not len(ids) or ids.is_floating_point() or labels.is_floating_point():
        raise InputError(f"example {number} does not have as many whole-number 'labels' as 'input_ids'.")
    return Example(tuple(ids.tolist()), tuple(labels.tolist()))


def _positions(model: nn.Module) -> int:
    """Return the most tokens that records are cut to: those of `load_data`, or the model's positions where less."""
    positions = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return min(512, positions) if isinstance(positions, int) and positions > 0 else 512


def check_loss_function(loss_fn: Any) -> None:
    """Raise InputError where a criterion, or something that cannot be called, is given as a loss function."""
    criterion: Any = loss_fn
    while isinstance(criterion, functools.partial):
        criterion = criterion.func
    is_class = isinstance(criterion, type) and issubclass(criterion, _Loss)
    name = getattr(criterion, "__name__", type(criterion).__name__)
    if isinstance(criterion, _Loss) or is_class:
        call = f"nn.{name}" if is_class else f"nn.{type(criterion).__name__}"
        raise InputError(f"loss_fn is the criterion {call}; give supervised_loss({call}(...)).")
    if getattr(F, name, None) is criterion:
        raise InputError(f"loss_fn is the criterion {name}; give supervised_loss({name}).")
    if not callable(loss_fn):
        raise InputError(f"loss_fn is a {type(loss_fn).__name__}, not a function (model, batch) -> (loss_sum, weight).")


def check_loss(found: Any) -> None:
    """Raise InputError unless a loss function returned a sum of losses and its weight."""
    wanted = "(loss_sum, weight): the sum of the losses of a batch, and the number of its terms"
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        kind = "one tensor" if isinstance(found, Tensor) else f"a {type(found).__name__}"
        raise InputError(f"loss_fn returned {kind}, but has to return {wanted}.")
    if not isinstance(found[0], Tensor) or found[0].numel() != 1:
        shape = f"of shape {tuple(found[0].shape)}" if isinstance(found[0], Tensor) else type(found[0]).__name__
        raise InputError(f"loss_fn returned a loss_sum {shape}, but has to return a scalar tensor, as in {wanted}.")
