"""Whether a computation of extreme eigenvalues overlooked one, such as a further copy of a repeated eigenvalue."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

SURE = 0.99  # the probability with which an eigenvalue that was overlooked would have shown


class Search:
    """A chain of products from a fresh random vector, in the complement of the vectors that were found.

    One starting vector sees one copy of a repeated eigenvalue, however many there are. A fresh random vector has a part
    in each of the other copies. With Q the vectors found, C the operator in their complement, and t a bound a little
    beyond the last wanted eigenvalue, two facts decide. Lanczos's tridiagonal matrix of C bounds the part that the
    fresh vector can have in an eigenvalue at or beyond mu: its square is at most 1 / sum_i p_i(mu)^2, where p_i are the
    orthonormal polynomials of that matrix. Where this is so small that a random vector has so small a part with
    probability 1 - `SURE` only, C has no such eigenvalue. Then the whole operator has no more eigenvalues beyond t than
    T + s s' / (t - mu) has, with T = Q' A Q and s the lengths by which A leaves the space of Q.

    Args:
        dimension: The number of rows of the operator.
        projected: T, shape (size, size).
        spill: s s', shape (size, size): the Gram matrix of A Q - Q T.
        bounds: Pairs of a sign, +1 for the high and -1 for the low end, and of a bound t times that sign.

    Source:
        The bound on the part: N. Akhiezer 1965, "The Classical Moment Problem", section 2.5 (the Christoffel function).
        The count of eigenvalues: the inertia of a Schur complement (E. Haynsworth 1968, Linear Algebra Appl. 1).

    Example:
        Of diag(3, 3, 1, ...) the vectors found have seen 3 once; a fresh one sees it again.

        >>> search = Search(1000, np.diag([3.0, 1.0]), np.zeros((2, 2)), [(1, 1.1)])
        >>> search.found(np.diag([3.0, 1.0, 2.9])), search.found(np.diag([3.0, 1.0, 0.9]))
        (True, False)
    """

    def __init__(self, dimension: int, projected: np.ndarray, spill: np.ndarray, bounds: Sequence[tuple[int, float]]):
        self._projected, self._spill, self._bounds = projected, spill, bounds
        self._size = len(projected)
        self._least = math.log(2 * dimension / (math.pi * (1 - SURE) ** 2))

    def found(self, projected: np.ndarray) -> bool:
        """Return whether the operator in all vectors, the chain's included, has more eigenvalues beyond a bound."""
        return any(
            _beyond(sign * projected, bound) > _beyond(sign * self._projected, bound) for sign, bound in self._bounds
        )

    def excluded(self, projected: np.ndarray, beta: float) -> list[bool]:
        """Return for each bound whether it is sure enough that no eigenvalue beyond it was overlooked.

        Args:
            projected: The operator in all vectors, of which those after the first `size` are the chain.
            beta: The length by which the operator leaves the chain.
        """
        chain = projected[self._size :, self._size :]
        return [self._excluded_at(sign, bound, sign * chain, beta) for sign, bound in self._bounds]

    def hopeless(self, projected: np.ndarray, beta: float, room: int) -> bool:
        """Return whether `room` products more will exclude no more, at the rate of the last of them.

        The rate falls as the chain grows, because its eigenvalues come closer to the bounds. It falls, too, where there
        is something to find. So this gives up the last value of an end only, whose neighbors are close in any case.
        """
        chain = projected[self._size :, self._size :]
        lowest = {sign: min(bound for other, bound in self._bounds if other == sign) for sign, _ in self._bounds}
        for (sign, bound), shown in zip(self._bounds, self.excluded(projected, beta), strict=True):
            if shown:
                continue
            if len(chain) < 2 or bound > lowest[sign] + 0.01 * abs(lowest[sign]):
                return False
            now = _log_inverse_part(sign * chain, beta, bound)
            rate = now - _log_inverse_part(sign * chain[:-1, :-1], chain[-2, -1], bound)
            if now + room * rate >= self._least:
                return False
        return True

    def _excluded_at(self, sign: int, bound: float, chain: np.ndarray, beta: float) -> bool:
        top = float(np.linalg.eigvalsh(chain)[-1])
        if top >= bound:
            return False
        before = _beyond(sign * self._projected, bound)
        for fraction in np.linspace(0.05, 0.95, 19):
            mu = bound - fraction * (bound - top)
            if _log_inverse_part(chain, beta, mu) < self._least:
                return False  # and less so at a smaller mu
            if _beyond(sign * self._projected + self._spill / (bound - mu), bound) == before:
                return True
        return False


def _beyond(matrix: np.ndarray, bound: float) -> int:
    """Return the number of eigenvalues at or above a bound."""
    return int((np.linalg.eigvalsh(matrix) >= bound).sum())


def _log_inverse_part(chain: np.ndarray, beta: float, mu: float) -> float:
    """Return log sum_i p_i(mu)^2 of the orthonormal polynomials of a tridiagonal matrix and the length after it."""
    lengths = [*np.abs(np.diagonal(chain, 1)), abs(beta)]
    before, current, total, length_before = 0.0, 1.0, 1.0, 0.0
    for middle, length in zip(np.diagonal(chain), lengths, strict=True):
        following = (mu - middle) * current - length_before * before
        if length == 0 or total > 1e200:
            return math.inf  # the chain has seen all that its first vector has a part in
        before, current, length_before = current, following / length, length
        total += current**2
    return math.log(total)
