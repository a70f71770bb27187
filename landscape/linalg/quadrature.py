"""The spectral density of a symmetric operator by stochastic Lanczos quadrature."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from landscape.linalg.operator import SymmetricOperator, finite_product, length


@dataclasses.dataclass(frozen=True)
class Quadrature:
    """Gauss quadratures of the spectral density, one for every probe.

    Attributes:
        nodes: Approximate eigenvalues, shape (probes, steps), increasing along a row.
        weights: The share of the spectrum at each node, shape (probes, steps). Each row sums to 1.
        first: z'Az / z'z for each probe z, shape (probes,): what the first moment of a row must be.
        second: |Az|^2 / z'z for each probe z, shape (probes,): what the second moment of a row must be.
    """

    nodes: np.ndarray
    weights: np.ndarray
    first: np.ndarray
    second: np.ndarray


@dataclasses.dataclass(frozen=True)
class QuadratureState:
    """All that a quadrature holds between two steps.

    Attributes:
        current: The vectors to be multiplied next, shape (probes, size).
        previous: The vectors before them, shape (probes, size).
        alphas: The diagonals of the tridiagonal matrices so far, shape (probes, steps).
        betas: The entries beside the diagonals so far, shape (probes, steps).
        second: |Az|^2 / z'z for each probe z, shape (probes,).
        step: The number of the next step.
    """

    current: Tensor
    previous: Tensor
    alphas: np.ndarray
    betas: np.ndarray
    second: np.ndarray
    step: int


def quadrature(
    operator: SymmetricOperator,
    probes: Tensor,
    steps: int,
    *,
    progress: Callable[[int], object] = lambda _: None,
    save_state: Callable[[QuadratureState], None] = lambda _: None,
    resume: QuadratureState | None = None,
) -> Quadrature:
    """Compute a Gauss quadrature of the spectral density from every row of `probes`, all of them in lockstep.

    For a unit probe z with components c_i along the eigenvectors of A, the density sum_i c_i^2 delta(x - lambda_i) has
    the quadrature whose nodes are the eigenvalues of the tridiagonal Lanczos matrix T and whose weights are the squares
    of the first components of its eigenvectors. Averaged over random probes it is the spectral density of A.

    The three-term recurrence is used as it is, without the reorthogonalization that eigenvalues need. Rounding then
    repeats extreme nodes and splits their weight, which leaves the density what it was, and three vectors per probe
    are kept instead of `steps`.

    Args:
        operator: The symmetric operator A. Its vectors must be whole: this uses no `operator.inner`.
        probes: The starting vectors, shape (probes, size).
        steps: The number of Lanczos steps, and so of nodes, for each probe; at most `operator.size` are taken.
        progress: A function that is called with the number of products just taken.
        save_state: A function that is called with the state after every step.
        resume: A state to continue from, to the same result bit for bit.

    Returns:
        The quadratures. A row that reaches an invariant subspace early is padded with zero weights.

    Raises:
        InputError: A product is not finite.

    Source:
        G. Golub and J. Welsch 1969, "Calculation of Gauss quadrature rules", Math. Comp. 23; B. Ghorbani, S. Krishnan
        and Y. Xiao 2019 (arXiv 1901.10159), section 2. Without reorthogonalization: A. Greenbaum 1989, Linear Algebra
        Appl. 113; T. Chen, T. Trogdon and S. Ubaru 2021 (arXiv 2105.06595).

    Example:
        The probe (1, 1) has half its length along each eigenvector of diag(3, 1).

        >>> from landscape.linalg.operator import MatrixOperator
        >>> density = quadrature(MatrixOperator(torch.diag(torch.tensor([3.0, 1.0]))), torch.ones(1, 2), steps=2)
        >>> density.nodes.round(5).tolist(), density.weights.round(5).tolist()
        ([[1.0, 3.0]], [[0.5, 0.5]])
    """
    count = len(probes)
    steps = min(steps, operator.size)
    norms = torch.stack([length(probe) for probe in probes])[:, None]
    current, previous = probes / norms, torch.zeros_like(probes)
    alphas, betas = np.zeros((count, steps)), np.zeros((count, steps))
    second = np.zeros(count)
    first = 0
    if resume is not None:
        current, previous = resume.current.to(current), resume.previous.to(current)
        alphas, betas, second, first = resume.alphas.copy(), resume.betas.copy(), resume.second, resume.step
        progress(count * first)
    for step in range(first, steps):
        product = finite_product(operator, current)
        progress(count)
        if step == 0:
            second = product.double().square().sum(1).cpu().numpy()
        alpha = (product.double() * current.double()).sum(1)
        before = torch.from_numpy(betas[:, step - 1]).to(product) if step else torch.zeros_like(alpha).to(product)
        product -= alpha.to(product)[:, None] * current + before[:, None] * previous
        beta = torch.linalg.vector_norm(product.double(), dim=1)
        alphas[:, step], betas[:, step] = alpha.cpu().numpy(), beta.cpu().numpy()
        previous, current = current, product / beta.clamp_min(torch.finfo(torch.float64).tiny).to(product)[:, None]
        save_state(QuadratureState(current, previous, alphas, betas, second, step + 1))
    nodes, weights = _nodes_and_weights(alphas, betas, tiny=10 * torch.finfo(operator.dtype).eps)
    return Quadrature(nodes, weights, alphas[:, 0].copy(), second)


def _nodes_and_weights(alphas: np.ndarray, betas: np.ndarray, tiny: float) -> tuple[np.ndarray, np.ndarray]:
    """Return nodes and weights of the tridiagonal matrices whose entries are the rows of `alphas` and `betas`.

    A row ends where its beta is at most `tiny` of the largest entry so far: its subspace is invariant.
    """
    count, steps = alphas.shape
    nodes, weights = np.zeros((count, steps)), np.zeros((count, steps))
    for row in range(count):
        scale = np.maximum.accumulate(np.maximum(np.abs(alphas[row]), betas[row]))
        ends = np.flatnonzero(betas[row] <= tiny * scale)
        used = int(ends[0]) + 1 if len(ends) else steps
        off = betas[row, : used - 1]
        matrix = np.diag(alphas[row, :used]) + np.diag(off, 1) + np.diag(off, -1)
        values, vectors = np.linalg.eigh(matrix)
        nodes[row, :used], weights[row, :used] = values, vectors[0] ** 2
        nodes[row, used:] = values[-1]
    return nodes, weights
