"""Surfaces over the plane in which a training run moved."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError
from landscape.surfaces.kind import AroundCheckpoints, register

if TYPE_CHECKING:
    from landscape.data.batches import Batch
    from landscape.objective.scope import Run, Scope
    from landscape.surfaces.points.geometry import Geometry, Member

_FOLDER, _STEP = "trajectory", re.compile(r"step-\d+")  # as `finetune` keeps them


@register
@dataclasses.dataclass(frozen=True, kw_only=True)
class TrajectorySurface(AroundCheckpoints):
    """The plane of a path's first two principal directions through its end, the last of the checkpoints.

    Args:
        dim: As for `AroundCheckpoints`.
        points: As for `SurfaceKind`.
        margin: As for `AroundCheckpoints`.

    Source:
        Li et al. 2018 (arXiv 1712.09913), section 7; see `trajectory_directions` for the difference.
    """

    name = "trajectory"
    help = (
        "The surface is the plane that a training run moved in: of a folder tuned with --keep-trajectory, or of at "
        "least three checkpoints in order."
    )
    fewest, most, origin = 3, None, -1
    center_name = "end of path"
    markers_are_path = True

    @classmethod
    def sources(cls, checkpoints: Sequence[str | Path]) -> list[str]:
        """The checkpoints of a path in order; see `trajectory_sources`."""
        return trajectory_sources(checkpoints)

    @classmethod
    def named_checkpoints(cls, count: int) -> list[int]:
        """The provenance names the end alone; the settings hold the digests of the path that led there."""
        return [count - 1]

    @classmethod
    def region(cls, dim: int) -> str:
        """Where the points of a surface with `dim` axes lie, for a caption."""
        return "over the plane of the path's first two principal directions (PC) through its end"

    def identity(self, digests: Sequence[str]) -> dict[str, Any]:
        """As `SurfaceKind.identity`, with the digests of the checkpoints along the path."""
        return super().identity(digests) | {"path": list(digests)}

    def geometry(self, members: Sequence[Member], data: Iterable[Batch], scope: Scope, run: Run) -> Geometry:
        """The plane through the end of the path that is nearest to all of it."""
        from landscape.surfaces.path import path_names, principal_directions
        from landscape.surfaces.points.geometry import Geometry, directions_to_place
        from landscape.surfaces.points.grid import axes_around
        from landscape.weights.vectors import vector_digest

        names = path_names([member.model for member in members])
        directions, coordinates, path = principal_directions([member.weights for member in members], names, 2)
        places = [(float(x), float(y)) for x, y in coordinates]
        return Geometry(
            kind=self.name,
            name=members[-1].name,
            title=f"{members[-1].name} {self.name}",
            place=directions_to_place(directions),
            axes=axes_around(places, self.margin, self.counts),
            axis_labels=tuple(direction.label for direction in directions),
            markers=tuple(zip(names, places, strict=True)),
            direction_cosine=0.0,
            path=path,
            settings={"path": [member.source_digest for member in members]},
            other_digests=lambda: [vector_digest(direction.tensors) for direction in directions],
        )


def trajectory_sources(checkpoints: Sequence[str | Path]) -> list[str]:
    """The checkpoints of a path in order.

    Args:
        checkpoints: Several checkpoints, which are the path; or one folder, which stands for the checkpoints that
            `finetune` has kept in it and the result.

    Raises:
        InputError: A single folder has kept none.
    """
    if len(checkpoints) != 1:
        return [str(checkpoint) for checkpoint in checkpoints]
    folder = Path(checkpoints[0]).expanduser()
    kept = sorted(path for path in folder.glob(f"{_FOLDER}/*") if _STEP.fullmatch(path.name))
    if not kept:
        raise InputError(
            f"{folder} has kept no path ({_FOLDER}/step-...); fine-tune with --keep-trajectory, or name the "
            "checkpoints of the path in order."
        )
    return [*map(str, kept), str(folder)]
