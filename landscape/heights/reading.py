"""Several heights of a model at one point, in as few forward passes as they can share."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.heights.height import Height, HeightPass, Reading
from landscape.objective.objective import Loss, Objective


class HeightReader:
    """Reads the loss and the heights of a model wherever its weights have been moved to.

    Args:
        heights: What is read beside the loss.
        model: The model, at the centre.
        objective: Its loss on the data.

    Raises:
        InputError: A height has no meaning for this model or these data.
    """

    def __init__(self, heights: Sequence[Height], model: nn.Module | Checkpoint, objective: Objective):
        self.heights, self._objective = heights, objective
        families = dict.fromkeys(height.read_from for height in heights)
        self._passes: list[tuple[HeightPass, list[Height]]] = []
        for family in families:
            own = [height for height in heights if height.read_from is family]
            self._passes.append((family(own, model, objective), own))

    def read(self) -> tuple[Loss, dict[str, Reading]]:
        """Return the loss and every height by name, of the model as it stands.

        The loss comes from the forward passes of a height where they tell it, and differs there from
        `Objective.loss` by rounding only.
        """
        loss: Loss | None = None
        readings: dict[str, Reading] = {}
        for opened, own in self._passes:
            told, values = opened.read()
            loss = loss or told
            readings |= {height.name: value for height, value in zip(own, values, strict=True)}
        return loss or self._objective.loss(), readings
