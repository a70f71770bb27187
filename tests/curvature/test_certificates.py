"""Certificates of curvature: products that are wrong are caught, and residuals cover the true distances."""

import copy
import json
import warnings

import numpy as np
import pytest
import torch
from conftest import build_model, make_batches
from curved import TinyTransformer, matrix_of, tiny_data
from opaque import WORDS, gpt2, mixtral, opt
from torch import nn

from landscape import Eigenvalues, InputError, MeasurementWarning, hessian_eigenvalues, supervised_loss
from landscape.curvature import certificates
from landscape.curvature.checks import CurvatureCheck, check_curvature
from landscape.curvature.operators import agreement as comparing
from landscape.curvature.operators import trial
from landscape.curvature.operators.agreement import agreement, widened
from landscape.curvature.operators.opening import curvature_of
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.weights.parameters import Parameters

BATCHES = make_batches(vocabulary=WORDS)


def warned(call):
    """What a call returns, and the warnings that it gives."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        returned = call()
    return returned, [str(w.message) for w in caught]


def opened(model, data=BATCHES, **options):
    """The operator that `curvature_of` opens, and the warnings that it gives."""

    def enter():
        with curvature_of(Objective(model, data), Parameters(model), **options) as operator:
            return operator

    return warned(enter)


# --- products that are not derivatives of the gradient ------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("layers", [1, 3])
def test_a_product_that_is_a_few_percent_wrong_is_not_used(layers, dtype):
    """The product of the opaque model is wrong by 4% (one layer) and 5% (three); a threshold of 20% calls it exact."""
    operator, _ = opened(gpt2(layers).to(dtype))
    assert operator.hvp == "finite_difference"
    assert "disagree" in operator.reason
    with pytest.raises(InputError, match="disagree"):
        opened(gpt2(layers).to(dtype), hvp="exact")


def test_the_eigenvalue_of_an_opaque_model_is_the_true_one():
    """To 1e-5: residual squared over gap, and errors of differences in float64. The opaque product's is 4e-3 off."""
    truth = hessian_eigenvalues(gpt2(opaque=False).double(), BATCHES, rtol=1e-4).values[0]
    found = hessian_eigenvalues(gpt2().double(), BATCHES, rtol=1e-3)
    assert found.hvp == "finite_difference"
    assert abs(found.values[0] - truth) <= 1e-5 * truth


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("make", [lambda: gpt2(3, opaque=False), opt, mixtral], ids=["gpt2", "opt", "mixtral"])
def test_right_products_raise_no_alarm_at_the_price_of_a_few_rows(make, dtype):
    model = make().to(dtype)
    if make is mixtral and dtype == torch.float64:
        model.set_experts_implementation("eager")  # torch multiplies groups up to float32 only
    operator, said = opened(model)
    assert operator.hvp == "exact", operator.reason
    assert not operator.unverified
    assert not any("are right is unknown" in sentence for sentence in said)
    # of two rows at most, and most where differences in float32 had to be taken again in float64
    assert 4 <= operator.checking_gradients <= 50


def test_a_small_product_under_a_long_gradient_is_confirmed_at_the_first_step():
    """As in a large model: at a step of 0.1 the rounding of this gradient is 2e-3 of the product, at 0.4 6e-4.

    A comparison that begins at 0.1 takes all of its steps in float32, and then a copy in float64.
    """

    class Bowl(nn.Module):
        def __init__(self):
            super().__init__()
            self.weights = nn.Parameter(torch.rand(10_000, generator=torch.Generator().manual_seed(0)))

    def loss_fn(model, batch):
        w = model.weights
        return len(batch[0]) * (w.sum() + 0.005 * (w * w).sum()), len(batch[0])

    objective = Objective(Bowl(), [(torch.ones(2, 1), torch.ones(2, 1))], loss_fn)
    with curvature_of(objective, Parameters(objective.model)) as operator:
        assert operator.hvp == "exact"
        assert operator.checking_gradients == 4  # two ends of one step for each of two vectors


@pytest.mark.parametrize("seed", range(3))
def test_kinks_are_no_disagreement_and_a_wrong_product_is_one(seed):
    """Of OPT, whose differences at long steps are off by about all of Hv; a product 2% wrong is refuted there."""
    model = opt(seed)
    objective = Objective(model, BATCHES[:1])
    parameters = Parameters(model)
    with curvature_of(objective, parameters, hvp="exact") as operator:
        vector = operator.layout.random(seed, "kinks")
        product = operator(vector[None])[0]
        assert agreement(objective, parameters, vector, product).right
        other = operator.layout.random(seed, "other")
        wrong = product + 0.02 * product.norm() / other.norm() * other
        assert agreement(objective, parameters, vector, wrong).right is False


class _Jagged(nn.Module):
    """A loss that no step makes smooth: its gradient has a jump wherever one looks, down to rounding."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, 50, dtype=torch.float64))

    def forward(self, rows):
        scales = 10.0 ** torch.arange(1, 13, dtype=torch.float64)
        waves = (torch.sin(scales[:, None] * self.weight) / scales[:, None] ** 1.5).sum()
        return (waves + 0.1 * self.weight.square().sum()) * len(rows)


def jagged_loss(model, batch):
    return model(batch), len(batch)


def test_what_cannot_be_shown_is_unknown(tmp_path):
    """Sines at every scale, whose second derivative at a point is that of the shortest, and of no difference."""
    model, data = _Jagged(), [torch.zeros(2)]
    scope = Scope(loss_fn=jagged_loss)
    found, said = warned(lambda: hessian_eigenvalues(model, data, k=2, scope=scope))
    assert any("are right is unknown" in sentence for sentence in said)
    assert found.converged == (None, None)
    assert "CONVERGENCE UNKNOWN" in str(found)
    assert Eigenvalues.load(found.save(tmp_path / "found.json")).converged == (None, None)
    checked, _ = warned(lambda: check_curvature(model, data, scope=scope))
    assert checked.passed is None
    assert "undecided" in str(checked)
    assert CurvatureCheck.load(checked.save(tmp_path / "checked.json")).passed is None


def test_a_product_that_is_shown_to_be_wrong_fails_its_check(monkeypatch):
    """Where the trial lets a wrong product through, as of a function that none of its rows uses, the check does not."""
    monkeypatch.setattr(trial, "_check_against_differences", lambda *_: None)
    checked = check_curvature(gpt2(), BATCHES)
    assert [check.name for check in checked.checks if check.passed is False] == ["step halving"]
    assert checked.passed is False
    assert check_curvature(gpt2(opaque=False), BATCHES).passed is True


# --- residuals in half precision ----------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_residuals_in_half_precision_cover_the_true_distances(seed, dtype):
    """Against the dense Hessian, in float64, of the very weights that half precision holds.

    Rejects the residuals that Lanczos's method has of half-precision products: 31 of 32 lie below the true distances.
    """
    model = TinyTransformer(seed).to(dtype)
    truth = np.linalg.eigvalsh(matrix_of(copy.deepcopy(model).double(), tiny_data()).numpy())
    options = {"k": (3, 1), "which": "BE", "seed": seed, "rtol": 1e-4}
    found, _ = warned(lambda: hessian_eigenvalues(model, tiny_data(), **options))
    distances = np.array([np.abs(truth - value).min() for value in found.values])
    assert (distances <= found.residuals).all()
    assert found.hvp_error > 1e-4
    assert found.converged == tuple(
        bool(r <= 1e-4 * abs(v)) for r, v in zip(found.residuals, found.values, strict=True)
    )


def test_without_a_wider_copy_half_precision_converges_to_nothing_known(monkeypatch):
    monkeypatch.setattr(comparing, "available_memory", lambda _: 0)
    model = gpt2(opaque=False).to(torch.bfloat16)
    found, said = warned(lambda: hessian_eigenvalues(model, BATCHES, rtol=1e-2))
    assert any("cannot be shown" in sentence for sentence in said)
    assert found.converged == (None,)
    assert found.hvp_error > 0
    assert json.loads(json.dumps(found.to_dict()))["converged"] == [None]


def test_a_tolerance_below_the_rounding_of_float32_is_measured_in_float64():
    """In float32 Lanczos's own residual falls to 1e-7 of the value, where products are good to about 1e-6."""
    model = gpt2(3, opaque=False)
    truth = np.linalg.eigvalsh(matrix_of(TinyTransformer(), tiny_data()).numpy())[-1]
    found = hessian_eigenvalues(TinyTransformer(), tiny_data(), rtol=1e-10)
    assert found.converged == (True,)
    assert abs(found.values[0] - truth) <= 1e-10 * truth
    with curvature_of(Objective(model, BATCHES), Parameters(model)) as operator:
        assert certificates.needs_wider(operator, 1e-6)
        assert not certificates.needs_wider(operator, 1e-3)
    found, _ = warned(lambda: hessian_eigenvalues(model, BATCHES, rtol=1e-8, max_matvecs=60, run=Run(hvp="exact")))
    assert found.residuals[0] > 1e-8 * found.values[0]
    assert found.converged == (False,)


def test_a_mixture_of_experts_is_compared_in_float64_where_float32_does_not_settle_it():
    """Its experts multiply in groups, which torch has up to float32 only; without another way there is no copy."""
    from conftest import VOCABULARY
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    model = MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=2, num_local_experts=4,
        )
    ).eval()  # fmt: skip
    model.set_experts_implementation("grouped_mm")
    ids = torch.arange(12).reshape(2, 6)
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}
    wide = widened(Objective(model, [batch]), Parameters(model), torch.float64)
    assert not isinstance(wide, str)
    assert wide[0].loss().mean == pytest.approx(Objective(model, [batch]).loss().mean, rel=1e-5)  # float32 rounding


def test_why_there_is_no_wider_copy_is_said(monkeypatch):
    model = build_model("llama").bfloat16()
    monkeypatch.setattr(comparing, "_COPY_SHARE", 0.0)
    with pytest.warns(MeasurementWarning) as caught:
        found = hessian_eigenvalues(model, BATCHES, k=1, rtol=0.05)
    said = " ".join(str(warning.message) for warning in caught)
    assert "measured in the weights' own type, because a float32 copy of the model takes" in said
    assert "no float32 copy to compare second derivatives in, because a float32 copy of the model takes" in said
    assert found.converged == (None,)


def test_a_copy_that_cannot_be_evaluated_says_what_went_wrong():
    class Narrow(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(3))

        def forward(self, x):
            if self.weight.dtype == torch.float64:
                raise ValueError("my kernel knows float32 only")
            return x @ self.weight[:, None]

    data = [(torch.ones(2, 3), torch.zeros(2, 1))]
    objective = Objective(Narrow(), data, supervised_loss(torch.nn.MSELoss()))
    said = widened(objective, Parameters(objective.model), torch.float64)
    assert said == "a float64 copy of the model cannot be evaluated (my kernel knows float32 only)"
