"""What the maps of heads need, whichever library draws them: places, the common scale, the caption."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from landscape.errors import InputError
from landscape.plotting.basics import clean, with_minus_sign

if TYPE_CHECKING:
    from landscape.instruction_vectors.result import InstructionVector


@dataclasses.dataclass(frozen=True)
class Maps:
    """Maps of heads side by side: a row for each task, a column for each checkpoint, one scale for all.

    Attributes:
        names: Names of the checkpoints.
        tasks: Names of the tasks.
        cells: The vectors by (checkpoint, task); what was not measured is missing.
        limit: The largest absolute effect; the scale reaches from minus it to it.
    """

    names: list[str]
    tasks: list[str]
    cells: dict[tuple[str, str], InstructionVector]
    limit: float


def arrange_maps(vectors: Sequence[InstructionVector]) -> Maps:
    """Find the place of each map.

    Raises:
        InputError: There is none, two are of one checkpoint and task, or the models have different numbers of heads.
    """
    if not vectors:
        raise InputError("there is no instruction vector to draw.")
    cells: dict[tuple[str, str], InstructionVector] = {}
    for vector in vectors:
        if (vector.name, vector.task) in cells:
            raise InputError(f"two vectors are both of '{clean(vector.name)}' and task '{clean(vector.task)}'.")
        cells[vector.name, vector.task] = vector
    if len({vector.effects.shape[1:] for vector in vectors}) > 1:
        raise InputError("the models have different numbers of layers or heads; draw each by itself.")
    names, tasks = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    limit = max(float(np.abs(vector.mean_effects).max()) for vector in vectors)
    return Maps(names, tasks, cells, limit or 1.0)


def maps_caption(maps: Maps) -> str:
    """The text under the maps."""
    first = next(iter(maps.cells.values()))
    return with_minus_sign(
        "Average indirect effect of each attention head: the rise of the probability of the right answer, after "
        f"examples with shuffled answers, when the head puts out what it does after right examples; over "
        f"{len(first.effects)} prompts. Circles: the {len(first.heads)} heads whose outputs make the "
        "instruction vector. One scale for all."
    )
