"""Differences between two ways to tune, paired by task and seed, with their intervals and corrected p-values."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas
from scipy import stats

LEVEL = 0.05


def contrast(runs: pandas.DataFrame, first: str, second: str, outcome: str) -> dict[str, Any]:
    """The mean over tasks of the difference between two methods, paired by seed, with a t interval.

    The variance of the differences is pooled within tasks: with tasks t of n_t seeds, the standard error is
    s sqrt(sum_t 1 / n_t) / number of tasks, and has sum_t (n_t - 1) degrees of freedom.

    The difference is NaN where a task of `runs` has no pair, as it is a mean over all of them. The interval is NaN
    where no task has two seeds.
    """
    table = runs.pivot(index=["task", "seed"], columns="method", values=outcome).astype(float)
    paired = table.reindex(columns=[first, second]).dropna()
    differences = (paired[first] - paired[second]).groupby("task")
    counts, freedom = differences.size(), int(differences.size().sum() - differences.ngroups)
    row: dict[str, Any] = {"first": first, "second": second, "outcome": outcome, "pairs": int(counts.sum())}
    row |= dict.fromkeys(("difference", "low", "high", "p"), math.nan) | {"freedom": freedom}
    row["by_task"] = {task: values.tolist() for task, values in differences}
    if set(row["by_task"]) != set(runs["task"]):
        return row
    row["difference"] = value = float(differences.mean().mean())
    if freedom < 1:
        return row
    squares = differences.apply(lambda values: float(((values - values.mean()) ** 2).sum())).sum()
    error = math.sqrt(squares / freedom * float((1 / counts).sum())) / len(counts)
    reach = float(stats.t.ppf(1 - LEVEL / 2, freedom)) * error
    p = 2 * float(stats.t.sf(abs(value) / error, freedom)) if error else float(value == 0)
    return row | {"low": value - reach, "high": value + reach, "p": p}


def corrected(contrasts: list[dict[str, Any]], of: str = "p") -> list[dict[str, Any]]:
    """The same contrasts with `p_holm`, corrected for their number (Holm 1979); one that is missing counts as well."""
    ps = np.nan_to_num([each[of] for each in contrasts], nan=1.0)
    order = np.argsort(ps, kind="stable")
    rising = np.maximum.accumulate(ps[order] * np.arange(len(ps), 0, -1))
    holm = np.empty(len(ps))
    holm[order] = np.minimum(rising, 1)
    return [each | {"p_holm": float(p)} for each, p in zip(contrasts, holm, strict=True)]


def in_numbers(of: dict[str, Any]) -> str:
    """A contrast as a line: "sam - adamw +0.1 [-0.1, +0.3], 6 pairs"."""
    title, pairs = f"{of['first']} - {of['second']}", f"{of['pairs']} pair{'s' * (of['pairs'] != 1)}"
    if math.isnan(of["difference"]):
        return f"{title} has {pairs}, not of every task"
    if math.isnan(of["low"]):
        return f"{title} {of['difference']:+.4g}, {pairs}, too few for an interval"
    return f"{title} {of['difference']:+.4g} [{of['low']:+.4g}, {of['high']:+.4g}], {pairs}"
