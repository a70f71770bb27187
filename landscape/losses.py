"""What a loss is: criteria on pairs, causal cross-entropy of language models, each summed with its weight."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.data import IGNORED
from landscape.errors import InputError
from landscape.head import linear_cross_entropy
from landscape.parameters import vector_digest, wide_dtype

Batch = Any  # a mapping of tensors, or an (inputs, targets) pair
LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Tensor | float]]  # -> (loss_sum, weight)


@runtime_checkable
class OutputLoss(Protocol):
    """A loss function that says which outputs it is a convex function of, as the Gauss-Newton matrix needs it."""

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | float]: ...

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """The outputs that the loss depends on (logits at supervised positions), shape (terms, ...)."""
        ...

    def of_outputs(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """The summed loss and its weight."""
        ...

    def output_hessian(self, outputs: Tensor, batch: Batch, tangent: Tensor) -> Tensor:
        """The Hessian of the summed loss in `outputs` times `tangent`, shaped like `outputs`."""
        ...


def default_loss(model: nn.Module, data: Iterable[Batch], first: Batch) -> LossFunction:
    """The loss that `data` calls for, from its `first` batch (on the model's device): causal LM, or cross-entropy.

    Raises InputError for batches that are neither, and where `check_token_batches` does.
    """
    if isinstance(first, Mapping) and "labels" in first:
        check_token_batches(model, data)
        return CausalLoss.for_model(model, first)
    if isinstance(first, (tuple, list)) and len(first) == 2:
        return supervised_loss(F.cross_entropy)
    raise InputError("a batch is neither a mapping with 'labels' nor an (inputs, targets) pair; pass loss_fn.")


class SupervisedLoss:
    """A torch criterion on `(inputs, targets)` batches, summed. See `supervised_loss`."""

    def __init__(self, criterion: Callable[..., Tensor]):
        function: Any = criterion
        options: dict[str, Any] = {}
        while isinstance(function, functools.partial):
            function, options = function.func, function.keywords | options

        def option(name: str, default: Any) -> Any:
            return options.get(name, getattr(function, name, default))

        if option("weight", None) is not None:
            raise InputError("a criterion with class weights does not average over terms; write loss_fn yourself.")
        if option("reduction", "mean") not in ("mean", "sum", "none"):
            raise InputError(
                f"reduction={option('reduction', None)!r} does not average over terms; use 'mean', or write loss_fn."
            )
        self.criterion = criterion
        self.ignored = option("ignore_index", IGNORED)
        self._takes_classes = function is F.cross_entropy or isinstance(function, nn.CrossEntropyLoss)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, int]:
        return self.of_outputs(model(batch[0]), batch)

    def of_outputs(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, int]:
        return self._sum(outputs, batch[1]), self._weight(batch[1])

    def _weight(self, targets: Tensor) -> int:
        if not torch.is_floating_point(targets):
            return int((targets != self.ignored).sum())
        if self._takes_classes:  # a probability for each class makes one term
            return targets.numel() // targets.shape[1 if targets.ndim > 1 else 0]
        return targets.numel()

    def _sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        if not isinstance(self.criterion, nn.Module):
            return self.criterion(outputs, targets, reduction="sum")
        value = self.criterion(outputs, targets)
        if getattr(self.criterion, "reduction", "mean") != "mean":
            return value.sum()
        weight = self._weight(targets)
        # a mean over no term is NaN; its sum is zero
        return value.to(wide_dtype(value.device)) * weight if weight else outputs.sum() * 0

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        return model(batch[0])

    def output_hessian(self, outputs: Tensor, batch: Batch, tangent: Tensor) -> Tensor:
        with torch.enable_grad():
            z = outputs.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self._sum(z, batch[1]), z, create_graph=True)
            if not slope.requires_grad:  # the criterion is linear in the outputs
                return torch.zeros_like(z)
            (product,) = torch.autograd.grad(slope, z, grad_outputs=tangent.to(slope.dtype), allow_unused=True)
        return torch.zeros_like(z) if product is None else product


def supervised_loss(criterion: Callable[..., Tensor]) -> SupervisedLoss:
    """A loss function for `(inputs, targets)` batches from a torch criterion with mean reduction.

    The criterion is called as `criterion(model(inputs), targets, reduction="sum")` where it takes a reduction
    (functions of `torch.nn.functional`), or, as a module such as `nn.CrossEntropyLoss()`, has its reduction read.
    The weight is the number of terms that a mean would divide by: targets that are not `ignore_index` for class
    targets, rows for class probabilities of a cross-entropy, elements for others. Options bound with
    `functools.partial` count. Raises InputError for class weights and for reductions such as "batchmean", whose
    mean is not over terms.

    >>> import torch
    >>> loss_fn = supervised_loss(torch.nn.MSELoss())
    >>> total, weight = loss_fn(torch.nn.Identity(), (torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])))
    >>> float(total), weight
    (5.0, 2)
    """
    return SupervisedLoss(criterion)


def loss_name(loss_fn: LossFunction | None) -> str | None:
    """What identifies a loss function in a result's settings and in a journal; None for the default.

    A function by its name, a digest of its source and what it closes over; an object by its class and its public
    attributes, tensors by their digest.
    """
    return None if loss_fn is None else _said(loss_fn)


def _said(value: Any, depth: int = 0) -> str:
    if value is None or isinstance(value, (bool, int, float, str)):
        return repr(value)
    if isinstance(value, Tensor):
        return vector_digest({"": value})[:16]
    if inspect.isclass(value) or inspect.ismodule(value):
        return value.__name__
    named: Mapping[str, Any] = {}
    if isinstance(value, functools.partial):
        name, held, named = "partial", [value.func, *value.args], value.keywords
    elif inspect.ismethod(value):
        name, held = value.__name__, [value.__self__]
    elif inspect.isroutine(value):
        name = f"{value.__module__}.{value.__qualname__}{_source_digest(value)}"
        cells = getattr(value, "__closure__", None) or ()
        held = [*(getattr(value, "__defaults__", None) or ()), *(cell.cell_contents for cell in cells)]
    else:
        name, held = f"{type(value).__module__}.{type(value).__qualname__}", []
        named = {key: part for key, part in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
        if isinstance(value, nn.Module):
            named = named | value.state_dict()
    if depth > 3:  # deep enough for a criterion within a loss; and an object may hold itself
        return name
    parts = [_said(part, depth + 1) for part in held]
    parts += [f"{key}={_said(part, depth + 1)}" for key, part in sorted(named.items())]
    return f"{name}({', '.join(parts)})" if parts else name


def _source_digest(function: Any) -> str:
    """A digest of a function's source: two may share a name, such as those of a notebook's cells."""
    try:
        return f"#{hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]}"
    except (OSError, TypeError):
        return ""


# --- language models ----------------------------------------------------------------------------------------


def check_token_batches(model: nn.Module, data: Iterable[Batch]) -> None:
    """Raise InputError where token ids, lengths or labels are such that the model has no loss on them."""
    embeddings = _part(model, "get_input_embeddings")
    vocabulary = getattr(embeddings, "num_embeddings", None)
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError("an encoder-decoder model has no causal language-model loss; pass loss_fn.")
    classes = getattr(_part(model, "get_output_embeddings"), "out_features", vocabulary)
    supervised = 0
    for number, batch in enumerate(data, start=1):
        if not isinstance(batch, Mapping) or batch.get("labels") is None:
            raise InputError(f"batch {number} of the data has no 'labels', though the first has.")
        ids, labels = batch.get("input_ids"), batch["labels"]
        if labels.ndim != 2:
            raise InputError(f"labels must have shape (rows, tokens), got {tuple(labels.shape)}; pass loss_fn.")
        targets = labels[:, 1:][labels[:, 1:] != IGNORED]
        supervised += len(targets)
        for label in (int(targets.min()), int(targets.max())) if len(targets) else ():
            if label < 0 or (classes is not None and label >= classes):
                raise InputError(
                    f"label {label} in the data is no token of the model's vocabulary of {classes}; where no loss is "
                    f"taken, the label is {IGNORED}."
                )
        if ids is None:
            continue
        if vocabulary is not None and ids.numel() and int(ids.max()) >= vocabulary:
            raise InputError(
                f"token id {int(ids.max())} in the data is beyond the model's vocabulary of {vocabulary}; "
                "the tokenizer is not this model's."
            )
        if ids.numel() and int(ids.min()) < 0:
            raise InputError(f"token id {int(ids.min())} in the data is negative.")
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
    With `linear_head=True` the logits are the head's own output, a linear map, and are never all held at once
    (`head.linear_cross_entropy`). Otherwise it is `model(**batch).loss` times the number of supervised tokens.
    """

    def __init__(self, at_supervised: bool, linear_head: bool = False):
        self.at_supervised = at_supervised
        self.linear_head = linear_head

    @classmethod
    def for_model(cls, model: nn.Module, batch: Batch) -> CausalLoss:
        """The cheapest form that gives the model's own loss on two rows of `batch`.

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
        low = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        training = [(module, module.training) for module in model.modules()]
        model.eval()  # dropout would make them differ
        try:
            with torch.no_grad():
                expected, weight = plain(model, small)
                for form in (cls(at_supervised=True, linear_head=True), cls(at_supervised=True)):
                    try:
                        found, found_weight = form(model, small)
                    except torch.OutOfMemoryError:
                        raise
                    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
                        continue
                    # they differ by the order of rounding: 1e-5 in float32, the type's own step in half precision
                    ours, own = found.to(expected.dtype) / found_weight, expected / weight
                    if torch.isclose(ours, own, rtol=1e-2 if low else 1e-5, atol=1e-6, equal_nan=True):
                        return form
        finally:
            for module, flag in training:
                module.training = flag
        return plain

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        labels = batch["labels"]
        predicted = labels[:, 1:] != IGNORED
        weight = predicted.sum()
        if not self.at_supervised:
            return self._plain(model, batch, weight)
        if self.linear_head:
            return self._from_hidden(model, batch, predicted), weight
        return self.of_outputs(self.outputs(model, batch), batch)

    @staticmethod
    def _from_hidden(model: nn.Module, batch: Batch, predicted: Tensor) -> Tensor:
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        hidden, head = hidden_at(model, inputs, F.pad(predicted, (0, 1), value=False))
        targets = batch["labels"][:, 1:][predicted].to(hidden.device)
        return linear_cross_entropy(hidden, head.weight, head.bias, targets)

    @staticmethod
    def of_outputs(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        targets = batch["labels"][:, 1:]
        predicted = targets != IGNORED
        return _summed_cross_entropy(outputs, targets[predicted]), predicted.sum()

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Logits at the positions that predict a supervised label, shape (supervised tokens, vocabulary)."""
        predicted = batch["labels"][:, 1:] != IGNORED
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        if not self.at_supervised:
            output = model(**inputs)
            return getattr(output, "logits", output)[:, :-1][predicted]
        positions = F.pad(predicted, (0, 1), value=False)  # the hidden state at t predicts the label at t+1
        return logits_at(model, inputs, positions)

    @staticmethod
    def output_hessian(outputs: Tensor, batch: Batch, tangent: Tensor) -> Tensor:
        """(diag p - p p') tangent at every position, p the softmax: the Hessian of cross-entropy in its logits."""
        wide = torch.promote_types(outputs.dtype, torch.float32)
        p = torch.softmax(outputs.detach().to(wide), dim=-1)
        weighted = p * tangent.to(wide)
        return weighted.addcmul_(p, weighted.sum(-1, keepdim=True), value=-1)

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
        output = model(**inputs, use_cache=False)
        return getattr(output, "logits", output).squeeze(0)
    finally:
        handle.remove()


def hidden_at(model: nn.Module, inputs: Mapping[str, Any], positions: Tensor) -> tuple[Tensor, nn.Linear]:
    """Hidden states that a linear output head sees at `positions`, (positions.sum(), width), and the head.

    The head itself is given one position only. Raises TypeError where it is not a plain linear map.
    """
    head = _part(model, "get_output_embeddings")
    if type(head) is not nn.Linear:
        raise TypeError(f"the output head is a {type(head).__name__}, not a linear map")
    kept: list[Tensor] = []

    def keep(_: nn.Module, arguments: Sequence[Any]) -> tuple:
        hidden, *rest = arguments
        kept.append(hidden[positions.to(hidden.device)])
        return (hidden[:1, :1], *rest)

    handle = head.register_forward_pre_hook(keep)
    try:
        model(**inputs, use_cache=False)
    finally:
        handle.remove()
    return kept[0], head


def _summed_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Sum over positions of the cross-entropy: softmax in float32 or wider, sum in float64 where there is any."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets.to(logits.device), reduction="none")
    return losses.to(wide_dtype(losses.device)).sum()
