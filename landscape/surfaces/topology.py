"""Minima and saddles of a surface, and how far each basin is below the way out of it (extra `topology`)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy as np
from scipy import stats

from landscape.errors import InputError, as_typed
from landscape.results import Provenance, Result
from landscape.surfaces.options import check_topology_extra
from landscape.surfaces.result import Surface

if TYPE_CHECKING:
    import pandas as pd


@dataclasses.dataclass(frozen=True)
class PersistencePair:
    """A local minimum of a grid, and the saddle at which its basin runs into that of a deeper minimum.

    Attributes:
        minimum: Coordinates of the minimum.
        birth: The value there.
        saddle: Coordinates of the saddle; of the maximum between two minima in one dimension.
        death: The value there.
    """

    minimum: tuple[float, ...]
    birth: float
    saddle: tuple[float, ...]
    death: float

    @property
    def persistence(self) -> float:
        """How far the minimum lies below the saddle."""
        return self.death - self.birth


@dataclasses.dataclass(frozen=True)
class Topology(Result):
    """The sublevel-set persistence of a surface's grid, in dimension 0. `compute_topology` makes it.

    Attributes:
        name: The name of the surface.
        data: Its data.
        height: What its values are; where higher is better they are negated, so that minima are the best points.
        lowest: Coordinates of the lowest minimum, whose basin runs into no deeper one.
        lowest_value: The value there.
        pairs: Every other minimum with its saddle, the most persistent first.
        points: Number of grid points.
        noise: By how much any value may be wrong; None where it is not known.
        provenance: Of the surface.
        negated: Whether the values are those of the height with the other sign.
    """

    kind_of_result: ClassVar[str] = "topology"

    name: str
    data: str
    height: str
    lowest: tuple[float, ...]
    lowest_value: float
    pairs: tuple[PersistencePair, ...]
    points: int
    noise: float | None
    provenance: Provenance
    negated: bool = False

    @property
    def shown(self) -> str:
        """What its values are, with the sign that they have."""
        return f"\N{MINUS SIGN}{self.height}" if self.negated else self.height

    @property
    def minima(self) -> int:
        """Number of local minima of the grid."""
        return len(self.pairs) + 1

    @property
    def smad(self) -> float:
        """Saddle-minimum average distance: the mean persistence of all pairs; 0 where there is a single minimum.

        Landscaper 1.3 prints another average under this name: the first saddle over every minimum, the lowest too.

        Source:
            Chen et al. 2026 (Landscaper, arXiv 2602.07135).
        """
        return float(np.mean([pair.persistence for pair in self.pairs])) if self.pairs else 0.0

    @property
    def surviving(self) -> int | None:
        """Number of pairs that no change of the values within the noise removes; None where the noise is not known.

        Values that each change by at most e move every birth and death by at most e, so that a pair with a persistence
        above 2 e stays.

        Source:
            Cohen-Steiner, Edelsbrunner and Harer 2007 (stability of persistence diagrams).
        """
        return None if self.noise is None else sum(pair.persistence > 2 * self.noise for pair in self.pairs)

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of what a person wants to see first."""
        rows = [
            ("topology", f"{self.shown} of {self.name} on {self.data}, {self.points} points"),
            ("minima", f"{self.minima}, the lowest {self.lowest_value:.4f}"),
            ("SMAD", f"{self.smad:.4g}"),
        ]
        if self.pairs:
            pair = self.pairs[0]
            rows.append(("most persistent", f"{pair.persistence:.4g}: from {pair.birth:.4f} to {pair.death:.4f}"))
        if self.noise is not None:
            rows.append(("above the noise", f"{self.surviving} of {len(self.pairs)} pairs (noise {self.noise:.3g})"))
        return rows


def compute_topology(
    surface: Surface, *, height: str = "loss", noise: float | None = None, confidence: float = 0.95
) -> Topology:
    """Find the minima of a surface's grid, and the saddle that ends the basin of each but the lowest.

    Points are neighbours along the axes of the grid, not along its diagonals. As a level rises, basins appear at minima
    and run into each other at saddles; the one with the higher minimum ends there. What is found is of this grid:
    a finer one has other minima, and minima of a plane need not be minima of the model.

    Args:
        surface: A surface of one or two dimensions.
        height: "loss", or one of the surface's heights.
        noise: By how much any value of the grid may be wrong. None takes for a height with standard errors the largest
            of them times the normal quantile that all points together stay within with the confidence (Bonferroni);
            the loss has none.
        confidence: Of that quantile.

    Returns:
        The pairs of minima and saddles, with the saddle-minimum average distance.

    Raises:
        InputError: gudhi is not installed, the surface has no such height, or a value is not finite.

    Source:
        Edelsbrunner, Letscher and Zomorodian 2002 (persistence); Chen et al. 2026 (arXiv 2602.07135) for
        surfaces of losses.

    Example:
        The loss is (w^2 - 1)^2 at w, with minima at -1 and 1 and a barrier of 1 at 0:

        >>> import torch
        >>> from landscape import Direction, Run, Scope, compute_surface, compute_topology
        >>> model = torch.nn.Linear(1, 1, bias=False)
        >>> _ = torch.nn.init.zeros_(model.weight)
        >>> double_well = Scope(loss_fn=lambda model, batch: ((model.weight.square() - 1).square().sum(), 1))
        >>> direction = Direction({"weight": torch.ones(1, 1)}, "given", "w")
        >>> surface = compute_surface(
        ...     model, [torch.zeros(1)], [direction], points=9, span=2.0, scope=double_well, run=Run()
        ... )
        >>> topology = compute_topology(surface)
        >>> topology.minima, topology.smad
        (2, 1.0)
    """
    check_topology_extra()
    import gudhi

    values = surface.loss if height == "loss" else surface.height(height).values
    if not np.isfinite(values).all():
        raise InputError(f"{int((~np.isfinite(values)).sum())} points of {surface.name} are not finite: no topology.")
    if noise is not None and not 0 <= noise < math.inf:
        raise InputError(f"{as_typed('noise', noise)} must be at least 0 and finite.")
    negated = False
    if height != "loss":
        grid = surface.height(height)
        negated = grid.higher_is_better
        values = -values if negated else values
        if noise is None and np.isfinite(grid.stderr).all():
            noise = float(grid.stderr.max() * stats.norm.ppf(1 - (1 - confidence) / (2 * values.size)))
    flat, places = values.ravel(order="F"), surface.coordinates.reshape(values.size, -1, order="F")
    complex_ = gudhi.CubicalComplex(vertices=values)
    complex_.compute_persistence()
    finite, endless = complex_.vertices_of_persistence_pairs()
    found = finite[0].tolist() if finite else []

    def at(vertex: int) -> tuple[float, ...]:
        return tuple(float(coordinate) for coordinate in places[vertex])

    pairs = [PersistencePair(at(a), float(flat[a]), at(b), float(flat[b])) for a, b in found]
    (lowest,) = endless[0].tolist()
    return Topology(
        name=surface.name,
        data=surface.data,
        height=height,
        lowest=at(lowest),
        lowest_value=float(flat[lowest]),
        pairs=tuple(sorted(pairs, key=lambda pair: -pair.persistence)),
        points=values.size,
        noise=noise,
        provenance=surface.provenance,
        negated=negated,
    )


def topology_over_draws(surfaces: Sequence[Surface], *, height: str = "loss") -> pd.DataFrame:
    """Compare the topology of surfaces that differ in the draw of their directions: how much of it is the draw's.

    Args:
        surfaces: Surfaces of one checkpoint with different seeds.
        height: As for `compute_topology`.

    Returns:
        A row for each surface: `seed`, `minima`, `smad`, `largest` (persistence), and `distance`, the bottleneck
        distance of its persistence diagram from that of the first surface, to be compared with `largest`.

    Raises:
        InputError: As `compute_topology` does.
    """
    import pandas as pd

    if not surfaces:
        raise InputError("there is no surface to compare.")
    rows, first = [], None
    for surface in surfaces:
        found = compute_topology(surface, height=height)
        import gudhi  # it is there, or the line before had said so

        diagram = np.array([[pair.birth, pair.death] for pair in found.pairs]).reshape(-1, 2)
        first = diagram if first is None else first
        largest = found.pairs[0].persistence if found.pairs else 0.0
        row = {"seed": surface.seed, "minima": found.minima, "smad": found.smad, "largest": largest}
        rows.append(row | {"distance": float(gudhi.bottleneck_distance(first, diagram, 0.0))})
    return pd.DataFrame(rows)
