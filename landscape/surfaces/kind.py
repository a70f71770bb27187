"""The contract of a kind of surface, and the table of all kinds.

A kind says where the points of a surface lie and how it is called; `measure.measure_surface` does the rest. This module
and those in `kinds/` import torch and numpy inside their methods only: the command line lists the kinds in its help,
which should not wait for torch.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, TypeVar

from landscape.errors import InputError, as_typed
from landscape.surfaces.options import parse_points, parse_span

if TYPE_CHECKING:
    from torch import nn

    from landscape.checkpoints import Checkpoint
    from landscape.data.batches import Batch
    from landscape.objective.scope import Run, Scope
    from landscape.surfaces.points.geometry import Geometry, Member
    from landscape.weights.directions import Direction

Span = float | tuple[float, float] | Literal["auto"]

SURFACE_KINDS: dict[str, type[SurfaceKind]] = {}
"""Every registered kind of surface by its name. `landscape.surfaces.kinds` fills it with those of its folder."""

AnyKind = TypeVar("AnyKind", bound="type[SurfaceKind]")


def register(kind: AnyKind) -> AnyKind:
    """Put a kind of surface into `SURFACE_KINDS` under its name, so that `landscape plot --kind` offers it."""
    SURFACE_KINDS[kind.name] = kind
    return kind


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfaceKind(abc.ABC):
    """A kind of surface, and as an instance the settings of one surface of it.

    A new kind is a new file in `landscape/surfaces/kinds/`: a frozen dataclass that is decorated with `register`, sets
    `name`, `help` and `region`, and returns its `geometry`. Its fields are its settings. Fields with one of the names
    `dim`, `points`, `span`, `margin`, `normalize` and `seed` are filled from the option of that name of
    `landscape plot`.

    Args:
        dim: The number of axes, 1 or 2.
        points: Grid points, as one number for each axis or one for all axes, at least 2 each.

    Raises:
        InputError: The kind has no surface with as many axes, or the points are no whole numbers of at least 2, or not
            as many as there are axes.

    Example:
        >>> from landscape.surfaces.kinds import SURFACE_KINDS
        >>> plane = SURFACE_KINDS["plane"].from_options(points="5,7", margin=0.5)
        >>> plane.settings()
        {'kind': 'plane', 'points': [5, 7], 'margin': 0.5}
        >>> plane.check_count(2)
        Traceback (most recent call last):
        ...
        landscape.errors.InputError: kind='plane' takes 3 checkpoints, got 2. The surface is the plane through three \
checkpoints.
    """

    name: ClassVar[str]  # the word of `--kind`
    help: ClassVar[str]  # a sentence for `--kind`'s help
    dims: ClassVar[tuple[int, ...]] = (2,)  # the numbers of axes that the kind can have
    fewest: ClassVar[int] = 1  # checkpoints that one surface is of
    most: ClassVar[int | None] = 1  # None: as many as there are, in order
    origin: ClassVar[int] = 0  # index of the checkpoint at the origin, whose weights are moved
    scope_options: ClassVar[tuple[str, ...]] = ("loss_fn",)  # fields of Scope that the kind has a use for
    run_options: ClassVar[tuple[str, ...]] = ("journal", "autocast")  # fields of Run, likewise

    # What pictures and tables ask of a kind.
    center_name: ClassVar[str] = "centre"  # what the origin is called
    axis_note: ClassVar[str] = ""  # for a caption: what the units of the axes are
    shared_axis_label: ClassVar[str] = ""  # for surfaces in one panel whose axis labels differ; "" joins the labels
    is_random: ClassVar[bool] = False  # the directions are one draw of many
    own_directions: ClassVar[str] = ""  # what directions are called that every checkpoint has for itself
    has_barrier: ClassVar[bool] = False  # the first two markers are the ends of a line from 0 to 1
    markers_are_path: ClassVar[bool] = False  # the markers are steps of a path, and only its ends are named
    kept_directions: ClassVar[str] = ""  # the start of the names of files that keep costly directions

    dim: int = 2
    points: int | Sequence[int] = 25

    def __post_init__(self) -> None:
        if self.dim not in self.dims:
            raise InputError(
                f"{as_typed('dim', self.dim)}; a surface of kind {self.name} has {' or '.join(map(str, self.dims))} "
                "dimensions."
            )
        _ = self.counts

    @property
    def counts(self) -> list[int]:
        """The number of grid points along each axis."""
        from landscape.surfaces.points.grid import per_axis

        return per_axis(self.points, self.dim)

    @property
    def has_open_span(self) -> bool:
        """Whether the span is yet to be found, from how fast the loss rises."""
        return False

    def draws(self, count: int) -> list[Self]:
        """Return this kind once for each draw of its directions; kinds that draw none have one.

        Raises:
            InputError: There is to be more than one draw, and the kind draws no directions.
        """
        if count > 1:
            names = [name for name, kind in SURFACE_KINDS.items() if kind.is_random]
            raise InputError(
                f"{as_typed('draws', count)} goes with {as_typed('kind', ' or '.join(names))}; the directions of kind "
                f"{self.name} are not drawn."
            )
        return [self]

    # --- checkpoints ---

    @classmethod
    def is_of_each(cls) -> bool:
        """Whether every checkpoint has a surface of its own; else one surface is of several checkpoints."""
        return cls.most == 1

    @classmethod
    def check_count(cls, count: int) -> None:
        """Check that surfaces of this kind can be made of `count` checkpoints.

        Raises:
            InputError: One surface takes more or fewer checkpoints.
        """
        if cls.is_of_each() or cls.fewest <= count <= (count if cls.most is None else cls.most):
            return
        wanted = f"{cls.fewest} checkpoints" if cls.most else f"at least {cls.fewest} checkpoints, in order"
        raise InputError(f"{as_typed('kind', cls.name)} takes {wanted}, got {count}. {cls.help}")

    @classmethod
    def sources(cls, checkpoints: Sequence[str | Path]) -> list[str]:
        """The checkpoints that are meant by those named on the command line."""
        return [str(checkpoint) for checkpoint in checkpoints]

    @classmethod
    def named_checkpoints(cls, count: int) -> list[int]:
        """Indices, out of `count` checkpoints of one surface, of those that its provenance names."""
        return list(range(count))

    # --- settings ---

    @classmethod
    def from_options(
        cls,
        *,
        dim: int | None = None,
        points: str = "25",
        span: str | None = None,
        margin: float | None = None,
        normalize: str | None = None,
        seed: int = 0,
    ) -> Self:
        """Make a kind from the options of `landscape plot` with the same names.

        Args:
            dim: Number of axes, 1 or 2. None takes the default of the kind.
            points: `"N"` or `"N,M"`, at least 3 each.
            span: `"S"`, `"LOW,HIGH"` or `"auto"`. None takes the default of the kind.
            margin: Border around the checkpoints, as a fraction of their extent. None takes the default of the kind.
            normalize: Scale of random directions. None takes the default of the kind.
            seed: Seed of the kinds that draw random numbers.

        Raises:
            InputError: An option does not go with this kind, or has a value that makes no sense.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        axes = cls.dim if dim is None else dim
        if axes not in cls.dims:
            raise InputError(f"--kind {cls.name} is {cls.dims[-1]}-dimensional; --dim {axes} does not go with it.")
        if normalize is not None and "normalize" not in fields:
            raise InputError(f"--normalize scales random directions; it does not go with --kind {cls.name}.")
        if span is not None and "span" not in fields:
            raise InputError(
                f"--kind {cls.name} has no --span: its axes hold the checkpoints and a margin; use --margin."
            )
        if margin is not None and "margin" not in fields:
            names = [name for name, kind in SURFACE_KINDS.items() if "margin" in kind.__dataclass_fields__]
            raise InputError(f"--margin goes with --kind {' and '.join(names)}; use --span with --kind {cls.name}.")
        if margin is not None and not 0 <= margin < math.inf:
            raise InputError(f"--margin {margin} must be at least 0 and finite.")
        given: dict[str, Any] = {
            "dim": axes,
            "points": parse_points(points, axes),
            "span": None if span is None else cls.parse_span(span),
            "margin": margin,
            "normalize": normalize,
            "seed": seed,
        }
        return cls(**{name: value for name, value in given.items() if name in fields and value is not None})

    @classmethod
    def parse_span(cls, text: str) -> Span:
        """The span that `--span` says, in the forms that the kind takes.

        Raises:
            InputError: The text has another form.
        """
        return parse_span(text, cls.name, single=True, auto=True)

    def settings(self) -> dict[str, Any]:
        """The settings that the provenance of a surface holds, as far as they are known before it is measured."""
        return {"kind": self.name, "points": self.counts}

    def identity(self, digests: Sequence[str]) -> dict[str, Any]:
        """The settings that a finished surface must agree on to be one of this kind and these settings.

        Args:
            digests: The digest of every checkpoint that the surface is of.
        """
        return {"normalize": None, "seed": None} | self.settings()

    def folder_settings(self) -> dict[str, Any]:
        """The settings that a folder of results must agree on: the options of `landscape plot` that made it.

        What is a margin in Python is kept under the name span, as folders have always had it.
        """
        extent = getattr(self, "span", getattr(self, "margin", None))
        return {
            "kind": self.name,
            "dim": self.dim,
            "points": self.counts,
            "span": extent,
            "normalize": getattr(self, "normalize", None),
        }

    # --- the surface ---

    @classmethod
    @abc.abstractmethod
    def region(cls, dim: int) -> str:
        """Where the points of a surface with `dim` axes lie, for a caption: "over two random directions"."""

    @abc.abstractmethod
    def geometry(self, members: Sequence[Member], data: Iterable[Batch], scope: Scope, run: Run) -> Geometry:
        """Say where the points of the surface lie in weight space, and what its axes and markers are called.

        Args:
            members: The checkpoints that the surface is of.
            data: The data, for kinds whose directions depend on the loss.
            scope: What is measured.
            run: How it is run.

        Raises:
            InputError: The checkpoints have no surface of this kind.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlongDirections(SurfaceKind):
    """A surface through one model along one or two directions: f(x, y) = L(theta + x d_1 + y d_2).

    Args:
        dim: The number of directions, 1 or 2.
        points: As for `SurfaceKind`.
        span: s for [-s, s], (low, high), or `"auto"`: where the loss has risen by 1 nat, see `auto_span`. In units of
            the directions.
        directions: Directions that are known already; None lets the kind find its own.

    Raises:
        InputError: There are neither 1 nor 2 directions, or the points or the span make no sense.
    """

    dims: ClassVar[tuple[int, ...]] = (1, 2)
    scope_options: ClassVar[tuple[str, ...]] = ("parameters", "loss_fn", "include_1d")
    run_options: ClassVar[tuple[str, ...]] = ("journal", "autocast", "offload_base")

    span: Span = 1.0
    directions: Sequence[Direction] | None = dataclasses.field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.directions is not None:
            given = len(self.directions)
            if given not in (1, 2):
                raise InputError(f"{given} directions given; a surface takes 1 or 2.")
            if given != self.dim:
                raise InputError(f"{given} directions given for a surface with {self.dim} axes.")
        super().__post_init__()
        _ = self.ends

    @property
    def ends(self) -> tuple[float, float] | None:
        """(low, high) of every axis; None where the span is yet to be found."""
        from landscape.surfaces.points.grid import ends

        return None if self.has_open_span else ends(self.span)

    @property
    def has_open_span(self) -> bool:
        """Whether the span is yet to be found, from how fast the loss rises."""
        return isinstance(self.span, str) and self.span == "auto"

    def settings(self) -> dict[str, Any]:
        """The settings that the provenance of a surface holds, as far as they are known before it is measured."""
        return super().settings() | {"span": list(self.ends) if self.ends else "auto"}

    def identity(self, digests: Sequence[str]) -> dict[str, Any]:
        """As `SurfaceKind.identity`; a span that is yet to be found is nothing to agree on."""
        agreed = super().identity(digests)
        return {name: value for name, value in agreed.items() if name != "span" or not self.has_open_span}

    def find_directions(
        self, model: nn.Module | Checkpoint, data: Iterable[Batch], scope: Scope, run: Run
    ) -> list[Direction]:
        """Find the kind's own directions of a model.

        Args:
            model: The model at the origin.
            data: The data, for directions that depend on the loss.
            scope: What is measured.
            run: How it is run; the journal is one for the search alone.

        Raises:
            InputError: The kind has no directions of its own.
        """
        raise InputError(f"a surface of kind {self.name} has no directions of its own; give them.")

    def find_span(self, model: nn.Module | Checkpoint, data: Iterable[Batch], run: Run) -> float:
        """The distance along the directions at which the loss has risen by 1 nat, see `auto_span`.

        Several surfaces that are to be compared take the largest of theirs.
        """
        from landscape.objective.scope import Run, Scope
        from landscape.surfaces.points.span import auto_span

        directions = self.directions
        if directions is None:
            directions = self.find_directions(model, data, Scope(), dataclasses.replace(run, journal=None))
        return auto_span(model, data, directions, run=Run(autocast=run.autocast, offload_base=run.offload_base))

    def geometry(self, members: Sequence[Member], data: Iterable[Batch], scope: Scope, run: Run) -> Geometry:
        """The plane or line through the model along the directions, which are found where they are not known."""
        from landscape.surfaces.points.geometry import geometry_along

        directions = self.directions
        if directions is None:
            search = dataclasses.replace(run, journal=None)
            directions = self.find_directions(members[0].model, data, scope, search)
        return geometry_along(self, members[0], directions, self.settings_of(directions, scope))

    def settings_of(self, directions: Sequence[Direction], scope: Scope) -> dict[str, Any]:
        """What the provenance of a surface says of its directions: their digests, and the tensors that they move."""
        from landscape.results import digest_of
        from landscape.weights.vectors import vector_digest

        return {
            "directions": [{"label": d.label, "digest": vector_digest(d.tensors)} for d in directions],
            "tensors": digest_of([sorted(d.tensors) for d in directions]),
        }


@dataclasses.dataclass(frozen=True, kw_only=True)
class AroundCheckpoints(SurfaceKind):
    """A plane that holds several checkpoints, whose axes are distances in parameter space.

    Args:
        dim: As for `SurfaceKind`; always 2.
        points: As for `SurfaceKind`.
        margin: The border around the checkpoints, as a fraction of their extent along each axis.

    Raises:
        InputError: The points or the margin make no sense.
    """

    axis_note = "axes are distances in parameter space"

    margin: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.margin < math.inf:
            raise InputError(
                f"{as_typed('margin', self.margin)} is no fraction of the checkpoints' extent; it must be at least 0."
            )

    def settings(self) -> dict[str, Any]:
        """The settings that the provenance of a surface holds, as far as they are known before it is measured."""
        return super().settings() | {"margin": self.margin}
