"""Extreme eigenvalues of a symmetric operator by the Lanczos method with thick restart."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError, as_typed
from landscape.linalg.krylov import KrylovSpace
from landscape.linalg.operator import SymmetricOperator
from landscape.linalg.overlooked import Search

WHICH = ("LA", "SA", "LM", "BE")


@dataclasses.dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs; each value is within its residual norm of a true eigenvalue.

    Attributes:
        values: The Ritz values, shape (k,), the most wanted first.
        residuals: The norms |A y - value y| for the unit Ritz vectors y, shape (k,).
        converged: Whether each residual is at most rtol * |value|, shape (k,).
        vectors: The unit Ritz vectors as orthonormal rows, shape (k, size), or None where they were not asked for.
        matvecs: The number of operator-vector products taken.
        complete: Whether a search with a fresh random vector showed, with the probability `overlooked.SURE`, that no
            eigenvalue beyond each of these was overlooked, further copies of repeated ones included, shape (k,). None
            where nothing was searched for.
    """

    values: np.ndarray
    residuals: np.ndarray
    converged: np.ndarray
    vectors: Tensor | None
    matvecs: int
    complete: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class LanczosState:
    """All that the Lanczos method holds between two products.

    Attributes:
        basis: Orthonormal vectors by name, as `basis.Basis` keeps them. The last is the next to be multiplied.
        projected: The operator in the vectors before the last, shape (size, size).
        matvecs: The number of products taken so far.
        defects: How far rounding of the vectors took the operator from `projected`, shape (size,).
    """

    basis: dict[str, Tensor]
    projected: np.ndarray
    matvecs: int
    defects: np.ndarray


def lanczos(  # noqa: PLR0913 - the core below `hessian_eigenvalues`, with its callbacks
    operator: SymmetricOperator,
    start: Tensor,
    k: int | tuple[int, int] = 1,
    *,
    which: str = "LA",
    rtol: float = 1e-3,
    max_matvecs: int = 300,
    basis_size: int | None = None,
    packed: bool = False,
    vectors: bool = False,
    basis_device: torch.device | str | None = None,
    progress: Callable[[RitzPairs], None] = lambda _: None,
    save_state: Callable[[LanczosState], None] = lambda _: None,
    resume: LanczosState | None = None,
    fresh: Callable[[int], Tensor] | None = None,
) -> RitzPairs:
    """Compute `k` extreme eigenvalues by the Lanczos method with full reorthogonalization and thick restart.

    The method multiplies one vector after the other, A q_j, and makes each product orthogonal to all vectors before
    it. The eigenvalues of the small matrix T = Q' A Q approximate extreme eigenvalues of A, and |A y - value y| is
    known without a further product.

    This departs from the textbook in three points. T is formed from the orthogonalization coefficients themselves
    (Gram-Schmidt applied twice), which covers the coupling terms that a restart leaves. Convergence is checked after
    every product, where ARPACK checks at restarts only and so takes at least ncv + 1 products. Where two or more
    eigenvalues of an end are wanted, a fresh random vector then looks for what the first one could not see (see
    `overlooked.Search`), which takes a few products more. What it finds is computed as the others are.

    Args:
        operator: The symmetric operator A.
        start: Any random vector, shape (size,). Alone it sees one copy of a repeated eigenvalue.
        k: The number of eigenvalues. For "BE" either a pair (from the high end, from the low end), or their sum, of
            which the high end gets the larger half.
        which: "LA" for the largest, "SA" for the smallest, "LM" for the largest in magnitude, "BE" for both ends.
        rtol: A pair has converged when its residual norm is at most rtol * |value|.
        max_matvecs: The largest number of operator-vector products.
        basis_size: The number of vectors kept at once. None takes `default_basis_size`: fewer vectors take less memory
            and more products.
        packed: Keep vectors as 16-bit integers, in half the memory of float32 (see `basis.PackedBasis`). Values and
            residuals are then measured in the end, with one more product for each, so that they are as true as others.
            Rounding keeps residuals from falling below about 1e-4 of the largest value.
        vectors: Return the Ritz vectors, too.
        basis_device: The device that keeps the basis. None takes the operator's device; "cpu" keeps it on the host.
        progress: A function that is called after every product with the pairs known by then.
        save_state: A function that is called after every product but the last with the state, whose basis is a view.
        resume: A state to continue from. With the same arguments the call takes only the products that were left, to
            the same result bit for bit, as far as the operator's products are the same.
        fresh: A function that returns the i-th further random vector, i = 0, 1, ... None searches for nothing that the
            first vector could not see.

    Returns:
        The pairs, the most wanted first, each with its residual norm.

    Raises:
        InputError: `which`, `k`, `rtol`, `max_matvecs` or `basis_size` make no sense, or a product is not finite.

    Source:
        K. Wu and H. Simon 2000, "Thick-restart Lanczos method for large symmetric eigenvalue problems", SIAM J. Matrix
        Anal. Appl. 22, section 4.

    Example:
        >>> from landscape.linalg.operator import MatrixOperator
        >>> pairs = lanczos(MatrixOperator(torch.diag(torch.tensor([3.0, 1.0]))), torch.ones(2), k=2)
        >>> pairs.values.round(5).tolist(), pairs.matvecs
        ([3.0, 1.0], 2)
    """
    n = operator.size
    ends = check_wanted(n, k, which, rtol)
    k = sum(ends)
    m = min(n, default_basis_size(k, packed) if basis_size is None else basis_size)
    if m < min(n, k + 2):
        raise InputError(f"basis_size={m} is too small for k={k}; it takes at least k + 2.")
    if max_matvecs < 1:
        raise InputError(f"{as_typed('max_matvecs', max_matvecs)} leaves nothing to compute with.")
    home = torch.device(basis_device) if basis_device is not None else operator.device
    space = KrylovSpace(operator, m, start.to(home, operator.dtype) / operator.norm(start), packed)
    del start
    matvecs, searches = 0, 0
    search: Search | None = None
    complete: np.ndarray | None = None
    settled: RitzPairs | None = None
    if resume is not None:
        matvecs = resume.matvecs
        space.recall(resume.basis, resume.projected, resume.defects)
    while True:
        space.expand()
        matvecs += 1
        order = _wanted(space.values, which, ends)
        chosen = order[: min(k, space.size)]
        residuals = space.residuals(chosen)
        converged = residuals <= np.maximum(rtol * np.abs(space.values[chosen]), space.negligible)
        pairs = RitzPairs(space.values[chosen], residuals, converged, None, matvecs)
        progress(pairs)
        done = space.size >= k and bool(converged.all())
        if search is not None and search.found(space.matrix):
            search = complete = None
        if search is not None:
            complete = np.array(search.excluded(space.matrix, space.last_length))
            if complete.all() or space.size == m or search.hopeless(space.matrix, space.last_length, m - space.size):
                break
        if matvecs >= max_matvecs or space.size == n:
            break
        if search is None and (done or not space.tails):
            if fresh is None or (done and max(ends) < 2):  # a further copy of the only one wanted changes nothing
                break
            bounds = _bounds(pairs, which, ends, np.maximum(rtol * np.abs(pairs.values), space.negligible))
            space.restart(order[: k + (m - k) // 3])
            search, settled = Search(n, space.matrix.copy(), space.spill(), bounds) if done else None, pairs
            space.add_tail(fresh(searches))
            searches += 1
        elif search is None:
            if searches:
                space.turn_to(chosen[np.argmin(converged)])
            if space.size == m:
                space.restart(order[: min(m - 1, k + (m - k) // 2)])
            if not searches:
                save_state(LanczosState(space.state(), space.matrix.copy(), matvecs, space.defects))
    if space.size == n and complete is None and fresh is not None:
        complete = np.ones(len(pairs.values), dtype=bool)
    elif complete is not None and which == "LM":  # two bounds for each
        complete = np.asarray(complete.reshape(-1, 2).all(axis=1))
    turn = space.rotation[:, chosen]
    if search is not None and settled is not None:  # nothing was found; the space begins with the Ritz vectors before
        pairs, turn = settled, np.eye(space.size)[:, : len(settled.values)]
    if packed:
        values, residuals = space.measured(turn)
        matvecs += len(values)
        pairs = dataclasses.replace(
            pairs, values=values, residuals=residuals, converged=residuals <= rtol * np.abs(values)
        )
    turned = space.combined(turn) if vectors else None
    return dataclasses.replace(pairs, vectors=turned, matvecs=matvecs, complete=complete)


def default_basis_size(k: int, packed: bool = False) -> int:
    """Return the number of vectors that the Lanczos method keeps for `k` eigenvalues.

    Packed vectors are those of large models, where two vectors between restarts take a few products more, and half the
    memory.
    """
    return k + 3 if packed else max(2 * k + 10, 20)


def check_wanted(size: int, k: int | tuple[int, int], which: str, rtol: float) -> tuple[int, int]:
    """Return how many eigenvalues from the high and from the low end `k` and `which` ask for.

    Without ends ("LM") and for one end ("LA", "SA") the first number is the whole count and the second is 0.

    Raises:
        InputError: An operator of `size` rows does not have them, or an argument makes no sense.
    """
    if which not in WHICH:
        raise InputError(f"which={which!r} is none of {', '.join(WHICH)}.")
    if isinstance(k, int):
        ends = (k - k // 2, k // 2) if which == "BE" else (k, 0)
    elif which == "BE" and len(k) == 2 and min(k) >= 0:
        ends = (k[0], k[1])
    else:
        raise InputError(f"k={k} does not go with which={which!r}; a pair (high, low) is for which='BE'.")
    if not 1 <= sum(ends) <= size:
        raise InputError(f"{as_typed('k', k)} eigenvalues cannot be had from an operator of size {size}.")
    if not rtol > 0:
        raise InputError(f"{as_typed('rtol', rtol)} must be positive.")
    return ends


def _wanted(values: np.ndarray, which: str, ends: tuple[int, int]) -> np.ndarray:
    """Return the indices of `values` (increasing) in the order in which `which` wants them."""
    ascending = np.arange(len(values))
    descending = ascending[::-1]
    if which == "LA":
        return descending
    if which == "SA":
        return ascending
    if which == "LM":
        return np.argsort(-np.abs(values), kind="stable")
    first = [*descending[: ends[0]], *ascending[: ends[1]]]
    both = [i for pair in zip(descending, ascending, strict=True) for i in pair]
    return np.array(list(dict.fromkeys(first + both)))


def _bounds(pairs: RitzPairs, which: str, ends: tuple[int, int], tolerance: np.ndarray) -> list[tuple[int, float]]:
    """Return for each value the bound beyond which nothing may be overlooked; see `Search`."""
    beyond = np.maximum(tolerance, pairs.residuals)
    if which == "LM":
        sizes = np.abs(pairs.values) + beyond
        return [(sign, float(size)) for size in sizes for sign in (1, -1)]
    signs = {"LA": (1, 1), "SA": (-1, -1), "BE": (1, -1)}[which]
    of_each = np.repeat(signs, ends)[: len(pairs.values)]
    return [(int(sign), float(bound)) for sign, bound in zip(of_each, of_each * pairs.values + beyond, strict=True)]
