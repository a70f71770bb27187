"""The orthonormal vectors that Lanczos's method builds, the operator in them, and the ways that lead out of them."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

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

    def __init__(self, operator: SymmetricOperator, most: int, first: Tensor):
        self._operator = operator
        self._basis = torch.stack([torch.zeros_like(first)] * (most + 1))  # like the first: sharded where it is
        self._projected = np.zeros((most, most))
        self._couplings = [np.zeros(most)]  # C: what each vector's product has along each tail
        self._tiny = 10 * torch.finfo(operator.dtype).eps
        self._turn = 0
        self.size = 0
        self.tails = [first]
        self.values, self.rotation = np.zeros(0), np.zeros((0, 0))
        self.last_length = 0.0
        self.negligible = 0.0
        self._vanished = 0.0  # the longest remainder that was taken for nothing

    @property
    def matrix(self) -> np.ndarray:
        """T, shape (size, size), a view."""
        return self._projected[: self.size, : self.size]

    def rows(self) -> Tensor:
        """Return the vectors and the only tail as a view, shape (size + 1, n)."""
        (tail,) = self.tails
        self._basis[self.size] = tail
        return self._basis[: self.size + 1]

    def recall(self, rows: Tensor, projected: np.ndarray) -> None:
        """Continue from the `rows` and the `matrix` of another space."""
        self.size = len(projected)
        self._basis[: self.size + 1] = rows.to(self._basis.device, self._basis.dtype)
        self._projected[: self.size, : self.size] = projected
        self.tails = [self._basis[self.size].clone()]

    def expand(self) -> None:
        """Multiply a tail, which becomes a vector."""
        operator, turn = self._operator, self._turn
        tail = self.tails.pop(turn)
        self._couplings.pop(turn)
        self._basis[self.size] = tail
        self.size += 1
        self._straighten_tails()
        product = finite_product(operator, tail[None].to(operator.device))[0].to(tail.device)
        column, remainder = self._orthogonalized(product)
        self._projected[: self.size, self.size - 1] = self._projected[self.size - 1, : self.size] = column
        self.values, self.rotation = np.linalg.eigh(self.matrix)
        length, scale = float(operator.norm(remainder)), float(np.abs(self.values).max())
        if length > self._tiny * scale:
            coupling = np.zeros(len(self._projected))
            coupling[self.size - 1] = length
            self.tails.append(remainder / length)
            self._couplings.append(coupling)
            self._turn, self.last_length = len(self.tails) - 1, length
        else:
            self._turn, self.last_length, self._vanished = 0, 0.0, max(self._vanished, length)
            self.negligible = self._tiny * scale * math.sqrt(self.size)
        if self.size == operator.size:  # there is no way out of all vectors
            self.tails, self._couplings = [], []

    def add_tail(self, vector: Tensor) -> None:
        """Add the part of a vector that is orthogonal to all vectors as a tail, and turn to it."""
        vector = vector.to(self._basis.device, self._basis.dtype)
        _, tail = self._orthogonalized(vector / self._operator.norm(vector))
        self.tails.append(tail / self._operator.norm(tail))
        self._couplings.append(np.zeros(len(self._projected)))
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
        return lengths + self._vanished

    def spill(self) -> np.ndarray:
        """Return the Gram matrix of A V - V T, shape (size, size)."""
        if not self.tails:
            return np.zeros((self.size, self.size))
        tails = torch.stack(self.tails)
        gram = np.array([self._operator.inner(tails, tail).double().tolist() for tail in self.tails])
        couplings = np.stack([coupling[: self.size] for coupling in self._couplings])
        return couplings.T @ gram @ couplings

    def restart(self, kept: np.ndarray) -> None:
        """Replace the vectors by the Ritz vectors of the eigenvalues `kept` of T, in that order."""
        turn = self.rotation[:, kept]
        self._basis[: len(kept)] = self.combined(kept)
        for coupling in self._couplings:
            coupling[: len(kept)] = coupling[: self.size] @ turn
            coupling[len(kept) :] = 0
        self._projected[:] = 0
        self._projected[range(len(kept)), range(len(kept))] = self.values[kept]
        self.size = len(kept)

    def combined(self, chosen: np.ndarray) -> Tensor:
        """Return the Ritz vectors of some of the eigenvalues of T, as rows."""
        turn = torch.from_numpy(self.rotation[:, chosen].T.copy()).to(self._basis.device, self._basis.dtype)
        return self._operator.combine(turn, self._basis[: self.size])

    def first(self, count: int) -> Tensor:
        """Return a copy of the first vectors, as rows."""
        return self._basis[:count].clone()

    def _straighten_tails(self) -> None:
        """Make the other tails orthogonal to the last vector; what rounding alone leaves of one is dropped."""
        kept = []
        for tail, coupling in zip(self.tails, self._couplings, strict=True):
            _, rest = self._orthogonalized(tail)
            length = float(self._operator.norm(rest))
            if length > self._tiny:
                kept.append((rest / length, coupling * length))
        self.tails, self._couplings = [tail for tail, _ in kept], [coupling for _, coupling in kept]

    def _orthogonalized(self, vector: Tensor) -> tuple[np.ndarray, Tensor]:
        """Return the coefficients of `vector` in the vectors, and the rest of it.

        Classical Gram-Schmidt is applied twice: once leaves errors as large as the cancellation.
        """
        operator, basis = self._operator, self._basis[: self.size]
        first = operator.inner(basis, vector)
        remainder = vector - operator.combine(first, basis)
        second = operator.inner(basis, remainder)
        remainder -= operator.combine(second, basis)
        return (first + second).double().cpu().numpy(), remainder
