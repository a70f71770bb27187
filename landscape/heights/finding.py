"""Heights by name: what `compute_surface(height=...)` and `--height` mean for these data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from landscape.data.batches import Batch
from landscape.errors import InputError, as_typed
from landscape.heights.answers import AnswerAccuracy, ChoiceLogProbability
from landscape.heights.benchmarks import BenchmarkHeight
from landscape.heights.given import GivenHeight, HeightFunction
from landscape.heights.height import Height
from landscape.heights.options import LOSS
from landscape.heights.predictions import KLDivergence, PredictionAccuracy

AnyHeight = str | Height | HeightFunction | Sequence[str | Height | HeightFunction]

# A name means the first height whose data are given.
_BY_NAME: dict[str, tuple[Callable[[], Height], ...]] = {
    "accuracy": (AnswerAccuracy, PredictionAccuracy),
    "choice": (ChoiceLogProbability,),
    "kl": (KLDivergence,),
}


def find_heights(heights: AnyHeight, data: Iterable[Batch]) -> list[Height]:
    """Return the heights beside the loss that are meant, for these data.

    Args:
        heights: A name, a `Height`, a function `(model, data) -> value, weight`, or several of these. "loss" adds
            nothing, because every surface has it; an unknown name is a task of lm-evaluation-harness.
        data: The data.

    Raises:
        InputError: Two heights have the same name, or the data are not of the kind that a height is read from.

    Example:
        >>> import torch
        >>> pairs = [(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))]
        >>> [type(height).__name__ for height in find_heights(("loss", "accuracy"), pairs)]
        ['PredictionAccuracy']
    """
    wanted = list(heights) if isinstance(heights, (list, tuple)) else [heights]
    found = [_find(height, data) for height in wanted if height != LOSS]
    names = [height.name for height in found]
    if len(set(names)) < len(names) or LOSS in names:
        raise InputError(f"{as_typed('height')} names a height twice: {', '.join(names)}.")
    return found


def _find(height: object, data: Iterable[Batch]) -> Height:
    """Return the height that one name, height or function means."""
    if isinstance(height, str):
        made = [make() for make in _BY_NAME.get(height, (lambda: BenchmarkHeight(height),))]
    elif isinstance(height, Height):
        made = [height]
    elif callable(height):
        made = [GivenHeight(height)]
    else:
        raise InputError(f"{as_typed('height', height)} is no name, no Height and no function (model, data).")
    fitting = next((one for one in made if one.read_from.fits(data)), None)
    if fitting is None:
        raise InputError(f"{as_typed('height', made[0].name)} is read from {made[0].read_from.needs}.")
    return fitting
