"""Extreme eigenvalues of a symmetric operator by the Lanczos method with thick restart."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError, as_typed
from landscape.linalg.operator import SymmetricOperator, finite_product

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
    """

    values: np.ndarray
    residuals: np.ndarray
    converged: np.ndarray
    vectors: Tensor | None
    matvecs: int


@dataclasses.dataclass(frozen=True)
class LanczosState:
    """All that the Lanczos method holds between two products.

    Attributes:
        basis: Orthonormal rows, shape (size + 1, n). The last row is the next to be multiplied.
        projected: The operator in the rows before the last, shape (size, size).
        matvecs: The number of products taken so far.
    """

    basis: Tensor
    projected: np.ndarray
    matvecs: int


def lanczos(  # noqa: PLR0913 - the core below `hessian_eigenvalues`, with its callbacks
    operator: SymmetricOperator,
    start: Tensor,
    k: int | tuple[int, int] = 1,
    *,
    which: str = "LA",
    rtol: float = 1e-3,
    max_matvecs: int = 300,
    basis_size: int | None = None,
    vectors: bool = False,
    basis_device: torch.device | str | None = None,
    progress: Callable[[RitzPairs], None] = lambda _: None,
    save_state: Callable[[LanczosState], None] = lambda _: None,
    resume: LanczosState | None = None,
) -> RitzPairs:
    """Compute `k` extreme eigenvalues by the Lanczos method with full reorthogonalization and thick restart.

    The method multiplies one vector after the other, A q_j, and makes each product orthogonal to all vectors before
    it. The eigenvalues of the small matrix T = Q' A Q approximate extreme eigenvalues of A, and |A y - value y| is
    known without a further product.

    This departs from the textbook in two points. T is formed from the orthogonalization coefficients themselves
    (Gram-Schmidt applied twice), which covers the coupling terms that a restart leaves. Convergence is checked after
    every product, where ARPACK checks at restarts only and so takes at least ncv + 1 products.

    Args:
        operator: The symmetric operator A.
        start: Any random vector, shape (size,). One starting vector sees one copy of a repeated eigenvalue.
        k: The number of eigenvalues. For "BE" either a pair (from the high end, from the low end), or their sum, of
            which the high end gets the larger half.
        which: "LA" for the largest, "SA" for the smallest, "LM" for the largest in magnitude, "BE" for both ends.
        rtol: A pair has converged when its residual norm is at most rtol * |value|.
        max_matvecs: The largest number of operator-vector products.
        basis_size: The number of vectors kept at once. None takes max(2k + 10, 20): fewer vectors take less memory and
            more products.
        vectors: Return the Ritz vectors, too.
        basis_device: The device that keeps the basis. None takes the operator's device; "cpu" keeps it on the host.
        progress: A function that is called after every product with the pairs known by then.
        save_state: A function that is called after every product but the last with the state, whose basis is a view.
        resume: A state to continue from. With the same arguments the call takes only the products that were left, to
            the same result bit for bit, as far as the operator's products are the same.

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
    m = min(n, default_basis_size(k) if basis_size is None else basis_size)
    if m < min(n, k + 2):
        raise InputError(f"basis_size={m} is too small for k={k}; it takes at least k + 2.")
    if max_matvecs < 1:
        raise InputError(f"{as_typed('max_matvecs', max_matvecs)} leaves nothing to compute with.")
    home = torch.device(basis_device) if basis_device is not None else operator.device
    first = start.to(home, operator.dtype) / operator.norm(start)
    basis = torch.stack([torch.zeros_like(first)] * (m + 1))  # like the start: what is sharded stays sharded
    basis[0] = first
    projected = np.zeros((m, m))
    tiny = 10 * torch.finfo(operator.dtype).eps
    size, matvecs = 0, 0
    if resume is not None:
        size, matvecs = len(resume.projected), resume.matvecs
        basis[: size + 1] = resume.basis.to(home, operator.dtype)
        projected[:size, :size] = resume.projected
    while True:
        product = finite_product(operator, basis[size : size + 1].to(operator.device))[0].to(home)
        matvecs += 1
        size += 1
        column, remainder = _orthogonalize(operator, product, basis[:size])
        projected[:size, size - 1] = projected[size - 1, :size] = column
        beta = float(operator.norm(remainder))
        values, rotation = np.linalg.eigh(projected[:size, :size])
        order = _wanted(values, which, ends)
        chosen = order[: min(k, size)]
        residuals = beta * np.abs(rotation[-1, chosen])
        scale = float(np.abs(values).max())
        exhausted = size == n or beta <= tiny * scale
        converged = residuals <= rtol * np.abs(values[chosen])
        if exhausted:  # the Krylov space is invariant: its Ritz values are eigenvalues, to rounding
            converged |= residuals <= tiny * scale * math.sqrt(size)
        pairs = RitzPairs(values[chosen], residuals, converged, None, matvecs)
        progress(pairs)
        if (size >= k and converged.all()) or matvecs >= max_matvecs or exhausted:
            break
        basis[size] = remainder / beta
        if size == m:
            size = _restart(operator, basis, projected, values, rotation, order, k)
        save_state(LanczosState(basis[: size + 1], projected[:size, :size].copy(), matvecs))
    if vectors:
        turn = _on_device_of(basis, rotation[:, chosen].T)
        pairs = dataclasses.replace(pairs, vectors=operator.combine(turn, basis[:size]))
    return pairs


def default_basis_size(k: int) -> int:
    """Return the number of vectors that the Lanczos method keeps for `k` eigenvalues."""
    return max(2 * k + 10, 20)


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


def _orthogonalize(operator: SymmetricOperator, vector: Tensor, basis: Tensor) -> tuple[np.ndarray, Tensor]:
    """Return the coefficients of `vector` in the rows of `basis`, and the rest of it.

    Classical Gram-Schmidt is applied twice: once leaves errors as large as the cancellation.
    """
    first = operator.inner(basis, vector)
    remainder = vector - operator.combine(first, basis)
    second = operator.inner(basis, remainder)
    remainder -= operator.combine(second, basis)
    return (first + second).double().cpu().numpy(), remainder


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


def _restart(
    operator: SymmetricOperator,
    basis: Tensor,
    projected: np.ndarray,
    values: np.ndarray,
    rotation: np.ndarray,
    order: np.ndarray,
    k: int,
) -> int:
    """Keep the wanted Ritz vectors and some more, in place, and return how many. The next vector follows them."""
    m = len(projected)
    kept = order[: min(m - 1, k + (m - k) // 2)]
    turn = _on_device_of(basis, rotation[:, kept].T)
    basis[: len(kept)] = operator.combine(turn, basis[:m])
    basis[len(kept)] = basis[m].clone()
    projected[:] = 0
    projected[range(len(kept)), range(len(kept))] = values[kept]
    return len(kept)


def _on_device_of(basis: Tensor, rotation: np.ndarray) -> Tensor:
    """Return `rotation` as a tensor on the device and in the type of `basis`."""
    return torch.from_numpy(rotation.copy()).to(basis.device, basis.dtype)
