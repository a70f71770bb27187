"""Repeated eigenvalues: found as often as they are there, or said not to be excluded."""

import math

import numpy as np
import pytest
import torch
from curved import MatrixOperator, start_vector, with_spectrum

from landscape import Scope, hessian_eigenvalues
from landscape.linalg.lanczos import lanczos
from landscape.linalg.overlooked import Search

# Three values that stand out, two of them repeated, over a bulk; the rest stands clear of the last of them.
REPEATED = np.concatenate([[5.0] * 4, [3.0] * 3, [2.0], np.linspace(-0.5, 0.5, 192)])
# Outliers over a bulk, as the Hessians of language models have them.
OUTLIERS = np.concatenate([[68.88, 21.84, 20.85, 14.60, 12.63], 8 / np.arange(1, 396), -1.5 * np.linspace(0, 1, 100)])


def solved(values, k, seed=0, **options):
    operator = MatrixOperator(with_spectrum(values))
    draw = lambda i: start_vector(len(values), 1000 * (seed + 1) + i)  # noqa: E731
    return lanczos(operator, start_vector(len(values), seed), k, **{"fresh": draw, "vectors": True} | options), operator


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("k", "which"), [(2, "LA"), (6, "LA"), (8, "LA"), ((7, 2), "BE"), (5, "LM"), (4, "SA")])
def test_every_copy_of_a_repeated_eigenvalue_is_found(k, which, seed):
    """Rejects one starting vector alone, which returns 5, 3, 2 and then values of the bulk, all converged."""
    values = -REPEATED if which == "SA" else REPEATED
    found, operator = solved(values, k, seed, which=which, rtol=1e-6, max_matvecs=2000)
    descending = np.sort(values)[::-1]
    count = k if isinstance(k, int) else k[0]
    expected = descending[::-1][:count] if which == "SA" else descending[:count]
    assert found.converged.all()
    # a residual of a millionth moves a value by at most as much
    np.testing.assert_allclose(found.values[:count], expected, rtol=1e-6)
    images = operator(found.vectors)
    true = torch.linalg.vector_norm(images - torch.from_numpy(found.values.copy())[:, None] * found.vectors, dim=1)
    np.testing.assert_allclose(true, found.residuals, atol=1e-9)
    assert torch.allclose(found.vectors @ found.vectors.T, torch.eye(len(found.values)).double(), atol=1e-9)


def test_one_start_alone_sees_one_copy():
    found, _ = solved(REPEATED, 3, fresh=None)
    np.testing.assert_allclose(found.values, [5, 3, 2], rtol=1e-6)
    assert found.complete is None


def test_the_search_costs_an_ordinary_spectrum_a_few_products():
    alone, _ = solved(OUTLIERS, 5, fresh=None)
    found, _ = solved(OUTLIERS, 5)
    assert found.complete.all()
    np.testing.assert_allclose(found.values, alone.values, rtol=1e-12)
    assert found.matvecs <= alone.matvecs + 5
    one, _ = solved(OUTLIERS, 1)
    assert one.matvecs == solved(OUTLIERS, 1, fresh=None)[0].matvecs, "a further copy of the only one changes nothing"
    assert one.complete is None


def test_what_was_called_complete_is_complete_and_the_rest_is_not_called_so():
    """Over 200 random spectra with a hidden copy, large and small: what was overlooked was not called excluded.

    Each may be wrong with a probability of a hundredth at most, so that a right certificate is wrong on more than six
    of them once in 230 times at most. One that takes the first look at the chain for enough is wrong on far more.
    """
    generator = np.random.default_rng(0)
    wrong = shown = 0
    for seed in range(200):
        size = int(generator.integers(60, 200))
        top = np.sort(generator.uniform(1.2, 6, 4))[::-1]
        values = np.concatenate([top, [top[int(generator.integers(3))]], generator.uniform(-1, 1, size - 5)])
        # in the basis of its eigenvectors, where a random vector is as random as in any other
        draw = lambda i, seed=seed, size=size: start_vector(size, 1000 * (seed + 1) + i)  # noqa: E731
        operator = MatrixOperator(torch.diag(torch.from_numpy(values)))
        found = lanczos(operator, start_vector(size, seed), 3, fresh=draw)
        # beyond value j lie as many true ones as it says, to the tolerance
        beyond = [(values > value * (1 + 2e-3)).sum() for value in found.values]
        wrong += any(said and count > j for j, (said, count) in enumerate(zip(found.complete, beyond, strict=True)))
        shown += int(found.complete.sum())
    assert wrong <= 6
    assert shown >= 300, "and most of it is shown"


def test_the_bound_on_the_part_is_that_of_a_measure_in_closed_form():
    """The Chebyshev chain, alpha 0 and beta 1/2: p_i = U_i, so that sum_i U_i(mu)^2 has a closed form.

    U_i(cosh x) = sinh((i + 1) x) / sinh(x). A dimension is excluded just below the sum, and not just above it.
    """
    steps, mu = 6, 1.3
    x = math.acosh(mu)
    total = sum((math.sinh((i + 1) * x) / math.sinh(x)) ** 2 for i in range(steps + 1))
    chain = np.diag([0.5] * (steps - 1), 1)
    projected = np.zeros((steps + 1, steps + 1))
    projected[0, 0] = 3.0
    projected[1:, 1:] = chain + chain.T
    # the bound mu that is used lies a twentieth of the way from the bound to the chain's largest eigenvalue
    top = np.linalg.eigvalsh(chain + chain.T)[-1]
    bound = (mu - 0.05 * top) / 0.95
    for factor, expected in ((0.99, True), (1.01, False)):
        dimension = factor * total * math.pi * 0.01**2 / 2
        search = Search(dimension, projected[:1, :1], np.zeros((1, 1)), [(1, bound)])
        assert search.excluded(projected, 0.5) == [expected]


def test_a_matrix_that_leaks_into_what_was_found_counts_it():
    """T = (1.9) leaks by s into C, whose largest eigenvalue is below mu: beyond 2 there is one where s is large.

    (1.9, s; s, c) with c = 0 has an eigenvalue of at least 2 if and only if 0.1 * 2 <= s^2.
    """
    projected = np.zeros((3, 3))
    projected[0, 0] = 1.9
    projected[1, 2] = projected[2, 1] = 1e-9
    for spill, expected in ((0.1, True), (0.25, False)):
        search = Search(10, projected[:1, :1], np.array([[spill]]), [(1, 2.0)])
        assert search.excluded(projected, 1e-9) == [expected]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(3))
def test_softmax_regression_at_zero_weights(dtype, seed):
    """H = (I / 5 - 1 1' / 25) x X'X / n: every eigenvalue of X'X / 5n four times. One start finds each once."""
    torch.manual_seed(0)
    inputs = torch.randn(50, 6, dtype=torch.float64)
    model = nn_linear(dtype)
    found = hessian_eigenvalues(model, [(inputs.to(dtype), torch.arange(50) % 5)], k=6, seed=seed)
    expected = np.repeat(np.linalg.eigvalsh((inputs.T @ inputs / 250).numpy())[::-1], 4)[:6]
    # a residual of a thousandth of the value is allowed
    np.testing.assert_allclose(found.values, expected, rtol=1e-3)
    assert found.complete[:4] == (True,) * 4
    assert "overlooked" in str(found)


def nn_linear(dtype):
    model = torch.nn.Linear(6, 5, bias=False).to(dtype)
    model.weight.data.zero_()
    return model


def test_a_hessian_that_is_a_multiple_of_one_has_all_its_copies():
    """sum_i w_i^2 has the eigenvalue 2 ten times; every chain ends after one product."""
    model = torch.nn.Linear(10, 1, bias=False).double()
    scope = Scope(loss_fn=lambda m, batch: (m.weight.square().sum() * len(batch), len(batch)))
    found = hessian_eigenvalues(model, [torch.zeros(2)], k=4, scope=scope)
    np.testing.assert_allclose(found.values, [2.0] * 4, rtol=1e-12)
    assert all(found.converged)
