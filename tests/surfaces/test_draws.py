"""Numbers of random surfaces over several draws, against closed forms and scipy, and `landscape plot --draws`."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from conftest import Quadratic, quadratic_loss
from scipy import stats

from landscape import Direction, InputError, Run, Scope, compute_surface, metrics_over_draws

SCOPE = Scope(loss_fn=quadratic_loss)
CURVES = torch.tensor([1.0, 2.0, 5.0, 9.0, 3.0, 0.5, 4.0, 7.0])  # of the two filters of a Quadratic


def line(matrix: torch.Tensor, seed: int, **options):
    """A line through a Quadratic whose filters have norms 1 and 2, along which f'' = d'Ad everywhere."""
    model = Quadratic(matrix, torch.zeros(8), torch.tensor([1.0, 0, 0, 0, 2.0, 0, 0, 0]))
    settings = {"dim": 1, "points": 5, "scope": SCOPE, "run": Run()} | options
    return compute_surface(model, [torch.zeros(2)], seed=seed, **settings)


def test_mean_and_spread_are_those_of_the_closed_form():
    """u'Au of u uniform on the sphere of n dimensions has the mean tr(A)/n and the variance below.

    Over 300 draws the mean is within 4 standard errors, which rejects one scaled by a wrong norm (25% apart, 15
    standard errors), and the spread is within 15% (its own error is about 4%), which rejects one taken for the
    standard error (17 times smaller).
    """
    table = metrics_over_draws([line(torch.diag(CURVES), seed) for seed in range(300)])
    row = table.set_index("metric").loc["mean_absolute_laplacian"]
    mean = variance = 0.0
    for norm, a in ((1.0, CURVES[:4].numpy()), (2.0, CURVES[4:].numpy())):
        n = len(a)
        mean += norm**2 * a.sum() / n
        variance += norm**4 * 2 / (n**2 * (n + 2)) * (n * (a**2).sum() - a.sum() ** 2)
    assert row["draws"] == 300
    assert abs(row["mean"] - mean) < 4 * row["stderr"]
    assert row["spread"] == pytest.approx(math.sqrt(variance) / mean, rel=0.15)
    assert row["stderr"] == pytest.approx(row["spread"] * row["mean"] / math.sqrt(300), rel=1e-12)
    assert np.isnan(row["difference"])


def test_two_models_are_compared_draw_by_draw():
    """The intervals are those of scipy's paired t test, to rounding; unpaired ones are five times as wide here."""
    plain = [line(torch.diag(CURVES), seed) for seed in range(6)]
    other = [dataclasses.replace(line(1.2 * torch.diag(CURVES), seed), name="other") for seed in range(6)]
    table = metrics_over_draws([*plain, *other])
    assert set(table["name"]) == {plain[0].name, "other"}
    for _, row in table[table["name"] == "other"].iterrows():
        a, b = ([surface.metrics().values()[row["metric"]] for surface in some] for some in (other, plain))
        test = stats.ttest_rel(a, b)
        low, high = test.confidence_interval(0.95)
        assert row["difference"] == pytest.approx(np.mean(a) - np.mean(b), rel=1e-9)
        assert (row["low"], row["high"]) == pytest.approx((low, high), rel=1e-6, abs=1e-12)
    row = table[(table["name"] == "other") & (table["metric"] == "mean_absolute_laplacian")].iloc[0]
    assert row["low"] > 0
    assert row["high"] - row["low"] < stats.t.ppf(0.975, 5) * row["stderr"]


def test_what_is_not_a_set_of_draws_is_refused():
    matrix = torch.diag(CURVES)
    draws = [line(matrix, seed) for seed in (0, 1)]
    with pytest.raises(InputError, match="at least two surfaces"):
        metrics_over_draws(draws[:1])
    with pytest.raises(InputError, match="at least two surfaces"):
        metrics_over_draws([])
    with pytest.raises(InputError, match=r"two surfaces of .* with seed 1"):
        metrics_over_draws([*draws, draws[1]])
    with pytest.raises(InputError, match="another grid"):
        metrics_over_draws([*draws, line(matrix, 2, span=0.5)])
    with pytest.raises(InputError, match=r"has the seeds 0, 1 and other 0; checkpoints are compared draw by draw"):
        metrics_over_draws([*draws, dataclasses.replace(draws[0], name="other")])
    other = draws[1].provenance.data | {"digest": "of other data"}
    elsewhere = dataclasses.replace(draws[1], provenance=dataclasses.replace(draws[1].provenance, data=other))
    with pytest.raises(InputError, match="other data"):  # of the same name
        metrics_over_draws([draws[0], elsewhere])
    along = [Direction({"first": torch.ones(1, 4, dtype=torch.float64)}, "given", "ones")]
    model = Quadratic(matrix, torch.zeros(8), torch.ones(8))
    given = compute_surface(model, [torch.zeros(2)], along, points=5, scope=SCOPE, run=Run())
    with pytest.raises(InputError, match="directions are not drawn"):
        metrics_over_draws([given])


def test_the_command_draws_again_and_keeps_what_is_there(run, save_checkpoint_folder, records):
    a, b = save_checkpoint_folder("gpt2", seed=1), save_checkpoint_folder("gpt2", seed=2)
    command = ("plot", a, b, "--data", records, "--dim", 1, "--points", 5, "--device", "cpu", "-q", "-o", "out")
    code, out, err = run(*command)
    assert code == 0, err
    assert "--draws 8 shows" in out
    code, out, err = run(*command, "--draws", 3)
    assert code == 0, err
    assert "2 of 6 results are there from an earlier run" in err
    assert "Mean over 3 draws" in out
    assert "spread" in out
    assert f"{b.name} - {a.name}" in out
    assert "--draws 8" not in out
    summary = json.loads(open("out/summary.json").read())
    seeds = {(s["checkpoint"], s["metrics"]["grid"]["seed"]) for s in summary["surfaces"]}
    assert seeds == {(name, seed) for name in (a.name, b.name) for seed in (0, 1, 2)}
    values = [s["metrics"]["surface_curvature"] for s in summary["surfaces"] if s["checkpoint"] == b.name]
    row = next(r for r in summary["over_draws"] if r["name"] == b.name and r["metric"] == "surface_curvature")
    assert row["mean"] == pytest.approx(np.mean(values))
    assert len(set(values)) == 3
    code, out, err = run(*command[:-2], "--kind", "interpolate", "--draws", 2, "-o", "other")
    assert code == 2
    assert "--draws 2 goes with --kind random" in err
