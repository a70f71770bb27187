"""Eigenvalues and spectral density of any symmetric linear operator. Knows nothing of models."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from landscape.errors import InputError
from landscape.parallel.sharding import everywhere, whole

WHICH = ("LA", "SA", "LM", "BE")


class SymmetricOperator(Protocol):
    """A symmetric linear map on R^size, known by its products with blocks of vectors."""

    size: int
    device: torch.device
    dtype: torch.dtype

    def __call__(self, vectors: Tensor) -> Tensor:
        """The products with the rows of `vectors`, shape (k, size), as a tensor of the same shape."""
        ...


# --- eigenvalues --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class RitzPairs:
    """Approximate eigenpairs; each value is within its residual norm of a true eigenvalue."""

    values: np.ndarray  # (k,), the most wanted first
    residuals: np.ndarray  # (k,), |A y - value y| for the unit Ritz vector y
    converged: np.ndarray  # (k,) of bool: residual <= rtol * |value|
    vectors: Tensor | None  # (k, size), orthonormal rows
    products: int  # operator-vector products taken


@dataclasses.dataclass(frozen=True)
class LanczosState:
    """All that Lanczos holds between two products."""

    basis: Tensor  # (size + 1, n), orthonormal rows; the last is the next to be multiplied
    projected: np.ndarray  # (size, size), the operator in the rows before it
    products: int  # taken so far


def lanczos(
    operator: SymmetricOperator,
    start: Tensor,
    k: int | tuple[int, int] = 1,
    *,
    which: str = "LA",
    rtol: float = 1e-3,
    max_products: int = 300,
    basis_size: int | None = None,
    vectors: bool = False,
    basis_device: torch.device | str | None = None,
    told: Callable[[RitzPairs], None] = lambda _: None,
    keep: Callable[[LanczosState], None] = lambda _: None,
    resume: LanczosState | None = None,
) -> RitzPairs:
    """`k` extreme eigenvalues by Lanczos with full reorthogonalization and thick restart.

    Wu and Simon 2000 (SIAM J. Matrix Anal. Appl. 22), sec. 4. The projected matrix is formed from the
    orthogonalization coefficients themselves (Gram-Schmidt applied twice), which covers the coupling terms of a
    restart. Convergence is looked at after every product: ARPACK, which looks at restarts only, takes ncv + 1 products
    at the least.

    start         shape (size,), any random vector; one starting vector sees one copy of a repeated eigenvalue
    which         "LA" largest, "SA" smallest, "LM" largest magnitude, "BE" both ends: `k` is (from the high end,
                  from the low end), or their sum, of which the high end gets the larger half
    rtol          a pair has converged when its residual norm is at most rtol * |value|
    basis_size    vectors kept at once, default max(2k + 10, 20)
    basis_device  where they live; the operator's device by default, "cpu" to keep them on the host
    told          called after every product with what is known by then
    keep, resume  `keep` is called after every product but the last with the state, whose basis is a view: a call with
                  the same arguments and that state to `resume` from takes the products that were left, to the same
                  result bit for bit (as far as the operator's products are the same)

    Raises InputError for `which`, `k` or `basis_size` that make no sense.
    """
    n = operator.size
    ends = check_wanted(n, k, which, rtol)
    k = sum(ends)
    m = min(n, default_basis_size(k) if basis_size is None else basis_size)
    if m < min(n, k + 2):
        raise InputError(f"basis_size={m} is too small for k={k}; it takes at least k + 2.")
    if max_products < 1:
        raise InputError(f"max_products={max_products} leaves nothing to compute with.")
    home = torch.device(basis_device) if basis_device is not None else operator.device
    first = start.to(home, operator.dtype) / whole(torch.linalg.vector_norm(start))
    basis = torch.stack([torch.zeros_like(first)] * (m + 1))  # sharded as the start is
    basis[0] = first
    projected = np.zeros((m, m))
    tiny = 10 * torch.finfo(operator.dtype).eps
    size, products = 0, 0
    if resume is not None:
        size, products = len(resume.projected), resume.products
        basis[: size + 1] = resume.basis.to(home, operator.dtype)
        projected[:size, :size] = resume.projected
    while True:
        product = _finite(operator(basis[size : size + 1].to(operator.device)))[0].to(home)
        products += 1
        size += 1
        column, remainder = _orthogonalize(product, basis[:size])
        projected[:size, size - 1] = projected[size - 1, :size] = column
        beta = float(whole(torch.linalg.vector_norm(remainder)))
        values, rotation = np.linalg.eigh(projected[:size, :size])
        order = _wanted(values, which, ends)
        chosen = order[: min(k, size)]
        residuals = beta * np.abs(rotation[-1, chosen])
        scale = float(np.abs(values).max())
        exhausted = size == n or beta <= tiny * scale
        converged = residuals <= rtol * np.abs(values[chosen])
        if exhausted:  # the Krylov space is invariant: its Ritz values are eigenvalues, to rounding
            converged |= residuals <= tiny * scale * math.sqrt(size)
        found = RitzPairs(values[chosen], residuals, converged, None, products)
        told(found)
        if (size >= k and converged.all()) or products >= max_products or exhausted:
            break
        basis[size] = remainder / beta
        if size == m:
            size = _restart(basis, projected, values, rotation, order, k)
        keep(LanczosState(basis[: size + 1], projected[:size, :size].copy(), products))
    if vectors:
        turn = everywhere(torch.from_numpy(rotation[:, chosen].T.copy()).to(home, operator.dtype), basis)
        found = dataclasses.replace(found, vectors=turn @ basis[:size])
    return found


def default_basis_size(k: int) -> int:
    """Vectors that Lanczos keeps for `k` eigenvalues."""
    return max(2 * k + 10, 20)


def check_wanted(size: int, k: int | tuple[int, int], which: str, rtol: float) -> tuple[int, int]:
    """How many eigenvalues from the high and the low end (or in all, and 0) `k` and `which` ask for.

    Raises InputError where that cannot be had from an operator of `size`.
    """
    if which not in WHICH:
        raise InputError(f"which={which!r} is none of {', '.join(WHICH)}.")
    if isinstance(k, int):
        ends = (k - k // 2, k // 2) if which == "BE" else (k, 0)
    elif which == "BE" and len(k) == 2 and min(k) >= 0:
        ends = (k[0], k[1])
    else:
        raise InputError(f"k={k} does not go with which={which!r}; (high, low) is for 'BE'.")
    if not 1 <= sum(ends) <= size:
        raise InputError(f"k={k} eigenvalues of an operator of size {size}.")
    if not rtol > 0:
        raise InputError(f"rtol={rtol} must be positive.")
    return ends


def _orthogonalize(vector: Tensor, basis: Tensor) -> tuple[np.ndarray, Tensor]:
    """Coefficients of `vector` in the rows of `basis`, and the rest (classical Gram-Schmidt, twice)."""
    first = whole(basis @ vector)
    remainder = vector - everywhere(first, basis) @ basis
    second = whole(basis @ remainder)
    remainder -= everywhere(second, basis) @ basis
    return (first + second).double().cpu().numpy(), remainder


def _wanted(values: np.ndarray, which: str, ends: tuple[int, int]) -> np.ndarray:
    """Indices of `values` (increasing) in the order in which `which` wants them."""
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
    basis: Tensor, projected: np.ndarray, values: np.ndarray, rotation: np.ndarray, order: np.ndarray, k: int
) -> int:
    """Keep the wanted Ritz vectors and some more; returns how many. The next vector follows them."""
    m = len(projected)
    kept = order[: min(m - 1, k + (m - k) // 2)]
    turn = everywhere(torch.from_numpy(rotation[:, kept].T.copy()).to(basis.device, basis.dtype), basis)
    basis[: len(kept)] = turn @ basis[:m]
    basis[len(kept)] = basis[m].clone()
    projected[:] = 0
    projected[range(len(kept)), range(len(kept))] = values[kept]
    return len(kept)


# --- density ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Quadrature:
    """Gauss quadrature of the spectral density: a row of nodes and weights for every probe."""

    nodes: np.ndarray  # (probes, steps), increasing along a row
    weights: np.ndarray  # (probes, steps), each row sums to 1
    first: np.ndarray  # (probes,), z'Az / z'z for each probe z
    second: np.ndarray  # (probes,), |Az|^2 / z'z


def _finite(product: Tensor) -> Tensor:
    if not bool(whole(torch.isfinite(product).all())):
        raise InputError("a Hessian-vector product is not finite; the loss has no curvature to measure here.")
    return product


@dataclasses.dataclass(frozen=True)
class QuadratureState:
    """All that a quadrature holds between two steps."""

    current: Tensor  # (probes, n), the next to be multiplied
    previous: Tensor  # (probes, n)
    alphas: np.ndarray  # (probes, steps), the diagonal so far
    betas: np.ndarray  # (probes, steps), beside the diagonal
    second: np.ndarray  # (probes,)
    step: int  # the next


def quadrature(
    operator: SymmetricOperator,
    probes: Tensor,
    steps: int,
    told: Callable[[int], None] = lambda _: None,
    keep: Callable[[QuadratureState], None] = lambda _: None,
    resume: QuadratureState | None = None,
) -> Quadrature:
    """Stochastic Lanczos quadrature from every row of `probes`, shape (k, size), in lockstep.

    Golub and Welsch 1969; Ghorbani et al. 2019 (arXiv 1901.10159), sec. 2. The three-term recurrence is used as it is,
    without reorthogonalization: rounding then repeats extreme nodes and splits their weight, which leaves the
    density what it was (Greenbaum 1989; Chen, Trogdon and Ubaru 2021, arXiv 2105.06595), and memory is three vectors a
    probe where a reorthogonalized run keeps `steps`.

    Rows that reach an invariant subspace early are padded with zero weights. `keep` and `resume` as for `lanczos`,
    with the state after every step.
    """
    count = len(probes)
    steps = min(steps, operator.size)
    norms = torch.linalg.vector_norm(probes, dim=1, keepdim=True)
    current, previous = probes / norms, torch.zeros_like(probes)
    alphas, betas = np.zeros((count, steps)), np.zeros((count, steps))
    second = np.zeros(count)
    first = 0
    if resume is not None:
        current, previous = resume.current.to(current), resume.previous.to(current)
        alphas, betas, second, first = resume.alphas.copy(), resume.betas.copy(), resume.second, resume.step
        told(count * first)
    for step in range(first, steps):
        product = _finite(operator(current))
        told(count)
        if step == 0:
            second = product.double().square().sum(1).cpu().numpy()
        alpha = (product.double() * current.double()).sum(1)
        before = torch.from_numpy(betas[:, step - 1]).to(product) if step else torch.zeros_like(alpha).to(product)
        product -= alpha.to(product)[:, None] * current + before[:, None] * previous
        beta = torch.linalg.vector_norm(product.double(), dim=1)
        alphas[:, step], betas[:, step] = alpha.cpu().numpy(), beta.cpu().numpy()
        previous, current = current, product / beta.clamp_min(torch.finfo(torch.float64).tiny).to(product)[:, None]
        keep(QuadratureState(current, previous, alphas, betas, second, step + 1))
    nodes, weights = np.zeros((count, steps)), np.zeros((count, steps))
    tiny = 10 * torch.finfo(operator.dtype).eps
    for row in range(count):
        scale = np.maximum.accumulate(np.maximum(np.abs(alphas[row]), betas[row]))
        ends = np.flatnonzero(betas[row] <= tiny * scale)
        used = int(ends[0]) + 1 if len(ends) else steps
        off = betas[row, : used - 1]
        matrix = np.diag(alphas[row, :used]) + np.diag(off, 1) + np.diag(off, -1)
        values, vectors = np.linalg.eigh(matrix)
        nodes[row, :used], weights[row, :used] = values, vectors[0] ** 2
        nodes[row, used:] = values[-1]
    return Quadrature(nodes, weights, alphas[:, 0].copy(), second)
