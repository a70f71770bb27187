"""Products with the Hessian and the Gauss-Newton matrix, against dense matrices and closed forms."""

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from conftest import Quadratic, assert_same_state, build_model, make_batches, quadratic_loss, state_of
from curved import TinyTransformer, dense_hessian, matrix_of, tiny_data
from torch import nn

from landscape import hessian_vector_product, supervised_loss
from landscape.curvature.operators.memory import counting_saved_bytes
from landscape.curvature.operators.opening import curvature_of
from landscape.data.tokens import Example, TokenData
from landscape.errors import InputError, MeasurementWarning
from landscape.objective.objective import Objective
from landscape.objective.scope import Scope
from landscape.weights.flat import Layout, probe_scale
from landscape.weights.parameters import Parameters


def test_the_memory_of_graphs_is_not_underestimated_where_lengths_differ():
    """Against the graphs themselves; few long rows and many short ones, so that the largest batch is of short rows."""
    rows = [tuple(range(1, length + 1)) for length in [120] * 3 + [10] * 60]
    data = TokenData("memory", tuple(Example(ids, ids) for ids in rows), batch_tokens=600)
    model = build_model("llama", vocabulary=200, num_attention_heads=8, num_key_value_heads=8)
    objective, parameters = Objective(model, data), Parameters(model)
    with curvature_of(objective, parameters, hvp="exact") as operator:
        assert operator.keeps_graphs
        vector = [torch.ones_like(tensor) for tensor in parameters.tensors]
        held = 0
        for batch in data:
            with counting_saved_bytes(model.parameters()) as count:
                graph, _ = operator.build(batch)
                graph(vector, False)
            held += count[0]
        assert held <= operator.graph_bytes < 2 * held


@pytest.fixture(scope="module")
def transformer():
    model = TinyTransformer()
    return model, dense_hessian(model, tiny_data())


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("hvp", ["exact", "forward_over_reverse", "auto"])
def test_exact_products_are_the_dense_hessian_of_a_float64_transformer(transformer, hvp, rows):
    model, dense = transformer
    found = matrix_of(model, tiny_data(rows), hvp=hvp)
    # rounding of float64 through one block of a transformer
    assert float((found - dense).abs().max()) < 1e-10 * float(dense.abs().max())


def test_finite_differences_are_as_good_as_they_say(transformer):
    model, dense = transformer
    vector = torch.randn(len(dense), dtype=torch.float64)
    with curvature_of(Objective(model, tiny_data()), Parameters(model), hvp="finite_difference") as operator:
        product = operator(vector[None])[0]
    exact = dense @ vector
    error = float((product - exact).norm() / exact.norm())
    # steps 0.01 and 0.005 apart by less than a thousandth; extrapolated, the error is of the order of its square
    assert error < operator.error < 1e-3


def test_finite_differences_find_their_step_along_the_sharpest_direction():
    model = build_model("llama")
    for p in model.parameters():
        p.data *= 2  # large third derivatives: the first step is too long
    with curvature_of(Objective(model, make_batches()), Parameters(model), hvp="exact") as operator:
        vector = operator(operator(operator.layout.random(0, "x")[None]))[0]
        exact = operator(vector[None])[0]
    with curvature_of(Objective(model, make_batches()), Parameters(model), hvp="finite_difference") as operator:
        product = operator(vector[None])[0]
    error = float((product - exact).norm() / exact.norm())
    # float32 differences are good to about 1e-3; what is said is within a factor of what is so
    assert error < 5e-3
    assert error < 3 * operator.error


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "qwen3", "gemma2"])
def test_real_architectures_symmetric_and_equal_in_any_batches(architecture):
    model = build_model(architecture)
    found = {}
    for rows in (1, 7):
        with curvature_of(Objective(model, make_batches(rows=rows)), Parameters(model)) as operator:
            u, v = operator.layout.random(0, "u"), operator.layout.random(0, "v")
            found[rows] = operator(torch.stack([u, v]))
            assert operator.hvp == "exact"
    # float32 through two layers
    assert torch.dist(found[1], found[7]) < 1e-5 * found[1].norm()
    left, right = float(u.double() @ found[7][1].double()), float(v.double() @ found[7][0].double())
    assert abs(left - right) < 1e-5 * float(u.norm() * found[7][1].norm())


def test_kept_graphs_give_what_fresh_ones_give():
    model = build_model("llama")
    objective, parameters = Objective(model, make_batches()), Parameters(model)
    with (
        curvature_of(objective, parameters) as keeping,
        curvature_of(objective, parameters, keep_graphs=False) as fresh,
    ):
        vectors = torch.stack([keeping.layout.random(0, f"{i}") for i in range(3)])
        assert keeping.keeps_graphs
        assert not fresh.keeps_graphs
        first, again, other = keeping(vectors), keeping(vectors), fresh(vectors)
    assert torch.equal(first, again)
    assert torch.equal(first, other)


# --- Gauss-Newton -------------------------------------------------------------------------------------------


def test_ggn_is_that_of_its_definition(transformer):
    model, _ = transformer
    data = tiny_data()
    parameters = Parameters(model)
    names, tensors = parameters.names, parameters.tensors

    def logits(*values):
        called = torch.func.functional_call(model, dict(zip(names, values, strict=True)), (data[0]["input_ids"],))
        return called[:, :-1][data[0]["labels"][:, 1:] != -100]

    values = tuple(t.detach() for t in tensors)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        blocks = torch.func.jacrev(logits, argnums=tuple(range(len(values))))(*values)
    jacobian = torch.cat([b.flatten(2) for b in blocks], dim=2)
    p = torch.softmax(logits(*values), -1)
    bent = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("tin,tij,tjm->nm", jacobian, bent, jacobian) / len(p)
    found = matrix_of(model, data, curvature="ggn")
    assert float((found - expected).abs().max()) < 1e-12 * float(expected.abs().max()) + 1e-14
    # positive semidefinite, to rounding
    assert float(torch.linalg.eigvalsh(found).min()) > -1e-12


def softmax_regression(classes=3, features=4, examples=9):
    torch.manual_seed(0)
    model = nn.Linear(features, classes, bias=False).double()
    inputs = torch.randn(examples, features, dtype=torch.float64)
    return model, inputs, torch.arange(examples) % classes


def test_softmax_regression_in_closed_form():
    model, inputs, targets = softmax_regression()
    found = matrix_of(model, [(inputs[:4], targets[:4]), (inputs[4:], targets[4:])])
    p = torch.softmax(model(inputs), -1).detach()
    bent = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    expected = torch.einsum("tij,ta,tb->iajb", bent, inputs, inputs).reshape(12, 12) / len(inputs)
    assert torch.allclose(found, expected, atol=1e-14)
    # linear in the weights: the Gauss-Newton matrix is the Hessian
    assert torch.allclose(matrix_of(model, [(inputs, targets)], curvature="ggn"), expected, atol=1e-14)
    # tr H = mean (1 - |p|^2) |x|^2
    trace = ((1 - p.square().sum(1)) * inputs.square().sum(1)).mean()
    assert float(found.trace()) == pytest.approx(float(trace), rel=1e-12)


@pytest.mark.parametrize("criterion", [nn.MSELoss(), F.mse_loss])
def test_linear_regression_in_closed_form(criterion):
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False).double()
    inputs, targets = torch.randn(8, 3, dtype=torch.float64), torch.randn(8, 1, dtype=torch.float64)
    data = [(inputs[:5], targets[:5]), (inputs[5:], targets[5:])]
    expected = 2 * inputs.T @ inputs / 8  # of the mean of squares, without the half
    for curvature in ("hessian", "ggn"):
        found = matrix_of(model, data, supervised_loss(criterion), curvature=curvature)
        assert torch.allclose(found, expected, atol=1e-13)


def test_scalar_chain_off_its_minimum():
    """1/2 (a b - 2)^2 at (1, 1) has the Hessian 1 and a Gauss-Newton matrix with eigenvalues 0 and 2."""

    class Chain(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(1).double()), nn.Parameter(torch.ones(1).double())

        def forward(self, x):
            return self.a * self.b * x

    data = [(torch.ones(1).double(), torch.full((1,), 2.0).double())]
    half_square = supervised_loss(lambda o, t, reduction: 0.5 * (o - t).square().sum())
    assert torch.allclose(matrix_of(Chain(), data, half_square), torch.eye(2).double(), atol=1e-14)
    ggn = matrix_of(Chain(), data, half_square, curvature="ggn")
    assert torch.allclose(torch.linalg.eigvalsh(ggn), torch.tensor([0.0, 2.0]).double(), atol=1e-14)


def test_matrix_factorization_balanced():
    """1/2 |W2 W1 - M|^2 with singular values 3, 2, 1: known spectrum, trace (3 + 4) * 6 = 42."""
    torch.manual_seed(0)
    values = torch.tensor([3.0, 2.0, 1.0]).double()
    left, _ = torch.linalg.qr(torch.randn(3, 3).double())
    right, _ = torch.linalg.qr(torch.randn(4, 4).double())
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 3, bias=False)).double()
    with torch.no_grad():
        model[0].weight.copy_(values.sqrt().diag() @ right[:, :3].T)
        model[1].weight.copy_(left @ values.sqrt().diag())
    target = left @ values.diag() @ right[:, :3].T
    data = [(torch.eye(4).double(), target.T.contiguous())]
    half_square = supervised_loss(lambda o, t, reduction: 0.5 * (o - t).square().sum())
    objective = Objective(model, data, lambda m, b: (half_square(m, b)[0], 1))
    parameters = Parameters(model)
    with curvature_of(objective, parameters) as operator:
        found = torch.linalg.eigvalsh(operator(torch.eye(21).double()))
    expected = [0.0] * 9 + [1, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 6]
    assert torch.allclose(found, torch.tensor(expected).double(), atol=1e-12)


# --- structure of vectors, weights of probes ----------------------------------------------------------------


def test_a_product_has_the_structure_of_its_vector(quadratic):
    data = [torch.zeros(3), torch.zeros(2)]
    flat = torch.tensor([1.0, 2.0, 3.0, 4.0]).double()
    expected = quadratic.matrix @ flat
    scope = {"scope": Scope(loss_fn=quadratic_loss)}
    assert torch.allclose(hessian_vector_product(quadratic, data, flat, **scope), expected)
    named = {"first": flat[:2].view(1, 2), "second": flat[2:].view(1, 2)}
    product = hessian_vector_product(quadratic, data, named, **scope)
    assert torch.allclose(product["second"].flatten(), expected[2:])
    listed = hessian_vector_product(quadratic, data, list(named.values()), **scope)
    assert isinstance(listed, list)
    assert torch.equal(listed[0], product["first"])
    part = hessian_vector_product(
        quadratic, data, {"second": named["second"]}, scope=Scope(parameters="second", loss_fn=quadratic_loss)
    )
    assert torch.allclose(part["second"].flatten(), quadratic.matrix[2:, 2:] @ flat[2:])
    with pytest.raises(InputError, match="third"):
        hessian_vector_product(quadratic, data, {"third": flat}, **scope)
    with pytest.raises(InputError, match=r"\(4,\)"):
        hessian_vector_product(quadratic, data, flat[:3], **scope)
    with pytest.raises(InputError, match=r"first is \(4,\)"):
        hessian_vector_product(quadratic, data, {"first": flat}, **scope)


@pytest.mark.parametrize("mode", ["filter", "unit", "head", "layer"])
def test_weighted_probes_have_the_length_of_the_filters_they_stand_for(mode):
    model = build_model("llama")
    parameters = Parameters(model)
    layout = Layout(parameters)
    scale = layout.named(probe_scale(parameters, mode))
    for name, part in scale.items():
        weights = parameters[name].detach()
        if weights.ndim < 2:
            assert not part.any()
            continue
        filters = parameters.filters(name, mode)
        # a probe of signs times the scale has, filter by filter, the norm of the weights
        assert torch.allclose(filters.norms(part), filters.norms(weights), rtol=1e-5)


def test_adaptive_probes_are_the_sizes_of_the_weights():
    parameters = Parameters(build_model("gpt2"))
    flat = torch.cat([t.detach().reshape(-1) for t in parameters.tensors])
    assert torch.equal(probe_scale(parameters, "adaptive"), flat.abs())


# --- what can go wrong --------------------------------------------------------------------------------------


def test_the_model_comes_back_also_from_an_error():
    model = build_model("llama").train()
    model.lm_head.weight.requires_grad_(False)
    model.model.norm.weight.grad = torch.ones_like(model.model.norm.weight)
    before = state_of(model)
    for hvp in ("exact", "finite_difference"):
        with curvature_of(Objective(model, make_batches()), Parameters(model), hvp=hvp) as operator:
            operator(operator.layout.random(0, "v")[None])
        assert_same_state(before, state_of(model))
    with (
        pytest.raises(KeyboardInterrupt),
        curvature_of(Objective(model, make_batches()), Parameters(model), hvp="finite_difference"),
    ):
        raise KeyboardInterrupt
    assert_same_state(before, state_of(model))


class _Opaque(torch.autograd.Function):
    """x^3 with a backward that autograd cannot see through: its second derivative is lost in silence."""

    @staticmethod
    def forward(ctx, x):
        ctx.slope = (3 * x * x).detach()
        return x**3

    @staticmethod
    def backward(ctx, gradient):
        return gradient * ctx.slope


class _Cubic(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64))

    def forward(self, _):
        return _Opaque.apply(self.weight).sum() + 0.1 * self.weight.square().sum()


def test_auto_catches_second_derivatives_that_are_silently_wrong():
    model, data = _Cubic(), [torch.zeros(2)]
    expected = torch.diag(6 * model.weight.detach() + 0.2)
    with curvature_of(Objective(model, data, quadratic_loss), Parameters(model)) as operator:
        assert operator.hvp == "finite_difference"
        assert "disagree" in operator.reason
        assert torch.allclose(operator(torch.eye(3).double()), expected, rtol=1e-8)
    with (
        pytest.raises(InputError, match="disagree"),
        curvature_of(Objective(model, data, quadratic_loss), Parameters(model), hvp="exact"),
    ):
        pass


def test_a_compiled_module_takes_differences():
    model = torch.compile(Quadratic(torch.eye(4), torch.zeros(4), torch.ones(4)), backend="eager")
    with curvature_of(Objective(model, [torch.zeros(2)], quadratic_loss), Parameters(model)) as operator:
        assert operator.hvp == "finite_difference"
        assert "compiled" in operator.reason


def test_ways_that_do_not_exist_are_refused(quadratic):
    objective, parameters = Objective(quadratic, [torch.zeros(2)], quadratic_loss), Parameters(quadratic)
    for options, said in [
        ({"hvp": "magic"}, "magic"),
        ({"curvature": "fisher"}, "fisher"),
        ({"curvature": "ggn"}, "outputs"),
    ]:
        with pytest.raises(InputError, match=said), curvature_of(objective, parameters, **options):
            pass


def test_half_precision_warns():
    model = build_model("llama").to(torch.bfloat16)
    with (
        pytest.warns(MeasurementWarning, match="bfloat16"),
        curvature_of(Objective(model, make_batches()), Parameters(model)) as operator,
    ):
        operator(operator.layout.random(0, "v")[None])


@pytest.mark.parametrize("failing_rows", [3, 7])
def test_out_of_memory_halves_the_batch_and_changes_nothing(failing_rows):
    model = build_model("llama")
    objective = Objective(model, make_batches(rows=7))
    own = objective.loss_fn
    seen = []

    def limited(model, batch):
        rows = len(batch["labels"])
        if rows >= failing_rows:
            raise torch.OutOfMemoryError("CUDA out of memory")
        seen.append(rows)
        return own(model, batch)

    with curvature_of(objective, Parameters(model)) as operator:
        vector = operator.layout.random(0, "v")[None]
        expected = operator(vector)
    tight = Objective(model, make_batches(rows=7), limited)
    with curvature_of(tight, Parameters(model)) as operator:
        found = operator(vector)
        assert not operator.keeps_graphs
    assert max(seen) < failing_rows
    assert torch.dist(found, expected) < 1e-5 * expected.norm()
    assert tight.loss().mean == pytest.approx(objective.loss().mean, rel=1e-6)


def test_one_row_that_does_not_fit_is_said():
    def never(model, batch):
        raise torch.OutOfMemoryError("CUDA out of memory")

    model = build_model("llama")
    with pytest.raises(InputError, match="max_length"):
        Objective(model, make_batches(), never).loss()


def test_finite_differences_that_round_away_warn():
    model = nn.Linear(4, 1, bias=False).to(torch.bfloat16)
    model.weight.data.fill_(300.0)
    data = [(torch.ones(2, 4, dtype=torch.bfloat16), torch.zeros(2, 1, dtype=torch.bfloat16))]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        objective = Objective(model, data, supervised_loss(nn.MSELoss()))
        with curvature_of(objective, Parameters(model), hvp="finite_difference") as operator:
            product = operator(torch.ones(1, 4))
    assert math.isfinite(float(product.sum()))
    assert any("rounding" in str(w.message) for w in caught)
