"""Surfaces of known functions, for pictures of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from landscape.results import Provenance
from landscape.surfaces.result import Surface
from landscape.weights.perturbation import Fidelity

PLANE = (np.linspace(-1, 1, 7), np.linspace(-1, 1, 5))
LINE = (np.linspace(-1, 1, 11),)


def surface_of(f: Callable[..., np.ndarray], axes: tuple[np.ndarray, ...] = PLANE, **fields) -> Surface:
    """The surface of an analytic function, filter-normalized and random unless `fields` say otherwise."""
    data = {"source": "docs.txt", "digest": "0" * 64, "supervised_tokens": 1234}
    values: dict = {
        "name": "adamw",
        "data": "docs",
        "kind": "random",
        "axes": axes,
        "axis_labels": ("direction 1", "direction 2")[: len(axes)],
        "loss": np.asarray(f(*np.meshgrid(*axes, indexing="ij")), dtype=np.float64),
        "center": float(f(*(np.zeros(1) for _ in axes))[0]),
        "markers": (),
        "normalize": "filter",
        "seed": 3,
        "direction_cosine": 0.01 if len(axes) == 2 else None,
        "fidelity": Fidelity(norm_ratio=1.0, cosine=1.0),
        "weight": 1234.0,
        "provenance": Provenance({}, 3, None, data, "cpu", "float32", 1.0, {}, "2025-01-01"),
    }
    return Surface(**(values | fields))


def bowl(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 1.5 + 2 * x**2 + y**2 + 0.5 * x


def wide_bowl(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return 1.25 + 0.5 * x**2 + 0.25 * y**2


def curve(x: np.ndarray) -> np.ndarray:
    return 1.5 + x**2
