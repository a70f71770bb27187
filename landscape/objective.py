"""Loss and gradient of a model over a data set: token-weighted, whatever the batches (DESIGN, law 1)."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.data import IGNORED
from landscape.errors import InputError
from landscape.parameters import Parameters, tensor_bytes, wide_dtype

Batch = Any  # a mapping of tensors, or an (inputs, targets) pair
LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Tensor | float]]  # -> (loss_sum, weight)


class Loss(NamedTuple):
    """A weighted mean and its weight: sum of losses over sum of weights."""

    mean: float  # nats per term; NaN or infinite where the model's loss is
    weight: float  # number of terms (supervised tokens)


class Objective:
    """The weighted mean loss L = sum_b loss_sum_b / sum_b weight_b of `model` over `data`.

    model     any `nn.Module`; evaluated as it stands (wrap in `parameters.preserved` for evaluation mode)
    data      any re-iterable of batches: mappings with `labels` (-100 where no loss is taken; the label at
              position t is predicted from t-1), or `(inputs, targets)` pairs
    loss_fn   `loss_fn(model, batch) -> (loss_sum, weight)`; default: shifted causal language-model
              cross-entropy for mappings, cross-entropy for pairs

    Raises InputError for data that cannot be iterated twice, is empty or has no supervised token, and for token
    ids or lengths that the model does not have.
    """

    def __init__(self, model: nn.Module, data: Iterable[Batch], loss_fn: LossFunction | None = None):
        if iter(data) is data:
            raise InputError(
                f"data is a {type(data).__name__}, which can be read only once; give a list or a DataLoader."
            )
        self.model = model
        self.data = data
        self.device = next(model.parameters()).device
        first = next(iter(data), None)
        if first is None:
            raise InputError("the data holds no batch.")
        self.loss_fn = loss_fn or self._default_loss(first)

    def _default_loss(self, first: Batch) -> LossFunction:
        if isinstance(first, Mapping) and "labels" in first:
            check_token_batches(self.model, self.data)
            return CausalLoss.for_model(self.model, on_device(first, self.device))
        if isinstance(first, (tuple, list)) and len(first) == 2:
            return supervised_loss(F.cross_entropy)
        raise InputError(
            "a batch is neither a mapping with 'labels' nor an (inputs, targets) pair; pass loss_fn to say what "
            "the loss is."
        )

    @torch.no_grad()
    def loss(self) -> Loss:
        """The weighted mean over all batches, accumulated in float64 (float32 where the device has no more)."""
        sums = []
        for batch in self.data:
            loss_sum, weight = self._evaluate(batch)
            sums.append(torch.stack([loss_sum, weight]))
        total, weight = torch.stack(sums).sum(0).tolist()
        return Loss(_mean(total, weight), weight)

    def gradient(self, parameters: Parameters) -> tuple[Loss, dict[str, Tensor]]:
        """The loss and its gradient by parameter name, in float32 or wider; `.grad` is not touched."""
        tensors = parameters.tensors
        gradient = [torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]
        total, weight = 0.0, 0.0
        for batch in self.data:
            with torch.enable_grad():
                loss_sum, batch_weight = self._evaluate(batch)
                parts = torch.autograd.grad(loss_sum, tensors, allow_unused=True)
            for accumulated, part in zip(gradient, parts, strict=True):
                if part is not None:
                    accumulated += part
            total += float(loss_sum.detach())
            weight += float(batch_weight)
        loss = Loss(_mean(total, weight), weight)
        named = {name: g.div_(weight) for name, g in zip(parameters.names, gradient, strict=True)}
        return loss, named

    def _evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        loss_sum, weight = self.loss_fn(self.model, on_device(batch, self.device))
        wide = wide_dtype(loss_sum.device)
        return loss_sum.to(wide), torch.as_tensor(weight, dtype=wide, device=loss_sum.device)


def _mean(total: float, weight: float) -> float:
    if weight == 0:
        raise InputError("the data has no supervised token: no loss can be taken over it.")
    return total / weight if math.isfinite(total) else total


def on_device(batch: Batch, device: torch.device) -> Batch:
    """`batch` with its tensors on `device`, whatever nesting of mappings, lists and tuples it is."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {key: on_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (tuple, list)):
        moved = [on_device(value, device) for value in batch]
        return type(batch)(*moved) if hasattr(batch, "_fields") else type(batch)(moved)
    return batch


def describe_data(data: Iterable[Batch]) -> dict:
    """What a result's provenance says of a data set: source and digest (of the batches, where it has none itself)."""
    digest = getattr(data, "digest", None)
    if digest is None:
        hashed = hashlib.sha256()
        for batch in data:
            _hash_into(hashed, batch)
        digest = hashed.hexdigest()
    said = {"source": getattr(data, "source", type(data).__name__), "digest": digest}
    return said | ({"supervised_tokens": data.tokens} if hasattr(data, "tokens") else {})


def _hash_into(hashed: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        hashed.update(f"{value.dtype} {tuple(value.shape)} ".encode())
        hashed.update(tensor_bytes(value))
    elif isinstance(value, Mapping):
        for key in value:
            hashed.update(f"{key} ".encode())
            _hash_into(hashed, value[key])
    elif isinstance(value, (tuple, list)):
        for item in value:
            _hash_into(hashed, item)
    else:
        hashed.update(repr(value).encode())


def supervised_loss(criterion: Callable[..., Tensor]) -> LossFunction:
    """A loss function for `(inputs, targets)` batches from a torch criterion with mean reduction.

    The criterion is called as `criterion(model(inputs), targets, reduction="sum")` where it takes a reduction
    (functions of `torch.nn.functional`), or, as a module such as `nn.CrossEntropyLoss()`, has its reduction read.
    The weight is the number of terms that a mean would divide by: targets that are not `ignore_index` for class
    targets, elements for others. Raises InputError for a criterion with class weights, whose mean is not over
    terms.

    >>> import torch
    >>> loss_fn = supervised_loss(torch.nn.MSELoss())
    >>> total, weight = loss_fn(torch.nn.Identity(), (torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])))
    >>> float(total), weight
    (5.0, 2)
    """
    if getattr(criterion, "weight", None) is not None:
        raise InputError("a criterion with class weights does not average over terms; write loss_fn yourself.")
    ignored = getattr(criterion, "ignore_index", IGNORED)

    def loss_fn(model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        inputs, targets = batch
        outputs = model(inputs)
        classes = not torch.is_floating_point(targets)
        weight = int((targets != ignored).sum()) if classes else targets.numel()
        if isinstance(criterion, nn.Module):
            value = criterion(outputs, targets)
            reduction = getattr(criterion, "reduction", "mean")
            if reduction == "mean":
                # a mean over no term is NaN; its sum is zero
                total = value.to(wide_dtype(value.device)) * weight if weight else outputs.sum() * 0
            else:
                total = value.sum()
        else:
            total = criterion(outputs, targets, reduction="sum")
        return total, weight

    return loss_fn


# --- language models ----------------------------------------------------------------------------------------


def check_token_batches(model: nn.Module, data: Iterable[Batch]) -> None:
    """Raise InputError where token ids, lengths or labels are such that the model has no loss on them."""
    embeddings = _part(model, "get_input_embeddings")
    vocabulary = getattr(embeddings, "num_embeddings", None)
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError("an encoder-decoder model has no causal language-model loss; pass loss_fn.")
    supervised = 0
    for batch in data:
        ids, labels = batch.get("input_ids"), batch["labels"]
        if labels.ndim != 2:
            raise InputError(f"labels must have shape (rows, tokens), got {tuple(labels.shape)}; pass loss_fn.")
        supervised += int((labels[:, 1:] != IGNORED).sum())
        if ids is None:
            continue
        if vocabulary is not None and ids.numel() and int(ids.max()) >= vocabulary:
            raise InputError(
                f"token id {int(ids.max())} in the data is beyond the model's vocabulary of {vocabulary}; "
                "the tokenizer is not this model's."
            )
        if positions is not None and ids.shape[1] > positions:
            raise InputError(
                f"an example of {ids.shape[1]} tokens is longer than the model's {positions} positions; "
                "lower max_length."
            )
    if supervised == 0:
        raise InputError("the data has no supervised token: no loss can be taken over it.")


def _part(model: nn.Module, getter: str) -> Any:
    """What a transformers model's getter returns; None for other modules."""
    return getattr(model, getter)() if hasattr(model, getter) else None


class CausalLoss:
    """Shifted causal language-model cross-entropy, summed over supervised positions.

    With `at_supervised=True` the output head sees only the hidden states that predict a supervised label:
    everything the architecture does to its logits afterwards (scaling, capping) still happens, in its own code.
    Otherwise it is `model(**batch).loss` times the number of supervised tokens.
    """

    def __init__(self, at_supervised: bool):
        self.at_supervised = at_supervised

    @classmethod
    def for_model(cls, model: nn.Module, batch: Batch) -> CausalLoss:
        """The cheaper form where it gives the model's own loss on two rows of `batch`, else the plain one.

        Asking the model beats a list of architectures: heads that do more than project, losses with extra terms
        and forwards that take other arguments all show as a different value.
        """
        plain = cls(at_supervised=False)
        head = _part(model, "get_output_embeddings")
        if head is None:
            return plain
        labels = batch["labels"]
        rows = (labels[:, 1:] != IGNORED).any(1).nonzero().flatten()[:2]
        if not len(rows):
            return plain
        small = {k: v[rows] if isinstance(v, Tensor) and len(v) == len(labels) else v for k, v in batch.items()}
        selected = cls(at_supervised=True)
        training = [(module, module.training) for module in model.modules()]
        model.eval()  # dropout would make the two differ
        try:
            with torch.no_grad():
                expected, weight = plain(model, small)
                try:
                    found, found_weight = selected(model, small)
                except torch.OutOfMemoryError:
                    raise
                except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
                    return plain
        finally:
            for module, flag in training:
                module.training = flag
        # the two differ by the order of rounding only: 1e-5 in float32, the type's own step in half precision
        low = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        close = torch.isclose(
            found.to(expected.dtype) / found_weight,
            expected / weight,
            rtol=1e-2 if low else 1e-5,
            atol=1e-6,
            equal_nan=True,
        )
        return selected if bool(close) else plain

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        predicted = labels[:, 1:] != IGNORED
        weight = predicted.sum()
        if not self.at_supervised:
            return self._plain(model, batch, weight)
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        positions = F.pad(predicted, (0, 1), value=False)  # the hidden state at t predicts the label at t+1
        logits = logits_at(model, inputs, positions)
        return _summed_cross_entropy(logits, labels[:, 1:][predicted]), weight

    @staticmethod
    def _plain(model: nn.Module, batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
        output = model(**batch)
        own = getattr(output, "loss", None)
        if own is None:
            logits = getattr(output, "logits", output)
            targets = batch["labels"][:, 1:]
            kept = targets != IGNORED
            return _summed_cross_entropy(logits[:, :-1][kept], targets[kept]), weight
        total = own.to(wide_dtype(own.device)) * weight
        return torch.where(weight > 0, total, torch.zeros_like(total)), weight  # a mean over no token is NaN


def logits_at(model: nn.Module, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
    """Logits of a causal language model at `positions` (bool, rows x tokens) only: shape (positions.sum(), V)."""

    def keep(_: nn.Module, arguments: Sequence[Any]) -> tuple:
        hidden, *rest = arguments
        return (hidden[positions.to(hidden.device)].unsqueeze(0), *rest)

    handle = _part(model, "get_output_embeddings").register_forward_pre_hook(keep)
    try:
        return model(**inputs, use_cache=False).logits.squeeze(0)
    finally:
        handle.remove()


def _summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over positions of the cross-entropy: softmax in float32 or wider, sum in float64 where there is any."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets.to(logits.device), reduction="none")
    return losses.to(wide_dtype(losses.device)).sum()
