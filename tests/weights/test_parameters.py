"""Parameters as one vector: ties, filters, noise, exact perturbation."""

import itertools
import math

import pytest
import torch
from conftest import ARCHITECTURES, assert_same_state, build_model, state_of
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape.errors import InputError
from landscape.weights.noise import gaussian_noise
from landscape.weights.parameters import Parameters
from landscape.weights.perturbation import EXACT, Fidelity, excursion
from landscape.weights.preservation import preserved
from landscape.weights.vectors import inner_product


def test_tied_tensors_are_one_parameter_under_the_first_name():
    model = build_model("qwen3")
    parameters = Parameters(model)
    assert "model.embed_tokens.weight" in parameters.names
    assert "lm_head.weight" not in parameters.names
    (embedding,) = (entry for entry in parameters if entry.name == "model.embed_tokens.weight")
    assert embedding.aliases == ("lm_head.weight",)
    assert parameters.numel == sum(p.numel() for p in model.parameters())


def test_parameters_that_share_memory_without_being_one_object_are_one():
    model = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    model["b"].weight = nn.Parameter(model["a"].weight.data)
    assert model["a"].weight is not model["b"].weight
    assert Parameters(model).names == ("a.weight",)


def test_buffers_and_frozen_tensors_are_left_out():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    model[0].bias.requires_grad_(False)
    assert Parameters(model).names == ("0.weight", "1.weight", "1.bias")
    assert "0.bias" in Parameters(model, frozen=True).names
    assert not any("running" in name for name in Parameters(model, frozen=True).names)


def test_a_frozen_model_and_an_unmatched_pattern_are_refused():
    model = nn.Linear(2, 2)
    with pytest.raises(InputError, match="matches no trainable"):
        Parameters(model, "nothing.*")
    model.requires_grad_(False)
    with pytest.raises(InputError, match="no trainable parameter"):
        Parameters(model)


def test_patterns_select_by_glob_and_by_tied_name():
    model = build_model("qwen3")
    assert Parameters(model, "lm_head.*").names == ("model.embed_tokens.weight",)
    mlp = Parameters(model, "model.layers.*.mlp.*")
    assert len(mlp.names) == 6
    assert all(".mlp." in name for name in mlp.names)


# (architecture, tensor, mode): shape of the broadcastable norms, and how many filters that is
FILTERS = [
    ("llama", "model.layers.0.self_attn.q_proj.weight", "filter", (32, 1), 32),
    ("llama", "model.layers.0.self_attn.q_proj.weight", "unit", (32, 1), 32),
    ("llama", "model.layers.0.self_attn.q_proj.weight", "head", (32, 1), 4),  # 4 heads of 8 rows
    ("llama", "model.layers.0.self_attn.k_proj.weight", "head", (16, 1), 2),  # 2 key heads of 8 rows
    ("llama", "model.layers.0.self_attn.o_proj.weight", "filter", (32, 1), 32),
    ("llama", "model.layers.0.self_attn.o_proj.weight", "unit", (1, 32), 32),
    ("llama", "model.layers.0.self_attn.o_proj.weight", "head", (1, 32), 4),  # blocks of 8 columns
    ("llama", "model.layers.0.mlp.up_proj.weight", "unit", (48, 1), 48),
    ("llama", "model.layers.0.mlp.down_proj.weight", "filter", (32, 1), 32),
    ("llama", "model.layers.0.mlp.down_proj.weight", "unit", (1, 48), 48),
    ("llama", "model.layers.0.mlp.down_proj.weight", "head", (1, 48), 48),
    ("llama", "model.embed_tokens.weight", "filter", (320, 1), 320),  # a row per token
    ("llama", "lm_head.weight", "filter", (320, 1), 320),
    ("llama", "lm_head.weight", "layer", (1, 1), 1),
    ("llama", "model.norm.weight", "filter", (1,), 1),  # 1-D: the whole tensor
    ("gpt2", "transformer.h.0.attn.c_attn.weight", "filter", (1, 96), 96),  # Conv1D: columns are output units
    ("gpt2", "transformer.h.0.attn.c_attn.weight", "head", (1, 96), 12),  # q, k and v of 4 heads
    ("gpt2", "transformer.h.0.mlp.c_fc.weight", "filter", (1, 128), 128),
    ("gpt2", "transformer.h.0.mlp.c_proj.weight", "filter", (1, 32), 32),
    ("gpt2", "transformer.h.0.mlp.c_proj.weight", "unit", (128, 1), 128),
    ("gpt2", "transformer.h.0.attn.c_proj.weight", "unit", (32, 1), 32),
    ("gpt2", "transformer.h.0.attn.c_proj.weight", "head", (32, 1), 4),
    ("gpt2", "transformer.wte.weight", "filter", (320, 1), 320),
]


@pytest.mark.parametrize(("architecture", "name", "mode", "shape", "count"), FILTERS)
def test_filters_are_those_of_the_table(architecture, name, mode, shape, count):
    parameters = Parameters(build_model(architecture))
    norms = parameters.filters(name, mode).norms(parameters[name].detach())
    assert tuple(norms.shape) == shape
    assert len(norms.unique()) == count  # random weights: every filter has a norm of its own


def test_a_head_filter_is_the_norm_of_its_block():
    parameters = Parameters(build_model("llama"))
    weight = parameters["model.layers.0.self_attn.q_proj.weight"].detach()
    norms = parameters.filters("model.layers.0.self_attn.q_proj.weight", "head").norms(weight)
    for head in range(4):
        block = weight[8 * head : 8 * head + 8]
        assert torch.allclose(norms[8 * head : 8 * head + 8], block.norm().expand(8, 1), rtol=1e-6)


def test_convolution_filters_are_output_channels():
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 5, 2), "up": nn.ConvTranspose2d(3, 7, 2), "line": nn.Conv1d(3, 4, 2)})
    parameters = Parameters(model)
    shapes = {n: tuple(parameters.filters(n, "filter").norms(parameters[n].detach()).shape) for n in parameters.names}
    assert shapes["conv.weight"] == (5, 1, 1, 1)
    assert shapes["up.weight"] == (1, 7, 1, 1)
    assert shapes["line.weight"] == (4, 1, 1)


@pytest.mark.parametrize("transposed", [False, True])
def test_stacked_experts_have_filters_per_expert_and_unit(transposed):
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.num_experts, self.is_transposed = 2, transposed
            self.gate_up_proj = nn.Parameter(torch.randn(2, 3, 6) if transposed else torch.randn(2, 6, 3))
            self.down_proj = nn.Parameter(torch.randn(2, 3, 4) if transposed else torch.randn(2, 4, 3))

    model = nn.ModuleDict({"experts": Experts()})
    parameters = Parameters(model)

    def shape(name, mode):
        return tuple(parameters.filters(name, mode).norms(parameters[name].detach()).shape)

    assert shape("experts.gate_up_proj", "filter") == ((2, 1, 6) if transposed else (2, 6, 1))
    assert shape("experts.down_proj", "unit") == ((2, 3, 1) if transposed else (2, 1, 3))


def test_real_stacked_experts_of_transformers_are_recognized():
    from transformers import MixtralConfig, MixtralForCausalLM

    config = MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, num_local_experts=3,
    )  # fmt: skip
    parameters = Parameters(MixtralForCausalLM(config))
    (name,) = (n for n in parameters.names if n.endswith("down_proj"))
    assert tuple(parameters[name].shape) == (3, 16, 24)
    assert tuple(parameters.filters(name, "filter").norms(parameters[name].detach()).shape) == (3, 16, 1)


def test_an_unknown_mode_is_refused():
    parameters = Parameters(nn.Linear(2, 2))
    with pytest.raises(InputError, match="rows"):
        parameters.filters("weight", "rows")
    with pytest.raises(InputError, match="num_attention_heads"):
        parameters.filters("weight", "head")


def test_noise_depends_on_seed_stream_and_name_alone():
    one = gaussian_noise((50, 40), seed=1, stream="a", name="w")
    torch.manual_seed(123)
    assert torch.equal(one, gaussian_noise((50, 40), seed=1, stream="a", name="w"))
    for other in ({"seed": 2}, {"stream": "b"}, {"name": "v"}):
        assert not torch.equal(one, gaussian_noise((50, 40), **({"seed": 1, "stream": "a", "name": "w"} | other)))
    # mean and variance of 2000 standard normals: 5 standard errors
    assert abs(float(one.mean())) < 5 / 2000**0.5
    assert abs(float(one.var()) - 1) < 5 * (2 / 2000) ** 0.5


def test_noise_is_pinned_so_that_a_saved_seed_means_the_same_next_year():
    found = gaussian_noise((3,), seed=0, stream="direction 0", name="w")
    assert found.tolist() == pytest.approx([-0.6536797881126404, -0.6920612454414368, -1.070416808128357], abs=0)


def _double_vectors(parameters, seed):
    generator = torch.Generator().manual_seed(seed)
    return {e.name: torch.randn(e.tensor.shape, generator=generator, dtype=torch.float64) for e in parameters}


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-6, 10))
@settings(max_examples=20, deadline=None)
def test_an_excursion_moves_exactly_and_comes_back_bit_for_bit(seed, scale):
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    parameters = Parameters(model)
    before = state_of(model)
    base = {name: value.clone() for name, value in parameters.values().items()}
    u, v = _double_vectors(parameters, seed), _double_vectors(parameters, seed + 1)
    with excursion(parameters) as trip:
        for a, b in ((scale, 0.0), (0.0, -scale), (scale, 2 * scale)):
            fidelity = trip.move([(a, u), (b, v)])
            for name in base:
                assert torch.equal(
                    parameters[name].detach(), base[name] + (a * u[name] + b * v[name])
                ) or torch.allclose(
                    parameters[name].detach(), base[name] + a * u[name] + b * v[name], rtol=1e-15, atol=1e-15
                )
            assert fidelity.faithful
        trip.move([])
        for name in base:
            assert torch.equal(parameters[name].detach(), base[name])
    assert_same_state(before, state_of(model))


def test_many_moves_do_not_accumulate_rounding():
    model = nn.Linear(50, 50)  # float32
    parameters = Parameters(model)
    u = {name: torch.randn_like(t) for name, t in parameters.values().items()}
    with excursion(parameters) as trip:
        trip.move([(0.37, u)])
        once = {name: value.clone() for name, value in parameters.values().items()}
        for step in range(200):
            trip.move([(0.01 * step, u)])
        trip.move([(0.37, u)])
        for name, value in parameters.values().items():
            assert torch.equal(value, once[name])


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_the_model_comes_back_when_the_body_raises(failure):
    model = build_model("gpt2").train()
    model.transformer.h[0].eval()  # flags differ between modules
    model.lm_head.weight.grad = torch.ones_like(model.lm_head.weight)
    before = state_of(model)
    parameters = Parameters(model)
    u = {name: torch.ones_like(t) for name, t in parameters.values().items()}

    def disturb():
        with preserved(model), excursion(parameters) as trip:
            trip.move([(0.5, u)])
            torch.randn(3)
            model.lm_head.weight.grad = None
            next(model.parameters()).requires_grad_(False)
            raise failure("stop")

    with pytest.raises(failure):
        disturb()
    assert_same_state(before, state_of(model))


def test_a_tensor_without_elements_moves_nowhere():
    """As in a process that holds no slice of the only tensors that move."""
    model = nn.Linear(2, 1)
    model.empty = nn.Parameter(torch.empty(0))
    with excursion(Parameters(model, "empty")) as trip:
        assert trip.move([(1.0, {"empty": torch.empty(0)})]) == EXACT


class StoppedAt(TorchDispatchMode):
    """Raises after so many operations on tensors, as an interrupt may between any two."""

    def __init__(self, operations):
        super().__init__()
        self.left = operations

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if self.left == 0:
            raise KeyboardInterrupt
        self.left -= 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_weights_come_back_wherever_a_move_is_interrupted(dtype):
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)).to(dtype)
    model[1].weight = nn.Parameter(torch.randn(4, 2, dtype=dtype).T)  # not contiguous
    parameters = Parameters(model)
    u = {name: torch.randn(t.shape) for name, t in parameters.values().items()}
    before = state_of(model)

    def interrupted_after(operations):
        with excursion(parameters) as trip, StoppedAt(operations):
            trip.move([(0.5, u), (0.2, u)])

    for operations in itertools.count():
        try:
            interrupted_after(operations)
        except KeyboardInterrupt:
            assert_same_state(before, state_of(model))
        else:
            break
    assert operations > 20  # four tensors, several operations each
    assert_same_state(before, state_of(model))


def test_evaluation_mode_inside_preserved():
    model = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(2)).train()
    with preserved(model):
        assert not any(module.training for module in model.modules())
        model[1].running_mean += 1
    assert model.training
    assert torch.equal(model[1].running_mean, torch.zeros(2))


def test_fidelity_reports_a_step_that_bfloat16_swallowed():
    model = nn.Linear(200, 200, bias=False).to(torch.bfloat16)
    with torch.no_grad():
        model.weight.normal_(generator=torch.Generator().manual_seed(0))
    parameters = Parameters(model)
    u = {"weight": torch.randn(200, 200, generator=torch.Generator().manual_seed(1))}
    with excursion(parameters) as trip:
        coarse, fine = trip.move([(0.5, u)]), trip.move([(1e-3, u)])
        gone = trip.move([(1e-6, u)])
    assert coarse.faithful
    assert not fine.faithful
    assert fine.cosine < 0.8  # a relative step of 1e-3 in bfloat16 has a cosine of about 0.63
    assert gone == Fidelity(0.0, 0.0) or gone.cosine < 0.3


def test_not_a_number_is_the_worst_fidelity():
    lost, coarse = Fidelity(math.nan, math.nan), Fidelity(0.5, 0.3)
    for one, other in ((EXACT, lost), (lost, EXACT), (coarse, lost), (lost, coarse), (Fidelity(math.inf, 0.0), lost)):
        worst = one.worse(other)
        assert math.isnan(worst.cosine)
        assert not worst.faithful
    assert EXACT.worse(coarse) == coarse.worse(EXACT) == coarse
    assert not lost.faithful


def test_fidelity_of_steps_whose_squares_underflow():
    model = nn.Linear(4, 3, bias=False).double()
    with torch.no_grad():
        model.weight.zero_()
    with excursion(Parameters(model)) as trip:
        assert trip.move([(1e-100, {"weight": torch.ones(3, 4)})]).faithful


@pytest.mark.parametrize("size", [1e-9, 1e-18, 1e-30, 1e-60])
@pytest.mark.parametrize("base_coefficient", [1.0, 0.5])
def test_a_step_far_below_the_rounding_of_the_weights_is_lost_and_not_exact(size, base_coefficient):
    """Float32 weights of 1 take no step below 6e-8, however small: it was reported as exact below about 1e-10."""
    model = nn.Linear(3, 1, bias=False)
    nn.init.ones_(model.weight)
    step = {"weight": torch.tensor([[1.0, -1.0, 1.0]], dtype=torch.float64)}
    half = [(0.5, {"weight": torch.ones(1, 3)})] if base_coefficient == 0.5 else []
    with excursion(Parameters(model)) as trip:
        assert trip.move([*half, (size, step)], base_coefficient) == Fidelity(0.0, 0.0)
        assert bool((model.weight == 1).all())


def test_only_what_moves_is_copied():
    model = build_model("llama")
    parameters = Parameters(model)
    before = {name: value.clone() for name, value in parameters.values().items()}
    name, other = "model.norm.weight", "lm_head.weight"
    with excursion(parameters) as trip:
        trip.move([(0.5, {name: torch.ones(32)})])
        assert set(trip._base) == {name}
        trip.move([(0.5, {other: torch.ones(320, 32)})])
        assert torch.equal(parameters[name].detach(), before[name])
        assert torch.equal(parameters[other].detach(), before[other] + 0.5)
    assert all(torch.equal(value, before[n]) for n, value in parameters.values().items())


def test_tensors_that_share_memory_come_back_in_whatever_order_they_move():
    model = nn.Module()
    model.a = nn.Parameter(torch.randn(3, 4))
    model.b = nn.Parameter(model.a.data.t())  # another layout, so it is another parameter
    before = model.a.detach().clone()
    with excursion(Parameters(model)) as trip:
        trip.move([(1.0, {"a": torch.ones(3, 4)})])
        trip.move([(1.0, {"b": torch.ones(4, 3)})])
        assert torch.equal(model.a.detach(), before + 1)
    assert torch.equal(model.a.detach(), before)


def test_a_backward_pass_inside_leaves_the_gradients_of_the_caller_alone():
    model = nn.Linear(3, 2)
    model.weight.grad = torch.ones_like(model.weight)
    mine = model.weight.grad
    with preserved(model):
        assert model.weight.grad is None
        model(torch.ones(4, 3)).sum().backward()
    assert model.weight.grad is mine
    assert torch.equal(mine, torch.ones(2, 3))
    assert model.bias.grad is None


def test_a_non_contiguous_parameter_is_moved_too():
    model = nn.Linear(4, 3, bias=False)
    model.weight = nn.Parameter(torch.randn(4, 3).t())
    base = model.weight.detach().clone()
    u = {"weight": torch.ones(3, 4)}
    with excursion(Parameters(model)) as trip:
        trip.move([(2.0, u)])
        assert torch.equal(model.weight.detach(), base + 2)
    assert torch.equal(model.weight.detach(), base)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_inner_product_is_that_of_the_flattened_vectors(architecture):
    values = Parameters(build_model(architecture)).values()
    flat = torch.cat([v.flatten().double() for v in values.values()])
    assert inner_product(values, values) == pytest.approx(float(flat @ flat), rel=1e-12)
