"""Permutations that keep a design: only rows and whole groups that the null hypothesis makes alike trade places.

Runs of one base resemble each other, and so do bases of one recipe. A permutation that ignores this finds links that
are not there. Here whole groups trade places with groups of the same make-up, and inside each group its parts do in
turn (multi-level block permutation). Rows trade places only within a cell of the factors.

Source:
    Winkler, Webster, Vidaurre, Nichols and Smith 2015, Multi-level block permutation, NeuroImage 123.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Exchange:
    """Rows or groups that may trade places, and inside each group its parts in turn.

    Attributes:
        rows: The rows in the order in which the permutations are drawn, shape (rows,).
        classes: The parts in classes of equal make-up; parts of one class may trade places.
        key: The make-up: two parts of the same key have the same cells in the same nesting.
        shuffles: Whether the parts trade places; otherwise only what is inside them does.
        table_rows: Number of rows of the whole table, at the root.
    """

    rows: np.ndarray
    classes: tuple[tuple[Exchange, ...], ...]
    key: Any
    shuffles: bool = True
    table_rows: int = 0

    @property
    def log_arrangements(self) -> float:
        """The logarithm of the number of permutations."""
        here = sum(math.lgamma(len(parts) + 1) for parts in self.classes) if self.shuffles else 0.0
        return here + sum(part.log_arrangements for parts in self.classes for part in parts)

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Return `count` permutations as the row that comes to each place, shape (count, self.table_rows).

        This is for the whole table, the root of the tree. Rows that are not in it stay in their place.
        """
        permutations = np.tile(np.arange(self.table_rows), (count, 1))
        permutations[:, self.rows] = self._shuffled(count, generator)
        return permutations

    def _shuffled(self, count: int, generator: np.random.Generator) -> np.ndarray:
        """Return `count` shuffled versions of `rows`, shape (count, len(rows))."""
        if not self.classes:
            return np.broadcast_to(self.rows, (count, len(self.rows)))
        pieces = []
        for parts in self.classes:
            inner = np.stack([part._shuffled(count, generator) for part in parts], axis=1)
            if self.shuffles and len(parts) > 1:
                order = generator.random((count, len(parts))).argsort(axis=1)
                inner = np.take_along_axis(inner, order[..., None], axis=1)
            pieces.append(inner.reshape(count, -1))
        return np.concatenate(pieces, axis=1)


def exchange_of(
    levels: Sequence[np.ndarray],
    cells: np.ndarray,
    *,
    shuffles_top: bool = True,
    speaking: np.ndarray | None = None,
) -> Exchange:
    """Return which rows and groups may trade places.

    Args:
        levels: Labels of nested groups, the widest first, each of shape (rows,); empty where rows are independent.
        cells: Label of each row's cell of the factors, shape (rows,).
        shuffles_top: Whether the widest groups trade places, too. False tests for a link within them.
        speaking: Which rows count, shape (rows,). A row that says nothing, because it is alone in its cell, would give
            its group another make-up, and keep the group in its place. None takes all rows.

    Returns:
        The root of the tree of groups.
    """

    def build(rows: np.ndarray, depth: int) -> Exchange:
        if depth == len(levels):
            parts = [Exchange(np.array([row]), (), (int(cells[row]),)) for row in rows]
        else:
            labels = levels[depth][rows]
            parts = [build(rows[labels == label], depth + 1) for label in np.unique(labels)]
        classes: dict[Any, list[Exchange]] = {}
        for part in parts:
            classes.setdefault(part.key, []).append(part)
        ordered = tuple(tuple(classes[key]) for key in sorted(classes))
        key = tuple((key, len(classes[key])) for key in sorted(classes))
        inside = np.concatenate([part.rows for parts in ordered for part in parts])
        return Exchange(inside, ordered, key, shuffles_top or depth > 0)

    rows = np.arange(len(cells))
    return dataclasses.replace(build(rows if speaking is None else rows[speaking], 0), table_rows=len(cells))
