"""A public call opens its subject once: one objective, and at most one hash of the weights, whatever lies below it."""

import warnings

import pytest
from conftest import build_model, make_batches

import landscape.weights.vectors
from landscape import (
    SHARPNESS_METRICS,
    Run,
    compute_sharpness,
    eigen_directions,
    hessian_density,
    hessian_eigenvalues,
    hessian_layers,
    hessian_trace,
    hessian_vector_product,
)
from landscape.curvature.checks import check_curvature
from landscape.errors import MeasurementWarning
from landscape.objective.objective import Objective

FEW = {"rtol": 9.0, "max_probes": 16}
# name -> a call of (model, data, journal), and whether it keeps a journal
CALLS = {
    "eigenvalues": (lambda m, d, j: hessian_eigenvalues(m, d, rtol=0.1, vectors=True, run=Run(journal=j)), True),
    "pyhessian": (
        lambda m, d, _: hessian_eigenvalues(m, d, which="LM", max_matvecs=4, run=Run(method="pyhessian")),
        False,
    ),
    "trace by products": (lambda m, d, j: hessian_trace(m, d, **FEW, run=Run(method="hutchinson", journal=j)), True),
    "trace by losses": (lambda m, d, j: hessian_trace(m, d, **FEW, run=Run(method="forward", journal=j)), True),
    "density": (lambda m, d, j: hessian_density(m, d, probes=1, steps=3, run=Run(journal=j)), True),
    "layers": (lambda m, d, _: hessian_layers(m, d, **FEW, max_matvecs=3), False),
    "product": (lambda m, d, _: hessian_vector_product(m, d, dict(m.named_parameters())), False),
    "directions": (lambda m, d, _: eigen_directions(m, d, rtol=0.1), False),
    "checks": (lambda m, d, _: check_curvature(m, d), False),
}
SHORT = {
    "worst_case": {"steps": 2, "m": 2},
    "average_case": {"samples": 4},
    "low_pass": {"samples": 4},
    "pac_bayes": {"samples": 4, "tolerance": 0.5},
    "top_eigenvalue": {"rtol": 0.1},
    "relative_flatness": {"layer": "model.layers.0.mlp.up_proj.weight", **FEW},
    **{name: {"method": "hutchinson", **FEW} for name in ("trace", "adaptive_trace", "filter_trace")},
}


@pytest.fixture
def counted(monkeypatch):
    """Counts objectives, and how often one weight of any model was hashed."""
    counts = {"objectives": 0, "hashes": 0}
    opened, read = Objective.__init__, landscape.weights.vectors.tensor_bytes

    def opening(self, *arguments, **options):
        counts["objectives"] += 1
        opened(self, *arguments, **options)

    def reading(tensor):
        counts["hashes"] += tensor.data_ptr() in [model.lm_head.weight.data_ptr() for model in models]
        return read(tensor)

    models = []  # kept, so that their memory is not given to other tensors

    def model(seed):
        models.append(build_model("llama", seed=seed))
        return models[-1]

    monkeypatch.setattr(Objective, "__init__", opening)
    monkeypatch.setattr(landscape.weights.vectors, "tensor_bytes", reading)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeasurementWarning)  # what is measured here is measured badly
        yield counts, model


@pytest.mark.parametrize("name", CALLS)
def test_a_curvature_call_builds_one_objective_and_hashes_once(name, counted, tmp_path):
    counts, model = counted
    call, keeps_journal = CALLS[name]
    for journal in (None, tmp_path / "journal") if keeps_journal else (None,):
        counts |= {"objectives": 0, "hashes": 0}
        call(model(0), make_batches(examples=3), journal)
        assert counts["objectives"] == 1
        assert counts["hashes"] == (0 if name == "product" else 1), "a product has no provenance"


@pytest.mark.parametrize("metric", SHARPNESS_METRICS)
def test_a_sharpness_builds_one_objective_and_hashes_once(metric, counted, tmp_path):
    """Displacement metrics, too: their objective is at the base, and the hash is of the tuned model."""
    counts, model = counted
    options = SHORT.get(metric, {}) | ({"base": model(1)} if SHARPNESS_METRICS[metric].needs_base else {})
    for journal in (None, tmp_path / "journal"):
        counts |= {"objectives": 0, "hashes": 0}
        compute_sharpness(model(0), make_batches(examples=3), metric=metric, run=Run(journal=journal), **options)
        assert counts == {"objectives": 1, "hashes": 1}
