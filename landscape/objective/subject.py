"""What a measurement is of: a model, its data, the parameters in question; and how its progress is shown."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Self

from torch import nn
from tqdm.auto import tqdm

from landscape.checkpoints import Checkpoint, identify
from landscape.data.batches import Batch
from landscape.objective.given import batches_of
from landscape.objective.identity import journal_of, provenance_of
from landscape.objective.loss_functions import loss_name
from landscape.objective.objective import Objective
from landscape.objective.scope import Scope
from landscape.results import Journal
from landscape.weights.parameters import Parameters


class Subject:
    """The model, data and parameters of one measurement, and what its result says of them.

    A public function opens one subject, and everything below it measures on that: the loss is chosen and the weights
    are hashed once.

    Attributes:
        scope: What is measured of the model.
        loss: Name of the loss function; None for the default.
        module: The model.
        name: Name of the model, for plots and tables.
        objective: The loss of the model on the data.
        parameters: The selected parameters.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches, as for `Objective`.
        scope: Which parameters, which loss and which curvature.
    """

    def __init__(self, model: nn.Module | Checkpoint, data: Iterable[Batch], scope: Scope):
        self._started = time.perf_counter()
        self.scope = scope
        self.loss = loss_name(scope.loss_fn)
        self.module, self.name, self._described = identify(model)
        self.objective = Objective(self.module, batches_of(data, model), scope.loss_fn)
        self.parameters = Parameters(self.module, scope.parameters)

    def rescoped(self, **changes: Any) -> Self:
        """Return the same subject with other `parameters` or another `curvature`; model, loss and data are shared."""
        other = copy.copy(self)
        other.scope = dataclasses.replace(self.scope, **changes)
        if "parameters" in changes:
            other.parameters = Parameters(self.module, other.scope.parameters)
        return other

    def result_fields(self, settings: dict, seed: int, checkpoint: dict | None = None) -> dict[str, Any]:
        """Return the fields that every result on the subject shares: name, data, weight and provenance.

        Args:
            settings: The options of the measurement.
            seed: Seed of its random draws.
            checkpoint: What the provenance says of the checkpoint, where that is not the subject's own.
        """
        seconds = time.perf_counter() - self._started
        checkpoint = checkpoint or self._described
        return {
            "name": self.name,
            "data": str(getattr(self.objective.data, "source", "data")),
            "weight": self.objective.loss_weight(),
            "provenance": provenance_of(self.objective, settings | {"loss": self.loss}, seed, checkpoint, seconds),
        }

    @contextlib.contextmanager
    def open_journal(self, path: Path | str | None, settings: dict, seed: int) -> Iterator[Journal | None]:
        """Open the journal of one computation, which no other settings, weights or data share.

        Args:
            path: The journal; None opens none.
            settings: The options of the computation.
            seed: Seed of its random draws.

        Yields:
            The journal, or None without a path.
        """
        if path is None:
            yield None
            return
        computation = {"settings": settings, "seed": seed}
        with journal_of(path, self.objective, self.parameters, self.loss, computation) as journal:
            yield journal


@contextlib.contextmanager
def progress_bar(title: str, total: int | None, unit: str, progress: bool) -> Iterator[tqdm]:
    """Show a progress bar on the terminal inside the block.

    Args:
        title: Words before the bar.
        total: Number of units; None where it is not known.
        unit: What is counted, such as "probe".
        progress: Whether the bar is shown at all.

    Yields:
        The bar, whose `update` counts.
    """
    with tqdm(desc=title, total=total, unit=unit, disable=not progress) as bar:
        yield bar


def group_by_layer(names: Sequence[str]) -> dict[str, list[int]]:
    """Group the indices of parameters by layer: the name up to its first number, or the module where it has none.

    Example:
        >>> group_by_layer(["model.embed.weight", "model.layers.0.q.weight", "model.layers.0.k.weight", "head.weight"])
        {'model.embed': [0], 'model.layers.0': [1, 2], 'head': [3]}
    """
    groups: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        numbered = re.match(r"(?:.*?\.)?\d+(?=\.|$)", name)
        layer = numbered.group() if numbered else name.rpartition(".")[0] or name
        groups.setdefault(layer, []).append(index)
    return groups
