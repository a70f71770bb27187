"""Differences between two ways to tune, paired by task and seed, with their intervals and corrected p-values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas
from scipy import stats

LEVEL = 0.05


def contrast(runs: pandas.DataFrame, first: str, second: str, outcome: str) -> dict[str, Any]:
    """The mean over tasks of the difference between two methods, paired by seed, with two t intervals.

    The plan's (`low`, `high`, `p`) pools the variance of the differences within tasks: with tasks t of n_t seeds, the
    standard error is s sqrt(sum_t 1 / n_t) / number of tasks, and has sum_t (n_t - 1) degrees of freedom. The other
    (`apart_low`, `apart_high`, `apart_p`) has a variance s_t^2 for each task, and the degrees of freedom of Welch 1947
    and Satterthwaite 1946: (sum_t s_t^2 / n_t)^2 / sum_t (s_t^2 / n_t)^2 / (n_t - 1). Where one task varies much more
    than the other, as the differences in forgetting do, the first covers down to 89% at a nominal 95%.

    The difference is NaN where a task of `runs` has no pair, as it is a mean over all of them. The plan's interval is
    NaN where no task has two seeds, the other where any has not.
    """
    table = runs.pivot(index=["task", "seed"], columns="method", values=outcome).astype(float)
    paired = table.reindex(columns=[first, second]).dropna()
    differences = (paired[first] - paired[second]).groupby("task")
    counts, freedom = differences.size(), int(differences.size().sum() - differences.ngroups)
    row: dict[str, Any] = {"first": first, "second": second, "outcome": outcome, "pairs": int(counts.sum())}
    ends = ("low", "high", "p", "apart_low", "apart_high", "apart_p")
    row |= dict.fromkeys(("difference", *ends), math.nan) | {"freedom": freedom}
    row["by_task"] = {task: values.tolist() for task, values in differences}
    if set(row["by_task"]) != set(runs["task"]):
        return row
    row["difference"] = value = float(differences.mean().mean())
    if freedom < 1:
        return row
    squares = differences.apply(lambda values: float(((values - values.mean()) ** 2).sum())).sum()
    error = math.sqrt(squares / freedom * float((1 / counts).sum())) / len(counts)
    row |= dict(zip(ends[:3], _interval(value, error, freedom), strict=True))
    if (counts < 2).any():
        return row
    variances = differences.var() / counts
    error = math.sqrt(float(variances.sum())) / len(counts)
    spread = float((variances**2 / (counts - 1)).sum())
    freedom_apart = float(variances.sum()) ** 2 / spread if spread else float(freedom)
    return row | dict(zip(ends[3:], _interval(value, error, freedom_apart), strict=True))


def _interval(value: float, error: float, freedom: float) -> tuple[float, float, float]:
    """The ends of the t interval, and the p-value of no difference."""
    reach = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(value) / error, freedom)) if error else float(value == 0)
    return value - reach, value + reach, p


def with_evidence(contrasts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same contrasts with both p-values corrected for their number, and whether both are below the level."""
    both = corrected(corrected(contrasts), "apart_p", "apart_p_holm")
    return [each | {"evidence": max(each["p_holm"], each["apart_p_holm"]) < LEVEL} for each in both]


def corrected(contrasts: list[dict[str, Any]], of: str = "p", to: str = "p_holm") -> list[dict[str, Any]]:
    """The same contrasts with p-values corrected for their number (Holm 1979); one that is missing counts as well."""
    ps = np.nan_to_num([each[of] for each in contrasts], nan=1.0)
    order = np.argsort(ps, kind="stable")
    rising = np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1))
    holm = np.empty(len(ps))
    holm[order] = np.minimum(rising, 1)
    return [each | {to: float(p)} for each, p in zip(contrasts, holm, strict=True)]


def in_numbers(of: dict[str, Any]) -> str:
    """A contrast as a line: "sam - adamw +0.1 [-0.1, +0.3], 6 pairs"."""
    title, pairs = f"{of['first']} - {of['second']}", f"{of['pairs']} pair{'s' * (of['pairs'] != 1)}"
    if math.isnan(of["difference"]):
        return f"{title} has {pairs}, not of every task"
    if math.isnan(of["low"]):
        return f"{title} {of['difference']:+.4g}, {pairs}, too few for an interval"
    return f"{title} {of['difference']:+.4g} [{of['low']:+.4g}, {of['high']:+.4g}], {pairs}"
