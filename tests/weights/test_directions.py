"""Random filter-normalized directions, and differences between checkpoints."""

import math

import pytest
import torch
from conftest import ARCHITECTURES, build_model
from torch import nn

from landscape.errors import InputError
from landscape.weights.directions import Direction, difference_direction, random_directions
from landscape.weights.filters import Filters
from landscape.weights.parameters import Parameters


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("mode", ["filter", "unit", "head", "layer"])
def test_every_filter_has_the_norm_of_the_models_filter(architecture, mode):
    model = build_model(architecture).double()
    parameters = Parameters(model)
    for direction in random_directions(model, 2, normalize=mode, include_1d=True):
        assert set(direction.tensors) == set(parameters.names)
        for name, tensor in direction.tensors.items():
            filters = parameters.filters(name, mode)
            found, wanted = filters.norms(tensor), filters.norms(parameters[name].detach())
            assert torch.allclose(found, wanted, rtol=1e-12, atol=0), name  # one division and one product of rounding


def test_a_long_layer_has_its_norm_in_float64():
    """To 1e-6; the float32 sum over all of its 2^23 elements is off by about 2e-4."""
    tensor = torch.randn(2**13, 2**10, generator=torch.Generator().manual_seed(0))
    norm = Filters(()).norms(tensor)
    assert norm.shape == (1, 1)
    assert abs(float(norm) / float(tensor.double().norm()) - 1) < 1e-6


def test_one_dimensional_tensors_stay_out_by_default():
    model = build_model("gpt2")
    (direction,) = random_directions(model, 1)
    assert all(tensor.ndim >= 2 for tensor in direction.tensors.values())
    assert "transformer.ln_f.weight" not in direction.tensors
    (everything,) = random_directions(model, 1, include_1d=True)
    assert "transformer.ln_f.weight" in everything.tensors


def test_the_two_draws_are_orthogonal_before_normalization():
    one, two = random_directions(build_model("llama").double(), 2, normalize="none")
    assert abs(one.cosine(two)) < 1e-6  # noise is drawn in float32
    one, two = random_directions(build_model("llama"), 2, normalize="filter")
    assert abs(one.cosine(two)) < 0.05  # nearly so after it; a degenerate plane (PEERS 3.4) would show about 1
    first, second, third = random_directions(build_model("llama").double(), 3, normalize="none")
    assert max(abs(third.cosine(first)), abs(third.cosine(second))) < 1e-6


def test_raw_directions_are_standard_normal():
    (direction,) = random_directions(build_model("llama"), 1, normalize="none")
    values = torch.cat([tensor.flatten() for tensor in direction.tensors.values()]).double()
    n = len(values)
    assert abs(float(values.mean())) < 5 / n**0.5
    assert abs(float(values.var()) - 1) < 5 * (2 / n) ** 0.5
    assert (values < 0).double().mean() == pytest.approx(0.5, abs=5 * 0.5 / n**0.5)


def test_the_same_seed_gives_the_same_draw_to_two_checkpoints_each_at_its_own_scale():
    a, b = build_model("llama", seed=1), build_model("llama", seed=2)
    (of_a,), (of_b,) = random_directions(a, 1, seed=7), random_directions(b, 1, seed=7)
    name = "model.layers.1.mlp.up_proj.weight"
    assert not torch.equal(of_a.tensors[name], of_b.tensors[name])
    ratio = of_a.tensors[name] / of_b.tensors[name]
    assert torch.allclose(ratio, ratio[:, :1].expand_as(ratio), rtol=1e-4)  # rows differ by a factor only
    torch.manual_seed(99)
    (again,) = random_directions(a, 1, seed=7)
    assert all(torch.equal(again.tensors[n], of_a.tensors[n]) for n in again.tensors)
    (other,) = random_directions(a, 1, seed=8)
    assert not torch.equal(other.tensors[name], of_a.tensors[name])


def test_the_first_direction_does_not_depend_on_how_many_are_asked_for():
    model = build_model("llama")
    (alone,), (first, _) = random_directions(model, 1), random_directions(model, 2)
    assert all(torch.equal(alone.tensors[n], first.tensors[n]) for n in alone.tensors)


def test_a_tied_tensor_has_one_direction():
    (direction,) = random_directions(build_model("qwen3"), 1)
    assert "model.embed_tokens.weight" in direction.tensors
    assert "lm_head.weight" not in direction.tensors


def test_a_filter_of_zeros_stays_where_it_is():
    model = nn.Linear(4, 3, bias=False)
    with torch.no_grad():
        model.weight[1] = 0
    (direction,) = random_directions(model, 1)
    assert torch.equal(direction.tensors["weight"][1], torch.zeros(4))
    assert direction.tensors["weight"][0].norm() > 0


def test_expected_curvature_of_a_filter_normalized_direction_is_the_weighted_trace():
    # E d'Hd = sum_f |w_f|^2 / n_f tr H_ff; here H is diagonal, so tr H_ff is a row's sum
    torch.manual_seed(0)
    model = nn.Linear(5, 4, bias=False).double()
    diagonal = torch.rand(4, 5, dtype=torch.float64) + 0.1
    weight = model.weight.detach()
    expected = float((weight.square().sum(1) / 5 * diagonal.sum(1)).sum())
    draws = torch.tensor(
        [
            float((random_directions(model, 1, seed=seed)[0].tensors["weight"].square() * diagonal).sum())
            for seed in range(4000)
        ]
    )
    standard_error = float(draws.std()) / len(draws) ** 0.5
    assert abs(float(draws.mean()) - expected) < 4 * standard_error
    assert standard_error < 0.01 * expected


def test_wrong_arguments_are_refused_in_words():
    model = build_model("llama")
    with pytest.raises(InputError, match="normalize='rows' is none of filter, unit, head, layer, none"):
        random_directions(model, normalize="rows")
    with pytest.raises(InputError, match="at least one"):
        random_directions(model, 0)
    with pytest.raises(InputError, match="2 directions in a space of 1 weights"):
        random_directions(nn.Linear(1, 1, bias=False), 2)
    with pytest.raises(InputError, match="include_1d"):
        random_directions(model, parameters="*norm*")


def test_difference_is_b_minus_a_and_keeps_ties_once():
    a, b = build_model("qwen3", seed=1), build_model("qwen3", seed=2)
    direction = difference_direction(a, b)
    name = "model.embed_tokens.weight"
    assert torch.equal(direction.tensors[name], b.get_parameter(name) - a.get_parameter(name))
    assert "lm_head.weight" not in direction.tensors
    with torch.no_grad():
        a.get_parameter(name).zero_()  # the direction is a copy
    assert not torch.equal(direction.tensors[name], b.get_parameter(name))


def test_the_cosine_with_nothing_is_not_a_number():
    zero, other = (Direction({"w": value}, "given", "d") for value in (torch.zeros(2, 2), torch.ones(2, 2)))
    assert math.isnan(zero.cosine(other))
    assert other.cosine(other) == pytest.approx(1)


def test_models_of_different_shape_have_no_difference():
    with pytest.raises(InputError, match=r"embed_tokens.weight is \(320, 32\) in the first and \(330, 32\)"):
        difference_direction(build_model("llama"), build_model("llama", vocabulary=330))
