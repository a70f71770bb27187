"""Flatness against forgetting over a table of checkpoints: how strong the link is, and how sure one can be of it.

Checkpoints that share a base, or a recipe, are not independent: a plain p-value over them is wrong 7 to 31% of the time
at a nominal 5% (SCIENCE 6). With `groups`, intervals resample whole groups and p-values permute within them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from landscape.correlation.statistics import METHODS, granulated_kendall
from landscape.correlation.study import COLUMNS, Study
from landscape.correlation.table import number_columns, numbers_of, read_table, usable_rows
from landscape.errors import InputError, MeasurementWarning

if TYPE_CHECKING:
    import pandas

__all__ = ["METHODS", "correlate", "granulated_kendall", "numbers_of", "read_table", "usable_rows"]


def correlate(
    table: pandas.DataFrame | Path | str,
    *,
    flatness: Sequence[str] | None = None,
    forgetting: str = "forgetting",
    method: str = "spearman",
    controls: Sequence[str] = (),
    groups: str | None = None,
    hyperparameters: Sequence[str] = (),
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> pandas.DataFrame:
    """One row per flatness metric: its correlation with forgetting, interval, p-value, and what is left given controls.

    table            a row per checkpoint; a DataFrame or a CSV file
    flatness         columns to correlate; default: every column of numbers that has no other role here or in the tables
                     of `landscape measure` (names, learning rates, seeds, losses and accuracies are left out)
    method           "spearman", "pearson" or "kendall" (tau-b)
    controls         columns held fixed in `partial`: both sides (their ranks, unless pearson) are regressed on them and
                     the residuals correlated. Not for kendall
    groups           column that says which checkpoints belong together (their base)
    hyperparameters  all columns of a factorial design, for `granulated`: the mean over hyperparameters of Kendall's tau
                     along one with the others fixed (Jiang et al. 2020, arXiv 1912.02178, sec. 4)

    Columns of the result:
    n, n_groups            rows with a group and finite values of metric, forgetting and controls; their groups
    estimate, low, high    the correlation and its interval: BCa bootstrap over rows (Efron 1987), or, with groups, the
                           percentile bootstrap over groups, which covers better for few of them
    p, q                   permutation p-value, twice the smaller tail: over pairings (all of them where `resamples` are
                           enough), or within groups, which tests the link within them alone; over whole groups where
                           one side is one number per group. q: Benjamini and Hochberg 1995 over all metrics
    partial                given controls; partial_low, partial_high: percentile bootstrap over rows, or over groups
    partial_p, partial_q   permutes residuals (Freedman and Lane 1983). With groups it tests what is left within them:
                           residuals given controls and groups, permuted within groups. partial_q: as q, of these
    within                 mean over groups of Kendall's tau within them
    logo_low, logo_high    range of the estimate when each group in turn is left out
    granulated             see `hyperparameters`
    note                   why a number is missing, or what to be wary of

    The settings are in the result's `attrs`. A number that cannot be had is NaN and its row says why.
    MeasurementWarning where rows, or columns of numbers with text among them, are left out. Raises InputError for
    columns that are not there, not numbers, there twice or of two roles, and settings that make no sense.
    """
    import pandas

    frame = read_table(table)
    if method not in METHODS:
        raise InputError(f"method={method!r} is none of {', '.join(METHODS)}.")
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must be between 0 and 1.")
    if resamples < 99:
        raise InputError(f"resamples={resamples} are too few for an interval; take at least 99.")
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
    study = Study(
        frame=frame,
        numbers={name: numbers_of(frame, name) for name in numeric},
        method=method,
        forgetting=forgetting,
        controls=list(controls),
        groups=groups,
        hyperparameters=list(hyperparameters),
        confidence=confidence,
        resamples=resamples,
        seed=seed,
    )
    rows = [study.row(name) for name in metrics]
    _say_twins(rows, study.numbers)
    _warn_of_rows_left_out(study, metrics)
    result = pandas.DataFrame(rows)
    for p, q in (("p", "q"), ("partial_p", "partial_q")):
        result[q] = _q_values(result[p].to_numpy(float))
    result = result[COLUMNS]
    result.attrs = study.settings()
    return result


def _q_values(p: np.ndarray) -> np.ndarray:
    """Benjamini and Hochberg 1995 over the p-values that there are; NaN for the others."""
    q, known = np.full(len(p), np.nan), np.isfinite(p)
    if known.any():
        q[known] = stats.false_discovery_control(p[known], method="bh")
    return q


def _say_twins(rows: list[dict[str, Any]], numbers: dict[str, np.ndarray]) -> None:
    """Note which metrics are another one again: they are no second piece of evidence."""
    first: dict[bytes, str] = {}
    for row in rows:
        twin = first.setdefault(numbers[row["metric"]].tobytes(), row["metric"])
        if twin != row["metric"]:
            row["note"] = "; ".join(filter(None, [row["note"], f"same numbers as {twin}"]))


def _warn_of_rows_left_out(study: Study, metrics: Sequence[str]) -> None:
    said: dict[str, list[str]] = {}
    for name in metrics:
        for text in study.left_out(name):
            said.setdefault(text, []).append(str(name))
    for text, names in said.items():
        which = "all metrics" if len(names) == len(metrics) > 1 else ", ".join(names)
        warnings.warn(f"{which}: {text}.", MeasurementWarning, stacklevel=3)
