"""Heights: closed forms, agreement with lm-evaluation-harness's definitions, shared passes, journals, errors."""

import math

import numpy as np
import pytest
import torch
from conftest import build_model, make_batches
from torch import nn

from landscape import Direction, GivenHeight, KLDivergence, Run, Scope, Surface, compute_interpolation, compute_surface
from landscape.errors import InputError
from landscape.heights.predictions import PredictionPass
from landscape.objective.objective import Objective

QUIET = {"run": Run(progress=False)}


def linear_classifier():
    """A classifier of points (a, b) with the scores (a, b): right for class 0 where a > b."""
    model = nn.Linear(2, 2, bias=False).double()
    with torch.no_grad():
        model.weight.copy_(torch.eye(2))
    return model


def margins_data(margins):
    """Points of class 0, the margin of each being a - b."""
    points = torch.tensor([[margin, 0.0] for margin in margins]).double()
    return [(points, torch.zeros(len(margins), dtype=torch.int64))]


def weakening():
    """Along it, at x, the scores are ((1 - x) a, 0) at b = 0, plus x for class 1 in the second input's place."""
    return Direction({"weight": torch.tensor([[-1.0, 0.0], [1.0, 0.0]]).double()}, "given", "weakening")


def test_accuracy_of_a_linear_classifier_is_a_step_where_its_margins_change_sign():
    # At x the scores are ((1 - x) a, x a): all of class 0 up to x = 1/2 for a > 0, and only those of a < 0 after it.
    surface = compute_surface(
        linear_classifier(), margins_data([1.0, 2.0, 3.0, -1.0]), [weakening()], points=9, height="accuracy", **QUIET
    )
    grid = surface.height("accuracy")
    expected = np.where(surface.axes[0] <= 0.5, 0.75, 0.25)  # at the tie, argmax takes the first class, but for a < 0
    off = surface.axes[0] != 0.5
    assert grid.values[off] == pytest.approx(expected[off], abs=0)
    assert grid.center == 0.75
    # the binomial error with n - 1, by hand; one with n (0.2165) would be rejected
    assert grid.center_stderr == pytest.approx(math.sqrt(0.75 * 0.25 / 3), rel=1e-12)
    assert grid.weight == 4


def test_kl_to_the_centre_is_that_of_two_closed_form_distributions():
    surface = compute_surface(
        linear_classifier(), margins_data([1.0, 2.0]), [weakening()], points=5, height="kl", **QUIET
    )

    def p(a, x):
        return 1 / (1 + math.exp(-(1 - 2 * x) * a))  # of class 0

    for x, found in zip(surface.axes[0], surface.height("kl").values, strict=True):
        expected = np.mean(
            [
                p(a, 0) * math.log(p(a, 0) / p(a, x)) + (1 - p(a, 0)) * math.log((1 - p(a, 0)) / (1 - p(a, x)))
                for a in (1.0, 2.0)
            ]
        )
        assert found == pytest.approx(expected, rel=1e-12, abs=1e-14)  # float64 throughout; the reverse KL is 20% off


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_token_accuracy_and_kl_are_those_of_the_plain_model(architecture):
    model, other, batches = build_model(architecture, seed=1), build_model(architecture, seed=2), make_batches()
    line = compute_interpolation(model, other, batches, points=3, span=(0, 1), height=("kl", "accuracy"), **QUIET)
    right = terms = divergence = 0.0
    with torch.no_grad():
        for batch in batches:
            kept = batch["labels"][:, 1:] != -100
            targets = batch["labels"][:, 1:][kept]
            logits = [
                m(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1][kept] for m in (model, other)
            ]
            log_p = [z.double().log_softmax(-1) for z in logits]
            right += float((log_p[1].argmax(-1) == targets).sum())
            divergence += float((log_p[0].exp() * (log_p[0] - log_p[1])).sum())
            terms += len(targets)
    assert line.height("accuracy").values[-1] == pytest.approx(right / terms, abs=1e-12)
    assert line.height("kl").values[-1] == pytest.approx(divergence / terms, rel=1e-4)  # float32 logits
    assert line.height("kl").markers == (line.height("kl").values[0], line.height("kl").values[-1])
    assert line.height("kl").values[0] == pytest.approx(0, abs=1e-7)
    plain = compute_interpolation(model, other, batches, points=3, span=(0, 1), **QUIET)
    assert line.loss == pytest.approx(plain.loss, rel=1e-5)  # the same loss, from the forward passes of the heights


def test_kl_to_a_given_model_is_that_to_the_end_of_a_line():
    model, base, batches = build_model("llama", seed=1), build_model("llama", seed=2), make_batches()
    to_base = compute_surface(model, batches, dim=1, points=3, height=KLDivergence(base), **QUIET).height("kl")
    line = compute_interpolation(base, model, batches, points=3, span=(0, 1), height="kl", **QUIET).height("kl")
    assert to_base.center == pytest.approx(line.values[-1], rel=1e-5)


def test_several_heights_share_one_forward_pass_of_each_batch():
    model, batches, calls = build_model("llama"), make_batches(), []
    compute_surface(model, batches, dim=1, points=3, **QUIET)
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    compute_surface(model, batches, dim=1, points=3, **QUIET)
    alone = len(calls)
    calls.clear()
    compute_surface(model, batches, dim=1, points=3, height=("accuracy", "kl"), **QUIET)
    handle.remove()
    # one more pass for the centre's predictions, which kl needs before the weights move; not one for each height
    assert len(calls) == alone + len(batches)


def test_batching_changes_no_height_beyond_rounding():
    model = build_model("qwen3")
    one, other = (
        compute_surface(model, make_batches(rows=rows), points=3, dim=1, height=("accuracy", "kl"), **QUIET)
        for rows in (2, 7)
    )
    for a, b in zip(one.heights, other.heights, strict=True):
        assert a.values == pytest.approx(b.values, rel=1e-4, abs=1e-7)  # float32 logits
        assert a.stderr == pytest.approx(b.stderr, rel=1e-4, abs=1e-7)


def test_a_batch_cut_into_pieces_reads_the_same_kl():
    model, batches = build_model("llama"), make_batches(rows=6)
    objective = Objective(model, batches)
    height = KLDivergence(build_model("llama", seed=5))
    opened = PredictionPass([height], model, objective)
    whole = opened.read()[1][0]
    objective.rows_limit = 2  # as after running out of memory
    assert opened.read()[1][0].value == pytest.approx(whole.value, rel=1e-5)


def test_a_function_is_a_height_and_its_errors_are_said():
    def norm(model, data):
        return float(model.weight.norm()), len(data)

    height = GivenHeight(norm, unit="weights", higher_is_better=False)
    surface = compute_surface(
        linear_classifier(), margins_data([1.0]), [weakening()], points=3, height=["loss", height], **QUIET
    )
    grid = surface.height("norm")
    assert grid.values[1] == pytest.approx(math.sqrt(2))
    assert math.isnan(grid.center_stderr)
    assert not grid.higher_is_better
    with pytest.raises(InputError, match="has to return"):
        compute_surface(
            linear_classifier(), margins_data([1.0]), [weakening()], points=3, height=lambda m, d: 1, **QUIET
        )


def test_heights_survive_saving_and_a_killed_run_continues(tmp_path):
    model, batches, journal = build_model("llama"), make_batches(), tmp_path / "journal"

    class Stop(Exception):
        pass

    seen = []

    def passing(model, data):
        seen.append(1)
        if len(seen) == 3:
            raise Stop
        return float(len(data)), 1

    settings = {"dim": 1, "points": 5, "height": ["kl", passing]}
    with pytest.raises(Stop):
        compute_surface(model, batches, **settings, run=Run(journal=journal))
    resumed = compute_surface(model, batches, **settings, run=Run(journal=journal))
    assert len(seen) == 6  # 5 points, one of them tried twice
    direct = compute_surface(model, batches, dim=1, points=5, height="kl", **QUIET)
    assert np.array_equal(resumed.height("kl").values, direct.height("kl").values)
    resumed.save(tmp_path / "surface.json")
    assert Surface.load(tmp_path / "surface.json") == resumed


@pytest.mark.parametrize(
    ("height", "message"),
    [
        ("choice", "questions with choices"),
        (("kl", "kl"), "twice"),
        (3, "no name"),
        ("arc_easy", "load_checkpoint"),
    ],
)
def test_a_height_without_a_meaning_is_refused(height, message):
    with pytest.raises(InputError, match=message):
        compute_surface(build_model("llama"), make_batches(), dim=1, points=3, height=height, **QUIET)


def test_accuracy_of_a_regression_is_refused():
    model = nn.Linear(2, 1)
    data = [(torch.ones(3, 2), torch.zeros(3, 1))]
    from landscape import supervised_loss

    with pytest.raises(InputError, match="class as the target"):
        compute_surface(
            model, data, dim=1, points=3, height="accuracy", scope=Scope(loss_fn=supervised_loss(nn.MSELoss())), **QUIET
        )
