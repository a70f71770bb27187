"""Whether a loss means something on a model: what is refused before anything is measured.

Both checks ask the model itself, on a few examples of the data, because no list of architectures would be complete.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.data.batches import Batch, on_device, rows_of, take_rows
from landscape.data.tokens import IGNORED
from landscape.errors import InputError
from landscape.weights.preservation import preserved

_EXAMPLES = 3  # are compared one by one and together
_TOKENS = 32  # of one example are enough to see whether a token changes what comes before it
_PADDING = {"input_ids": 0, "attention_mask": 0, "labels": IGNORED}

Measured = tuple[Tensor, Tensor]  # summed loss and weight


@torch.no_grad()
def check_batching(
    model: nn.Module, data: Iterable[Batch], evaluate: Callable[[Batch], Measured], device: torch.device, low: bool
) -> bool:
    """Check on a few examples that the mean loss does not depend on which of them are in a batch together.

    Up to three examples of the data are evaluated together, one by one without their padding, and two of them together
    with the third apart. Where the data has no batch that can be cut into examples, nothing is compared.

    Args:
        model: The model, which comes back as it was.
        data: Batches.
        evaluate: Returns the summed loss and the weight of a batch.
        device: Where the model takes its batches.
        low: Whether the model computes in half precision.

    Returns:
        Whether anything was compared.

    Raises:
        InputError: The mean loss differs by more than rounding; the message names the reason as far as it shows.
    """
    batch, indices = _few_examples(data)
    if batch is None:
        return False
    rows = rows_of(batch) or 0

    def measure(chosen: Sequence[int], trim: bool = False) -> Measured:
        part = take_rows(batch, torch.tensor(chosen), rows)
        return evaluate(on_device(_trimmed(part) if trim else part, device))

    # The largest rounding in tiny models: 1.1e-7 in float32 (155 families), 9e-3 in bfloat16, 1.2e-3 in float16 (127).
    rtol, atol = (2e-2, 1e-3) if low else (1e-5, 1e-6)

    def differ(parts: Sequence[Measured], others: Sequence[Measured]) -> bool:
        ours, theirs = _mean(parts), _mean(others)
        if not (math.isfinite(ours) and math.isfinite(theirs)):
            return math.isfinite(ours) != math.isfinite(theirs)
        return not math.isclose(ours, theirs, rel_tol=rtol, abs_tol=atol)

    with preserved(model):
        try:
            whole = [measure(indices)]
            single = [measure([index], trim=True) for index in indices]
            pairs = [measure(indices[:2]), single[2]]
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            if isinstance(error, InputError):
                raise
            return False  # Batches cannot be cut into examples, or memory ran out: the measurement itself will say so.
        apart = next((parts for parts in (single, pairs) if differ(whole, parts)), None)
        if apart is None:
            return True
        if differ(whole, [measure(indices)]):
            raise InputError(
                "the loss of the same examples differs from one evaluation to the next: it draws random numbers or "
                "changes the model."
            )
        padded = [measure([index]) for index in indices]
        reason = _reason(model, whole, padded, differ(whole, padded) or apart is pairs)
    words = "one by one" if apart is single else "as two and one"
    raise InputError(
        f"the loss of the same {len(indices)} examples is {_mean(whole):.6g} together and {_mean(apart):.6g} {words}: "
        f"{reason}."
    )


def _reason(model: nn.Module, whole: Sequence[Measured], single: Sequence[Measured], batched: bool) -> str:
    """Say why a loss depends on the batch.

    Args:
        model: The model.
        whole: What was measured of the examples together.
        single: What was measured of each, with the padding that it has among the others.
        batched: Whether padding is not the reason, or not the only one.
    """
    if not batched:
        return "it depends on how far examples are padded and on which side; pad them on the right"
    weights = [sum(float(weight) for _, weight in parts) for parts in (whole, single)]
    if not math.isclose(*weights, rel_tol=1e-6):
        return (
            f"loss_fn gives them the weight {weights[0]:g} together and {weights[1]:g} one by one, but has to return "
            "the sum of losses and the sum of their weights"
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return f"{name} ({type(module).__name__}) keeps no running statistics and normalizes over the batch"
    return (
        "it depends on how examples are batched, as do the auxiliary loss of a router, experts of limited capacity and "
        "normalization over a batch; pass a loss_fn that is a sum over examples"
    )


def _mean(parts: Sequence[Measured]) -> float:
    """Return the mean loss of parts: the sum of losses over the sum of weights."""
    weight = sum(float(weight) for _, weight in parts)
    return sum(float(total) for total, _ in parts) / weight if weight else math.nan


def _few_examples(data: Iterable[Batch]) -> tuple[Batch, list[int]]:
    """Return a batch and three of its examples, one of them twice where there are two; None and none below that.

    Where the first batches have one example each, and hold tokens, these are joined.
    """
    alone: list[Batch] = []
    for batch in data:
        rows = rows_of(batch) or 0
        if rows > 1:
            chosen = _shortest(batch, rows)
            return (batch, (chosen * _EXAMPLES)[:_EXAMPLES]) if len(chosen) > 1 else (None, [])
        if rows < 1 or not _is_padded(batch):
            return None, []
        alone.append(batch)
        if len(alone) == _EXAMPLES:
            break
    if len(alone) < 2:
        return None, []
    width = max(batch["labels"].shape[1] for batch in alone)
    joined = {
        key: torch.cat([F.pad(batch[key], (0, width - batch[key].shape[1]), value=filler) for batch in alone])
        for key, filler in _PADDING.items()
    }
    return joined, (list(range(len(alone))) * 2)[:_EXAMPLES]


def _shortest(batch: Batch, rows: int) -> list[int]:
    """Return the numbers of a few examples of a batch: where they are tokens the shortest that have a loss."""
    if not _is_padded(batch):
        return list(range(min(rows, _EXAMPLES)))
    supervised = (batch["labels"][:, 1:] != IGNORED).any(1).tolist()
    lengths = batch["attention_mask"].sum(1).tolist()
    return sorted((i for i in range(rows) if supervised[i]), key=lambda i: lengths[i])[:_EXAMPLES]


def _is_padded(batch: Batch) -> bool:
    """Whether a batch is one of tokens, whose padding we know how to take away and to add."""
    return (
        isinstance(batch, Mapping)
        and batch.keys() == _PADDING.keys()
        and all(isinstance(part, Tensor) and part.ndim == 2 for part in batch.values())
        and len({part.shape for part in batch.values()}) == 1
    )


def _trimmed(example: Batch) -> Batch:
    """Return a single example without the padding at its ends."""
    if not _is_padded(example):
        return example
    held = ((example["attention_mask"] != 0) | (example["labels"] != IGNORED)).any(0).nonzero().flatten()
    return {key: part[:, int(held[0]) : int(held[-1]) + 1] for key, part in example.items()} if len(held) else example


@torch.no_grad()
def check_causality(model: nn.Module, batch: Batch) -> None:
    """Check on one example that no token changes the model's output at an earlier position.

    Where one does, as in encoders with bidirectional attention, every position sees the token that it is to predict,
    and next-token cross-entropy means nothing.

    Args:
        model: A model of tokens, which comes back as it was.
        batch: A batch with `labels` of shape (rows, tokens), on the model's device.

    Raises:
        InputError: The last token of the example changes what the model gives before it.
    """
    inputs = _two_alike(batch)
    if inputs is None:
        return
    ids = inputs["input_ids"]
    other = ids.clone()
    distinct = ids[0][ids[0] != ids[0, -1]]
    other[0, -1] = distinct[0] if len(distinct) else (1 if int(ids[0, -1]) == 0 else 0)
    with preserved(model):
        try:
            before, after = (_logits(model, {**inputs, "input_ids": tokens}) for tokens in (ids, other))
        except (RuntimeError, IndexError, ValueError, TypeError):
            return  # The model takes no such batch: the measurement itself will say so.
    if before is None or after is None or before.ndim < 3 or before.shape[:2] != ids.shape:
        return
    change, scale = (after - before).square(), float(before.square().mean().sqrt())
    leak, rounding = float(change[0, :-1].mean().sqrt()), float(change[1].mean().sqrt())
    # The second example is what it was, so that its change is rounding. In tiny models of 155 families it was 0, and
    # 4e-8 in one of them. A bidirectional BERT whose weights are near zero leaks 6e-4 of its logits in float32.
    kept = next(model.parameters()).dtype
    smallest = torch.finfo(kept).eps / 4 if kept.itemsize < 4 else 4 * torch.finfo(torch.float32).eps
    if leak > max(10 * rounding, smallest * scale):
        config = getattr(model, "config", None)
        why = " (is_decoder is False in its configuration)" if getattr(config, "is_decoder", None) is False else ""
        raise InputError(
            f"{type(model).__name__} is not a causal language model{why}: its outputs before a token change with that "
            "token, so that every position sees what it is to predict; pass a loss_fn of its own kind."
        )


def check_gradient_paths(model: nn.Module, evaluate: Callable[[Batch], Measured], batch: Batch) -> None:
    """Check that the model computes its loss in sight of autograd.

    Some models run parts of their forward pass under `torch.no_grad()`, to save memory in training. What autograd then
    returns is not the gradient of their loss, and its derivatives are not the curvature. Parts that only choose, such
    as the keys that a sparse attention looks at, have no gradient: enlarging all that they compute changes nothing.

    Args:
        model: The model, which comes back as it was.
        evaluate: Returns the summed loss and the weight of a batch.
        batch: One batch, on the model's device, of which the first example is evaluated.

    Raises:
        InputError: A module with parameters that take gradients runs without them, and the loss depends on how much it
            returns.
    """
    blind: list[str] = []
    factor = 1.0

    def look(name: str) -> Callable[..., Any]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> Any:
            if torch.is_grad_enabled():
                return None
            blind.append(name)
            return output * factor if isinstance(output, Tensor) and output.is_floating_point() else None

        return hook

    rows = rows_of(batch)
    example = batch if rows is None else take_rows(batch, slice(0, 1), rows)
    with preserved(model), torch.enable_grad():
        handles = [
            module.register_forward_hook(look(name))
            for name, module in model.named_modules()
            if any(parameter.requires_grad for parameter in module.parameters(recurse=False))
        ]
        try:
            before = float(evaluate(example)[0].detach())
            if not blind:
                return
            factor = 1.0 + 2.0**-5
            after = float(evaluate(example)[0].detach())
        except (RuntimeError, IndexError, ValueError, TypeError):
            return  # Memory ran out, or the batch cannot be cut: the measurement itself will say so.
        finally:
            for handle in handles:
                handle.remove()
    if not math.isclose(before, after, rel_tol=1e-6):
        raise InputError(
            f"the gradient of {type(model).__name__} is not that of its loss: its own code runs {blind[0]} under "
            "torch.no_grad(); only its loss can be measured."
        )


def _two_alike(batch: Mapping[str, Any]) -> dict[str, Tensor] | None:
    """Return the beginning of an example twice, without padding; None where there are not two tokens of it."""
    labels, ids = batch["labels"], batch.get("input_ids")
    shape = labels.shape
    if ids is None or ids.shape != shape:
        return None
    mask = batch.get("attention_mask")
    held = mask != 0 if isinstance(mask, Tensor) and mask.shape == shape else torch.ones_like(ids, dtype=torch.bool)
    row = int(held.sum(1).argmax())
    columns = held[row].nonzero().flatten()[:_TOKENS]
    if len(columns) < 2:
        return None
    parts = {key: part for key, part in batch.items() if key != "labels"}
    if any(not isinstance(part, Tensor) or part.shape != shape for part in parts.values()):
        return None  # What else the model takes cannot be cut to a few tokens.
    return {key: part[row, columns].repeat(2, 1) for key, part in parts.items()}


def _logits(model: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor | None:
    """Return the logits of a model at all positions, in float32 or wider; None where it returns something else."""
    output = model(**inputs)
    logits = getattr(output, "logits", output)
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) if isinstance(logits, Tensor) else None
