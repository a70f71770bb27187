"""Lengths and inner products of flat vectors that are longer than what is in float64 at once."""

import numpy as np
import pytest
import torch

from landscape.sharpness.site import dot, norm_of, same


@pytest.mark.parametrize("size", [1, 2**18, 2**18 + 1, 3 * 2**18 - 7])
def test_sums_over_pieces_are_those_in_float64(size):
    """1e-13 for float64 sums in another order. A piece left out is off by its share; float32 sums by 1e-8 and more."""
    drawn = torch.Generator().manual_seed(size)
    u, v = torch.randn(2, size, generator=drawn) + 1
    wide_u, wide_v = u.numpy().astype(np.float64), v.numpy().astype(np.float64)
    assert norm_of(u) == pytest.approx(np.sqrt(np.sum(wide_u**2)), rel=1e-13)
    assert dot(u, v) == pytest.approx(np.sum(wide_u * wide_v), rel=1e-13)
    assert same(u, u.clone())
    v = u.clone()
    v[-1] = torch.nextafter(v[-1], torch.tensor(torch.inf))
    assert not same(u, v)
