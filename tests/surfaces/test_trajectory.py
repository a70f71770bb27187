"""The plane of a path: its directions against a dense PCA, what it leaves out, and the command that draws it."""

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch
from conftest import quadratic_loss
from torch import nn

from landscape.checkpoints import LoadOptions
from landscape.data.tokens import DataOptions
from landscape.errors import InputError
from landscape.objective.scope import Run, Scope
from landscape.plotting import caption_for, plot_surfaces, surfaces_html
from landscape.surfaces.compute import compute_trajectory
from landscape.surfaces.path import random_walk_variance, trajectory_directions
from landscape.surfaces.result import Surface
from landscape.training.finetuning import finetune
from landscape.training.options import Optimization, Saving
from landscape.weights.parameters import Parameters


def flat(model):
    return torch.cat([t.detach().double().flatten() for t in Parameters(model, frozen=True).values().values()]).numpy()


def path_of(model, moves):
    """Copies of `model`, the last as it is and the others away from it by `moves`."""
    models = []
    for move in moves:
        other = copy.deepcopy(model)
        with torch.no_grad():
            at = 0
            for parameter in other.parameters():
                parameter += torch.as_tensor(move[at : at + parameter.numel()]).reshape(parameter.shape)
                at += parameter.numel()
        models.append(other)
    return [*models, model]


def test_directions_are_those_of_a_dense_pca_about_the_end():
    generator = np.random.default_rng(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 2)).double()
    model[0].bias.requires_grad_(False)  # frozen parameters of a path may move all the same
    models = path_of(model, generator.normal(size=(6, 37)) * np.linspace(3, 0.1, 37))
    found = trajectory_directions(models, 3)
    differences = np.array([flat(m) - flat(model) for m in models[:-1]])
    _, singular, rows = np.linalg.svd(differences)
    for k, direction in enumerate(found):
        vector = np.concatenate(
            [direction.tensors[name].numpy().ravel() for name in Parameters(model, frozen=True).names]
        )
        # float64 throughout; the Gram matrix squares the condition number (about 10 here)
        assert abs(np.linalg.norm(vector) - 1) < 1e-12
        assert abs(abs(vector @ rows[k]) - 1) < 1e-10
        share = singular[k] ** 2 / (singular**2).sum()
        assert direction.label == f"PC {k + 1} ({share:.1%})"
        assert direction.kind == "trajectory"


def test_the_surface_of_a_path_in_a_plane_is_the_loss_itself_and_leaves_nothing_out(quadratic):
    u, v = np.array([1.0, 0, 0, 0]), np.array([0, 0.6, 0, 0.8])
    models = path_of(quadratic, [2 * u + 0.3 * v, 1.5 * u - 0.2 * v, 0.5 * u + 0.1 * v])
    surface = compute_trajectory(
        models, [torch.zeros(3)], points=5, scope=Scope(loss_fn=quadratic_loss), run=Run(progress=False)
    )
    path = surface.path
    assert sum(path.explained) == pytest.approx(1, abs=1e-12)
    assert max(path.residuals) < 1e-6 * max(path.distances)  # square root of the rounding of squares
    for model, marker, distance in zip(models, surface.markers, path.distances, strict=True):
        assert marker.loss == pytest.approx(float(model(None).detach()), rel=1e-12)
        assert np.hypot(*marker.coordinates) == pytest.approx(distance, abs=1e-9)
    assert surface.markers[-1].coordinates == (0, 0)
    assert surface.center == pytest.approx(float(quadratic(None).detach()), rel=1e-12)
    assert surface.markers[0].coordinates[0] < 0  # the path comes from the left
    assert surface.axes[0][0] == pytest.approx(1.25 * surface.markers[0].coordinates[0])  # the margin


def test_what_the_plane_leaves_out_is_said(quadratic, tmp_path):
    moves = [np.array([4.0, 0, 0, 0]), np.array([0, 2.0, 0, 0]), np.array([0, 0, 1.0, 0])]
    models = path_of(quadratic, moves)
    surface = compute_trajectory(
        models, [torch.zeros(3)], points=5, scope=Scope(loss_fn=quadratic_loss), run=Run(progress=False)
    )
    assert surface.path.explained == pytest.approx((16 / 21, 4 / 21), abs=1e-12)
    assert surface.path.residuals == pytest.approx((0, 0, 1, 0), abs=1e-6)
    assert surface.path.random_walk == random_walk_variance(3)
    surface.save(tmp_path / "surface.json")
    assert Surface.load(tmp_path / "surface.json").path == surface.path
    for shown in (caption_for([surface]), surfaces_html([surface])):
        assert "explains 95.2% of the path's variance" in shown.replace("&#x27;", "'").replace("&#39;", "'")
        assert "61%" in shown
        assert "up to 1 beside the plane" in shown
    assert "95.2%" in str(surface)
    texts = [text.get_text() for text in plot_surfaces([surface]).texts]
    assert any("plane explains 95.2% of the path's variance" in text for text in texts)


def test_a_random_walk_looks_planar_too():
    """Of 400 steps in 5,000 dimensions, the expectation is met to about 1/sqrt(dimensions).

    Rejects the shares about the mean of the path: they are 61% and 15%, where those about its end are 81% and 9%.
    """
    limits = random_walk_variance(1000, 2)
    assert limits == pytest.approx((8 / np.pi**2, 8 / (9 * np.pi**2)), abs=1e-3)
    walk = np.cumsum(np.random.default_rng(0).normal(size=(401, 5_000)), axis=0)
    values = np.linalg.eigvalsh((walk[:-1] - walk[-1]) @ (walk[:-1] - walk[-1]).T)[::-1]
    assert values[:2] / values.sum() == pytest.approx(random_walk_variance(400), abs=0.01)


def test_paths_without_a_plane_are_refused(quadratic):
    data = [torch.zeros(3)]
    line = path_of(quadratic, [np.array([2.0, 0, 0, 0]), np.array([1.0, 0, 0, 0])])
    with pytest.raises(InputError, match=r"path has 1 dimension\(s\), not 2"):
        compute_trajectory(line, data, scope=Scope(loss_fn=quadratic_loss))
    still = path_of(quadratic, [np.zeros(4), np.zeros(4)])
    with pytest.raises(InputError, match=r"path has 0 dimension\(s\), not 2"):
        trajectory_directions(still)
    with pytest.raises(InputError, match="path of 2 checkpoints has no 2 directions"):
        trajectory_directions(line[1:])
    with pytest.raises(InputError, match=r"0\.weight is"):
        trajectory_directions([nn.Sequential(nn.Linear(2, n)) for n in (2, 3, 3)])
    with pytest.raises(InputError, match="margin=-1"):
        compute_trajectory(line, data, margin=-1.0)


@pytest.fixture(scope="module")
def tuned(tmp_path_factory, save_checkpoint_folder, records):
    return finetune(
        save_checkpoint_folder("llama", seed=1), str(records), tmp_path_factory.mktemp("run") / "tuned",
        optimization=Optimization(steps=8, lr=3e-3, batch_size=4), data_options=DataOptions(max_length=64),
        load_options=LoadOptions(device="cpu"), saving=Saving(keep_trajectory=4), progress=False,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_draws_the_path_of_a_run(run, tuned, tmp_path, records):
    options = ("--kind", "trajectory", "--points", "5", "-q", "--data", records)
    code, out, err = run("plot", tuned, *options, "--data", "docs=builtin:docs", "--limit", 4, "-o", "plot")
    assert code == 0, err
    assert "the plane holds" in out
    summary = json.loads((tmp_path / "plot" / "summary.json").read_text())
    assert [s["data"] for s in summary["surfaces"]] == ["tasks", "docs"]
    path = summary["surfaces"][0]["path"]
    assert path["names"] == [f"step-{step:06d}" for step in (0, 2, 4, 6)] + ["tuned"]
    assert 0.5 < sum(path["explained"]) <= 1
    surface = Surface.load(tmp_path / "plot" / "surface-tasks.json")
    assert surface.loss.shape == (5, 5)
    assert surface.markers[-1].loss < surface.markers[0].loss  # it learned
    again = (tmp_path / "plot" / "surface-tasks.json").stat().st_mtime_ns
    assert run("plot", tuned, *options, "--data", "docs=builtin:docs", "--limit", 4, "-o", "plot")[0] == 0
    assert (tmp_path / "plot" / "surface-tasks.json").stat().st_mtime_ns == again
    steps = sorted((tuned / "trajectory").iterdir())
    assert run("plot", *steps, tuned, *options, "-o", "listed")[0] == 0
    listed = Surface.load(tmp_path / "listed" / "surface.json")
    assert listed.path == surface.path
    assert run("plot", tuned, *options, "-o", "named")[0] == 0
    assert np.array_equal(Surface.load(tmp_path / "named" / "surface.json").loss, listed.loss)


def test_the_command_says_what_a_path_takes(run, tuned, save_checkpoint_folder, records):
    base = save_checkpoint_folder("llama", seed=1)
    for arguments, words in (
        ((base,), "has kept no path"),
        ((base, tuned), "at least 3 checkpoints"),
        ((tuned, "--dim", 1), "2-dimensional"),
        ((tuned, "--span", "-1,1"), "use --margin"),
        ((tuned, "--margin", "-1"), "--margin -1.0 must be at least 0"),
        ((tuned, "--normalize", "unit"), "--normalize scales random"),
    ):
        code, _, err = run("plot", "--kind", "trajectory", "--data", records, "--points", 3, *arguments)
        assert code == 2
        assert words in err


def test_a_result_of_another_path_is_not_taken_for_this_one(tuned, quadratic, tmp_path):
    moves = [np.array([4.0, 0, 0, 0]), np.array([0, 2.0, 0, 0])]
    surface = compute_trajectory(
        path_of(quadratic, moves),
        [torch.zeros(3)],
        points=3,
        scope=Scope(loss_fn=quadratic_loss),
        run=Run(progress=False),
    )
    other = compute_trajectory(
        path_of(quadratic, moves[::-1]),
        [torch.zeros(3)],
        points=3,
        scope=Scope(loss_fn=quadratic_loss),
        run=Run(progress=False),
    )
    assert surface.identity() != other.identity()
    assert dataclasses.replace(surface, path=None).path is None  # surfaces of earlier versions have none
