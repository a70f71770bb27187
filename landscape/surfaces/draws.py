"""What the numbers of random surfaces are over several draws of their directions, and how far one draw can be off."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from landscape.errors import InputError
from landscape.surfaces.metrics import compare_metrics

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from landscape.surfaces.result import Surface

_OF_ONE_DRAW = ("seed", "draws")  # what the grids of several draws differ in


def metrics_over_draws(surfaces: Sequence[Surface], confidence: float = 0.95) -> pd.DataFrame:
    """Average the metrics of random surfaces over draws of their directions, and compare checkpoints draw by draw.

    A surface along random directions is one draw: its numbers estimate their mean over all draws. The same seed draws
    the same directions for every checkpoint of an architecture, up to the norms of its filters, so two checkpoints
    are compared by the difference that each draw gives, whose spread is mostly smaller than that of either.

    Args:
        surfaces: Surfaces of one or more checkpoints on one data set, each checkpoint with the same two or more seeds.
        confidence: Of the intervals, by Student's t distribution: of each difference alone, not of all at once.

    Returns:
        A row for each checkpoint and metric, with the columns `name`, `metric`, `draws` (their number), `mean`,
        `stderr` (of the mean), `spread` (the standard deviation of one draw over the absolute mean), and for every
        checkpoint but the first `difference` (its mean minus the first's), `low` and `high`. What is undefined, as
        where a loss is not finite, is NaN; metrics that the surfaces do not have are left out.

    Raises:
        InputError: The surfaces are not of random directions, or differ in their grids, their data or their seeds, or
            have one draw only.

    Source:
        Student 1908 (the t interval), for paired differences.

    Example:
        The loss is |w|^2 / 2, whose curvature along every direction of length |w| = 1 is 1:

        >>> import torch
        >>> from torch.nn.functional import mse_loss
        >>> from landscape import Run, Scope, compute_surface, metrics_over_draws, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> model.weight = torch.nn.Parameter(torch.tensor([[1.0, 0.0]]))
        >>> data = [(torch.eye(2), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(mse_loss))
        >>> line = {"dim": 1, "points": 5, "scope": scope, "run": Run()}
        >>> draws = [compute_surface(model, data, seed=seed, **line) for seed in (0, 1)]
        >>> table = metrics_over_draws(draws).set_index("metric")
        >>> print(f"{table['mean']['mean_absolute_laplacian']:.4f} +- {table['stderr']['mean_absolute_laplacian']:.4f}")
        1.0000 +- 0.0000
    """
    import numpy as np
    import pandas as pd

    by_name = _by_name(surfaces)
    seeds = list(next(iter(by_name.values())))
    values = {seed: compare_metrics({name: own[seed].metrics() for name, own in by_name.items()}) for seed in seeds}
    rows, first = [], next(iter(by_name))
    for name in by_name:
        for metric in values[seeds[0]][name]:
            own, others = (
                np.array([math.nan if (v := values[seed][n][metric]) is None else v for seed in seeds], float)
                for n in (name, first)
            )
            if all(values[seed][name][metric] is None for seed in seeds):
                continue
            mean, stderr, _ = _mean(own, confidence)
            row: dict[str, Any] = {"name": name, "metric": metric, "draws": len(seeds), "mean": mean, "stderr": stderr}
            row["spread"] = stderr * math.sqrt(len(seeds)) / abs(mean) if mean else math.nan
            difference, _, half = _mean(own - others, confidence) if name != first else (math.nan,) * 3
            rows.append(row | {"difference": difference, "low": difference - half, "high": difference + half})
    return pd.DataFrame(rows)


def _mean(values: np.ndarray, confidence: float) -> tuple[float, float, float]:
    """Return the mean, its standard error and half of its interval's width."""
    from scipy import stats

    stderr = float(values.std(ddof=1)) / math.sqrt(len(values))
    return float(values.mean()), stderr, float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1)) * stderr


def _by_name(surfaces: Sequence[Surface]) -> dict[str, dict[int | None, Surface]]:
    """Return the surfaces by name and by seed, checked to be draws of the same."""
    by_name: dict[str, dict[int | None, Surface]] = {}
    for surface in surfaces:
        if not surface.kind_type.is_random:
            raise InputError(f"{surface.name} is a surface of kind {surface.kind}, whose directions are not drawn.")
        if surface.seed in by_name.setdefault(surface.name, {}):
            raise InputError(f"there are two surfaces of {surface.name} with seed {surface.seed}; give each draw once.")
        by_name[surface.name][surface.seed] = surface
    first = surfaces[0] if surfaces else None
    if first is None or len(by_name[first.name]) < 2:
        raise InputError("a spread over draws takes at least two surfaces of each checkpoint, with different seeds.")
    for name, own in by_name.items():
        if list(own) != list(by_name[first.name]):
            raise InputError(
                f"{first.name} has the seeds {_listed(by_name[first.name])} and {name} {_listed(own)}; "
                "checkpoints are compared draw by draw."
            )
    agreed = (*_data(first), _grid(first))
    for surface in surfaces:
        if (*_data(surface), _grid(surface)) != agreed:
            raise InputError(
                f"{surface.name} with seed {surface.seed} is of another grid or other data than {first.name} with "
                f"seed {first.seed}; draws are averaged over the same grid and data only."
            )
    return by_name


def _data(surface: Surface) -> tuple[str, Any]:
    """Return name and digest of the data; the digest is None where a file of an older version has none."""
    return surface.data, (surface.provenance.data or {}).get("digest")


def _grid(surface: Surface) -> dict[str, Any]:
    """Return what the surface's metrics depend on, except for the draw of directions."""
    return {key: value for key, value in surface.metrics().grid.items() if key not in _OF_ONE_DRAW}


def _listed(seeds: dict[int | None, Any]) -> str:
    return ", ".join(map(str, seeds))
