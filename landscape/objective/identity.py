"""What identifies a measurement: its provenance, and the journal that no other measurement shares."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from landscape.data.batches import Batch
from landscape.parallel import distributed
from landscape.parallel.sharding import by_first_holder, is_sharded
from landscape.results import Journal, Provenance, digest_of
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import tensor_bytes, vector_digest

if TYPE_CHECKING:
    from landscape.objective.objective import Objective


def provenance_of(
    objective: Objective, settings: Mapping[str, Any], seed: int | None, checkpoint: dict | None, seconds: float
) -> Provenance:
    """Provenance of a measurement of `objective`; the weights' digest stands in for an unnamed checkpoint."""
    model = objective.model
    return Provenance(
        settings=dict(settings),
        seed=seed,
        checkpoint=checkpoint or {"weights": objective.weights_digest()},
        data=objective.data_description(),
        device=str(objective.device),
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        seconds=seconds,
    )


def journal_of(
    path: Path | str,
    objective: Objective,
    parameters: Parameters,
    loss: str | None,
    settings: Mapping[str, Any],
    weights: str | None = None,
) -> Journal:
    """The journal of a measurement that moves `parameters`: no other weights, data, loss or settings share it.

    loss     the name of the loss function, see `losses.loss_name`
    weights  the digest of all weights, where it was taken already: it reads all of them
    """
    model = objective.model
    identity = {
        "weights": weights or objective.weights_digest(),
        "buffers": vector_digest({name: b.detach() for name, b in model.named_buffers() if not b.is_meta}),
        "parameters": digest_of(list(parameters.names)),
        "data": objective.data_description()["digest"],
        "device": str(objective.device),
        "loss": loss,
    }
    by_first = functools.partial(by_first_holder, model=model) if is_sharded(model) else distributed.by_first
    return Journal(path, identity | dict(settings), by_first)


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
