"""Eigenvalues and density of matrices whose spectrum is known, and the mean of samples."""

import numpy as np
import pytest
import torch
from curved import MatrixOperator, start_vector, with_spectrum
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import LinearOperator, eigsh

from landscape.errors import InputError
from landscape.linalg.lanczos import lanczos
from landscape.linalg.quadrature import quadrature
from landscape.linalg.sampling import sample_mean

# Outliers over a bulk, as the Hessians of language models have them.
OUTLIERS = np.concatenate([[68.88, 21.84, 20.85, 14.60, 12.63], 8 / np.arange(1, 396), -1.5 * np.linspace(0, 1, 100)])
CLUSTERED = np.concatenate([[10, 9.5, 9.0], np.linspace(-1, 1, 197)])
INDEFINITE = np.concatenate([[4.0, -5.0], np.linspace(-0.5, 0.5, 98)])


@pytest.mark.parametrize("values", [OUTLIERS, CLUSTERED, INDEFINITE], ids=["outliers", "clustered", "indefinite"])
@pytest.mark.parametrize("which", ["LA", "SA", "LM", "BE"])
@pytest.mark.parametrize("basis_size", [None, 8])
def test_eigenvalues_lie_within_their_residuals_of_the_truth(values, which, basis_size):
    matrix = with_spectrum(values)
    # the ends of a bulk are dense: with a basis of 8 they take many restarts
    options = {"which": which, "rtol": 1e-6, "basis_size": basis_size, "max_matvecs": 5000, "vectors": True}
    found = lanczos(MatrixOperator(matrix), start_vector(len(values)), 3, **options)
    ascending = np.sort(values)
    expected = {
        "LA": ascending[::-1][:3],
        "SA": ascending[:3],
        "LM": ascending[np.argsort(-np.abs(ascending))][:3],
        "BE": np.array([ascending[-1], ascending[-2], ascending[0]]),
    }[which]
    assert found.converged.all()
    assert np.allclose(found.values, expected, rtol=1e-6, atol=1e-9)
    # residual norms are those of the vectors returned, to the rounding of float64
    vectors = found.vectors
    true = torch.linalg.vector_norm(vectors @ matrix - torch.from_numpy(found.values.copy())[:, None] * vectors, dim=1)
    assert np.allclose(true, found.residuals, atol=1e-9)
    assert torch.allclose(vectors @ vectors.T, torch.eye(3).double(), atol=1e-9)


def test_fewer_products_than_arpack():
    matrix = with_spectrum(OUTLIERS).numpy()
    taken = []

    def product(v):
        taken.append(1)
        return matrix @ v

    operator = LinearOperator(matrix.shape, matvec=product, dtype=np.float64)
    start = start_vector(len(matrix))
    expected = eigsh(operator, 5, which="LA", tol=1e-3, v0=start.numpy(), ncv=20, return_eigenvectors=False)
    found = lanczos(MatrixOperator(torch.from_numpy(matrix)), start, 5, rtol=1e-3)
    # a residual r moves a separated eigenvalue by r^2 / gap only
    assert np.allclose(found.values, np.sort(expected)[::-1], rtol=1e-4)
    assert found.matvecs < len(taken)


def test_both_ends_in_any_split():
    operator = MatrixOperator(with_spectrum(OUTLIERS))
    found = lanczos(operator, start_vector(operator.size), (4, 1), which="BE", rtol=1e-4)
    assert np.allclose(found.values, [68.88, 21.84, 20.85, 14.60, -1.5], rtol=1e-4)


def test_what_has_not_converged_says_so():
    found = lanczos(MatrixOperator(with_spectrum(OUTLIERS)), start_vector(500), 5, rtol=1e-8, max_matvecs=8)
    assert found.matvecs == 8
    assert not found.converged.all()
    assert found.converged[0] == (found.residuals[0] <= 1e-8 * found.values[0])
    # not converged, and yet each within its residual of some eigenvalue
    assert all(np.abs(OUTLIERS - v).min() <= r for v, r in zip(found.values, found.residuals, strict=True))


def test_three_distinct_eigenvalues_take_three_steps():
    operator = MatrixOperator(with_spectrum([1.0] * 5 + [2.0] * 5 + [7.0] * 5))
    found = lanczos(operator, start_vector(15), 3, rtol=1e-10)
    assert found.matvecs == 3
    assert np.allclose(found.values, [7, 2, 1], atol=1e-10)


def test_the_zero_operator_and_one_dimension():
    found = lanczos(MatrixOperator(torch.zeros(4, 4).double()), start_vector(4), 1)
    assert found.values[0] == 0
    assert found.converged[0]
    assert lanczos(MatrixOperator(torch.tensor([[3.0]]).double()), start_vector(1)).values[0] == pytest.approx(3)


@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-6, 1.0, 1e6]))
@settings(max_examples=20, deadline=None)
def test_scaling_the_operator_scales_the_eigenvalues(seed, scale):
    matrix = with_spectrum(CLUSTERED)
    start = start_vector(200, seed)
    one = lanczos(MatrixOperator(matrix), start, 2, rtol=1e-6)
    two = lanczos(MatrixOperator(scale * matrix), start, 2, rtol=1e-6)
    assert np.allclose(two.values, scale * one.values, rtol=1e-9)
    assert two.matvecs == one.matvecs


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"which": "XX"}, "XX"),
        ({"k": 0}, "k=0"),
        ({"k": 99}, "k=99"),
        ({"k": (1, 1)}, "BE"),
        ({"rtol": 0.0}, "rtol"),
        ({"k": 5, "basis_size": 6}, "basis_size"),
        ({"max_matvecs": 0}, "max_matvecs"),
    ],
)
def test_impossible_requests_are_refused(options, said):
    k = options.pop("k", 1)
    with pytest.raises(InputError, match=said):
        lanczos(MatrixOperator(torch.eye(10).double()), start_vector(10), k, **options)


def test_a_product_that_is_not_finite_is_refused():
    with pytest.raises(InputError, match="not finite"):
        lanczos(MatrixOperator(torch.full((4, 4), torch.nan).double()), start_vector(4))
    with pytest.raises(InputError, match="not finite"):
        quadrature(MatrixOperator(torch.full((4, 4), torch.inf).double()), rademacher(1, 4), 2)


# --- density ------------------------------------------------------------------------------------------------


def rademacher(count, size, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).choice([-1.0, 1.0], (count, size)))


def test_quadrature_has_the_moments_of_its_probes():
    matrix = with_spectrum(OUTLIERS)
    probes = rademacher(3, 500)
    found = quadrature(MatrixOperator(matrix), probes, 40)
    images = probes @ matrix
    assert np.allclose(found.weights.sum(1), 1, atol=1e-12)
    # float64 recurrences without reorthogonalization keep low moments to 1e-9 of the norm
    assert np.allclose((found.weights * found.nodes).sum(1), (images * probes).sum(1) / 500, atol=1e-8)
    assert np.allclose((found.weights * found.nodes**2).sum(1), images.square().sum(1) / 500, rtol=1e-9)
    assert np.allclose(found.second, images.square().sum(1) / 500, rtol=1e-12)


def test_quadrature_in_float32_without_reorthogonalization_finds_the_distribution():
    matrix = with_spectrum(OUTLIERS, dtype=torch.float32)
    found = quadrature(MatrixOperator(matrix), rademacher(8, 500).float(), 100)
    grid = np.array([-1.0, -0.5, -0.1, 0.5, 2.0, 10.0, 15.0])
    expected = np.array([(x >= OUTLIERS).mean() for x in grid])
    cumulative = np.array([(found.weights * (found.nodes <= x)).sum() / 8 for x in grid])
    # 8 probes of 500 coordinates: a standard deviation of 1/sqrt(8 * 500) * sqrt(2) at the most
    assert np.abs(cumulative - expected).max() < 4 * np.sqrt(2 / 4000)


class _Multiple:
    """Three times the identity."""

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, size):
        self.size = size

    def __call__(self, vectors):
        return 3 * vectors

    def all_finite(self, vectors):
        return bool(torch.isfinite(vectors).all())


def test_quadrature_of_a_long_vector_starts_with_a_unit_vector():
    """The only eigenvalue, to 1e-5; a length summed in float32 is off by 6e-4 here, and its square by 1.3e-3."""
    probe = torch.randn(1, 2**24, generator=torch.Generator().manual_seed(0))
    found = quadrature(_Multiple(2**24), probe, steps=1)
    assert abs(found.nodes[0, 0] / 3 - 1) < 1e-5


def test_quadrature_ends_with_an_invariant_subspace():
    found = quadrature(MatrixOperator(with_spectrum([1.0, 1, 2, 2])), rademacher(2, 4), 10)
    assert np.allclose(found.weights.sum(1), 1)
    for row in range(2):
        used = found.weights[row] > 1e-12
        assert set(np.round(found.nodes[row][used], 8)) <= {1.0, 2.0}


# --- means of samples ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", ["normal", "skewed"])
@pytest.mark.parametrize("spread", [0.1, 0.3])
def test_the_interval_covers_and_converged_means_what_it_says(shape, spread):
    generator = np.random.default_rng(1)
    covered, within, count = 0, 0, 400
    for _ in range(count):

        def draw(start, stop):
            n = stop - start
            noise = generator.standard_normal(n) if shape == "normal" else (generator.chisquare(6, n) - 6) / 12**0.5
            return 1 + spread * noise

        mean = sample_mean(draw, rtol=0.05, block=8)
        assert mean.converged
        covered += mean.interval[0] <= 1 <= mean.interval[1]
        within += abs(mean.value - 1) <= 0.05 * mean.value
    # 95% nominal; 400 runs have a standard deviation of 1.1%
    assert covered >= 0.91 * count
    assert within >= 0.93 * count


def sources_of_samples(generator):
    """What samples look like: symmetric, and v'Av of an indefinite matrix and of one that one eigenvalue dominates."""
    found = {"symmetric": (lambda n: 1 + generator.standard_normal(n), 1.0)}
    for name, values in (
        ("indefinite", (-1.0) ** np.arange(40) / np.arange(1, 41) + 0.05),
        ("one", 1 / np.arange(1, 41)),
    ):
        matrix = with_spectrum(values).numpy()

        def draw(n, matrix=matrix):
            v = generator.choice([-1.0, 1.0], (n, 40))
            return np.einsum("ki,ij,kj->k", v, matrix, v)

        found[name] = (draw, float(np.trace(matrix)))
    return found


@pytest.mark.slow
@pytest.mark.parametrize("rtol", [0.1, 0.2])
@pytest.mark.parametrize("source", ["symmetric", "indefinite", "one"])
def test_stopping_at_a_relative_width_does_not_raise_the_mean(source, rtol):
    """In 2000 runs the mean is right to 0.5%, and the interval covers at least 93% of the time.

    One run is off by up to rtol / 2, so that the mean of 2000 has a standard error of 0.1% for rtol = 0.1 and 0.2% for
    0.2. Rejects the plain mean of symmetric samples, which is 1.9% too high for rtol = 0.2.
    """
    draw, truth = sources_of_samples(np.random.default_rng(2))[source]
    values, covered = [], 0
    for _ in range(2000):
        mean = sample_mean(lambda start, stop: draw(stop - start), rtol=rtol, block=8)
        values.append(mean.value)
        covered += mean.interval[0] <= truth <= mean.interval[1]
    assert np.mean(values) == pytest.approx(truth, rel=5e-3)
    assert covered >= 0.93 * 2000


def test_samples_stop_at_the_most_allowed_and_say_so():
    generator = np.random.default_rng(0)
    mean = sample_mean(lambda a, b: generator.standard_normal(b - a), rtol=0.01, max_samples=50)
    assert mean.samples == 50
    assert not mean.converged


def test_constant_samples_need_no_more_than_the_first_look():
    mean = sample_mean(lambda a, b: np.full(b - a, 3.0), rtol=0.01)
    assert (mean.value, mean.stderr, mean.converged, mean.samples) == (3.0, 0.0, True, 16)


@pytest.mark.parametrize("wrong", [{"rtol": 0}, {"rtol": 0.1, "confidence": 1}, {"rtol": 0.1, "max_samples": 1}])
def test_impossible_precisions_are_refused(wrong):
    with pytest.raises(InputError):
        sample_mean(lambda a, b: np.ones(b - a), **wrong)
