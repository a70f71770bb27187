"""The contract of a height: what it is called, and the forward passes that it is read from."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.forgetting.paired import ratio_with_error
from landscape.objective.objective import Loss, Objective


class Reading(NamedTuple):
    """A height at one point of weight space.

    Attributes:
        value: The mean over all terms, such as the share of right answers.
        stderr: Its standard error over the examples, as if they were drawn at random; NaN where it is not known.
        weight: Number of terms: questions, tokens or samples.
    """

    value: float
    stderr: float
    weight: float

    @classmethod
    def of_examples(cls, values: np.ndarray, weights: np.ndarray) -> Reading:
        """Return sum(values) / sum(weights), with the standard error of a ratio over examples.

        Where each example is one term that is 0 or 1, as an answer is, that is the binomial standard error
        sqrt(p (1 - p) / (n - 1)). Terms of one example, such as the tokens of a text, need not be independent.

        Args:
            values: The sum over the terms of each example, shape (examples,).
            weights: The number of its terms, shape (examples,).

        Source:
            Cochran 1977, Sampling Techniques, section 6.4 (the ratio estimator) and section 3.3 (its case of shares).

        Example:
            >>> Reading.of_examples(np.array([1.0, 1.0, 1.0, 0.0]), np.ones(4))
            Reading(value=0.75, stderr=0.25, weight=4.0)
        """
        kept = weights > 0
        values, weights = values[kept], weights[kept]
        if len(values) < 2:
            return cls(float(values.sum() / weights.sum()), math.nan, float(weights.sum()))
        with np.errstate(all="ignore"):  # what is not finite stays so
            ratio, error = ratio_with_error(values, weights)
        return cls(float(ratio), float(error), float(weights.sum()))


class Height(abc.ABC):
    """An outcome of a model on data: a name, which way is better, and the forward passes that it is read from.

    Attributes:
        name: What tables and options call it.
        unit: What its values are in, for axes; empty where they have none.
        higher_is_better: Whether a model gets better as the value rises.
        read_from: The pass that reads it, with others of its family.
    """

    name: str
    unit: str = ""
    higher_is_better: bool = True
    read_from: ClassVar[type[HeightPass]]

    def guessing(self, data: Iterable[Batch]) -> float:
        """Return the value that answers at random have on these data; NaN where nothing is to be guessed."""
        return math.nan

    def identity(self) -> Any:
        """Return what a journal and a result must agree on beside the name."""
        return self.name


class HeightPass(abc.ABC):
    """The forward passes over data from which all heights of one family are read at once.

    Args:
        heights: The heights of the family.
        model: The model, with its tokenizer where it is a checkpoint. It has the weights of the centre.
        objective: The loss of that model on the data.

    Raises:
        InputError: A height has no meaning for this model or these data.
    """

    needs: ClassVar[str]  # what the data have to be, for a message

    @abc.abstractmethod
    def __init__(self, heights: Sequence[Any], model: nn.Module | Checkpoint, objective: Objective): ...

    @classmethod
    def fits(cls, data: Iterable[Batch]) -> bool:
        """Whether the data are of the kind that these heights are read from."""
        return True

    @abc.abstractmethod
    def read(self) -> tuple[Loss | None, list[Reading]]:
        """Read every height of the model as it stands.

        Returns:
            The loss, where the same forward passes tell it, and the heights in their order.
        """
