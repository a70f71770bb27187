"""The orthonormal vectors that Lanczos's method builds, the operator in them, and the ways that lead out of them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.basis import Basis, FullBasis, PackedBasis
from landscape.linalg.operator import SymmetricOperator, finite_product


class KrylovSpace:
    """Orthonormal vectors V with T = V'AV, and tails W with A V = V T + W' C'.

    A tail is a unit vector orthogonal to V. With one starting vector there is one, the remainder of the last product;
    each further starting vector brings another. Expanding along a tail makes it a vector of V, and the remainder of its
    product takes its place.

    Args:
        operator: The symmetric operator A.
        most: The largest number of vectors.
        first: The first tail, of unit length.
        packed: Keep vectors in half the memory, as 16-bit integers. See `basis.PackedBasis`.

    Attributes:
        size: The number of vectors.
        tails: The tails.
        values: The eigenvalues of T, increasing.
        rotation: Its eigenvectors, as columns.
        last_length: The length of the last remainder; 0 where nothing but rounding was left of the product.
        negligible: The size of residuals that rounding makes where a remainder vanished, or 0.

    Source:
        A. Ruhe 1979, "Implementation aspects of band Lanczos algorithms for computation of eigenvalues of large sparse
        symmetric matrices", Mathematics of Computation 33.
    """

    def __init__(self, operator: SymmetricOperator, most: int, first: Tensor, packed: bool = False):
        self._operator = operator
        self._basis: Basis = PackedBasis(first) if packed else FullBasis(operator, most, first)
        self._projected = np.zeros((most, most))
        self._couplings = [np.zeros(most)]  # C: what each vector's product has along each tail
        self._tiny = 10 * torch.finfo(operator.dtype).eps
        self._device = first.device
        self._turn = 0
        self.size = 0
        self.tails: list[Any] = [self._basis.stored(first)[0]]
        self._defects = np.zeros(most)  # of A V - V T - W' C', by rounding of vectors that are kept, for each vector
        self.values, self.rotation = np.zeros(0), np.zeros((0, 0))
        self.last_length = 0.0
        self.negligible = 0.0
        self._vanished = 0.0  # the longest remainder that was taken for nothing

    @property
    def matrix(self) -> np.ndarray:
        """T, shape (size, size), a view."""
        return self._projected[: self.size, : self.size]

    def state(self) -> dict[str, Tensor]:
        """Return the vectors and the only tail by name, as views."""
        (tail,) = self.tails
        return self._basis.state(tail)

    @property
    def defects(self) -> np.ndarray:
        """How far rounding of the vectors took A from T, for each vector, shape (size,)."""
        return self._defects[: self.size].copy()

    def recall(self, state: Mapping[str, Tensor], projected: np.ndarray, defects: np.ndarray) -> None:
        """Continue from the `state`, the `matrix` and the `defects` of another space."""
        self.size = len(projected)
        self._projected[: self.size, : self.size] = projected
        self._defects[: self.size] = defects
        self.tails = [self._basis.recall(state)]

    def expand(self) -> None:
        """Multiply a tail, which becomes a vector."""
        operator, turn = self._operator, self._turn
        stored = self.tails.pop(turn)
        vector = self._basis.loaded(stored)
        self._couplings.pop(turn)
        product = finite_product(operator, vector[None].to(operator.device))[0].to(vector.device)
        del vector
        self._basis.append(stored)
        self.size += 1
        self._straighten_tails()
        column, remainder = self._basis.orthogonalized(product)
        del product
        self._projected[: self.size, self.size - 1] = self._projected[self.size - 1, : self.size] = column
        self.values, self.rotation = np.linalg.eigh(self.matrix)
        length, scale = float(operator.norm(remainder)), float(np.abs(self.values).max())
        if length > self._tiny * scale:
            coupling = np.zeros(len(self._projected))
            coupling[self.size - 1] = length
            self._add(remainder.div_(length), coupling)
            self._turn, self.last_length = len(self.tails) - 1, length
        else:
            self._turn, self.last_length, self._vanished = 0, 0.0, max(self._vanished, length)
            self.negligible = self._tiny * scale * math.sqrt(self.size)
        if self.size == operator.size:  # there is no way out of all vectors
            self.tails, self._couplings = [], []

    def add_tail(self, vector: Tensor) -> None:
        """Add the part of a vector that is orthogonal to all vectors as a tail, and turn to it."""
        vector = vector.to(self._device, self._operator.dtype)
        _, tail = self._basis.orthogonalized(vector / self._operator.norm(vector))
        self._add(tail.div_(self._operator.norm(tail)), np.zeros(len(self._projected)))
        self._turn = len(self.tails) - 1

    def turn_to(self, index: int) -> None:
        """Expand along the tail in which the residual of eigenvalue `index` of T is longest."""
        along = [abs(c[: self.size] @ self.rotation[:, index]) for c in self._couplings]
        self._turn = int(np.argmax(along))

    def residuals(self, chosen: np.ndarray) -> np.ndarray:
        """Return |A y - value y| for the unit Ritz vectors of some of the eigenvalues of T."""
        if len(self.tails) == 1:
            lengths = np.abs(self._couplings[0][: self.size] @ self.rotation[:, chosen])
        else:
            squares = self.rotation[:, chosen].T @ self.spill() @ self.rotation[:, chosen]
            lengths = np.sqrt(np.maximum(np.diagonal(squares), 0))
        if not self._basis.exact:  # roundings of many elements are orthogonal to each other
            lengths = np.hypot(lengths, np.linalg.norm(self.defects[:, None] * self.rotation[:, chosen], axis=0))
        return lengths + self._vanished

    def spill(self) -> np.ndarray:
        """Return the Gram matrix of A V - V T, shape (size, size)."""
        if not self.tails:
            return np.zeros((self.size, self.size))
        tails = torch.stack([self._basis.loaded(tail) for tail in self.tails])
        gram = np.array([self._operator.inner(tails, tail).double().tolist() for tail in tails])
        couplings = np.stack([coupling[: self.size] for coupling in self._couplings])
        return couplings.T @ gram @ couplings

    def restart(self, kept: np.ndarray) -> None:
        """Replace the vectors by the Ritz vectors of the eigenvalues `kept` of T, in that order."""
        turn = self.rotation[:, kept]
        moved = self._basis.replace(turn)
        self._defects[: len(kept)] = np.hypot(
            np.linalg.norm(self.defects[:, None] * turn, axis=0), moved * np.abs(self.values[kept])
        )
        for coupling in self._couplings:
            coupling[: len(kept)] = coupling[: self.size] @ turn
            coupling[len(kept) :] = 0
        self._projected[:] = 0
        self._projected[range(len(kept)), range(len(kept))] = self.values[kept]
        self.size = len(kept)

    def combined(self, turn: np.ndarray) -> Tensor:
        """Return the combinations of the vectors with the columns of `turn`, as rows."""
        return self._basis.combined(turn)

    def measured(self, turn: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the Rayleigh quotients y'Ay and |A y - (y'Ay) y| of unit vectors y, with a product for each.

        The tails are given up, and the space cannot be expanded any more.

        Args:
            turn: The coefficients of the vectors in those of the space, as columns.
        """
        self.tails, self._couplings = [], []
        values, residuals = np.zeros(turn.shape[1]), np.zeros(turn.shape[1])
        for i, column in enumerate(turn.T):
            y = self._basis.combined(column[:, None])
            y.div_(self._operator.norm(y[0]))
            image = finite_product(self._operator, y.to(self._operator.device))[0].to(y.device)
            values[i] = float(self._operator.inner(y, image)[0])
            image.sub_(y[0], alpha=values[i])
            residuals[i] = float(self._operator.norm(image))
            del image, y  # before the next product, which is as large again
        return values, residuals

    def _add(self, tail: Tensor, coupling: np.ndarray) -> None:
        """Add a unit vector as a tail, with what each vector's product has along it."""
        stored, moved = self._basis.stored(tail)
        self._defects = np.hypot(self._defects, moved * coupling)
        self.tails.append(stored)
        self._couplings.append(coupling)

    def _straighten_tails(self) -> None:
        """Make the other tails orthogonal to the last vector; what rounding alone leaves of one is dropped."""
        before = list(zip(self.tails, self._couplings, strict=True))
        self.tails, self._couplings = [], []
        for tail, coupling in before:
            _, rest = self._basis.orthogonalized(self._basis.loaded(tail))
            length = float(self._operator.norm(rest))
            if length > self._tiny:
                self._add(rest / length, coupling * length)
