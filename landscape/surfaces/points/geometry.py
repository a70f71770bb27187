"""Where the points of a surface lie in weight space: the models it is of, and the map from coordinates to weights."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from torch import nn

from landscape.checkpoints import Checkpoint, identify
from landscape.errors import InputError
from landscape.results import digest_of
from landscape.surfaces.kind import AlongDirections
from landscape.surfaces.points.grid import grid_axis
from landscape.surfaces.points.sweep import Place
from landscape.surfaces.result import PathFit
from landscape.weights.directions import Direction, check_directions
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import vector_digest


class Member:
    """One of the models that a surface is of: its weights, its name and what a result says of it.

    All parameters count, frozen ones too.
    """

    def __init__(self, model: nn.Module | Checkpoint):
        self.model = model
        self.module, self.name, self._described = identify(model)
        self.parameters = Parameters(self.module, frozen=True)
        self.weights = self.parameters.values()

    @functools.cached_property
    def digest(self) -> str:
        """The digest of the weights. It reads all of them, so it is taken once, and before the model is moved."""
        return vector_digest(self.weights)

    @functools.cached_property
    def description(self) -> dict:
        """What the provenance of a result says of the model; a digest of its weights where it came from memory."""
        return self._described or {"weights": self.digest}

    @property
    def source_digest(self) -> str:
        """The digest of the checkpoint it was loaded from; of its weights where it came from memory."""
        return self.model.digest if isinstance(self.model, Checkpoint) else self.digest


def check_distinct(members: Sequence[Member]) -> None:
    """Check that no two members are one model: moving one must not move the points that lie along the other.

    Raises:
        InputError: Two of the members are the same object.
    """
    if len({id(member.module) for member in members}) < len(members):
        raise InputError(f"two of the {len(members)} models are the same object; the surface needs different ones.")


@dataclasses.dataclass(frozen=True)
class Geometry:
    """Where the points of a surface lie, and what its axes and markers are called.

    Args:
        kind: The kind that the result says it is of.
        name: The name of the surface.
        title: What the progress bar and warnings call it.
        place: The point of weight space that belongs to coordinates.
        axes: The coordinates along each axis; None where the loss has to say how far they reach.
        axis_labels: A label for each axis.
        markers: Name and coordinates of each checkpoint on the surface.
        normalize: The normalization of random directions.
        seed: The seed of random directions.
        direction_cosine: The cosine between the two directions.
        path: What the plane of a path leaves out of it.
        settings: What the provenance says beside the settings of the kind.
        journal_settings: What a journal must agree on beside those.
        other_digests: Returns the digests of the vectors that points lie along, which a journal must agree on too.
    """

    kind: str
    name: str
    title: str
    place: Callable[[Sequence[float]], Place]
    axes: tuple[np.ndarray, ...] | None
    axis_labels: tuple[str, ...]
    markers: tuple[tuple[str, tuple[float, ...]], ...] = ()
    normalize: str | None = None
    seed: int | None = None
    direction_cosine: float | None = None
    path: PathFit | None = None
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    journal_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    other_digests: Callable[[], list[str]] = list


def directions_to_place(directions: Sequence[Direction]) -> Callable[[Sequence[float]], Place]:
    """The map from coordinates to theta + x d_1 + y d_2."""
    vectors = [direction.tensors for direction in directions]

    def place(x: Sequence[float]) -> Place:
        return 1.0, list(zip(x, vectors, strict=True))

    return place


def geometry_along(
    kind: AlongDirections, member: Member, directions: Sequence[Direction], settings: Mapping[str, Any]
) -> Geometry:
    """The geometry of a surface through one model along directions.

    Args:
        kind: The kind, with the span and the number of points.
        member: The model.
        directions: One or two directions that fit the model.
        settings: What the provenance says of the directions.

    Raises:
        InputError: The directions do not fit the model, or are neither one nor two.
    """
    if len(directions) not in (1, 2):
        raise InputError(f"{len(directions)} directions given; a surface takes 1 or 2.")
    check_directions(directions, member.parameters)
    first, *others = directions
    word = first.kind if len({direction.kind for direction in directions}) == 1 else "given"
    return Geometry(
        kind=word,
        name=member.name,
        title=f"{member.name} {word}",
        place=directions_to_place(directions),
        axes=tuple(grid_axis(*kind.ends, count) for count in kind.counts) if kind.ends else None,
        axis_labels=tuple(direction.label for direction in directions),
        normalize=first.normalize,
        seed=first.seed,
        direction_cosine=first.cosine(others[0]) if others else None,
        settings={**settings, "normalize": first.normalize, "seed": first.seed},
        # what is drawn depends on which tensors are trainable, which no setting says
        journal_settings={"moved": digest_of([sorted(direction.tensors) for direction in directions])},
    )
