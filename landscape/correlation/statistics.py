"""Correlations, permutations and projections of plain arrays."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy import linalg, stats

if TYPE_CHECKING:
    import pandas

METHODS = ("spearman", "pearson", "kendall")

Statistic = Callable[..., np.ndarray]  # (x, y, axis=-1)


def statistic_of(method: str) -> Statistic:
    """Return a correlation along the last axis of two arrays of one shape; it is NaN where one side is constant."""

    def pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of constant rows scipy warns, and gives NaN.
            return np.asarray(stats.pearsonr(x, y, axis=axis).statistic)

    def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)

    def kendall(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        x, y = np.broadcast_arrays(np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1))
        flat = zip(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), strict=True)
        return np.array([stats.kendalltau(a, b).statistic for a, b in flat]).reshape(x.shape[:-1])

    return {"pearson": pearson, "spearman": spearman, "kendall": kendall}[method]


# From x, the labels of its groups, a count and a generator: that many permutations of x, one per row.
Permute = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]


def permute_all(x: np.ndarray, _: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return `count` permutations of x, shape (count, len(x))."""
    return generator.permuted(np.tile(x, (count, 1)), axis=1)


def permute_within(x: np.ndarray, labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return `count` permutations of x within groups, shape (count, len(x))."""
    # Labels are whole numbers and the draws lie in [0, 1): this sorts by group, and at random within each.
    shuffled = np.argsort(labels + generator.random((count, len(x))), axis=1)
    out = np.empty((count, len(x)))
    out[:, np.argsort(labels, kind="stable")] = x[shuffled]
    return out


def permute_groups(x: np.ndarray, labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Return `count` permutations of whole groups, of an x with one value per group; shape (count, len(x))."""
    _, first = np.unique(labels, return_index=True)
    return permute_all(x[first], labels, count, generator)[:, labels]


def one_per_group(v: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether the values of each group are all the same."""
    return all(is_constant(v[labels == g]) for g in range(labels.max() + 1))


def is_constant(v: np.ndarray) -> bool:
    """Return whether all values are the same up to rounding, so that their order means nothing."""
    return len(v) == 0 or float(np.ptp(v)) <= 1e-12 * float(np.abs(v).max())


def resampled_groups(labels: np.ndarray, count: int, generator: np.random.Generator) -> Iterator[np.ndarray]:
    """Yield the rows of `count` bootstrap samples of whole groups, in pieces of shape (samples, rows of each)."""
    members = [np.flatnonzero(labels == g) for g in range(labels.max() + 1)]
    draws = generator.integers(0, len(members), (count, len(members)))
    if len({len(m) for m in members}) == 1:
        for part in np.array_split(draws, max(1, count // 1000)):
            yield np.stack(members)[part].reshape(len(part), -1)
    else:
        for draw in draws:
            yield np.concatenate([members[g] for g in draw])[None]


def partial_correlations(x: np.ndarray, y: np.ndarray, given: np.ndarray, ranked: bool) -> np.ndarray:
    """Return the partial correlation of each sample, shape (samples,).

    Args:
        x: One side, shape (samples, rows).
        y: The other side, shape (samples, rows).
        given: The controls, shape (samples, rows, controls).
        ranked: Whether values are replaced by their ranks first (Spearman).

    Returns:
        The correlation of what is left of x and y given the controls; NaN where nothing is left.
    """
    if ranked:
        x, y, given = (stats.rankdata(v, axis=1) for v in (x, y, given))
    centered = given - given.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centered, axis=1, keepdims=True)
    u, sizes, _ = np.linalg.svd(centered / np.where(lengths > 0, lengths, 1), full_matrices=False)
    u = u * (sizes > 1e-9)[:, None, :]  # Without controls that are constant in a resample, or alike.
    left = []
    for v in (x, y):
        v = v - v.mean(axis=1, keepdims=True)
        size = np.linalg.norm(v, axis=1, keepdims=True)
        v = v - np.einsum("snk,sk->sn", u, np.einsum("snk,sn->sk", u, v))
        norm = np.linalg.norm(v, axis=1, keepdims=True)
        left.append(v / np.where(norm > 1e-9 * size, norm, np.nan))
    return np.asarray((left[0] * left[1]).sum(axis=1))


def basis_of(controls: np.ndarray) -> np.ndarray:
    """Return orthonormal columns that span a constant and the controls, shape (rows, rank)."""
    centered = controls - controls.mean(axis=0)
    lengths = np.linalg.norm(centered, axis=0)
    kept = lengths > 1e-12 * np.linalg.norm(controls, axis=0)
    # To unit length: a learning rate beside a number of steps would otherwise be lost in rounding.
    scaled = centered[:, kept] / lengths[kept]
    return np.asarray(linalg.orth(np.column_stack([np.full(len(controls), len(controls) ** -0.5), scaled])))


def left_over(v: np.ndarray, basis: np.ndarray) -> np.ndarray | None:
    """Return what is left of v after a least-squares fit on the basis; None where only rounding is left."""
    left = v - basis @ (basis.T @ v)
    return left if np.linalg.norm(left) > 1e-9 * np.linalg.norm(v - v.mean()) else None


def kendall_within(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean over groups of Kendall's tau within them; NaN where no group has one."""
    kendall = statistic_of("kendall")
    values = [value_of(kendall, x[labels == g], y[labels == g]) for g in range(labels.max() + 1)]
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def value_of(statistic: Statistic, x: np.ndarray, y: np.ndarray) -> float:
    """Return the statistic of two vectors; NaN where there is nothing to correlate."""
    return float(statistic(x, y)) if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def range_of(values: Sequence[float]) -> tuple[float, float]:
    """Return the least and the largest finite value; NaN where there is none."""
    known = [v for v in values if np.isfinite(v)]
    return (min(known), max(known)) if known else (float("nan"), float("nan"))


def granulated_kendall(table: pandas.DataFrame, metric: str, outcome: str, hyperparameters: Sequence[str]) -> float:
    """Return granulated Kendall: tau along each hyperparameter with the others fixed, averaged.

    Args:
        table: A row per run of a factorial design.
        metric: Column of the metric.
        outcome: Column of the outcome.
        hyperparameters: All columns of the design.

    Returns:
        The mean over hyperparameters of the mean, over settings of the others, of Kendall's tau along it. NaN where no
        setting varies along any hyperparameter.

    Source:
        Jiang et al. 2020 (arXiv 1912.02178), section 4.
    """
    kendall = statistic_of("kendall")
    along = []
    for name in hyperparameters:
        others = [h for h in hyperparameters if h != name]
        parts = [part for _, part in table.groupby(others, dropna=False)] if others else [table]
        taus = [
            value_of(kendall, part[metric].to_numpy(dtype=float), part[outcome].to_numpy(dtype=float))
            for part in parts
            if part[name].nunique(dropna=False) > 1
        ]
        known = [tau for tau in taus if np.isfinite(tau)]
        if known:
            along.append(float(np.mean(known)))
    return float(np.mean(along)) if along else float("nan")
