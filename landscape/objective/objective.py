"""Loss and gradient of a model over a data set, as the mean over tokens, whatever batches these are in."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from landscape.data.batches import Batch, on_device, rows_of, take_rows
from landscape.errors import InputError, as_typed
from landscape.linalg.precision import wide_dtype
from landscape.objective.causal import CausalLoss
from landscape.objective.checks import check_batching, check_causality, check_gradient_paths
from landscape.objective.given import check_loss, check_loss_function
from landscape.objective.gradients import differentiable, gradients_of_shards, gradients_of_whole, preserved_gradients
from landscape.objective.identity import describe_data
from landscape.objective.loss_functions import LossFunction, default_loss
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.parallel.sharding import agreed, is_sharded
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import vector_digest

T = TypeVar("T")


class Loss(NamedTuple):
    """A mean loss: the sum of losses over the sum of weights.

    Attributes:
        mean: Nats per term; NaN or infinite where the model's loss is.
        weight: Number of terms (supervised tokens).
    """

    mean: float
    weight: float


class Objective:
    """The weighted mean loss L = sum_b loss_sum_b / sum_b weight_b of `model` over `data`.

    How the examples are batched changes it by rounding only. Inside `distributed.shared_work`, loss and gradient split
    the batches over the processes. A model that `fully_shard` cut is measured by all its processes in step, on the same
    data and outside `shared_work`; FSDP2 has to average gradients over the processes, as it does by default.

    Args:
        model: Any `nn.Module`. It is evaluated as it stands; see `preservation.preserved` for evaluation mode.
        data: Any iterable of batches that can be read again and again: mappings with `labels` (-100 where no loss is
            taken; the label at position t is predicted from the tokens before t), or `(inputs, targets)` pairs.
        loss_fn: `loss_fn(model, batch) -> (loss_sum, weight)`. None takes shifted causal language-model cross-entropy
            for mappings and cross-entropy for pairs.
        autocast: "bfloat16" computes the matrix products of forward passes in that type (`torch.autocast`), while
            weights, softmax and sums stay as they are. None computes everything in the weights' own type.

    Raises:
        InputError: The data cannot be read twice, is empty or has no supervised token; it has token ids or lengths that
            the model does not have; weights or data are not those of the other processes; the loss of examples depends
            on how they are batched; or without `loss_fn`, the model of tokens is not causal.

    Example:
        The mean is over rows, whatever batches they are in:

        >>> from landscape.objective.loss_functions import supervised_loss
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(3.0)
        >>> data = [(torch.ones(3, 1), torch.zeros(3, 1)), (torch.ones(1, 1), torch.full((1, 1), 3.0))]
        >>> objective = Objective(model, data, supervised_loss(nn.MSELoss()))
        >>> objective.loss()  # three rows have the loss (3 - 0)^2, one has 0
        Loss(mean=6.75, weight=4.0)
        >>> objective.gradient(Parameters(model))[1]["weight"]  # 3/4 of 2 (3 - 0)
        tensor([[4.5000]])
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Batch],
        loss_fn: LossFunction | None = None,
        autocast: str | None = None,
    ):
        if autocast not in (None, "bfloat16"):
            raise InputError(f"{as_typed('autocast', autocast)} is neither 'bfloat16' nor None.")
        if autocast and any(tensor.dtype == torch.float64 for tensor in model.parameters()):
            raise InputError(f"{as_typed('autocast')} leaves float64 weights in float64; load the model in float32.")
        if iter(data) is data:
            raise InputError(
                f"data is a {type(data).__name__}, which can be read only once; give a list or a DataLoader."
            )
        self.model = model
        self.data = data
        self.autocast = autocast
        # The first of several devices. What accelerate offloads is on meta, and comes to the GPU when it is needed.
        self.device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
        self._sharded = is_sharded(model)
        if loss_fn is not None:
            check_loss_function(loss_fn)
        first = next(iter(data), None)
        if first is None:
            raise InputError("the data holds no batch.")
        first = on_device(first, self.device)
        self.loss_fn = loss_fn or default_loss(model, data, first)
        if loss_fn is None and isinstance(self.loss_fn, CausalLoss):
            check_causality(model, first)
        low = any(tensor.dtype.itemsize < 4 for tensor in model.parameters())
        self.batching_checked = check_batching(model, data, self.evaluate, self.device, low or autocast is not None)
        self.rows_limit: int | None = None  # Maximum rows per micro-batch, once memory ran out.
        self._weights_digest: str | None = None
        self._data_description: dict | None = None
        self._loss_weight: float | None = None
        self._gradients_checked = False
        if self._sharded:
            if distributed.share().size > 1:
                raise InputError(
                    "a sharded model (fully_shard) is measured by all processes in step: not in shared_work."
                )
            if not agreed(describe_data(data)["digest"], model):
                raise InputError(
                    "the processes that hold the sharded model have different data; give every one the same."
                )
        if distributed.share().size > 1:
            distributed.require_same(describe_data(data)["digest"], "data")
            distributed.require_same([_bits(tensor) for tensor in model.parameters()], "weights")

    @torch.no_grad()
    def loss(self) -> Loss:
        """Return the weighted mean over all batches, accumulated in float64."""

        def part(share: Share) -> list[_Part]:
            measured = [(index, torch.stack(pair)) for index, pair in self.over_share(share, self.evaluate)]
            values = torch.stack([pair for _, pair in measured]).tolist() if measured else []
            return [_Part(index, *value) for (index, _), value in zip(measured, values, strict=True)]

        return _loss_of(distributed.gathered(part))

    def loss_weight(self) -> float:
        """Return the number of loss terms (supervised tokens), without evaluating where the data says it itself."""
        if self._loss_weight is None:
            own = getattr(self.data, "tokens", None)
            self._loss_weight = float(own) if isinstance(own, int) else self.loss().weight
        return self._loss_weight

    def weights_digest(self) -> str:
        """Return the digest of all the model's weights, as they were when it was first asked for.

        Hashing a large model takes seconds, so it is done once. Ask before the weights move, or when they are back.
        """
        if self._weights_digest is None:
            self._weights_digest = vector_digest(Parameters(self.model, frozen=True).values())
        return self._weights_digest

    def data_description(self) -> dict:
        """Return what a result's provenance says of the data (see `identity.describe_data`), computed once."""
        if self._data_description is None:
            self._data_description = describe_data(self.data)
        return self._data_description

    def restricted(self, data: Iterable[Batch]) -> Objective:
        """Return the same loss of the same model over other data, which are not checked; nothing is chosen again."""
        part = copy.copy(self)
        part.data, part.rows_limit = data, None
        part._data_description = part._loss_weight = None
        return part

    def gradient(self, parameters: Parameters) -> tuple[Loss, dict[str, Tensor]]:
        """Return the loss and its gradient by parameter name, in float32 or wider. `.grad` is not touched.

        Args:
            parameters: The parameters to differentiate in. Frozen ones among them (`Parameters(frozen=True)`) take
                gradients here, and are as before afterwards.

        Raises:
            InputError: The model's own code does not let its gradient be taken, or hides a part of it.
        """
        self.require_gradients()
        tensors = parameters.tensors
        gradient = [torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]

        def measure(batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
            with torch.enable_grad():
                loss_sum, weight = self.evaluate(batch)
                return loss_sum.detach(), weight, gradients_of(loss_sum, tensors)

        def part(share: Share) -> tuple[list[_Part], list[Tensor]]:
            measured = []
            for index, (loss_sum, weight, parts) in self.over_share(share, measure):
                for accumulated, added in zip(gradient, parts, strict=True):
                    if added is not None:
                        accumulated += added
                measured.append(_Part(index, float(loss_sum), float(weight)))
            return measured, gradient

        gradients_of = gradients_of_shards if self._sharded else gradients_of_whole
        with differentiable(tensors), preserved_gradients(self.model) if self._sharded else contextlib.nullcontext():
            losses, gradient = distributed.summed(part)
        loss = _loss_of(losses)
        named = {name: g.div_(loss.weight) for name, g in zip(parameters.names, gradient, strict=True)}
        return loss, named

    def require_gradients(self) -> None:
        """Check once that what autograd returns is the gradient of the loss (see `checks.check_gradient_paths`).

        Raises:
            InputError: The model's own code hides a part of the forward pass from autograd.
        """
        if self._gradients_checked:
            return
        self._gradients_checked = True
        compiled = any(hasattr(module, "_orig_mod") for module in self.model.modules())
        if not self._sharded and not compiled:
            check_gradient_paths(self.model, self.evaluate, on_device(next(iter(self.data)), self.device))

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the summed loss and the weight of one batch that is on the device already, in the widest float."""
        torch.clear_autocast_cache()  # Inside a caller's autocast, casts of weights would outlive the weights' moves.
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast is not None):
            found = self.loss_fn(self.model, batch)
        check_loss(found)
        loss_sum, weight = found
        wide = wide_dtype(loss_sum.device)
        return loss_sum.to(wide), torch.as_tensor(weight, dtype=wide, device=loss_sum.device)

    def on_device(self, batch: Batch) -> Batch:
        """Return `batch` with its tensors on the model's device."""
        return on_device(batch, self.device)

    def over_batches(self, measure: Callable[[Batch], T]) -> Iterator[T]:
        """Yield `measure(batch)` of every batch, in pieces that fit in memory.

        A batch that does not fit in memory is halved, and so are those after it. Sums over what is yielded depend on
        where batches were cut by rounding only.

        Args:
            measure: Is called with a batch, or a piece of one, on the model's device.

        Raises:
            InputError: A single row does not fit in memory.
        """
        for _, result in self.over_share(Share(0, 1), measure):
            yield result

    def over_share(self, share: Share, measure: Callable[[Batch], T]) -> Iterator[tuple[int, T]]:
        """Yield the number of each batch of a share and `measure` of it, or of its pieces, as `over_batches` does."""
        for index, batch in share.of(self.data):
            pending = _pieces(on_device(batch, self.device), self.rows_limit)
            while pending:
                try:
                    result = measure(pending[0])
                except RuntimeError as error:
                    if not _out_of_memory(error):
                        raise
                    if self._sharded:  # The other processes are in the midst of the same batch.
                        raise InputError(
                            f"a batch does not fit in memory; lower {as_typed('batch_tokens')}."
                        ) from error
                else:
                    del pending[0]
                    yield index, result
                    continue
                # Outside the except clause, whose traceback would keep the failed attempt's tensors alive.
                rows = rows_of(pending[0]) or 1
                if rows < 2:
                    raise InputError(f"one example alone does not fit in memory; lower {as_typed('max_length')}.")
                self.rows_limit = rows // 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                pending = [piece for left in pending for piece in _pieces(left, self.rows_limit)]


def _out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that memory ran out, on a GPU or on the host."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _pieces(batch: Batch, limit: int | None) -> list[Batch]:
    """Cut a batch into pieces of at most `limit` rows."""
    rows = rows_of(batch)
    if limit is None or rows is None or rows <= limit:
        return [batch]
    return [take_rows(batch, slice(start, start + limit), rows) for start in range(0, rows, limit)]


class _Part(NamedTuple):
    """What a batch, or a piece of one, adds to the loss."""

    batch: int
    total: float
    weight: float


def _loss_of(shares: Iterable[list[_Part]]) -> Loss:
    """Return the mean, summed in the order of the batches: the same bits, whichever process measured which batch."""
    parts = sorted((part for parts in shares for part in parts), key=lambda part: part.batch)
    total, weight = torch.tensor([part[1:] for part in parts], dtype=torch.float64).reshape(-1, 2).sum(0).tolist()
    if weight == 0:
        raise InputError("the data has no supervised token: no loss can be taken over it.")
    return Loss(total / weight if math.isfinite(total) else total, weight)


def _bits(tensor: Tensor) -> int:
    """Return a checksum of a tensor's bits, which does not depend on the order in which they are added."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().view(whole).sum(dtype=torch.int64))
