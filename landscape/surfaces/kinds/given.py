"""Surfaces along directions that the caller has made."""

from __future__ import annotations

import dataclasses

from landscape.surfaces.kind import AlongDirections


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenSurface(AlongDirections):
    """A surface of one model along `directions`; `landscape plot` does not offer it, so it is not registered.

    The surface takes the kind that its directions have in common, such as "eigen", so that it stands beside others of
    that kind. It is also what a saved surface of an unknown kind is taken for.
    """

    name = "given"
    scope_options = ("loss_fn",)  # which tensors move is in the directions
    help = "The surface lies along directions that were given."

    @classmethod
    def region(cls, dim: int) -> str:
        """Where the points of a surface with `dim` axes lie, for a caption."""
        return "along one given direction" if dim == 1 else "over two given directions"
