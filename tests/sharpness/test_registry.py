"""The table of metrics, and the intervals of those that are estimates."""

import json
import pkgutil
import sys

import pytest
from conftest import build_model, make_batches
from scipy import stats

import landscape.sharpness.metrics
from landscape import SHARPNESS_METRICS, Sharpness, compute_sharpness, hessian_trace
from landscape.objective.scope import Run
from landscape.sharpness.registry import metric
from landscape.sharpness.result import Measurement


@pytest.mark.parametrize("name", SHARPNESS_METRICS)
def test_every_metric_says_what_it_is(name):
    known = SHARPNESS_METRICS[name]
    for text in (known.description, known.formula, known.cost, known.invariance, known.source):
        assert len(text) > 3
    assert known.description.endswith(".")


def test_every_module_of_the_folder_is_imported():
    folder = landscape.sharpness.metrics
    modules = [module.name for module in pkgutil.iter_modules(folder.__path__, f"{folder.__name__}.")]
    assert len(modules) > 4
    assert all(name in sys.modules for name in modules)


def test_a_metric_is_one_function(tmp_path, monkeypatch):
    """What a new file in the folder would hold is all that it takes to measure, describe and save a new metric."""
    monkeypatch.setattr("landscape.sharpness.registry.SHARPNESS_METRICS", dict(SHARPNESS_METRICS))

    @metric("sign_rise", formula="L(w + rho sign(g)) - L(w)", cost="2", invariance="none", source="this test")
    def sign_rise(site, *, rho: float = 0.01) -> Measurement:
        """The rise of the loss along the signs of the gradient."""
        center, gradient = site.gradient_at()
        return Measurement(site.loss_at(gradient.sign(), rho) - center)

    found = compute_sharpness(build_model("llama"), make_batches(), metric="sign_rise", rho=0.02)
    box = compute_sharpness(build_model("llama"), make_batches(), rho=0.02, norm="linf", steps=1)
    assert found.value == pytest.approx(box.value, rel=1e-4)
    assert Sharpness.load(found.save(tmp_path / "sharpness.json")).options == {"rho": 0.02}


@pytest.mark.parametrize(
    ("metric", "options"),
    [
        ("average_case", {"samples": 8}),
        ("average_case", {"samples": 40, "rtol": 5.0}),
        ("low_pass", {"samples": 8}),
        ("pac_bayes", {"samples": 8, "tolerance": 0.1}),
        ("relative_flatness", {"layer": "model.layers.0.mlp.up_proj.weight", "rtol": 9.0, "max_probes": 16}),
    ],
)
def test_an_estimate_keeps_its_interval(metric, options, tmp_path):
    found = compute_sharpness(build_model("llama"), make_batches(examples=3), metric=metric, **options)
    independent = found.samples if metric == "relative_flatness" else found.samples // 2  # perturbations come in pairs
    half = stats.t.ppf(0.975, independent - 1) * found.stderr
    assert found.confidence_interval == pytest.approx((found.value - half, found.value + half), rel=1e-9)
    assert "95% interval" in str(found)
    path = found.save(tmp_path / "sharpness.json")
    assert Sharpness.load(path).confidence_interval == found.confidence_interval


def test_a_trace_as_a_sharpness_has_the_interval_of_the_trace(tmp_path):
    model, data = build_model("llama"), make_batches(examples=3)
    found = compute_sharpness(model, data, metric="trace", rtol=9.0, max_probes=16, method="hutchinson")
    trace = hessian_trace(model, data, rtol=9.0, max_probes=16, run=Run(method="hutchinson"))
    assert found.confidence_interval == trace.confidence_interval
    path = found.save(tmp_path / "new.json")
    content = json.loads(path.read_text())
    del content["confidence_interval"]  # as files of older versions are
    older = tmp_path / "older.json"
    older.write_text(json.dumps(content))
    assert Sharpness.load(older).confidence_interval is None


def test_what_is_not_sampled_has_no_interval():
    for name in ("worst_case", "top_eigenvalue", "fisher_rao", "budget_radius"):
        found = compute_sharpness(build_model("llama"), make_batches(examples=3), metric=name)
        assert found.confidence_interval is None
        assert found.stderr is None
