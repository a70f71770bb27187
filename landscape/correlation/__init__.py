"""Flatness against forgetting over a table of checkpoints: how strong the link is, and how sure one can be of it.

Checkpoints that share a base, or a recipe, are not independent. In simulated tables of 6 to 12 bases a plain p-value
was below 0.05 in 7 to 31% of the cases although there was no link. With `groups`, intervals therefore resample whole
groups, and p-values permute within them.

`correlate` is here; `correlations` computes the row of each metric, `resampling` says how intervals are drawn,
`statistics` has the correlations, permutations and projections of plain arrays, and `table` reads columns.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from landscape.correlation.correlations import COLUMNS, Correlations
from landscape.correlation.resampling import Resampling
from landscape.correlation.statistics import METHODS, granulated_kendall
from landscape.correlation.table import number_columns, numbers_of, read_table, usable_rows
from landscape.errors import InputError, MeasurementWarning

if TYPE_CHECKING:
    import pandas

__all__ = ["METHODS", "Resampling", "correlate", "granulated_kendall", "numbers_of", "read_table", "usable_rows"]


def correlate(
    table: pandas.DataFrame | Path | str,
    *,
    flatness: Sequence[str] | None = None,
    forgetting: str = "forgetting",
    method: str = "spearman",
    controls: Sequence[str] = (),
    groups: str | None = None,
    hyperparameters: Sequence[str] = (),
    resampling: Resampling = Resampling(),
) -> pandas.DataFrame:
    """Correlate each flatness metric with forgetting: estimate, interval, p-value, and what is left given controls.

    Args:
        table: A DataFrame or a CSV file with a row per checkpoint.
        flatness: Columns to correlate with forgetting. None takes every column of numbers that has no other role, here
            or in the tables of `landscape measure` (where names, learning rates, seeds, losses and accuracies are left
            out).
        forgetting: Column of the outcome.
        method: "spearman", "pearson" or "kendall" (tau-b).
        controls: Columns held fixed in the partial correlation: metric and outcome (their ranks, unless `method` is
            "pearson") are regressed on them, and the residuals are correlated. "kendall" takes none.
        groups: Column that says which checkpoints belong together, such as those of one base.
        hyperparameters: All columns of a factorial design, for the column `granulated`.
        resampling: Number of resamples, confidence of the intervals, and seed.

    Returns:
        A row per metric; the settings are in its `attrs`. A number that cannot be had is NaN, and `note` says why. The
        columns are:

        - metric: Name of the flatness metric.
        - n, n_groups: Number of rows that have finite values of metric, outcome and controls, and a group; number of
          groups among them.
        - estimate, low, high: The correlation and its interval. Without groups, a BCa bootstrap over rows. With groups,
          the percentile bootstrap over groups, which covers better where they are few.
        - p, q: Permutation p-value, twice the smaller tail. It permutes the pairing of metric and outcome (over all
          pairings, where `resamples` are enough). With groups it permutes within them, which tests the link within
          groups alone, or permutes whole groups where one side has one value per group. q controls the false-discovery
          rate over all metrics.
        - partial, partial_low, partial_high: The correlation given the controls, and its percentile bootstrap interval
          over rows or groups.
        - partial_p, partial_q: p-value of the partial correlation by permuting residuals, and q over all metrics. With
          groups it tests what is left within them: residuals given controls and groups are permuted within groups.
        - within: Mean over groups of Kendall's tau within them.
        - logo_low, logo_high: Range of the estimate when each group in turn is left out.
        - granulated: Mean over hyperparameters of Kendall's tau along one of them with the others fixed.
        - note: Why a number is missing, or why to be wary of one.

    Raises:
        InputError: A column is missing, not numeric, there twice or of two roles, or a setting makes no sense.

    Warns:
        MeasurementWarning: Rows, or columns with text among their numbers, are left out.

    Source:
        Efron 1987 (BCa); Benjamini and Hochberg 1995 (q); Freedman and Lane 1983 (permuted residuals); Jiang et al.
        2020 (arXiv 1912.02178), section 4 (granulated Kendall).

    Example:
        The ranks of ten checkpoints agree but for two neighbours, so that Spearman's correlation is
        1 - 6 (1 + 1) / (10 (10^2 - 1)) = 0.9879.

        >>> import pandas
        >>> from landscape import Resampling, correlate
        >>> table = pandas.DataFrame({"trace": range(10), "forgetting": [0, 1, 2, 3, 4, 5, 6, 7, 9, 8]})
        >>> row = correlate(table, flatness=["trace"], resampling=Resampling(resamples=199)).iloc[0]
        >>> print(f"{row['estimate']:.4f}")
        0.9879
        >>> bool(row["low"] < row["estimate"] < row["high"]), bool(row["p"] < 0.05)
        (True, True)
    """
    import pandas

    frame = read_table(table)
    if method not in METHODS:
        raise InputError(f"method={method!r} is none of {', '.join(METHODS)}.")
    if controls and method == "kendall":
        raise InputError("method='kendall' has no partial form here; use spearman.")
    roles = [forgetting, *controls, *([groups] if groups else []), *hyperparameters]
    metrics = list(flatness) if flatness is not None else number_columns(frame, roles)
    for name in [*roles, *metrics]:
        if name not in frame.columns:
            raise InputError(f"the table has no column {name!r}; it has {', '.join(map(str, frame.columns))}.")
        if list(frame.columns).count(name) > 1:
            raise InputError(f"the table has more than one column {name!r}.")
    numeric = [forgetting, *controls, *metrics]
    for name in numeric:
        if numeric.count(name) > 1:
            raise InputError(f"column {name!r} is asked for twice among flatness, forgetting and controls.")
    if groups in numeric:
        raise InputError(f"column {groups!r} is the groups; it cannot be a metric, an outcome or a control as well.")
    if not metrics:
        raise InputError("the table has no numeric column to correlate with forgetting.")
    correlations = Correlations(
        frame=frame,
        numbers={name: numbers_of(frame, name) for name in numeric},
        method=method,
        forgetting=forgetting,
        controls=list(controls),
        groups=groups,
        hyperparameters=list(hyperparameters),
        resampling=resampling,
    )
    rows = [correlations.row(name) for name in metrics]
    _note_twins(rows, correlations.numbers)
    _warn_of_rows_left_out(correlations, metrics)
    result = pandas.DataFrame(rows)
    for p, q in (("p", "q"), ("partial_p", "partial_q")):
        result[q] = _q_values(result[p].to_numpy(float))
    result = result[COLUMNS]
    result.attrs = correlations.settings()
    return result


def _q_values(p: np.ndarray) -> np.ndarray:
    """Return the q-values of Benjamini and Hochberg 1995 over the p-values that are not NaN; NaN for the others."""
    q, known = np.full(len(p), np.nan), np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known], method="bh")
    return q


def _note_twins(rows: list[dict[str, Any]], numbers: dict[str, np.ndarray]) -> None:
    """Note which metrics have the numbers of another one: they are no second piece of evidence."""
    first: dict[bytes, str] = {}
    for row in rows:
        twin = first.setdefault(numbers[row["metric"]].tobytes(), row["metric"])
        if twin != row["metric"]:
            row["note"] = "; ".join(filter(None, [row["note"], f"same numbers as {twin}"]))


def _warn_of_rows_left_out(correlations: Correlations, metrics: Sequence[str]) -> None:
    """Warn once for each reason for which rows are left out, naming the metrics that it concerns."""
    metrics_of: dict[str, list[str]] = {}
    for name in metrics:
        for reason in correlations.left_out(name):
            metrics_of.setdefault(reason, []).append(str(name))
    for reason, names in metrics_of.items():
        which = "all metrics" if len(names) == len(metrics) > 1 else ", ".join(names)
        warnings.warn(f"{which}: {reason}.", MeasurementWarning, stacklevel=3)
