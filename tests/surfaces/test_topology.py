"""Topology of grids: minima, saddles and persistence of known polynomials, an independent union-find, noise, draws."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from conftest import build_model, make_batches
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from landscape import Direction, HeightGrid, Run, Scope, Surface, compute_surface, plot_persistence
from landscape.errors import InputError
from landscape.surfaces.topology import Topology, compute_topology, topology_over_draws

pytest.importorskip("gudhi")


class Polynomial(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.at = nn.Parameter(torch.zeros(1, 2).double())
        self.function = function


def surface_of(function, points, span):
    """The surface of a function of x and y, or of x alone where `points` is one number."""
    model, dim = Polynomial(function), 1 if isinstance(points, int) else 2
    directions = [Direction({"at": torch.eye(2)[i : i + 1].double()}, "given", "xy"[i]) for i in range(dim)]
    scope = Scope(loss_fn=lambda model, batch: (model.function(*model.at[0]), 1))
    return compute_surface(model, [torch.zeros(1)], directions, points=points, span=span, scope=scope, run=Run())


def test_a_double_well_has_two_minima_and_the_barrier_between_them():
    # (x^2 - 1)^2 + x / 4 at x = -1, 0, 1 of the grid; tilted, so that the lower well is on the left.
    topology = compute_topology(surface_of(lambda x, y: (x**2 - 1) ** 2 + x / 4, 9, 2.0))
    (pair,) = topology.pairs
    assert (topology.lowest, topology.lowest_value) == ((-1.0,), -0.25)
    assert (pair.minimum, pair.birth) == (
        (1.0,),
        0.25,
    )  # elder rule: the higher well ends; by the other, birth is -0.25
    assert (pair.saddle, pair.death) == ((0.0,), 1.0)
    assert topology.smad == pytest.approx(0.75, rel=1e-14)


def test_the_saddle_between_two_wells_of_a_plane_is_where_its_gradient_vanishes():
    # (x^2 - 1)^2 + 3 (y - x/2)^2 has wells at (1, 1/2) and (-1, -1/2), and a saddle of 1 at the origin.
    surface = surface_of(lambda x, y: (x**2 - 1) ** 2 + 3 * (y - x / 2) ** 2 + x / 8, (17, 25), (-2.0, 2.0))
    topology = compute_topology(surface)
    pair = topology.pairs[0]
    assert topology.lowest == (-1.0, -0.5)
    assert pair.minimum == (1.0, 0.5)
    assert pair.birth == pytest.approx(0.125, rel=1e-12)
    assert pair.saddle == pytest.approx(
        (0.0, 0.0), abs=0.25
    )  # neighbours along axes: the way over may be one point off
    assert 1.0 <= pair.death <= 1.0 + 3 * 0.25**2 + 0.05


def persistence_by_union_find(values):
    """The (birth, death) pairs of sublevel sets, by joining neighbours along the axes in the order of their values."""
    order = sorted(np.ndindex(values.shape), key=lambda place: values[place])
    parent, pairs = {}, []

    def root(place):
        while parent[place] != place:
            place = parent[place]
        return place

    for place in order:
        parent[place] = place
        for axis, step in itertools.product(range(values.ndim), (-1, 1)):
            other = tuple(c + step * (a == axis) for a, c in enumerate(place))
            if other not in parent:
                continue
            low, high = sorted((root(place), root(other)), key=lambda one: values[one])
            if low != high:
                if values[high] < values[place]:
                    pairs.append((values[high], values[place]))
                parent[high] = low
    return sorted(pairs)


def made(values):
    """A surface with these values."""
    surface = surface_of(lambda x, y: x + y, values.shape if values.ndim == 2 else len(values), 1.0)
    return dataclasses.replace(surface, loss=values)


@given(st.integers(0, 10_000), st.sampled_from([(4, 5), (7,), (3, 8)]))
@settings(max_examples=25, deadline=None)
def test_pairs_are_those_of_a_union_find(seed, shape):
    values = np.random.default_rng(seed).permutation(int(np.prod(shape))).reshape(shape).astype(float)
    topology = compute_topology(made(values))
    assert sorted((pair.birth, pair.death) for pair in topology.pairs) == persistence_by_union_find(values)
    for pair in topology.pairs:
        for place, value in ((pair.minimum, pair.birth), (pair.saddle, pair.death)):
            axes = made(values).axes
            index = tuple(int(np.abs(axis - c).argmin()) for axis, c in zip(axes, place, strict=True))
            assert values[index] == value  # the place is where the value is


@given(st.integers(0, 10_000), st.floats(0.01, 3.0))
@settings(max_examples=25, deadline=None)
def test_what_is_above_the_noise_survives_any_noise_of_that_size(seed, noise):
    generator = np.random.default_rng(seed)
    values = generator.permutation(30).reshape(5, 6).astype(float)
    surviving = compute_topology(made(values), noise=noise).surviving
    for _ in range(5):
        changed = values + generator.uniform(-noise, noise, values.shape)
        assert compute_topology(made(changed)).minima - 1 >= surviving


def test_minima_of_an_accuracy_are_its_best_points_and_its_errors_are_the_noise():
    x = np.array([0.1, 0.9, 0.3, 0.6, 0.2])
    grid = HeightGrid("accuracy", "share", True, x, np.full(5, 0.05), 0.3, 0.05, (), 84)
    topology = compute_topology(dataclasses.replace(made(np.zeros(5)), heights=(grid,)), height="accuracy")
    assert (topology.lowest_value, topology.pairs[0].birth, topology.pairs[0].death) == (-0.9, -0.6, -0.3)
    assert topology.noise == pytest.approx(0.05 * 2.5758, rel=1e-4)  # the normal quantile of 1 - 0.05 / 10
    assert topology.surviving == 1


def test_a_bowl_has_one_minimum_and_what_is_not_finite_is_refused(tmp_path):
    surface = surface_of(lambda x, y: x**2 + y**2, (5, 5), 1.0)
    topology = compute_topology(surface)
    assert (topology.minima, topology.smad, topology.pairs) == (1, 0.0, ())
    topology.save(tmp_path / "topology.json")
    assert Topology.load(tmp_path / "topology.json") == topology
    with pytest.raises(InputError, match="not finite"):
        compute_topology(made(np.array([0.0, np.nan, 1.0])))
    with pytest.raises(InputError, match="no height"):
        compute_topology(surface, height="accuracy")


def test_draws_are_compared_and_drawn(tmp_path):
    model, batches = build_model("llama"), make_batches()
    draws = [compute_surface(model, batches, dim=2, points=4, seed=seed, run=Run()) for seed in (0, 1)]
    table = topology_over_draws(draws)
    assert table["distance"][0] == 0
    assert list(table["seed"]) == [0, 1]
    assert isinstance(draws[0], Surface)
    wells = compute_topology(surface_of(lambda x, y: (x**2 - 1) ** 2 + x / 4, 9, 2.0), noise=0.1)
    figure = plot_persistence([wells])
    (points,) = [line for line in figure.axes[0].lines if line.get_marker() == "o"]
    assert (points.get_xdata()[0], points.get_ydata()[0]) == (0.25, 1.0)
    assert wells.plot().axes
    figure.savefig(tmp_path / "persistence.png", dpi=110)
