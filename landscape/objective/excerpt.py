"""A few tokens of every example: enough to see how a model computes its loss, at a part of the price."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from landscape.data.batches import Batch
from landscape.data.tokens import IGNORED

TOKENS = 32  # of an example are enough to see what a model does with batches, padding and the order of tokens
_FEWEST = 4
PADDING = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}


def is_of_tokens(batch: Batch) -> bool:
    """Return whether a batch is one of tokens, whose padding we know how to take away and to add."""
    return (
        isinstance(batch, Mapping)
        and batch.keys() == PADDING.keys()
        and all(isinstance(part, Tensor) and part.ndim == 2 for part in batch.values())
        and len({part.shape for part in batch.values()}) == 1
    )


def excerpt(batch: Batch, tokens: int = TOKENS) -> Batch:
    """Return a batch of tokens in which the longest example has so many, and the others are cut in proportion.

    What is left of an example lies around its first supervised label. Examples of different lengths keep different
    lengths, as long as these are of four tokens or more, so that a batch with padding still has some. A batch that is
    short already, or is not one of tokens that are padded on the right, comes back as it is.

    Args:
        batch: A batch; where it is of tokens, with an `attention_mask`, `input_ids` and `labels` of shape (rows, any).
        tokens: The length of what is left of the longest example.

    Example:
        >>> ids = torch.arange(1, 9)[None]
        >>> labels = torch.where(ids > 6, ids, IGNORED)  # the answer begins with 7
        >>> cut = excerpt({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}, tokens=4)
        >>> cut["input_ids"], cut["labels"]
        (tensor([[5, 6, 7, 8]]), tensor([[-100, -100,    7,    8]]))
    """
    if not is_of_tokens(batch):
        return batch
    held = (batch["attention_mask"] != 0) | (batch["labels"] != IGNORED)
    lengths = held.sum(1).tolist()
    longest = max(lengths, default=0)
    padded_right = bool((held[:, :-1] >= held[:, 1:]).all())
    if longest <= tokens or not padded_right:
        return batch
    columns = torch.zeros(len(lengths), tokens, dtype=torch.long)
    kept = torch.zeros(len(lengths), tokens, dtype=torch.bool)
    for row, length in enumerate(lengths):
        count = min(length, max(_FEWEST, -(-length * tokens // longest)))
        supervised = (batch["labels"][row, 1:] != IGNORED).nonzero().flatten()
        first = int(supervised[0]) + 1 if len(supervised) else 0
        start = min(max(first - count // 2, 0), length - count)
        columns[row, :count] = torch.arange(start, start + count)
        kept[row, :count] = True
    columns, kept = columns.to(held.device), kept.to(held.device)
    return {key: torch.where(kept, batch[key].gather(1, columns), filler) for key, filler in PADDING.items()}
