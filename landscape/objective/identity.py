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
    """Return the provenance of a measurement.

    Args:
        objective: The loss that was measured.
        settings: The options of the measurement.
        seed: Seed of its random draws; None where it draws nothing.
        checkpoint: What the checkpoint says of itself; None takes a digest of the weights instead.
        seconds: Wall time of the measurement.
    """
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
    """Open the journal of a measurement, which no other weights, data, loss or settings share.

    Args:
        path: The journal.
        objective: The loss that is measured.
        parameters: The parameters that the measurement moves.
        loss: Name of the loss function (see `loss_functions.loss_name`).
        settings: The options of the measurement.
        weights: The digest of all weights where it is known already, because taking it reads all of them.

    Raises:
        InputError: The journal belongs to another measurement, is in use by another process or is damaged.
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
    """Return what a result's provenance says of a data set: its source, digest and number of supervised tokens.

    Args:
        data: Batches. Where they have no `digest` of their own, it is made of their tensors.
    """
    digest = getattr(data, "digest", None)
    if digest is None:
        hashed = hashlib.sha256()
        for batch in data:
            _hash_into(hashed, batch)
        digest = hashed.hexdigest()
    description = {"source": getattr(data, "source", type(data).__name__), "digest": digest}
    return description | ({"supervised_tokens": data.tokens} if hasattr(data, "tokens") else {})


def _hash_into(hashed: Any, value: Any) -> None:
    """Add a batch, whatever its nesting, to a hash."""
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
