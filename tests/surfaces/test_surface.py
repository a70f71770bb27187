"""Surfaces: closed forms at every grid point, exact ends, laws 1, 2, 5, 6, 8, 10 and 11."""

import dataclasses
import functools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import (
    ARCHITECTURES,
    Quadratic,
    assert_same_state,
    build_model,
    make_batches,
    plain_loss,
    quadratic_loss,
    state_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from landscape.errors import InputError, MeasurementWarning
from landscape.objective.loss_functions import supervised_loss
from landscape.objective.objective import Objective
from landscape.objective.scope import Run, Scope
from landscape.plotting import caption_for, require_comparable
from landscape.surfaces.compute import compute_interpolation, compute_plane, compute_surface
from landscape.surfaces.metrics import compare_metrics
from landscape.surfaces.points.span import auto_span
from landscape.surfaces.result import Surface
from landscape.weights.directions import Direction, difference_direction, random_directions
from landscape.weights.parameters import Parameters

ANY_DATA = [torch.zeros(2), torch.zeros(3)]
QUIET = {"run": Run(progress=False)}


def directions_of(quadratic):
    u = {"first": torch.tensor([[0.3, -1.0]]).double(), "second": torch.tensor([[0.5, 0.2]]).double()}
    v = {"first": torch.tensor([[1.0, 0.4]]).double(), "second": torch.tensor([[-0.6, 0.9]]).double()}
    return [Direction(u, "given", "u"), Direction(v, "given", "v")]


def value(quadratic, point):
    offset = point - quadratic.center
    return float(0.5 * offset @ quadratic.matrix @ offset)


def flat(direction):
    return torch.cat([direction.tensors["first"].flatten(), direction.tensors["second"].flatten()])


@pytest.mark.parametrize("points", [(5, 5), (7, 4), (3, 8)])
def test_surface_of_a_quadratic_is_its_closed_form_at_every_point(quadratic, points):
    u, v = directions_of(quadratic)
    start = torch.cat([quadratic.first.flatten(), quadratic.second.flatten()]).detach()
    surface = compute_surface(
        quadratic, ANY_DATA, [u, v], points=points, span=(-0.7, 1.3), scope=Scope(loss_fn=quadratic_loss), **QUIET
    )
    assert surface.loss.shape == points
    assert surface.coordinates.shape == (*points, 2)
    for (i, j), found in np.ndenumerate(surface.loss):
        x, y = surface.axes[0][i], surface.axes[1][j]
        assert tuple(surface.coordinates[i, j]) == (x, y)
        expected = value(quadratic, start + x * flat(u) + y * flat(v))
        assert found == pytest.approx(expected, rel=1e-13, abs=1e-13)  # float64 throughout
    assert surface.center == pytest.approx(value(quadratic, start), rel=1e-14)
    assert surface.direction_cosine == pytest.approx(float(flat(u) @ flat(v) / flat(u).norm() / flat(v).norm()))


def test_a_line_of_a_quadratic_is_its_closed_form(quadratic):
    (u, _) = directions_of(quadratic)
    start = torch.cat([quadratic.first.flatten(), quadratic.second.flatten()]).detach()
    surface = compute_surface(
        quadratic, ANY_DATA, [u], points=9, span=2.0, scope=Scope(loss_fn=quadratic_loss), **QUIET
    )
    expected = [value(quadratic, start + x * flat(u)) for x in surface.axes[0]]
    assert surface.loss == pytest.approx(expected, rel=1e-13)
    assert surface.axes[0][4] == 0.0
    assert surface.loss[4] == surface.center


def test_a_choice_of_tensors_is_refused_beside_directions_that_have_theirs(quadratic):
    scope = Scope(loss_fn=quadratic_loss, parameters="first")
    with pytest.raises(InputError, match="parameters"):
        compute_surface(quadratic, ANY_DATA, directions_of(quadratic)[:1], points=3, scope=scope, **QUIET)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_centre_loss_is_the_plain_loop_over_transformers(architecture):
    model, batches = build_model(architecture), make_batches()
    surface = compute_surface(model, batches, points=3, **QUIET)
    assert surface.center == pytest.approx(plain_loss(model, batches), rel=1e-5)
    assert surface.loss[1, 1] == surface.center
    assert surface.fidelity.faithful


@pytest.mark.parametrize("architecture", ["llama", "qwen3"])
def test_each_point_is_the_model_with_weights_set_by_hand(architecture):
    model, batches = build_model(architecture), make_batches()
    directions = random_directions(model, 2, seed=3)
    surface = compute_surface(model, batches, directions, points=(3, 4), span=0.5, **QUIET)
    other = build_model(architecture)
    for i, j in ((0, 0), (2, 1), (1, 3)):
        with torch.no_grad():
            for name, parameter in other.named_parameters():
                step = sum(
                    c * d.tensors[name].double()
                    for c, d in zip(surface.coordinates[i, j], directions, strict=True)
                    if name in d.tensors
                )
                parameter.copy_((model.get_parameter(name).double() + step).float())
        assert surface.loss[i, j] == pytest.approx(plain_loss(other, batches), rel=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_the_model_comes_back_bit_identical(training):
    model = build_model("gpt2").train(training)
    model.transformer.wpe.weight.grad = torch.ones_like(model.transformer.wpe.weight)
    model.transformer.ln_f.weight.requires_grad_(False)
    other = build_model("gpt2", seed=5)
    before = state_of(model)
    compute_surface(model, make_batches(), points=3, **QUIET)
    compute_interpolation(model, other, make_batches(), points=3, **QUIET)
    assert_same_state(before, state_of(model))


@pytest.mark.parametrize(
    ("failure", "seen"),
    [(KeyboardInterrupt, KeyboardInterrupt), (torch.OutOfMemoryError, InputError), (RuntimeError, RuntimeError)],
)
def test_the_model_comes_back_when_a_point_fails(quadratic, failure, seen):
    before, calls = state_of(quadratic), []

    def failing(model, batch):
        calls.append(1)
        if len(calls) > 5:
            raise failure("stop")
        return quadratic_loss(model, batch)

    with pytest.raises(seen):
        compute_surface(quadratic, ANY_DATA, directions_of(quadratic), points=5, scope=Scope(loss_fn=failing), **QUIET)
    assert_same_state(before, state_of(quadratic))


def test_dropout_is_off():
    model = build_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5, attn_pdrop=0.5).train()
    one = compute_surface(model, make_batches(), points=3, **QUIET)
    two = compute_surface(model, make_batches(), points=3, **QUIET)
    assert np.array_equal(one.loss, two.loss)


@given(rows=st.integers(1, 7))
@settings(max_examples=6, deadline=None)
def test_batching_changes_nothing_but_rounding(rows):
    model = build_model("qwen3")
    one = compute_surface(model, make_batches(rows=rows), points=3, seed=1, **QUIET)
    other = compute_surface(model, make_batches(rows=7), points=3, seed=1, **QUIET)
    assert one.loss == pytest.approx(other.loss, rel=2e-6)  # float32 logits


def test_same_seed_same_surface_whatever_the_global_state():
    model = build_model("llama")
    torch.manual_seed(1)
    one = compute_surface(model, make_batches(), points=3, seed=4, **QUIET)
    torch.manual_seed(2)
    assert np.array_equal(one.loss, compute_surface(model, make_batches(), points=3, seed=4, **QUIET).loss)
    assert not np.array_equal(one.loss, compute_surface(model, make_batches(), points=3, seed=5, **QUIET).loss)


def test_a_tied_tensor_is_perturbed_once_and_stays_tied():
    model = build_model("qwen3")
    pointers = []

    def watch(module, arguments, output):
        pointers.append(model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr())

    handle = model.register_forward_hook(watch)
    compute_surface(model, make_batches(), points=3, **QUIET)
    handle.remove()
    assert all(pointers)


def test_parameters_select_what_is_perturbed():
    model, moved = build_model("llama"), set()
    base = {n: p.detach().clone() for n, p in model.named_parameters()}
    handle = model.register_forward_hook(
        lambda *_: moved.update(n for n, p in model.named_parameters() if not torch.equal(p, base[n]))
    )
    compute_surface(model, make_batches(), points=3, scope=Scope(parameters="*.mlp.*"), **QUIET)
    handle.remove()
    assert moved == {n for n in base if ".mlp." in n}


# --- interpolation and planes -------------------------------------------------------------------------------


def test_interpolation_hits_both_checkpoints_exactly():
    a, b, batches = build_model("llama", seed=1), build_model("llama", seed=2), make_batches()
    for points in (25, 7, 10):  # 7 and 10 miss an end, which then joins the grid
        surface = compute_interpolation(a, b, batches, points=points, **QUIET)
        axis = surface.axes[0].tolist()
        assert 0.0 in axis
        assert 1.0 in axis
        assert surface.loss[axis.index(0.0)] == Objective(a, batches).loss().mean  # bit for bit
        assert surface.loss[axis.index(1.0)] == Objective(b, batches).loss().mean
        assert [m.loss for m in surface.markers] == [surface.loss[axis.index(0.0)], surface.loss[axis.index(1.0)]]


def test_interpolation_of_a_quadratic_is_the_parabola(quadratic):
    end = torch.tensor([0.2, -0.4, 1.1, 0.9]).double()
    other = Quadratic(quadratic.matrix, quadratic.center, end)
    start = torch.cat([quadratic.first.flatten(), quadratic.second.flatten()]).detach()
    surface = compute_interpolation(quadratic, other, ANY_DATA, points=9, scope=Scope(loss_fn=quadratic_loss), **QUIET)
    expected = [value(quadratic, (1 - t) * start + t * end) for t in surface.axes[0]]
    assert surface.loss == pytest.approx(expected, rel=1e-13)


def test_interpolation_moves_frozen_tensors_too():
    a, b, batches = build_model("llama", seed=1), build_model("llama", seed=2), make_batches()
    a.requires_grad_(False)
    surface = compute_interpolation(a, b, batches, points=3, span=(0, 1), **QUIET)
    assert surface.loss[-1] == Objective(b, batches).loss().mean


def test_interpolation_between_different_models_names_the_tensor():
    with pytest.raises(InputError, match="embed_tokens"):
        compute_interpolation(build_model("llama"), build_model("llama", vocabulary=330), make_batches(), **QUIET)
    model = build_model("llama")
    with pytest.raises(InputError, match="same object"):
        compute_interpolation(model, model, make_batches(), **QUIET)


def test_differing_buffers_are_said():
    a = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    b = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    b[1].running_mean += 1
    data = [(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))]
    with pytest.warns(MeasurementWarning, match="1.running_mean differs"):
        compute_interpolation(a, b, data, points=3, **QUIET)


@pytest.mark.parametrize(("span", "known"), [((-0.5, 1.5), True), ((0, 1), True), ((0.2, 0.8), False), ((2, 3), False)])
def test_a_barrier_needs_the_whole_line(span, known):
    a, b = build_model("llama", seed=1), build_model("llama", seed=2)
    surface = compute_interpolation(a, b, make_batches(), points=3, span=span, **QUIET)
    assert (surface.metrics().barrier is not None) == known
    assert (surface.metrics().barrier_to_mean is not None) == known
    assert ("barrier (" in str(surface)) == known


def test_the_plane_returns_its_three_checkpoints():
    models, batches = [build_model("llama", seed=s).double() for s in (1, 2, 3)], make_batches()
    surface = compute_plane(models, batches, points=(4, 3), **QUIET)
    for model, marker in zip(models, surface.markers, strict=True):
        # weights return to 1e-12, so losses do to the float32 that Llama computes norms in
        assert marker.loss == pytest.approx(Objective(model, batches).loss().mean, rel=1e-6)
    (x1, y1), (x2, y2), (x3, y3) = (m.coordinates for m in surface.markers)
    distance = [
        difference_direction(a, b).norm
        for a, b in ((models[0], models[1]), (models[0], models[2]), (models[1], models[2]))
    ]
    found = [np.hypot(x2 - x1, y2 - y1), np.hypot(x3 - x1, y3 - y1), np.hypot(x3 - x2, y3 - y2)]
    assert found == pytest.approx(distance, rel=1e-12)  # axes are distances in parameter space
    assert surface.axes[0][0] < min(x1, x2, x3) < max(x1, x2, x3) < surface.axes[0][-1]


def test_the_plane_of_a_quadratic_is_its_closed_form(quadratic):
    start = torch.cat([quadratic.first.flatten(), quadratic.second.flatten()]).detach()
    ends = [torch.tensor([0.2, -0.4, 1.1, 0.9]).double(), torch.tensor([-1.0, 0.3, 0.1, 2.0]).double()]
    others = [Quadratic(quadratic.matrix, quadratic.center, end) for end in ends]
    surface = compute_plane([quadratic, *others], ANY_DATA, points=(4, 6), scope=Scope(loss_fn=quadratic_loss), **QUIET)
    u = ends[0] - start
    v = ends[1] - start
    u, v = u / u.norm(), v - (v @ u) / (u @ u) * u
    v = v / v.norm()
    for (i, j), found in np.ndenumerate(surface.loss):
        x, y = surface.coordinates[i, j]
        assert found == pytest.approx(value(quadratic, start + x * u + y * v), rel=1e-12)


def test_a_degenerate_plane_is_refused(quadratic):
    start = torch.cat([quadratic.first.flatten(), quadratic.second.flatten()]).detach()
    step = torch.ones(4).double()
    on_line = [Quadratic(quadratic.matrix, quadratic.center, start + k * step) for k in (1, 2)]
    with pytest.raises(InputError, match="one line"):
        compute_plane([quadratic, *on_line], ANY_DATA, scope=Scope(loss_fn=quadratic_loss), **QUIET)
    same = Quadratic(quadratic.matrix, quadratic.center, start)
    with pytest.raises(InputError, match="equal"):
        compute_plane([quadratic, same, on_line[0]], ANY_DATA, scope=Scope(loss_fn=quadratic_loss), **QUIET)
    with pytest.raises(InputError, match="three"):
        compute_plane([quadratic, on_line[0]], ANY_DATA, scope=Scope(loss_fn=quadratic_loss), **QUIET)


# --- spans, non-finite losses, rounding ---------------------------------------------------------------------


def test_auto_span_is_where_the_loss_has_risen_by_a_nat():
    model = Quadratic(torch.diag(torch.tensor([8.0, 2.0, 1.0, 1.0])), torch.zeros(4), torch.zeros(4))
    unit = [torch.eye(4).double()[k] for k in (0, 1)]
    u, v = (Direction({"first": e[None, :2], "second": e[None, 2:]}, "given", "e") for e in unit)
    # mean rise over +-s along both is (8 + 2)/4 s^2 = 1 at s = sqrt(0.4); found to 5%, rounded to 3 digits
    span = auto_span(model, ANY_DATA, [u, v], scope=Scope(loss_fn=quadratic_loss))
    assert 0.4**0.5 <= span <= 1.06 * 0.4**0.5
    surface = compute_surface(
        model, ANY_DATA, [u, v], points=3, span="auto", scope=Scope(loss_fn=quadratic_loss), **QUIET
    )
    assert surface.axes[0][-1] == span
    narrow = auto_span(model, ANY_DATA, [u], rise=1e-6, scope=Scope(loss_fn=quadratic_loss))
    assert (1e-6 / 4) ** 0.5 <= narrow <= 1.06 * (1e-6 / 4) ** 0.5


def test_auto_span_says_when_nothing_rises():
    model = Quadratic(torch.zeros(4, 4), torch.zeros(4), torch.zeros(4))
    u = Direction({"first": torch.ones(1, 2).double()}, "given", "u")
    with pytest.warns(MeasurementWarning, match="does not rise"):
        assert auto_span(model, ANY_DATA, [u], scope=Scope(loss_fn=quadratic_loss)) == 256


def test_non_finite_losses_stay_and_are_counted(quadratic):
    def cliff(model, batch):
        total, weight = quadratic_loss(model, batch)
        x = model.first.flatten()[0]
        return (total * float("nan") if x > 1.5 else total / 0 if x < 0 else total), weight

    u = Direction({"first": torch.tensor([[1.0, 0.0]]).double()}, "given", "u")
    with pytest.warns(MeasurementWarning, match="3 of 5 losses are not finite"):
        surface = compute_surface(quadratic, ANY_DATA, [u], points=5, span=2.0, scope=Scope(loss_fn=cliff), **QUIET)
    assert surface.nonfinite == 3
    assert np.isinf(surface.loss[0])
    assert np.isnan(surface.loss[3:]).all()
    assert np.isfinite(surface.loss[1:3]).all()


def test_non_finite_losses_survive_saving(quadratic, tmp_path):
    loss = np.array([np.nan, np.inf, -np.inf, 0.1, 1 / 3])
    surface = compute_surface(
        quadratic, ANY_DATA, directions_of(quadratic)[:1], points=5, scope=Scope(loss_fn=quadratic_loss), **QUIET
    )
    broken = dataclasses.replace(surface, loss=loss)
    broken.save(tmp_path / "s.json")
    assert np.array_equal(Surface.load(tmp_path / "s.json").loss, loss, equal_nan=True)


def test_a_step_that_bfloat16_swallows_warns_and_is_recorded():
    model = build_model("llama").to(torch.bfloat16)
    with pytest.warns(MeasurementWarning, match="rounding"):
        surface = compute_surface(model, make_batches(), points=3, span=1e-3, **QUIET)
    assert surface.fidelity.cosine < 0.99
    assert surface.provenance.dtype == "bfloat16"
    exact = compute_surface(build_model("llama"), make_batches(), points=3, span=1e-3, **QUIET)
    assert exact.fidelity.cosine > 0.9999
    assert exact.provenance.dtype == "float32"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"points": 1}, "at least 2"),
        ({"points": (3, 3, 3)}, "for 2 axes"),
        ({"span": 0.0}, "empty"),
        ({"span": (1.0, -1.0)}, "empty"),
        ({"span": "wide"}, "'auto'"),
        ({"span": None}, "neither a number"),
        ({"span": (1, 2, 3)}, "neither a number"),
        ({"span": (float("nan"), 1)}, "not finite"),
        ({"span": 1e308}, "not finite"),  # its width is not
        ({"points": 3.5}, "whole number"),
        ({"points": "3"}, "whole number"),
        ({"points": (3, 2.5)}, "whole number"),
        ({"dim": 3}, "1 or 2"),
        ({"normalize": "rows"}, "none of filter"),
    ],
)
def test_wrong_arguments_are_refused_in_words(arguments, words):
    with pytest.raises(InputError, match=words):
        compute_surface(build_model("llama"), make_batches(), **QUIET, **arguments)


def test_numbers_of_numpy_are_numbers():
    model, batches = build_model("llama"), make_batches()
    plain = compute_surface(model, batches, points=3, span=1.0, **QUIET)
    for points in (np.int64(3), np.array([3, 3])):
        surface = compute_surface(model, batches, points=points, span=np.float32(1), **QUIET)
        assert np.array_equal(surface.loss, plain.loss)
        assert surface.identity() == plain.identity()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"points": 1}, "at least 2"),
        ({"points": -1}, "at least 2"),
        ({"points": 2.5}, "whole number"),
        ({"span": 0.5}, r"no pair \(low, high\)"),
        ({"span": "auto"}, "no pair"),
        ({"span": (1, 0)}, "empty"),
    ],
)
def test_wrong_arguments_of_a_line_are_refused_in_words(arguments, words):
    a, b = build_model("llama", seed=1), build_model("llama", seed=2)
    with pytest.raises(InputError, match=words):
        compute_interpolation(a, b, make_batches(), **QUIET, **arguments)


def test_a_margin_that_is_no_number_is_refused():
    models = [build_model("llama", seed=s) for s in (1, 2, 3)]
    for margin in (math.nan, math.inf, -1):
        with pytest.raises(InputError, match="margin"):
            compute_plane(models, make_batches(), margin=margin, **QUIET)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"model.layers.0.mlp.up_proj.wieght": torch.ones(48, 32)}, "wieght, which is no parameter"),
        (
            {"model.layers.0.mlp.up_proj.weight": torch.ones(32, 48)},
            r"up_proj.weight is \(32, 48\), the model's is \(48",
        ),
        ({"lm_head.weight": torch.ones(320, 32)}, "first name, model.embed_tokens.weight"),
        ({"model.norm.weight": torch.full((32,), math.inf)}, "model.norm.weight has values that are not finite"),
        ({"model.norm.weight": torch.zeros(32)}, r"zero in all its tensors \(model.norm.weight"),
        ({}, "zero in all"),
    ],
)
def test_a_direction_that_does_not_fit_the_model_is_refused(tensors, words):
    model, direction = build_model("qwen3"), Direction(tensors, "given", "the direction")
    with pytest.raises(InputError, match=words):
        compute_surface(model, make_batches(), [direction], points=3, **QUIET)
    with pytest.raises(InputError, match=words):
        auto_span(model, make_batches(), [direction])


def test_a_model_whose_matrices_are_all_zero_has_no_random_surface():
    model = build_model("llama")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.zero_()
    with pytest.raises(InputError, match=r"random direction 1 is zero in all .*embed_tokens.* weights it is scaled to"):
        compute_surface(model, make_batches(), points=3, **QUIET)
    compute_surface(model, make_batches(), points=3, scope=Scope(include_1d=True), **QUIET)  # the gains are not zero


def test_a_step_out_of_the_finite_numbers_is_not_called_faithful():
    with pytest.warns(MeasurementWarning) as told:
        surface = compute_surface(build_model("llama"), make_batches(), dim=1, points=3, span=1e100, **QUIET)
    assert not surface.fidelity.faithful
    assert math.isnan(surface.fidelity.cosine)
    assert any("rounding" in str(warning.message) for warning in told)


# --- what identifies a measurement --------------------------------------------------------------------------


def scaled_loss(scale):
    def loss(model, batch):
        return scale * F.mse_loss(model(batch[0]), batch[1], reduction="sum"), batch[1].numel()

    return loss


def measurements():
    """Pairs of surfaces of one model and data that differ in one thing each, as functions of the journal."""
    torch.manual_seed(0)
    line = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 3))
    pairs = [(torch.randn(5, 3), torch.randn(5, 3))]
    mse = supervised_loss(F.mse_loss)
    one, two = random_directions(line, 2)
    (first_layer,) = random_directions(line, 1, parameters="0.*")
    smooth = functools.partial(F.smooth_l1_loss, beta=0.5)

    def surface(directions=None, loss_fn=mse, **weights):
        scope = Scope(loss_fn=loss_fn, **weights)
        return functools.partial(compute_surface, line, pairs, directions, dim=1, points=3, scope=scope)

    return {
        "directions": (surface([one]), surface([two])),
        "tensors": (surface([one]), surface([first_layer])),
        "given": (surface([two]), surface()),
        "parameters": (surface(), surface(parameters="0.*")),
        "include_1d": (surface(), surface(include_1d=True)),
        "loss": (surface(), surface(loss_fn=supervised_loss(F.l1_loss))),
        "options": (surface(loss_fn=supervised_loss(smooth)), surface(loss_fn=supervised_loss(F.smooth_l1_loss))),
        "module": (surface(), surface(loss_fn=supervised_loss(nn.MSELoss()))),
        "closure": (surface(loss_fn=scaled_loss(1.0)), surface(loss_fn=scaled_loss(2.0))),
    }


@pytest.mark.parametrize("what", measurements())
def test_another_measurement_is_neither_read_from_a_journal_nor_overwritten_nor_compared(what, tmp_path):
    measure, other = measurements()[what]
    surface = measure(run=Run(journal=tmp_path / "journal"))
    again = measure(run=Run(journal=tmp_path / "journal"))
    assert np.array_equal(again.loss, surface.loss)
    surface.save(tmp_path / "surface.json")
    again.save(tmp_path / "surface.json")
    require_comparable([surface, dataclasses.replace(again, name="b")])
    with pytest.raises(InputError, match="other settings"):
        other(run=Run(journal=tmp_path / "journal"))
    different = dataclasses.replace(other(), name="b")
    with pytest.raises(InputError, match="already holds"):
        different.save(tmp_path / "surface.json")
    with pytest.raises(InputError, match="do not compare"):
        compare_metrics({"a": surface.metrics(), "b": different.metrics()})
    with pytest.raises(InputError, match="differ in"):
        require_comparable([surface, different])


def test_lines_between_other_models_from_memory_are_other_measurements(tmp_path):
    a, b, c = (build_model("llama", seed=seed) for seed in (1, 2, 3))
    compute_interpolation(a, b, make_batches(), points=2, span=(0, 1), **QUIET).save(tmp_path / "line.json")
    with pytest.raises(InputError, match="already holds"):
        compute_interpolation(a, c, make_batches(), points=2, span=(0, 1), **QUIET).save(tmp_path / "line.json")


def test_the_caption_says_what_moved():
    surface = compute_surface(
        build_model("llama"), make_batches(), points=3, scope=Scope(parameters="*.mlp.*"), **QUIET
    )
    assert "only *.mlp.* moved" in caption_for([surface])


# --- journal ------------------------------------------------------------------------------------------------


def test_a_killed_surface_continues_where_it_was(tmp_path, quadratic):
    journal, calls, last = tmp_path / "journal", [], [1000]

    def counted(model, batch):
        if len(calls) >= last[0]:
            raise KeyboardInterrupt
        calls.append(1)
        return quadratic_loss(model, batch)

    arguments = {"points": 5, "run": Run(journal=journal)}
    directions = directions_of(quadratic)
    Objective(quadratic, ANY_DATA, counted)
    checking = len(calls)  # evaluations that only check that the batches do not matter
    calls.clear()
    last[0] = checking + 20
    with pytest.raises(KeyboardInterrupt):
        compute_surface(quadratic, ANY_DATA, directions, scope=Scope(loss_fn=counted), **arguments)
    evaluated, last[0] = (len(calls) - checking) // len(ANY_DATA), 1000
    finished = compute_surface(quadratic, ANY_DATA, directions, scope=Scope(loss_fn=counted), **arguments)
    assert len(calls) == 25 * len(ANY_DATA) + 2 * checking, f"{evaluated} points were known and none is evaluated twice"
    whole = compute_surface(quadratic, ANY_DATA, directions, points=5, scope=Scope(loss_fn=quadratic_loss), **QUIET)
    assert np.array_equal(finished.loss, whole.loss)
    assert finished.weight == whole.weight


def test_a_journal_of_other_weights_data_or_settings_is_refused(tmp_path):
    model, batches = build_model("llama"), make_batches()
    arguments = {"points": 3, "run": Run(journal=tmp_path / "journal")}
    compute_surface(model, batches, **arguments)
    for changed in ({"seed": 1}, {"span": 0.5}, {"normalize": "layer"}):
        with pytest.raises(InputError, match="other settings"):
            compute_surface(model, batches, **arguments | changed)
    with pytest.raises(InputError, match="other settings"):
        compute_surface(model, make_batches(seed=1), **arguments)
    with pytest.raises(InputError, match="other settings"):
        compute_surface(build_model("llama", seed=1), batches, **arguments)


# --- the result ---------------------------------------------------------------------------------------------


def test_a_surface_comes_back_from_its_file_as_it_was(tmp_path):
    surface = compute_surface(build_model("llama"), make_batches(), points=(4, 3), seed=2, **QUIET)
    again = Surface.load(surface.save(tmp_path / "surface.json"))
    assert again.to_dict() == surface.to_dict()
    assert np.array_equal(again.loss, surface.loss)  # bit for bit
    assert all(np.array_equal(a, b) for a, b in zip(again.axes, surface.axes, strict=True))
    assert again.metrics() == surface.metrics()
    assert again.provenance == surface.provenance
    assert again.provenance.versions["torch"].startswith(torch.__version__.split("+")[0])


def test_saving_over_another_measurement_is_refused(tmp_path):
    model, batches = build_model("llama"), make_batches()
    surface = compute_surface(model, batches, points=3, **QUIET)
    surface.save(tmp_path / "s.json")
    compute_surface(model, batches, points=3, **QUIET).save(tmp_path / "s.json")  # the same measurement again
    for other in (
        compute_surface(model, batches, points=4, **QUIET),
        compute_surface(build_model("llama", seed=9), batches, points=3, **QUIET),
        compute_surface(model, make_batches(seed=9), points=3, **QUIET),
    ):
        with pytest.raises(InputError, match="already holds"):
            other.save(tmp_path / "s.json")
    assert Surface.load(tmp_path / "s.json").to_dict() != {}


def test_a_surface_prints_as_a_table_and_escapes_names():
    surface = compute_surface(build_model("llama"), make_batches(), points=3, **QUIET)
    assert "loss at centre" in str(surface)
    assert "reconstruction" in str(surface)
    named = dataclasses.replace(surface, name="<script>alert(1)</script>")
    assert "<script>" not in named._repr_html_()


def test_float64_models_are_measured_in_float64():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    data = [(torch.randn(6, 4).double(), torch.randint(0, 3, (6,)))]
    surface = compute_surface(model, data, points=3, span=1e-6, **QUIET)
    assert surface.provenance.dtype == "float64"
    # a step of 1e-6 moves the loss by about 1e-6 |g||d|: visible in float64 with many digits, lost in float32
    _, gradient = Objective(model, data).gradient(Parameters(model))
    u, _ = random_directions(model, 2)
    slope = sum(float((gradient[n] * u.tensors[n]).sum()) for n in u.tensors)
    found = (surface.loss[2, 1] - surface.loss[0, 1]) / 2e-6
    assert found == pytest.approx(slope, rel=1e-6)
