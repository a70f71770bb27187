"""A height that is a function of the caller."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.errors import InputError
from landscape.heights.height import Height, HeightPass, Reading
from landscape.objective.loss_functions import loss_name
from landscape.objective.objective import Loss, Objective

HeightFunction = Callable[[nn.Module, Iterable[Batch]], tuple[float, float]]  # -> (value, weight)


class GivenPass(HeightPass):
    """Each function is called with the model and the data, and passes over them itself."""

    needs = "any data"

    def __init__(self, heights: Sequence[GivenHeight], model: nn.Module | Checkpoint, objective: Objective) -> None:
        self.heights, self.objective = heights, objective

    def read(self) -> tuple[Loss | None, list[Reading]]:
        """Call every function."""
        return None, [height.of_model(self.objective.model, self.objective.data) for height in self.heights]


class GivenHeight(Height):
    """A function `(model, data) -> value, weight`, or `value, weight, stderr`, as a height.

    Args:
        function: Called with the model at a point, in evaluation mode and without gradients, and the data. It returns
            a mean and the number of terms in it, and its standard error where it knows one.
        name: What tables and pictures call it; None takes the function's name.
        unit: What its values are in.
        higher_is_better: Whether a model gets better as the value rises.

    Example:
        >>> from landscape import GivenHeight
        >>> def norm(model, data):
        ...     return float(model.weight.norm()), 1
        >>> GivenHeight(norm, higher_is_better=False).name
        'norm'
    """

    read_from = GivenPass

    def __init__(
        self, function: HeightFunction, name: str | None = None, *, unit: str = "", higher_is_better: bool = True
    ):
        self.function, self.unit, self.higher_is_better = function, unit, higher_is_better
        self.name = str(name or getattr(function, "__name__", type(function).__name__))

    def identity(self) -> Any:
        """Return the name and what identifies the function: its source and what it closes over."""
        return [self.name, loss_name(self.function)]  # type: ignore[arg-type]

    @torch.no_grad()
    def of_model(self, model: nn.Module, data: Iterable[Batch]) -> Reading:
        """Return the function's value of the model as it stands.

        Raises:
            InputError: The function returns something else than two or three numbers.
        """
        found = self.function(model, data)
        try:
            numbers = [float(number) for number in found]
        except (TypeError, ValueError):
            numbers = []
        if len(numbers) not in (2, 3):
            raise InputError(f"the height {self.name} has to return (value, weight) or (value, weight, stderr).")
        value, weight, stderr = [*numbers, math.nan][:3]
        return Reading(value, stderr, weight)
