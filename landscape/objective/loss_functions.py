"""What a loss is: a criterion on pairs, or the causal cross-entropy of a language model, summed with its weight."""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.data.batches import Batch, on_device
from landscape.data.tokens import IGNORED
from landscape.errors import InputError, as_typed
from landscape.linalg.precision import wide_dtype
from landscape.objective.causal import CausalLoss, check_token_batches
from landscape.weights.preservation import preserved
from landscape.weights.vectors import vector_digest

LossFunction = Callable[[nn.Module, Batch], tuple[Tensor, Tensor | float]]  # -> (loss_sum, weight)


@runtime_checkable
class OutputLoss(Protocol):
    """A loss function that says which outputs it is a convex function of, as the Gauss-Newton matrix needs it."""

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """Return the summed loss and its weight."""
        ...

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the outputs that the loss depends on (logits at supervised positions), shape (terms, ...)."""
        ...

    def of_outputs(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """Return the summed loss and its weight."""
        ...

    def output_hessian(self, outputs: Tensor, batch: Batch, tangent: Tensor) -> Tensor:
        """Multiply `tangent`, shaped as `outputs`, by the Hessian of the summed loss in `outputs`."""
        ...


def default_loss(model: nn.Module, data: Iterable[Batch], first: Batch) -> LossFunction:
    """Return the loss that the data calls for: that of a causal language model, or cross-entropy.

    Args:
        model: The model that will be measured.
        data: Batches.
        first: The first of them, on the model's device.

    Raises:
        InputError: A batch is neither a mapping with `labels` nor an (inputs, targets) pair, the model has no loss on a
            batch (see `causal.check_token_batches`), or targets of pairs are not classes of the model.
    """
    if isinstance(first, Mapping) and "labels" in first:
        check_token_batches(model, data)
        return CausalLoss.for_model(model, first)
    if isinstance(first, (tuple, list)) and len(first) == 2:
        _check_classes(model, data, first)
        return supervised_loss(F.cross_entropy)
    raise InputError("a batch is neither a mapping with 'labels' nor an (inputs, targets) pair; pass loss_fn.")


def _check_classes(model: nn.Module, data: Iterable[Batch], first: Batch) -> None:
    """Check that the targets of pairs are classes, or probabilities of the classes that the model gives scores to.

    Args:
        model: The model that will be measured.
        data: (inputs, targets) pairs.
        first: The first of them, on the model's device.

    Raises:
        InputError: Targets are numbers for a regression, or no class of the model.
    """
    other = (
        "cross-entropy, which is the loss of (inputs, targets) pairs without loss_fn, needs {}; for a regression pass "
        "loss_fn=landscape.supervised_loss(torch.nn.MSELoss())."
    )
    with preserved(model), torch.no_grad():
        outputs = model(first[0])
    if not isinstance(outputs, Tensor) or not isinstance(first[1], Tensor) or not outputs.ndim:
        raise InputError(
            "a model of (inputs, targets) pairs has to return a tensor, and targets are one; pass loss_fn."
        )
    shape = tuple(outputs.shape)
    classes = shape[1 if outputs.ndim > 1 else 0]
    if classes < 2:
        raise InputError(other.format(f"a score for each of two or more classes, but the model's output is {shape}"))
    for number, (_, targets) in enumerate(data, start=1):
        if targets.is_floating_point():
            of_one = targets.sum(1 if targets.ndim > 1 else 0)
            fits = targets.ndim == outputs.ndim and targets.shape[min(1, targets.ndim - 1)] == classes
            if not (fits and bool((targets >= 0).all()) and bool((of_one - 1).abs().max() < 1e-2)):
                given = f"{str(targets.dtype).removeprefix('torch.')} of shape {tuple(targets.shape)}"
                raise InputError(
                    other.format(
                        "classes as whole numbers, or a probability for each of them, and the targets of batch "
                        f"{number} are {given}"
                    )
                )
            continue
        kept = targets[targets != IGNORED]
        for label in (int(kept.min()), int(kept.max())) if kept.numel() else ():
            if not 0 <= label < classes:
                raise InputError(
                    f"target {label} of batch {number} is none of the model's {classes} classes; where no loss is "
                    f"taken, the target is {IGNORED}."
                )


class SupervisedLoss:
    """A torch criterion on `(inputs, targets)` batches, summed. `supervised_loss` makes it.

    Attributes:
        criterion: The torch criterion.
        ignored: Class that marks targets without a loss.
    """

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
        """Return the summed loss and the number of its terms."""
        return self.of_outputs(model(batch[0]), batch)

    def of_outputs(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, int]:
        """Return the summed loss of the model's outputs, and the number of its terms."""
        return self._sum(outputs, batch[1]), self._weight(batch[1])

    def _weight(self, targets: Tensor) -> int:
        """Return the number of terms that a mean over the targets would divide by."""
        if not torch.is_floating_point(targets):
            return int((targets != self.ignored).sum())
        if self._takes_classes:  # A probability for each class makes one term.
            return targets.numel() // targets.shape[1 if targets.ndim > 1 else 0]
        return targets.numel()

    def _sum(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the criterion, summed over terms."""
        if not isinstance(self.criterion, nn.Module):
            return self.criterion(outputs, targets, reduction="sum")
        value = self.criterion(outputs, targets)
        if getattr(self.criterion, "reduction", "mean") != "mean":
            return value.sum()
        weight = self._weight(targets)
        # The mean over no term is NaN, but the sum is zero.
        return value.to(wide_dtype(value.device)) * weight if weight else outputs.sum() * 0

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the model's outputs."""
        return model(batch[0])

    def output_hessian(self, outputs: Tensor, batch: Batch, tangent: Tensor) -> Tensor:
        """Multiply `tangent` by the Hessian of the summed loss in the outputs, by differentiating twice."""
        with torch.enable_grad():
            z = outputs.detach().requires_grad_(True)
            (slope,) = torch.autograd.grad(self._sum(z, batch[1]), z, create_graph=True)
            if not slope.requires_grad:  # The criterion is linear in the outputs.
                return torch.zeros_like(z)
            (product,) = torch.autograd.grad(slope, z, grad_outputs=tangent.to(slope.dtype), allow_unused=True)
        return torch.zeros_like(z) if product is None else product


def supervised_loss(criterion: Callable[..., Tensor]) -> SupervisedLoss:
    """Make a loss function for `(inputs, targets)` batches of a torch criterion.

    The weight of a batch is the number of terms that a mean would divide by: for class targets those that are not
    `ignore_index`, for class probabilities of a cross-entropy the rows, for others the elements.

    Args:
        criterion: A function of `torch.nn.functional`, which is called as
            `criterion(model(inputs), targets, reduction="sum")`; or a module such as `nn.CrossEntropyLoss()`, whose own
            reduction is read. Options bound with `functools.partial` count.

    Returns:
        A function `(model, batch) -> (loss_sum, weight)`, which every measurement takes as `loss_fn`.

    Raises:
        InputError: The criterion has class weights, or a reduction such as "batchmean" whose mean is not over terms.

    Example:
        >>> import torch
        >>> loss_fn = supervised_loss(torch.nn.MSELoss())
        >>> total, weight = loss_fn(torch.nn.Identity(), (torch.tensor([1.0, 2.0]), torch.tensor([0.0, 0.0])))
        >>> float(total), weight  # 1^2 + 2^2
        (5.0, 2)
    """
    return SupervisedLoss(criterion)


# The modules of our own losses as results and journals name them. A file that moves must not make them other losses.
_SAVED_MODULES = {
    "landscape.objective.loss_functions": "landscape.losses",
    "landscape.objective.causal": "landscape.causal",
}


def loss_name(loss_fn: LossFunction | None) -> str | None:
    """Return what identifies a loss function in a result's settings and in a journal; None for the default.

    A function is identified by its name, a digest of its source and what it closes over; an object by its class and its
    public attributes; a tensor by its digest.

    Example:
        >>> loss_name(supervised_loss(torch.nn.L1Loss()))[:55]
        'landscape.losses.SupervisedLoss(criterion=torch.nn.modu'
    """
    return None if loss_fn is None else _description(loss_fn)


def _description(value: Any, depth: int = 0) -> str:
    """Describe a value and what it holds, to a depth of three."""
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
        module = type(value).__module__
        name, held = f"{_SAVED_MODULES.get(module, module)}.{type(value).__qualname__}", []
        named = {key: part for key, part in getattr(value, "__dict__", {}).items() if not key.startswith("_")}
        if isinstance(value, nn.Module):
            named = named | value.state_dict()
    if depth > 3:  # This is deep enough for a criterion within a loss, and an object may hold itself.
        return name
    parts = [_description(part, depth + 1) for part in held]
    parts += [f"{key}={_description(part, depth + 1)}" for key, part in sorted(named.items())]
    return f"{name}({', '.join(parts)})" if parts else name


def _source_digest(function: Any) -> str:
    """Return a digest of a function's source, because two functions of a notebook's cells may share a name."""
    try:
        return f"#{hashlib.sha256(inspect.getsource(function).encode()).hexdigest()[:16]}"
    except (OSError, TypeError):
        return ""


class NormalizedLogits:
    """A loss with each term's logits centred and divided by their standard deviation over the vocabulary.

    Published code divides by the l2 norm instead. Its logits are smaller by the square root of the vocabulary's size,
    and a softmax over 32 000 of them is almost uniform whatever the model computes.

    Args:
        loss_fn: The loss of the normalized logits.
    """

    def __init__(self, loss_fn: OutputLoss):
        self.loss_fn = loss_fn

    @classmethod
    def around(cls, model: nn.Module, data: Iterable[Batch], loss_fn: LossFunction | None) -> NormalizedLogits:
        """Normalize the logits of a loss function.

        Args:
            model: The model that will be measured.
            data: Batches.
            loss_fn: The loss function; None takes the loss that the data calls for.

        Raises:
            InputError: The loss function does not say which outputs it depends on.
        """
        if loss_fn is None:
            first = next(iter(data), None)
            if first is None:
                raise InputError("the data holds no batch.")
            loss_fn = default_loss(model, data, on_device(first, next(model.parameters()).device))
        if not isinstance(loss_fn, OutputLoss):
            raise InputError(
                f"{as_typed('normalize_logits')} needs a loss with outputs: the default, or supervised_loss(criterion)."
            )
        return cls(loss_fn)

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the normalized logits, in float32 or wider."""
        logits = self.loss_fn.outputs(model, batch)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        centred = logits - logits.mean(-1, keepdim=True)
        return centred / centred.square().mean(-1, keepdim=True).sqrt()

    def of_outputs(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """Return the summed loss of normalized logits, and its weight."""
        return self.loss_fn.of_outputs(outputs, batch)

    def output_hessian(self, outputs: Tensor, batch: Batch, tangent: Tensor) -> Tensor:
        """Multiply `tangent` by the Hessian of the summed loss in the normalized logits."""
        return self.loss_fn.output_hessian(outputs, batch, tangent)

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | float]:
        """Return the summed loss and its weight."""
        return self.of_outputs(self.outputs(model, batch), batch)
