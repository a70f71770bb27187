"""Minima, saddles and SMAD of the same grids, by `compute_topology`, by a merge tree written here, and by Landscaper.

    python benchmarks/topology.py [--peer PYTHON] [SURFACE.json ...]

PYTHON is an interpreter that can import Landscaper 1.3, in an environment of its own, as it takes another numpy:

    python -m venv peer && peer/bin/pip install landscaper torch

Beside grids of functions whose minima are known, the losses of surfaces that `landscape plot` wrote can be given.
Two averages go by the name of SMAD: the mean persistence of all minima but the lowest (ours), and the mean height of
the first saddle over every minimum (what Landscaper's code computes).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from landscape import Direction, Run, Scope, Surface, compute_surface, compute_topology

PEER = """
import json, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
from landscaper import LossLandscape
kept, rows = np.load(sys.argv[1]), {}
for name in json.loads(sys.argv[2]):
    loss = kept[name]
    axes = [np.linspace(-1, 1, count) for count in loss.shape]
    started = time.perf_counter()
    try:
        landscape = LossLandscape(loss, axes)
        smad = float(landscape.smad())
        kinds = landscape.get_topological_indices(landscape.get_contour_tree())
        minima = sum(kind == 0 for kind in kinds.values())
        rows[name] = [minima, smad, time.perf_counter() - started]
    except Exception as error:
        rows[name] = f"{type(error).__name__}: {error}"
print(json.dumps(rows))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("surfaces", nargs="*", type=Path)
    parser.add_argument("--peer", help="an interpreter that can import Landscaper")
    arguments = parser.parse_args()
    grids = functions() | {f"{path.parent.name}/{path.stem}": Surface.load(path).loss for path in arguments.surfaces}
    theirs = landscaper(arguments.peer, grids) if arguments.peer else {}
    print(
        "| grid | points | ours: minima, mean persistence | merge tree: minima, mean first saddle "
        "| Landscaper: minima, smad() | seconds, ours and theirs |\n|---|---|---|---|---|---|"
    )
    for name, values in grids.items():
        surface = as_surface(values)
        started = time.perf_counter()
        topology = compute_topology(surface)
        seconds = time.perf_counter() - started
        tree = merge_tree(values)
        assert tree.minima == topology.minima
        assert np.isclose(tree.mean_persistence, topology.smad, rtol=1e-12, atol=1e-12)  # the same values, subtracted
        other = theirs.get(name, "")
        peer, took = (other, "") if isinstance(other, str) else (f"{other[0]}, {other[1]:.4g}", f"{other[2]:.2f}")
        shown = " x ".join(map(str, values.shape))
        print(
            f"| {name} | {shown} | {topology.minima}, {topology.smad:.4g} "
            f"| {tree.minima}, {tree.mean_first_saddle:.4g} | {peer} | {seconds:.4f}, {took} |"
        )


def functions() -> dict[str, np.ndarray]:
    """Grids of functions with known minima: one, two, two of unequal depth, four of unequal depth, and noise."""
    x = np.linspace(-2, 2, 17)
    a, b = np.meshgrid(x, x, indexing="ij")
    well = (a**2 - 1) ** 2
    noise = np.random.default_rng(0).normal(size=a.shape)
    return {
        "one well": a**2 + b**2,
        "two equal wells": well + b**2,
        "two wells": well + b**2 + 0.1 * a + 0.01 * b,
        "four wells": well + (b**2 - 1) ** 2 + 0.1 * a + 0.03 * b,
        "noise over a well": a**2 + b**2 + noise,
        "two wells in one dimension": (x**2 - 1) ** 2 + 0.1 * x,
    }


def as_surface(values: np.ndarray) -> Surface:
    """A surface of these losses."""
    model = torch.nn.Linear(values.ndim, 1, bias=False)
    unit = torch.eye(values.ndim)
    directions = [Direction({"weight": unit[i : i + 1]}, "given", "xy"[i]) for i in range(values.ndim)]
    scope = Scope(loss_fn=lambda model, batch: (model.weight.square().sum(), 1))
    surface = compute_surface(model, [torch.zeros(1)], directions, points=values.shape, scope=scope, run=Run())
    return dataclasses.replace(surface, loss=values)


class Tree(NamedTuple):
    """What a merge tree says of a grid.

    Attributes:
        minima: Number of local minima.
        mean_persistence: Mean over all minima but the lowest of how far they lie below the saddle that ends them.
        mean_first_saddle: Mean over all minima of how far they lie below the first saddle.
    """

    minima: int
    mean_persistence: float
    mean_first_saddle: float


def merge_tree(values: np.ndarray) -> Tree:
    """The merge tree of a grid whose points are neighbours along its axes, by union and find."""
    flat = values.ravel()
    parent: dict[int, int] = {}
    first: dict[int, float] = {}  # by minimum
    persistence = []

    def root(point: int) -> int:
        while parent[point] != point:
            point = parent[point]
        return point

    for point in np.argsort(flat, kind="stable").tolist():
        place = np.unravel_index(point, values.shape)
        beside = []
        for axis in range(values.ndim):
            for step in (-1, 1):
                at = [int(coordinate) for coordinate in place]
                at[axis] += step
                if 0 <= at[axis] < values.shape[axis]:
                    beside.append(int(np.ravel_multi_index(at, values.shape)))
        roots = sorted({root(other) for other in beside if other in parent}, key=lambda minimum: flat[minimum])
        parent[point] = roots[0] if roots else point
        for minimum in roots if len(roots) > 1 else []:
            first.setdefault(minimum, float(flat[point]))
        for minimum in roots[1:]:
            parent[minimum] = roots[0]
            persistence.append(float(flat[point] - flat[minimum]))
    gaps = [saddle - float(flat[minimum]) for minimum, saddle in first.items()]
    return Tree(len(persistence) + 1, float(np.mean(persistence or [0.0])), float(np.mean(gaps or [0.0])))


def landscaper(python: str, grids: dict[str, np.ndarray]) -> dict[str, list | str]:
    """What Landscaper says of the grids: [minima, smad, seconds], or in words why it says nothing."""
    with tempfile.TemporaryDirectory() as folder:
        np.savez(f"{folder}/grids.npz", **grids)
        call = [python, "-c", PEER, f"{folder}/grids.npz", json.dumps(list(grids))]
        done = subprocess.run(call, capture_output=True, text=True, check=True, cwd=folder)
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
