"""What a metric is good for beyond a correlation: the order of two runs, and the prediction of new groups."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from landscape.correlation.held import codes_of

_ENOUGH = 1e-12  # of the variance of the outcome


def robust_sign_error(
    x: np.ndarray, y: np.ndarray, factors: Sequence[np.ndarray], groups: np.ndarray | None = None
) -> tuple[float, tuple[int, np.ndarray] | None]:
    """Return how often a metric orders two runs wrongly in the worst environment.

    An environment is one change of one factor, from one value to another, while the other factors keep one setting.
    Its sign error is the mean of (1 - sign(x' - x) sign(y' - y)) / 2 over pairs of runs that differ by this change: 0
    where the metric always rises with the outcome, 1 where it never does, 1/2 for a coin flip. The robust sign error is
    the largest over environments.

    Args:
        x: The metric, shape (rows,).
        y: The outcome, shape (rows,).
        factors: Whole-number labels of the factors, each of shape (rows,).
        groups: Labels of groups, shape (rows,). Runs are then paired within a group only, such as of one base.

    Returns:
        The robust sign error, and the environment as the number of its factor and the two rows of one pair; NaN and
        None where no two runs differ in one factor alone.

    Source:
        Dziugaite et al. 2020 (arXiv 2010.11924), sections 3 and 4, without their weights for Monte Carlo noise.
    """
    worst: tuple[float, tuple[int, np.ndarray] | None] = (float("nan"), None)
    for place, factor in enumerate(factors):
        others = [other for index, other in enumerate(factors) if index != place]
        setting = codes_of(others) if others else np.zeros(len(x), dtype=int)
        pairs = _pairs(setting if groups is None else codes_of([setting, groups]))
        pairs = pairs[factor[pairs[:, 0]] != factor[pairs[:, 1]]]
        if not len(pairs):
            continue
        error = (1 - _sign(x, pairs) * _sign(y, pairs)) / 2
        values = np.sort(factor[pairs], axis=1)
        environment = codes_of([setting[pairs[:, 0]], values[:, 0], values[:, 1]])
        means = np.bincount(environment, error) / np.bincount(environment)
        if not means.max() <= worst[0]:
            worst = float(means.max()), (place, pairs[np.flatnonzero(environment == means.argmax())[0]])
    return worst


def conditional_information(x: np.ndarray, y: np.ndarray, factors: Sequence[np.ndarray]) -> float:
    """Return the information in the order of two runs by the metric about their order by the outcome.

    Over pairs of runs let V_x and V_y be the signs of the differences in metric and outcome. For a set S of at most two
    factors, pairs are of runs that share the values of S, and K(S) = I(V_x; V_y | S) / H(V_y | S). The result is the
    least over all S: 1 where the metric decides every order, 0 where, given some factors, it says nothing. A metric
    that only follows the learning rate has 0, since runs of one learning rate are not ordered by it.

    Args:
        x: The metric, shape (rows,).
        y: The outcome, shape (rows,).
        factors: Whole-number labels of the factors, each of shape (rows,).

    Returns:
        A number from 0 to 1; NaN where no two runs can be compared. Few pairs make it too large.

    Source:
        Jiang et al. 2020 (arXiv 1912.02178), section 4.
    """
    values = []
    for size in range(min(2, len(factors)) + 1):
        for chosen in itertools.combinations(factors, size):
            setting = codes_of(chosen) if chosen else np.zeros(len(x), dtype=int)
            pairs = _pairs(setting)
            pairs = pairs[y[pairs[:, 0]] != y[pairs[:, 1]]]
            if len(pairs):
                pairs = np.concatenate([pairs, pairs[:, ::-1]])  # Both orders, so that neither sign is the rule.
                values.append(_information(_sign(x, pairs), _sign(y, pairs), setting[pairs[:, 0]]))
    return min(values) if values else float("nan")


def held_out_r2(x: np.ndarray, y: np.ndarray, held: np.ndarray, groups: np.ndarray) -> tuple[float, float]:
    """Return how well a metric predicts the outcome of a group that the fit has not seen.

    Each group in turn is left out, straight lines are fitted to the others, and the squared errors of the group left
    out are summed: E(0) of the mean alone, E(x) of the metric, E(h) of what is held fixed, E(h, x) of both.

    Args:
        x: The metric, shape (rows,).
        y: The outcome, shape (rows,).
        held: Columns held fixed, such as the factors' dummies and rival predictors, shape (rows, columns).
        groups: Labels of groups, shape (rows,).

    Returns:
        R2 of the metric alone, 1 - E(x) / E(0), and the share that it explains of what the columns held fixed leave,
        1 - E(h, x) / E(h). Below zero, a prediction is worse than without the metric. NaN where a group left out has a
        cell of the factors that no other group has.
    """
    errors = np.zeros(4)
    sides = [np.empty((len(x), 0)), x[:, None], held, np.column_stack([held, x])]
    for group in np.unique(groups):
        test = groups == group
        for place, columns in enumerate(sides):
            errors[place] += ((y[test] - _predicted(columns, y, ~test)) ** 2).sum()
    seen = all((held[groups != group] != 0).any(axis=0).all() for group in np.unique(groups)) if held.size else True
    if errors[0] <= _ENOUGH:
        return float("nan"), float("nan")
    gain = 1 - errors[3] / errors[2] if seen and errors[2] > _ENOUGH * errors[0] else float("nan")
    return float(1 - errors[1] / errors[0]), float(gain)


def _predicted(columns: np.ndarray, y: np.ndarray, fitted: np.ndarray) -> np.ndarray:
    """Return the least-squares prediction of the rows that are not fitted, from those that are."""
    center = columns[fitted].mean(axis=0)
    scale = np.where((size := np.abs(columns[fitted] - center).max(axis=0, initial=0)) > 0, size, 1)
    design = np.column_stack([np.ones(len(y)), (columns - center) / scale])
    weights = np.linalg.lstsq(design[fitted], y[fitted], rcond=1e-10)[0]
    return np.asarray(design[~fitted] @ weights)


def _pairs(labels: np.ndarray) -> np.ndarray:
    """Return each pair of rows of one label once, shape (pairs, 2)."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    pairs = [np.column_stack([rows[a] for a in np.triu_indices(len(rows), 1)]) for rows in members]
    return np.concatenate([np.empty((0, 2), dtype=int), *pairs])


def _sign(v: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the sign of the rise of v from the first row of each pair to the second."""
    return np.sign(v[pairs[:, 1]] - v[pairs[:, 0]])


def _information(a: np.ndarray, b: np.ndarray, setting: np.ndarray) -> float:
    """Return I(a; b | setting) / H(b | setting) of observed signs."""
    settings, code = np.unique(setting, return_inverse=True)
    counts = np.zeros((len(settings), 3, 3))
    np.add.at(counts, (code, (a + 1).astype(int), (b + 1).astype(int)), 1)
    joint, only_a, only_b = counts, counts.sum(axis=2, keepdims=True), counts.sum(axis=1, keepdims=True)
    every = counts.sum(axis=(1, 2), keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        mutual = np.where(joint > 0, joint * np.log(joint * every / (only_a * only_b)), 0).sum()
        entropy = np.where(only_b > 0, -only_b * np.log(only_b / every), 0).sum()
    return float(mutual / entropy) if entropy > 0 else float("nan")
