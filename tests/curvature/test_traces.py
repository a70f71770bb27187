"""What holds for several traces at once: layers, which share their probes, and weightings, which do not."""

import json

import numpy as np
import pytest
import torch
from conftest import quadratic_loss
from torch import nn

from landscape import TraceEstimate, hessian_layers, hessian_trace
from landscape.linalg.sampling import student_interval
from landscape.objective.scope import Run, Scope

ANY = [torch.zeros(1)]
BY_PRODUCTS = {"scope": Scope(loss_fn=quadratic_loss), "run": Run(method="hutchinson")}
SIZE = 4


class Coupled(nn.Module):
    """1/2 w'Aw of layers of four weights of size 1/2; A has half of full rank, and so couples all layers."""

    def __init__(self, layers):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        factor = torch.randn(layers * SIZE // 2, layers * SIZE, generator=generator, dtype=torch.float64)
        self.matrix = factor.T @ factor / layers
        self.layers = nn.ModuleList(nn.Linear(SIZE, 1, bias=False).double() for _ in range(layers))
        for layer in self.layers:
            nn.init.constant_(layer.weight, 0.5)

    def forward(self, _):
        w = torch.cat([layer.weight.flatten() for layer in self.layers])
        return 0.5 * w @ self.matrix @ w


@pytest.mark.slow
def test_the_intervals_of_all_layers_hold_together():
    """In 150 runs all eight intervals hold together at least as often as one interval should.

    With 95%, 150 runs have a standard deviation of 1.8%; the tolerance is three of them. Rejects intervals at 95% for
    each layer alone, which hold together less than three times in four.
    """
    model = Coupled(8)
    truth = model.matrix.diagonal().reshape(8, SIZE).sum(1).tolist()
    together = alone = 0
    for seed in range(150):
        found = hessian_trace(model, ANY, seed=seed, rtol=9.0, max_probes=16, **BY_PRODUCTS)
        ends = [row.confidence_interval for row in found.layers]
        narrow = [student_interval(row.trace, row.stderr, found.probes, 0.95) for row in found.layers]
        together += all(low <= t <= high for (low, high), t in zip(ends, truth, strict=True))
        alone += all(low <= t <= high for (low, high), t in zip(narrow, truth, strict=True))
    assert alone < 0.80 * 150, "the test can tell"
    assert together >= 0.895 * 150


def test_weightings_miss_independently_of_each_other():
    """All weights have the size 1/2, so that with the same probes the errors of both traces would be in proportion.

    Over 60 seeds the correlation of independent errors has a standard deviation of 0.13; with shared probes it is 1.
    """
    model = Coupled(2)
    plain, adaptive = (
        [
            hessian_trace(model, ANY, seed=seed, rtol=9.0, max_probes=8, weighting=weighting, **BY_PRODUCTS).value
            for seed in range(60)
        ]
        for weighting in (None, "adaptive")
    )
    assert np.mean(plain) == pytest.approx(4 * np.mean(adaptive), rel=0.2), "the same trace in other units"
    assert abs(np.corrcoef(plain, adaptive)[0, 1]) < 0.5


def test_layers_still_add_up_where_the_plan_of_the_probes_weights_them():
    """The value is no plain mean then, and layers have to be taken with its weights; rejects their plain means."""
    model = Coupled(4)
    found = hessian_trace(model, ANY, rtol=0.1, **BY_PRODUCTS)
    assert 32 < found.probes < 1000
    assert abs(found.value - found.samples.mean()) > 1e-5 * found.value, "the test can tell"
    assert sum(row.trace for row in found.layers) == pytest.approx(found.value, rel=1e-12)


def test_the_dependence_of_layers_is_said_and_older_files_still_load(tmp_path):
    model = Coupled(2)
    found = hessian_trace(model, ANY, rtol=9.0, max_probes=8, **BY_PRODUCTS)
    assert "share their probes" in str(found)
    assert "share their probes" in str(hessian_layers(model, ANY, max_probes=8, scope=BY_PRODUCTS["scope"]))
    path = found.save(tmp_path / "trace.json")
    assert TraceEstimate.load(path).layers == found.layers
    content = json.loads(path.read_text())
    for row in content["layers"]:
        del row["confidence_interval"]
    path.write_text(json.dumps(content))
    loaded = TraceEstimate.load(path)
    assert [row.confidence_interval for row in loaded.layers] == [None, None]
    assert [row.trace for row in loaded.layers] == [row.trace for row in found.layers]
    assert "+-" in str(loaded)
