"""Surfaces along the straight line between two checkpoints."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.surfaces.kind import Span, SurfaceKind, register
from landscape.surfaces.options import parse_span

if TYPE_CHECKING:
    from torch import nn

    from landscape.data.batches import Batch
    from landscape.objective.scope import Run, Scope
    from landscape.surfaces.points.geometry import Geometry, Member
    from landscape.surfaces.points.sweep import Place


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class LineSurface(SurfaceKind):
    """The line from model a (at 0) to model b (at 1): f(t) = L((1-t) theta_a + t theta_b).

    Args:
        dim: As for `SurfaceKind`; always 1.
        points: As for `SurfaceKind`; 0 and 1 join the grid where it misses them.
        span: (low, high) of t.

    Raises:
        InputError: The points or the span make no sense.

    Source:
        Goodfellow et al. 2014 (arXiv 1412.6544).
    """

    name = "interpolate"
    help = "The surface is the straight line between two checkpoints."
    dims = (1,)
    fewest = most = 2
    center_name = "origin"
    shared_axis_label = "position between checkpoints (0 to 1)"
    has_barrier = True

    dim: int = 1
    span: tuple[float, float] = (-0.5, 1.5)

    def __post_init__(self) -> None:
        import numpy as np

        if np.ndim(self.span) == 0:
            raise InputError(
                f"{as_typed('span', self.span)} is no pair (low, high); model a lies at 0 and model b at 1."
            )
        _ = self.ends
        super().__post_init__()

    @property
    def ends(self) -> tuple[float, float]:
        """(low, high) of the axis."""
        from landscape.surfaces.points.grid import ends

        return ends(self.span)

    @classmethod
    def parse_span(cls, text: str) -> Span:
        """The span that `--span` says; the line has no centre for a single number to be around."""
        return parse_span(text, cls.name, single=False, auto=False)

    @classmethod
    def region(cls, dim: int) -> str:
        """Where the points of a surface with `dim` axes lie, for a caption."""
        return "on the straight line between two checkpoints"

    def settings(self) -> dict[str, Any]:
        """The settings that the provenance of a surface holds."""
        return super().settings() | {"span": list(self.ends)}

    def geometry(self, members: Sequence[Member], data: Iterable[Batch], scope: Scope, run: Run) -> Geometry:
        """The line between the two models, with both of them on the grid where the span holds them."""
        from landscape.surfaces.points.geometry import Geometry, check_distinct
        from landscape.surfaces.points.grid import grid_axis, with_points
        from landscape.weights.directions import check_same_tensors

        check_distinct(members)
        a, b = members
        check_same_tensors(a.weights, b.weights)
        _warn_of_equals(a, b)
        _warn_of_buffers(a.module, b.module)
        name_a, name_b = (a.name, b.name) if a.name != b.name else (f"{a.name} (a)", f"{b.name} (b)")

        def place(x: Sequence[float]) -> Place:
            return 1.0 - x[0], [(x[0], b.weights)]

        return Geometry(
            kind=self.name,
            name=f"{name_a} to {name_b}",
            title=f"{name_a} to {name_b}",
            place=place,
            axes=(with_points(grid_axis(*self.ends, *self.counts), (0.0, 1.0)),),
            axis_labels=(f"{name_a} (0) to {name_b} (1)",),
            markers=((name_a, (0.0,)), (name_b, (1.0,))),
            other_digests=lambda: [b.digest],
        )


def _warn_of_equals(a: Member, b: Member) -> None:
    """Warn where both ends are the same weights: the line between them is a single point."""
    from landscape.parallel.sharding import own_part

    pairs = ((own_part(tensor), own_part(b.weights[name])) for name, tensor in a.weights.items())
    if all(bool((mine == theirs.to(mine.device)).all()) for mine, theirs in pairs):
        warnings.warn(
            f"{a.name} and {b.name} have the same weights: every point of the line between them is the same model.",
            MeasurementWarning,
            stacklevel=5,
        )


def _warn_of_buffers(a: nn.Module, b: nn.Module) -> None:
    """Warn where a buffer differs: the line moves parameters only."""
    theirs = dict(b.named_buffers())
    for name, buffer in a.named_buffers():
        other = theirs.get(name)
        if other is None or other.shape != buffer.shape or not bool((other.to(buffer.device) == buffer).all()):
            warnings.warn(
                f"buffer {name} differs between the two models; the line uses that of the first, so its end "
                "need not be the second model.",
                MeasurementWarning,
                stacklevel=5,
            )
            return
