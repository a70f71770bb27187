"""Eigenvalues, trace, density and layers of models: dense Hessians, closed forms, PyHessian, and the laws."""

import itertools

import numpy as np
import pytest
import torch
from conftest import Quadratic, assert_same_state, build_model, make_batches, quadratic_loss, state_of
from curved import WORDS, TinyTransformer, dense_hessian, tiny_data, with_spectrum

import landscape
from landscape import (
    Eigenvalues,
    InputError,
    MeasurementWarning,
    SpectralDensity,
    TraceEstimate,
    eigen_directions,
    hessian_density,
    hessian_eigenvalues,
    hessian_layers,
    hessian_trace,
)
from landscape.objective.causal import CausalLoss
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import group_by_layer
from landscape.weights.parameters import Parameters
from landscape.weights.vectors import inner_product


@pytest.fixture(scope="module")
def transformer():
    model = TinyTransformer()
    return model, dense_hessian(model, tiny_data()).numpy()


def quadratic_of(matrix):
    return Quadratic(matrix, torch.zeros(len(matrix)), torch.ones(len(matrix)))


ANY = [torch.zeros(2), torch.zeros(1)]


# --- eigenvalues --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["LA", "SA", "BE"])
def test_eigenvalues_of_a_float64_transformer(transformer, which):
    model, dense = transformer
    truth = np.linalg.eigvalsh(dense)[::-1]
    found = hessian_eigenvalues(model, tiny_data(rows=2), k=4, which=which, rtol=1e-7)
    expected = {"LA": truth[:4], "SA": truth[::-1][:4], "BE": [truth[0], truth[1], truth[-1], truth[-2]]}[which]
    assert all(found.converged)
    assert np.allclose(found.values, expected, rtol=1e-7)
    assert (found.ratio is None) == (which != "BE")


def test_batches_do_not_move_eigenvalues():
    """One example a batch and everything in one padded batch: the same to the rounding of float64.

    Rejects a mean of the batches' means, which with 1 to 21 supervised tokens an example is off by far more.
    Differences of losses divide their rounding by the square of a step of about 1e-3.
    """
    model = TinyTransformer()
    one, all_ = (make_batches(rows=rows, vocabulary=WORDS) for rows in (1, 7))
    found, expected = (hessian_eigenvalues(model, data, k=3, rtol=1e-6) for data in (one, all_))
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-9)
    for method, rounding in (("forward", 1e-8), ("hutchinson", 1e-9)):
        options = {"max_probes": 16, "rtol": 9.0, "run": Run(method=method)}
        found, expected = (hessian_trace(model, data, **options) for data in (one, all_))
        np.testing.assert_allclose(found.samples, expected.samples, rtol=rounding)
    found, expected = (hessian_density(model, data, probes=1, steps=6) for data in (one, all_))
    np.testing.assert_allclose(found.nodes, expected.nodes, rtol=1e-9)
    np.testing.assert_allclose(found.weights, expected.weights, rtol=1e-9)


def test_batches_do_not_move_the_eigenvalue_of_a_llama():
    """The same in float32, whose rounding through two layers is about 1e-6."""
    one, all_ = (hessian_eigenvalues(build_model("llama"), make_batches(rows=rows)) for rows in (1, 7))
    assert one.values[0] == pytest.approx(all_.values[0], rel=1e-5)


def test_pyhessian_and_ours_agree_to_its_tolerance():
    model = build_model("llama", seed=3)
    data = make_batches(rows=3)
    before = state_of(model)
    ours = hessian_eigenvalues(model, data, which="LM", rtol=1e-5)
    with pytest.warns(MeasurementWarning, match="not converged"):
        # power iteration stops on its own rule; what that leaves shows as a residual
        theirs = hessian_eigenvalues(model, data, which="LM", run=Run(method="pyhessian"), rtol=1e-3, max_matvecs=100)
    assert theirs.values[0] == pytest.approx(ours.values[0], rel=2e-2)
    assert abs(theirs.values[0] - ours.values[0]) <= theirs.residuals[0] + ours.residuals[0]
    assert theirs.method == "pyhessian"
    assert_same_state(before, state_of(model))


def test_unconverged_eigenvalues_warn_and_say_so():
    model = build_model("llama")
    with pytest.warns(MeasurementWarning, match="not converged"):
        found = hessian_eigenvalues(model, make_batches(), k=2, rtol=1e-9, max_matvecs=4)
    assert not any(found.converged)
    assert "NOT CONVERGED" in str(found)


def test_an_error_of_differences_is_part_of_the_residual():
    model = build_model("llama")
    with pytest.warns(MeasurementWarning, match="not converged"):
        found = hessian_eigenvalues(model, make_batches(), rtol=1e-7, max_matvecs=12, run=Run(hvp="finite_difference"))
    exact = hessian_eigenvalues(model, make_batches(), rtol=1e-6)
    assert found.hvp == "finite_difference"
    assert found.hvp_error > 0
    assert abs(found.values[0] - exact.values[0]) <= found.residuals[0]


def test_eigenvectors_are_directions_to_plot_along(transformer):
    model, dense = transformer
    top, low = eigen_directions(model, tiny_data(), rtol=1e-8)
    flat = torch.cat([top.tensors[name].reshape(-1) for name in Parameters(model).names])
    values = np.linalg.eigvalsh(dense)
    assert float(flat @ torch.from_numpy(dense) @ flat) == pytest.approx(values[-1], rel=1e-8)
    assert top.norm == pytest.approx(1)
    assert abs(inner_product(top.tensors, low.tensors)) < 1e-8
    h = 1e-3
    line = landscape.compute_surface(model, tiny_data(), [top], points=3, span=h, run=landscape.Run(progress=False))
    assert line.kind == "eigen"
    second = (line.loss[0] - 2 * line.loss[1] + line.loss[2]) / h**2
    # the slice's second difference is the eigenvalue: truncation h^2, float64 rounding 1e-16 / h^2
    assert second == pytest.approx(values[-1], rel=1e-4)


def test_subsets_of_parameters(transformer):
    model, dense = transformer
    names = Parameters(model).names
    found = hessian_eigenvalues(model, tiny_data(), scope=Scope(parameters=["up.*", "down.*"]), rtol=1e-8)
    sizes = [t.numel() for t in Parameters(model).tensors]
    ends = np.cumsum([0, *sizes])
    kept = [i for n, a, b in zip(names, ends[:-1], ends[1:], strict=True) if n[:2] in ("up", "do") for i in range(a, b)]
    block = dense[np.ix_(kept, kept)]
    assert found.parameters == len(kept)
    assert found.values[0] == pytest.approx(np.linalg.eigvalsh(block)[-1], rel=1e-8)


# --- trace --------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("method", ["hutchinson", "forward"])
def test_the_interval_covers_the_true_trace_over_200_seeds(method):
    """Nominal 95%: 190 +- 3 of 200. Rejects intervals of one standard error (68%), and nearly always those of 85%."""
    values = np.concatenate([[30.0, 10, 5, 4, 3], np.linspace(0.1, 1, 35)])
    model = quadratic_of(with_spectrum(values))
    covered = within = 0
    for seed in range(200):
        found = hessian_trace(
            model, ANY, scope=Scope(loss_fn=quadratic_loss), rtol=0.2, run=Run(method=method), seed=seed
        )
        assert found.converged
        low, high = found.confidence_interval
        covered += low <= values.sum() <= high
        within += abs(found.value - values.sum()) <= 0.2 * found.value
    assert covered >= 180
    assert within >= 185


def test_rademacher_probes_are_exact_for_a_diagonal():
    found = hessian_trace(
        quadratic_of(torch.diag(torch.arange(1.0, 9.0))), ANY, scope=Scope(loss_fn=quadratic_loss), seed=5
    )
    assert found.value == pytest.approx(36, rel=1e-6)
    assert found.probes == 16


@pytest.mark.parametrize(
    ("weighting", "expected"), [(None, 21.0), ("adaptive", 96.0), ("filter", 88.0), ("layer", 80.5)]
)
def test_weighted_traces_of_a_diagonal_are_exact(weighting, expected):
    """L = 1/2 sum A_ij w_ij^2 with A = (1 2 3; 4 5 6) at w = (0 3 0; 1 2 3): every probe of signs gives the trace.

    The weights of A are w_ij^2, their mean over a row (3 and 14/3) or their mean over the tensor (23/6): each value
    rejects the other three.
    """
    curvatures = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=torch.float64)
    model = torch.nn.Linear(3, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 3.0, 0.0], [1.0, 2.0, 3.0]]))

    def half_squares(model, batch):
        return 0.5 * (curvatures * model.weight.square()).sum() * len(batch), len(batch)

    found = hessian_trace(
        model, ANY, weighting=weighting, scope=Scope(loss_fn=half_squares), run=Run(method="hutchinson")
    )
    assert found.value == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("method", ["hutchinson", "forward"])
@pytest.mark.parametrize("weighting", [None, "adaptive", "filter", "layer"])
def test_weighted_traces_of_a_float64_transformer(transformer, method, weighting):
    model, dense = transformer
    found = hessian_trace(
        model, tiny_data(), weighting=weighting, run=Run(method=method), rtol=0.15, max_probes=1000, seed=1
    )
    parameters = Parameters(model)
    scales = []
    for entry in parameters:
        w = entry.tensor.detach()
        if weighting is None:
            square = torch.ones_like(w)
        elif weighting == "adaptive":
            square = w**2
        elif w.ndim < 2:
            square = torch.zeros_like(w)
        elif weighting == "filter":
            square = (w**2).mean(1, keepdim=True).expand_as(w)
        else:
            square = (w**2).mean().expand_as(w)
        scales.append(square.reshape(-1))
    truth = float(torch.cat(scales) @ torch.from_numpy(dense).diagonal())
    # four standard errors: one failure in 16 000 for a right estimator
    assert abs(found.value - truth) < 4 * found.stderr
    assert found.stderr < 0.1 * truth


@pytest.mark.parametrize("method", ["auto", "forward"])
def test_a_loss_that_is_not_finite_has_no_trace(method):
    model = build_model("llama")
    with torch.no_grad():
        model.lm_head.weight[3] = torch.nan
    with pytest.raises(InputError, match="the loss at the weights is nan"):
        hessian_trace(model, make_batches(), run=Run(method=method))


def test_forward_differences_report_their_error(transformer):
    model, _dense = transformer
    found = hessian_trace(model, tiny_data(), run=Run(method="forward"), rtol=1, max_probes=16)
    exact = hessian_trace(model, tiny_data(), run=Run(method="hutchinson"), rtol=1, max_probes=16)
    # the same probes: what differs is the finite difference, and the interval is widened by what is said of it
    error = float(np.abs(found.samples - exact.samples).max() / abs(exact.value))
    assert 0 < found.hvp_error < 0.1
    assert error < 2 * found.hvp_error
    other = float(np.abs(found.samples - np.roll(exact.samples, 1)).max() / abs(exact.value))
    assert other > 4 * found.hvp_error, "the test can tell other probes"


def test_the_trace_by_layer_adds_up(transformer):
    """Each layer's trace is that of its block of the dense Hessian; rejects one that is the next layer's."""
    model, dense = transformer
    found = hessian_trace(model, tiny_data(), run=Run(method="hutchinson"), rtol=0.1, max_probes=2000)
    assert sum(row.trace for row in found.layers) == pytest.approx(found.value, rel=1e-9)
    ends = np.cumsum([0, *(row.parameters for row in found.layers)])
    truth = [np.trace(dense[start:end, start:end]) for start, end in itertools.pairwise(ends)]
    away = [abs(row.trace - value) / row.stderr for row, value in zip(found.layers, truth, strict=True)]
    assert max(away) < 4.5
    swapped = [abs(row.trace - value) / row.stderr for row, value in zip(found.layers, np.roll(truth, 1), strict=True)]
    assert max(swapped) > 9, "the test can tell"


def test_the_head_block_of_a_language_model_in_closed_form():
    """tr = mean_t (1 - |p_t|^2) |h_t|^2 over supervised positions."""
    model = build_model("llama")
    data = make_batches()
    loss = CausalLoss(at_supervised=True)
    total, count = 0.0, 0
    for batch in data:
        kept = {}
        handle = model.lm_head.register_forward_hook(lambda _, a, out, kept=kept: kept.update(h=a[0], z=out))
        with torch.no_grad():
            loss(model, batch)
        handle.remove()
        p, h = torch.softmax(kept["z"].double(), -1), kept["h"].double()
        total += float(((1 - p.square().sum(-1)) * h.square().sum(-1)).sum())
        count += h.shape[-2]
    for curvature in ("hessian", "ggn"):
        found = hessian_trace(
            model,
            data,
            scope=Scope(parameters="lm_head.*", curvature=curvature),
            run=Run(method="hutchinson"),
            rtol=0.02,
            max_probes=2000,
        )
        assert found.converged
        assert abs(found.value - total / count) < 4 * found.stderr


def test_a_trace_near_zero_is_not_called_converged():
    model = quadratic_of(with_spectrum(np.concatenate([np.ones(20), -np.ones(20)])))
    with pytest.warns(MeasurementWarning, match="trace is known"):
        found = hessian_trace(model, ANY, scope=Scope(loss_fn=quadratic_loss), max_probes=32)
    assert not found.converged
    assert "NOT CONVERGED" in str(found)


class Mortal:
    """The language-model loss, until it has been taken so many times."""

    def __init__(self, lives):
        self._lives = lives

    def __call__(self, model, batch):
        self._lives -= 1
        if self._lives < 0:
            raise KeyboardInterrupt
        return CausalLoss(at_supervised=True)(model, batch)


def test_a_killed_trace_continues_to_the_same_result(tmp_path):
    model, data = build_model("llama"), make_batches()
    whole = hessian_trace(model, data, run=Run(method="hutchinson"), max_probes=24, rtol=9.0)
    journal = tmp_path / "trace.journal"
    options = {"max_probes": 24, "rtol": 9.0, "run": Run(method="hutchinson", journal=journal)}
    with pytest.raises(KeyboardInterrupt):
        hessian_trace(model, data, scope=Scope(loss_fn=Mortal(8)), **options)
    assert journal.exists()
    loss = Mortal(10**6)
    again = hessian_trace(model, data, scope=Scope(loss_fn=loss), **options)
    assert np.allclose(again.samples, whole.samples[: len(again.samples)], rtol=1e-6)
    with pytest.raises(InputError, match="other settings"):
        hessian_trace(model, data, scope=Scope(loss_fn=loss), **(options | {"seed": 1}))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"rtol": 0}, "rtol"),
        ({"run": Run(method="guess")}, "guess"),
        ({"weighting": "rows"}, "rows"),
        ({"run": Run(method="forward"), "scope": Scope(curvature="ggn")}, "Gauss-Newton"),
        ({"scope": Scope(parameters="nothing.*")}, "nothing"),
    ],
)
def test_traces_that_cannot_be_had_are_refused(options, said):
    with pytest.raises(InputError, match=said):
        hessian_trace(build_model("llama"), make_batches(), **options)


# --- density and layers -------------------------------------------------------------------------------------


def test_nodes_that_are_zero_but_for_rounding_are_no_negative_eigenvalues():
    """Five examples of least squares in 40 weights: 35 eigenvalues are 0, none is negative.

    By the sign of the nodes alone, 45% of them would be.
    """
    generator = torch.Generator().manual_seed(0)
    model = torch.nn.Linear(40, 1, bias=False)
    data = [(torch.randn(5, 40, generator=generator), torch.zeros(5, 1))]
    scope = Scope(loss_fn=landscape.supervised_loss(torch.nn.MSELoss()))
    density = hessian_density(model, data, scope=scope)
    assert (density.nodes < 0).any()
    assert dict(density.rows())["negative"].startswith("0.0% of eigenvalues below -")


def test_density_of_a_float64_transformer(transformer):
    model, dense = transformer
    truth = np.linalg.eigvalsh(dense)
    found = hessian_density(model, tiny_data(), probes=16, steps=40)
    assert found.moment_error < 1e-8
    mean, spread = found.moment(1)
    assert abs(mean - truth.mean()) < 4 * spread
    square, spread = found.moment(2)
    assert abs(square - np.mean(truth**2)) < 4 * spread
    grid, curve = found.curve()
    assert np.trapezoid(curve, grid) == pytest.approx(1, abs=1e-3)
    assert found.nodes.max() == pytest.approx(truth[-1], rel=1e-6)


def test_layers_against_dense_blocks(transformer):
    model, dense = transformer
    found = hessian_layers(model, tiny_data(), rtol=0.05, max_probes=400, eigenvalue_rtol=1e-6, max_matvecs=200)
    start = 0
    for row in found.layers:
        block = dense[start : start + row.parameters, start : start + row.parameters]
        assert row.top == pytest.approx(np.linalg.eigvalsh(block)[-1], rel=1e-5)
        assert abs(row.trace - np.trace(block)) < 4.5 * row.trace_stderr
        start += row.parameters
    assert [row.name for row in found.layers] == ["embedding", "norm", "qkv", "out", "up", "down", "head"]


def test_layers_of_real_names():
    assert list(group_by_layer(Parameters(build_model("gpt2")).names)) == [
        "transformer.wte",
        "transformer.wpe",
        "transformer.h.0",
        "transformer.h.1",
        "transformer.ln_f",
    ]


# --- results ------------------------------------------------------------------------------------------------


def test_results_come_back_from_files(tmp_path):
    model, data = build_model("llama"), make_batches()
    before = state_of(model)
    eigenvalues = hessian_eigenvalues(model, data, k=(2, 1), which="BE", rtol=1e-2, vectors=True)
    trace = hessian_trace(model, data, run=Run(method="hutchinson"), rtol=9.0)
    density = hessian_density(model, data, probes=2, steps=8)
    assert_same_state(before, state_of(model))
    for result, cls in ((eigenvalues, Eigenvalues), (trace, TraceEstimate), (density, SpectralDensity)):
        again = cls.load(result.save(tmp_path / f"{cls.__name__}.json"))
        assert again.rows() == result.rows()
        assert again.to_dict() == result.to_dict()
        assert "<table>" in result._repr_html_()
    assert Eigenvalues.load(tmp_path / "Eigenvalues.json").vectors is None
    assert eigenvalues.provenance.versions["torch"] == torch.__version__


def test_seeds_decide_and_nothing_else(transformer):
    model, _ = transformer
    one, two = (hessian_trace(model, tiny_data(), rtol=0.5, seed=7) for _ in range(2))
    assert np.array_equal(one.samples, two.samples)
    other = hessian_trace(model, tiny_data(), rtol=0.5, seed=8)
    assert not np.array_equal(one.samples, other.samples)
