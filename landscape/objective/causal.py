"""Causal language models: next-token cross-entropy at supervised positions."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscape.checkpoints.loading import grouped_experts
from landscape.data.batches import Batch
from landscape.data.tokens import IGNORED
from landscape.errors import InputError, MeasurementWarning, as_typed, first_line
from landscape.linalg.precision import wide_dtype
from landscape.objective.head import linear_cross_entropy
from landscape.parallel.sharding import is_sharded


def check_token_batches(model: nn.Module, data: Iterable[Batch]) -> None:
    """Check that a model has a causal language-model loss on every batch.

    Args:
        model: A transformers model, or any module that takes such batches.
        data: Batches, mappings with `labels`.

    Raises:
        InputError: The model is an encoder-decoder; a batch has no labels of shape (rows, tokens); a token id, a label
            or a length is beyond what the model has; or no token is supervised.
    """
    embeddings = model_part(model, "get_input_embeddings")
    vocabulary = getattr(embeddings, "num_embeddings", None)
    config = getattr(model, "config", None)
    positions = getattr(config, "max_position_embeddings", None)
    if getattr(config, "is_encoder_decoder", False):
        raise InputError("an encoder-decoder model has no causal language-model loss; pass loss_fn.")
    if grouped_experts(model) and any(tensor.dtype == torch.float64 for tensor in model.parameters()):
        raise InputError(
            f"the experts of {type(model).__name__} are multiplied in groups, which torch cannot in float64; call "
            'model.set_experts_implementation("eager") first.'
        )
    classes = getattr(model_part(model, "get_output_embeddings"), "out_features", vocabulary)
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
        if positions is not None and 0 < positions < ids.shape[1]:
            raise InputError(
                f"an example of {ids.shape[1]} tokens is longer than the model's {positions} positions; "
                f"lower {as_typed('max_length')}."
            )
    if supervised == 0:
        raise InputError("the data has no supervised token: no loss can be taken over it.")


def _has_router_loss(model: nn.Module) -> bool:
    """Whether a mixture of experts adds the loss of its router to the cross-entropy."""
    config = getattr(model, "config", None)
    parts = [config, *(getattr(config, name, None) for name in getattr(config, "sub_configs", None) or ())]
    return any(getattr(part, "output_router_logits", False) for part in parts)


def model_part(model: nn.Module, getter: str) -> Any:
    """Return what a transformers model's getter returns; None for other modules."""
    return getattr(model, getter)() if hasattr(model, getter) else None


class CausalLoss:
    """Shifted causal language-model cross-entropy, summed over supervised positions.

    Args:
        at_supervised: Whether the output head sees only the hidden states that predict a supervised label. What the
            architecture does to its logits afterwards (scaling, capping) still happens, in its own code. Otherwise the
            loss is `model(**batch).loss` times the number of supervised tokens.
        linear_head: Whether the logits are taken for the output of a linear head, and are never all held at once (see
            `head.linear_cross_entropy`). This needs `at_supervised`.
        auxiliary: Whether the model's own auxiliary losses count, such as that of a router (`output_router_logits`),
            which depends on the examples that are in a batch together.
    """

    def __init__(self, at_supervised: bool, linear_head: bool = False, auxiliary: bool = True):
        self.at_supervised = at_supervised
        self.linear_head = linear_head
        self.auxiliary = auxiliary

    @classmethod
    def for_model(cls, model: nn.Module, batch: Batch) -> CausalLoss:
        """Return the cheapest form of the loss that equals the model's own loss on two rows of `batch`.

        An auxiliary loss of a router is not part of it: MeasurementWarning says that it is left out.

        The forms are tried on the model, because no list of architectures would be complete: heads that do more than
        project, losses with extra terms and forward passes that take other arguments all show as a different value.

        Args:
            model: A causal language model.
            batch: One batch, on the model's device.
        """
        auxiliary = not _has_router_loss(model)
        if not auxiliary:
            warnings.warn(
                f"the loss is the cross-entropy of tokens alone: the auxiliary loss of the router of "
                f"{type(model).__name__} (output_router_logits) is left out.",
                MeasurementWarning,
                stacklevel=2,
            )
        plain = cls(at_supervised=False, auxiliary=auxiliary)
        head = model_part(model, "get_output_embeddings")
        if head is None:
            return plain
        labels = batch["labels"]
        rows = (labels[:, 1:] != IGNORED).any(1).nonzero().flatten()[:2]
        if not len(rows):
            return plain
        small = {k: v[rows] if isinstance(v, Tensor) and len(v) == len(labels) else v for k, v in batch.items()}
        low = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        training = [(module, module.training) for module in model.modules()]
        model.eval()  # Dropout would make the values differ.
        try:
            with torch.no_grad():
                expected, weight = _first_of(plain, model, small)
                for form in (cls(True, True, auxiliary), cls(True, False, auxiliary)):
                    try:
                        total, form_weight = form(model, small)
                    except torch.OutOfMemoryError:
                        raise
                    except (TypeError, ValueError, IndexError, AttributeError, RuntimeError):
                        continue
                    # Equal forms differ by rounding: 1e-5 in float32, the type's own step in half precision.
                    ours, own = total.to(expected.dtype) / form_weight, expected / weight
                    if torch.isclose(ours, own, rtol=1e-2 if low else 1e-5, atol=1e-6, equal_nan=True):
                        return form
        finally:
            for module, flag in training:
                module.training = flag
        return plain

    def __call__(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss and the number of supervised tokens."""
        labels = batch["labels"]
        predicted = labels[:, 1:] != IGNORED
        weight = predicted.sum()
        if not self.at_supervised:
            return self._plain(model, batch, weight)
        if self.linear_head:
            return self._from_hidden(model, {**batch, **self._without_auxiliary()}, predicted), weight
        return self.of_outputs(self.outputs(model, batch), batch)

    @staticmethod
    def _from_hidden(model: nn.Module, batch: Batch, predicted: Tensor) -> Tensor:
        """Return the summed loss from hidden states and a linear head."""
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        hidden, head = hidden_at(model, inputs, F.pad(predicted, (0, 1), value=False))
        targets = batch["labels"][:, 1:][predicted].to(hidden.device)
        return linear_cross_entropy(hidden, head.weight, head.bias, targets)

    @staticmethod
    def of_outputs(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss of `outputs`, and the number of supervised tokens."""
        targets = batch["labels"][:, 1:]
        predicted = targets != IGNORED
        return _summed_cross_entropy(outputs, targets[predicted]), predicted.sum()

    def outputs(self, model: nn.Module, batch: Batch) -> Tensor:
        """Return the logits that predict a supervised label, shape (supervised tokens, vocabulary)."""
        predicted = batch["labels"][:, 1:] != IGNORED
        inputs = {key: value for key, value in batch.items() if key != "labels"}
        inputs.update(self._without_auxiliary())
        if not self.at_supervised:
            output = model(**inputs)
            return getattr(output, "logits", output)[:, :-1][predicted]
        positions = F.pad(predicted, (0, 1), value=False)  # The hidden state at t predicts the label at t + 1.
        return logits_at(model, inputs, positions)

    @staticmethod
    def output_hessian(outputs: Tensor, batch: Batch, tangent: Tensor) -> Tensor:
        """Multiply `tangent` by the Hessian of the summed cross-entropy in its logits.

        The Hessian is diag(p) - p p' at every position, where p is the softmax of the logits.

        Args:
            outputs: Logits, shape (supervised tokens, vocabulary).
            batch: Is not needed for this loss.
            tangent: A vector in the logits, of their shape.
        """
        wide = torch.promote_types(outputs.dtype, torch.float32)
        p = torch.softmax(outputs.detach().to(wide), dim=-1)
        weighted = p * tangent.to(wide)
        return weighted.addcmul_(p, weighted.sum(-1, keepdim=True), value=-1)

    def _without_auxiliary(self) -> dict[str, Any]:
        """Return the arguments of a forward pass by which the model leaves out its auxiliary losses."""
        return {} if self.auxiliary else {"output_router_logits": False}

    def _plain(self, model: nn.Module, batch: Batch, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return the model's own mean loss times its weight; the loss of its logits where it has none of its own."""
        output = model(**batch, **self._without_auxiliary())
        own = getattr(output, "loss", None)
        if own is None:
            logits = getattr(output, "logits", output)
            targets = batch["labels"][:, 1:]
            kept = targets != IGNORED
            return _summed_cross_entropy(logits[:, :-1][kept], targets[kept]), weight
        total = own.to(wide_dtype(own.device)) * weight
        return torch.where(weight > 0, total, torch.zeros_like(total)), weight  # The mean over no token is NaN.


def _first_of(loss_fn: CausalLoss, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return the loss of the first batch; raise InputError where the model does not compute on it."""
    try:
        return loss_fn(model, batch)
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
        raise InputError(
            f"{type(model).__name__} in {dtype} does not compute on the first batch: {first_line(error)}"
        ) from error


def logits_at(model: nn.Module, inputs: Mapping[str, Any], positions: Tensor) -> Tensor:
    """Return the logits of a causal language model at some positions only.

    Args:
        model: A transformers model.
        inputs: Arguments of its forward pass.
        positions: Which positions to take, bool, shape (rows, tokens).

    Returns:
        Logits, shape (positions taken, vocabulary).
    """

    def keep(_: nn.Module, arguments: Sequence[Any]) -> tuple:
        hidden, *rest = arguments
        return (hidden[positions.to(hidden.device)].unsqueeze(0), *rest)

    handle = model_part(model, "get_output_embeddings").register_forward_pre_hook(keep)
    try:
        output = model(**inputs, use_cache=False)
        return getattr(output, "logits", output).squeeze(0)
    finally:
        handle.remove()


def hidden_at(model: nn.Module, inputs: Mapping[str, Any], positions: Tensor) -> tuple[Tensor, nn.Linear]:
    """Return the hidden states that a linear output head sees at some positions, and the head.

    The head itself is given one position only.

    Args:
        model: A transformers model.
        inputs: Arguments of its forward pass.
        positions: Which positions to take, bool, shape (rows, tokens).

    Returns:
        Hidden states, shape (positions taken, width), and the head.

    Raises:
        TypeError: The head is not a plain linear map, or its weight is there only while the model computes (FSDP2,
            weights that accelerate offloads).
    """
    head = model_part(model, "get_output_embeddings")
    if is_sharded(model):
        raise TypeError("the output head of a sharded model cannot be used outside of the model")
    if type(head) is not nn.Linear:
        raise TypeError(f"the output head is a {type(head).__name__}, not a linear map")
    if any(part.is_meta for part in head.parameters()):
        # torch 2.13 multiplies CPU by meta tensors without an error, into memory that was never written.
        raise TypeError("the output head is offloaded; it cannot be used outside of the model")
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
    """Sum the cross-entropy over positions: the softmax in float32 or wider, the sum in the widest float."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    losses = F.cross_entropy(logits, targets.to(logits.device), reduction="none")
    return losses.to(wide_dtype(losses.device)).sum()


def supervised_hidden(model: nn.Module, batch: Batch) -> Tensor:
    """Return the hidden states that a linear head sees at supervised positions, shape (supervised tokens, width)."""
    positions = F.pad(batch["labels"][:, 1:] != IGNORED, (0, 1), value=False)
    return hidden_at(model, {key: value for key, value in batch.items() if key != "labels"}, positions)[0]
