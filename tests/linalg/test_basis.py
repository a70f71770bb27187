"""Vectors kept as 16-bit integers, against dense eigenvalues in float64; sums over long vectors."""

import gc

import numpy as np
import pytest
import torch
from curved import MatrixOperator, start_vector, with_spectrum
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.linalg import operator, precision
from landscape.linalg.basis import PackedBasis
from landscape.linalg.lanczos import lanczos
from landscape.linalg.operator import inner_products, length

BULK = np.concatenate([8 / np.arange(2, 396), -1.5 * np.linspace(0, 1, 100)])
SPECTRA = {
    "separate": [68.88, 40.0, 25.0, 18.0, 12.63],
    "repeated": [30.0, 30.0, 30.0, 20.0, 20.0],
    "negative": [20.0, 15.0, 12.0, -60.0, -25.0],
}


def fresh(index, size, dtype):
    return start_vector(size, 1000 + index).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", SPECTRA)
@pytest.mark.parametrize(("k", "which"), [(1, "LM"), (2, "LA"), (5, "LA"), ((2, 1), "BE"), ((5, 1), "BE")])
def test_eigenvalues_from_packed_vectors_lie_within_their_residuals_of_the_truth(dtype, name, k, which):
    values = np.concatenate([SPECTRA[name], BULK])
    matrix = with_spectrum(values)
    operator, size = MatrixOperator(matrix.to(dtype)), len(values)
    # rounding moves these 500 elements by 4e-5, which is a thousandth of the lowest values beside the largest
    rtol = 1e-2 if which == "BE" else 1e-3
    options = {"which": which, "rtol": rtol, "packed": True, "vectors": True, "max_matvecs": 1000}
    found = lanczos(operator, start_vector(size).to(dtype), k, **options, fresh=lambda i: fresh(i, size, dtype))
    # the residual of what is returned, in float64: that it is true, and met. float32 products of this matrix are off
    # by about 1e-6 of its largest value, 1e-4
    vectors = found.vectors.double()
    images = vectors @ matrix
    true = torch.linalg.vector_norm(images - torch.from_numpy(found.values.copy())[:, None] * vectors, dim=1).numpy()
    assert np.allclose(true, found.residuals, atol=1e-4)
    dense = np.linalg.eigvalsh(matrix.numpy())
    assert all(np.abs(dense - v).min() <= r + 1e-4 for v, r in zip(found.values, found.residuals, strict=True))
    assert found.converged.all()
    assert np.array_equal(found.converged, found.residuals <= rtol * np.abs(found.values))
    if found.complete is not None and found.complete.all():
        count = k if isinstance(k, int) else k[0]
        if which != "LM":  # a missed copy of 30 would bring 20 to its place
            high = sorted(found.values, reverse=True)[:count]
            assert np.allclose(high, np.sort(dense)[::-1][:count], rtol=2e-3)


def test_packed_vectors_that_cannot_meet_the_tolerance_say_so():
    matrix = with_spectrum(np.concatenate([SPECTRA["separate"], BULK]))
    found = lanczos(MatrixOperator(matrix), start_vector(len(matrix)), 3, rtol=1e-7, packed=True, max_matvecs=60)
    dense = np.linalg.eigvalsh(matrix.numpy())
    assert not found.converged.any()
    assert all(np.abs(dense - v).min() <= r for v, r in zip(found.values, found.residuals, strict=True))


def test_while_a_product_is_taken_the_basis_and_what_is_multiplied_are_all_there_is():
    """Of 135 million weights each further vector is 538 MB; the estimate before a run counts none of them."""
    size, held = 70_000, []

    def tensors():
        return [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]

    class Counting(MatrixOperator):
        def __init__(self, diagonal):
            self.diagonal, self.size, self.device, self.dtype = diagonal, size, diagonal.device, diagonal.dtype

        def __call__(self, vectors):
            alive = {t.untyped_storage().data_ptr(): t for t in tensors() if id(t) not in before}
            long = [t for t in alive.values() if t.numel() >= size]
            held.append((sum(t.dtype == torch.float32 for t in long), sum(t.dtype == torch.int16 for t in long)))
            return vectors * self.diagonal

    diagonal = torch.cat([torch.tensor([9.0, -8.0]), torch.linspace(-1, 1, size - 2)])
    others = tensors()  # are held until the end, so that no other tensor gets the id of one of them
    before = {id(t) for t in others}
    found = lanczos(Counting(diagonal), start_vector(size).float(), (1, 1), which="BE", rtol=0.05, packed=True)
    assert found.converged.all()
    assert len(held) == found.matvecs
    full, packed = np.array(held).T
    assert full.max() <= 1  # what is multiplied; with the last product kept it would be one more
    assert packed.max() <= 5  # k + 3; with a tail kept beside them it would be one more


def test_a_packed_state_continues_bit_for_bit():
    matrix, start = with_spectrum(np.linspace(-1, 1, 200), dtype=torch.float32), start_vector(200).float()
    options = {"k": (2, 1), "which": "BE", "rtol": 1e-2, "packed": True}
    states = []

    def keep(state):
        copies = {name: part.clone() for name, part in state.basis.items()}
        states.append(type(state)(copies, state.projected.copy(), state.matvecs, state.defects.copy()))

    whole = lanczos(MatrixOperator(matrix), start, save_state=keep, **options)
    assert len(states) > 12, "restarts"
    for state in states[::5]:
        again = lanczos(MatrixOperator(matrix), start, resume=state, **options)
        assert np.array_equal(again.values, whole.values)
        assert np.array_equal(again.residuals, whole.residuals)


@pytest.mark.parametrize("size", [1, 63, 64, 1000, 300_001])
def test_a_rounded_vector_is_rounded_to_itself(size):
    vector = start_vector(size).float()
    vector[: size // 3] *= 1e-36  # blocks as good as zero
    basis = PackedBasis(vector)
    stored, moved = basis.stored(vector)
    rounded = basis.loaded(stored)
    # uniform errors of one step of 16384 to 32767, of elements of which the largest of 64 is 2.4 times the usual one
    assert float(torch.dist(rounded, vector)) == pytest.approx(moved, rel=1e-3)
    assert moved <= 1e-4 * float(vector.norm())
    again, none = basis.stored(rounded.clone())
    assert none == 0
    assert all(torch.equal(left, right) for left, right in zip(stored, again, strict=True))


@pytest.mark.parametrize("widest", [torch.float64, torch.float32])  # the second is that of Apple's GPUs
def test_sums_over_long_vectors_do_not_drift(monkeypatch, widest):
    # in float32 alone the length comes out 0.9% off at this size, and the product 1.4%; pieces of 2e5 are good to 1e-4
    for module in (operator, precision):  # the product looks it up in the first, the length in the second
        monkeypatch.setattr(module, "wide_dtype", lambda _: widest)
    size = 2**25
    vector = torch.full((size,), 0.1)
    exact = size * float(vector[0]) ** 2
    with _TypesMade() as made:
        norm, product = length(vector), inner_products(vector[None], vector)
    assert made.types == {torch.float32, widest}
    assert float(norm) == pytest.approx(exact**0.5, rel=1e-6 if widest == torch.float64 else 1e-5)
    assert float(product[0]) == pytest.approx(exact, rel=1e-4)


class _TypesMade(TorchDispatchMode):
    """The types of all tensors that are computed within."""

    def __init__(self):
        super().__init__()
        self.types = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        self.types |= {t.dtype for t in (out if isinstance(out, (list, tuple)) else [out])}
        return out
