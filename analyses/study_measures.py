"""What the studies measure at one checkpoint: sharpness by an entry of the settings, planes, and norms of weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

import landscape

SURFACE = ("surface_curvature", "average_gradient", "mean_absolute_gradient")
QUIET = landscape.Run(progress=False)


def spread(examples: tuple, count: int) -> tuple:
    """So many examples at even distances, all where there are fewer."""
    places = np.linspace(0, len(examples) - 1, min(count, len(examples))).round().astype(int)
    return tuple(examples[place] for place in places)


def sharpness(model: Any, data: Any, entry: dict, seed: int) -> float:
    """The value of the metric that a `[[metrics]]` entry of the settings describes."""
    options = {
        name: value for name, value in entry.items() if name not in ("column", "metric", "on", "sham", "invariant")
    }
    return landscape.compute_sharpness(model, data, metric=entry["metric"], seed=seed, run=QUIET, **options).value


def planes(model: Any, data: Any, settings: dict, seed: int) -> dict[str, float]:
    """Mean and standard error, over planes of their own random directions, of the three numbers of `SURFACE`."""
    drawn = [
        landscape.compute_surface(
            model, data, points=settings["points"], span=settings["span"], seed=seed + plane, run=QUIET
        ).metrics()
        for plane in range(settings["planes"])
    ]
    row = {}
    for name in SURFACE:
        values = np.array([getattr(metrics, name) for metrics in drawn])
        row[name] = float(values.mean())
        row[f"{name}_stderr"] = float(values.std(ddof=1) / math.sqrt(len(values)))
    return row


def norms(origin: Any, tuned: Any) -> tuple[float, float]:
    """The distance of the tuned weights from the base's, and their norm."""
    start = dict(origin.named_parameters())
    pairs = [(start[name].detach().double(), w.detach().double()) for name, w in tuned.named_parameters()]
    distance = math.sqrt(sum(float((b - a).square().sum()) for a, b in pairs))
    return distance, math.sqrt(sum(float(b.square().sum()) for _, b in pairs))
