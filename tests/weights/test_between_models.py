"""Points between models: formed in float32, as near to the line in float64 as a rounding of the weights is."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import excursion


def models(scale, dtype, count=2):
    """Models of one shape: the first, and others that are far from it or near to it."""
    made = []
    for seed in range(count):
        torch.manual_seed(seed)
        made.append(torch.nn.Linear(50, 40).to(dtype))
    for other in made[1:]:
        for own, base in zip(other.parameters(), made[0].parameters(), strict=True):
            own.data.mul_(scale).add_(base.data)
    return made


@given(t=st.floats(-1, 2), scale=st.sampled_from([1e-4, 1.0, 1e3]), dtype=st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=30, deadline=None)
def test_a_point_on_a_line_is_that_of_float64_but_for_the_rounding_of_its_parts(t, scale, dtype):
    """The coefficient and three float32 operations round by 2^-24 of what they give, and bfloat16 once more by 2^-8.

    Were the parts (1 - t) base and t other rounded to bfloat16, the error would be 2^-8 of those instead of the sum.
    """
    base, other = models(scale, getattr(torch, dtype))
    with excursion(Parameters(base)) as trip:
        ends = [(trip.base(name).double().clone(), own.detach().double()) for name, own in other.named_parameters()]
        fidelity = trip.move([(t, Parameters(other).values())], 1 - t)
        for moved, (origin, end) in zip(base.parameters(), ends, strict=True):
            exact = (1 - t) * origin + t * end
            rounding = 2**-8 if dtype == "bfloat16" else 2**-24
            allowed = rounding * exact.abs() * 1.01 + 2**-22 * (t * (end - origin)).abs() + 1e-12
            assert ((moved.double() - exact).abs() <= allowed).all()
    if dtype == "float32" and abs(t) > 1e-3:
        assert fidelity.faithful


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@pytest.mark.parametrize("scale", [1e-4, 1e3])  # base + (other - base) is not other where they are far apart
def test_the_ends_are_the_models_bit_for_bit(dtype, scale):
    base, *others = models(scale, getattr(torch, dtype), 3)
    before = [parameter.detach().clone() for parameter in base.parameters()]
    with excursion(Parameters(base)) as trip:
        for other in others:
            trip.move([(1.0, Parameters(other).values())], 0.0)
            assert all(torch.equal(a, b) for a, b in zip(base.parameters(), other.parameters(), strict=True))
        trip.move([(0.0, Parameters(others[0]).values())], 1.0)
        assert all(torch.equal(a, b) for a, b in zip(base.parameters(), before, strict=True))


def test_a_point_of_a_plane_and_one_whose_coefficients_do_not_sum_to_one():
    base, b, c = models(1.0, torch.float32, 3)
    origin = base.weight.detach().double().clone()
    ends = [model.weight.detach().double() for model in (b, c)]
    terms = [(0.3, Parameters(b).values()), (-0.4, Parameters(c).values())]
    with excursion(Parameters(base)) as trip:
        for own in (1.1, 0.5):
            trip.move(terms, own)
            exact = own * origin + 0.3 * ends[0] - 0.4 * ends[1]
            # float32 against float64 for weights of about 0.1
            assert torch.allclose(base.weight.double(), exact, rtol=0, atol=1e-7)
