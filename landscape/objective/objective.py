"""Loss and gradient of a model over a data set: token-weighted, whatever the batches (DESIGN, law 1)."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from landscape.data.batches import Batch, on_device, rows_of, take_rows
from landscape.errors import InputError
from landscape.objective.gradients import _from_backward, _from_graph, _untouched, differentiable
from landscape.objective.identity import describe_data
from landscape.objective.loss_functions import LossFunction, default_loss
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.parallel.sharding import agreed, is_sharded
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import vector_digest, wide_dtype

T = TypeVar("T")


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
    autocast  "bfloat16": matrix products of forward passes in that type (`torch.autocast`); the weights, softmax and
              sums stay as they are. None: everything in the weights' own type

    Inside `distributed.shared_work` loss and gradient split the batches over the processes. A model that `fully_shard`
    cut is measured by all its processes in step, on the same data, outside of it; FSDP2 has to average gradients over
    them, as it does by default.

    Raises InputError for data that cannot be iterated twice, is empty or has no supervised token, for token ids or
    lengths that the model does not have, and for weights or data that are not those of the other processes.
    """

    def __init__(
        self,
        model: nn.Module,
        data: Iterable[Batch],
        loss_fn: LossFunction | None = None,
        autocast: str | None = None,
    ):
        if autocast not in (None, "bfloat16"):
            raise InputError(f"autocast={autocast!r} is neither 'bfloat16' nor None.")
        if autocast and any(tensor.dtype == torch.float64 for tensor in model.parameters()):
            raise InputError("autocast leaves float64 weights in float64; load the model in float32.")
        if iter(data) is data:
            raise InputError(
                f"data is a {type(data).__name__}, which can be read only once; give a list or a DataLoader."
            )
        self.model = model
        self.data = data
        self.autocast = autocast
        # the first of several devices; what accelerate offloads is on meta, and comes to the GPU for its turn
        self.device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
        self._sharded = is_sharded(model)
        first = next(iter(data), None)
        if first is None:
            raise InputError("the data holds no batch.")
        self.loss_fn = loss_fn or default_loss(model, data, on_device(first, self.device))
        self.rows_limit: int | None = None  # rows a micro-batch may have, once memory ran out
        self._weights_digest: str | None = None
        self._data_description: dict | None = None
        self._loss_weight: float | None = None
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
        """The weighted mean over all batches, accumulated in float64."""

        def part(share: Share) -> list[_Part]:
            found = [(index, torch.stack(pair)) for index, pair in self.over_share(share, self.evaluate)]
            values = torch.stack([pair for _, pair in found]).tolist() if found else []
            return [_Part(index, *value) for (index, _), value in zip(found, values, strict=True)]

        return _loss_of(distributed.gathered(part))

    def loss_weight(self) -> float:
        """The number of loss terms (supervised tokens), without evaluating where the data says it itself."""
        if self._loss_weight is None:
            own = getattr(self.data, "tokens", None)
            self._loss_weight = float(own) if isinstance(own, int) else self.loss().weight
        return self._loss_weight

    def weights_digest(self) -> str:
        """The digest of all the model's weights, as they were when it was first asked for.

        Hashing a large model takes seconds, so it is done once. Ask before the weights move, or when they are back.
        """
        if self._weights_digest is None:
            self._weights_digest = vector_digest(Parameters(self.model, frozen=True).values())
        return self._weights_digest

    def data_description(self) -> dict:
        """What a result's provenance says of the data (see `identity.describe_data`), computed once."""
        if self._data_description is None:
            self._data_description = describe_data(self.data)
        return self._data_description

    def restricted(self, data: Iterable[Batch]) -> Objective:
        """The same loss of the same model over part of the data: nothing is chosen, checked or hashed again."""
        part = copy.copy(self)
        part.data, part.rows_limit = data, None
        part._data_description = part._loss_weight = None
        return part

    def gradient(self, parameters: Parameters) -> tuple[Loss, dict[str, Tensor]]:
        """The loss and its gradient by parameter name, in float32 or wider; `.grad` is not touched.

        Parameters that do not take gradients take them here (`Parameters(frozen=True)`), and are as before afterwards.
        """
        tensors = parameters.tensors
        gradient = [torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32)) for t in tensors]

        def measure(batch: Batch) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
            with torch.enable_grad():
                loss_sum, weight = self.evaluate(batch)
                return loss_sum.detach(), weight, gradients_of(loss_sum, tensors)

        def part(share: Share) -> tuple[list[_Part], list[Tensor]]:
            found = []
            for index, (loss_sum, weight, parts) in self.over_share(share, measure):
                for accumulated, added in zip(gradient, parts, strict=True):
                    if added is not None:
                        accumulated += added
                found.append(_Part(index, float(loss_sum), float(weight)))
            return found, gradient

        gradients_of = _from_backward if self._sharded else _from_graph
        with differentiable(tensors), _untouched(self.model) if self._sharded else contextlib.nullcontext():
            losses, gradient = distributed.summed(part)
        loss = _loss_of(losses)
        named = {name: g.div_(loss.weight) for name, g in zip(parameters.names, gradient, strict=True)}
        return loss, named

    def evaluate(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed loss and weight of one batch that is on the device already, in the widest float."""
        torch.clear_autocast_cache()  # inside a caller's autocast, casts of weights outlive the weights' moves
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast is not None):
            loss_sum, weight = self.loss_fn(self.model, batch)
        wide = wide_dtype(loss_sum.device)
        return loss_sum.to(wide), torch.as_tensor(weight, dtype=wide, device=loss_sum.device)

    def on_device(self, batch: Batch) -> Batch:
        """`batch` with its tensors on the model's device."""
        return on_device(batch, self.device)

    def over_batches(self, measure: Callable[[Batch], T]) -> Iterator[T]:
        """`measure` of every batch, moved to the device; one that does not fit in memory is halved, and those after it.

        Sums over what this yields do not depend on where batches were cut, to rounding. Raises InputError where a
        single row does not fit.
        """
        for _, result in self.over_share(Share(0, 1), measure):
            yield result

    def over_share(self, share: Share, measure: Callable[[Batch], T]) -> Iterator[tuple[int, T]]:
        """As `over_batches`, of the batches that are this share's: the number of each, and `measure` of it."""
        for index, batch in share.of(self.data):
            pending = _pieces(on_device(batch, self.device), self.rows_limit)
            while pending:
                try:
                    result = measure(pending[0])
                except RuntimeError as error:
                    if not _out_of_memory(error):
                        raise
                    if self._sharded:  # the other processes are in the midst of the same batch
                        raise InputError("a batch does not fit in memory; lower batch_tokens.") from error
                else:
                    del pending[0]
                    yield index, result
                    continue
                # outside the except clause, whose traceback would keep the failed attempt's tensors alive
                rows = rows_of(pending[0]) or 1
                if rows < 2:
                    raise InputError("one example alone does not fit in memory; lower max_length.")
                self.rows_limit = rows // 2
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                pending = [piece for left in pending for piece in _pieces(left, self.rows_limit)]


def _out_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _pieces(batch: Batch, limit: int | None) -> list[Batch]:
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
    """The weighted mean, summed in the order of the batches: the same bits whoever measured which."""
    parts = sorted((part for parts in shares for part in parts), key=lambda part: part.batch)
    total, weight = torch.tensor([part[1:] for part in parts], dtype=torch.float64).reshape(-1, 2).sum(0).tolist()
    if weight == 0:
        raise InputError("the data has no supervised token: no loss can be taken over it.")
    return Loss(total / weight if math.isfinite(total) else total, weight)


def _bits(tensor: Tensor) -> int:
    """A checksum of a tensor's bits, in whatever order they are added."""
    whole = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return int(tensor.detach().view(whole).sum(dtype=torch.int64))
