"""Flatness against forgetting over a table of checkpoints: how strong the link is, and how sure one can be of it.

Checkpoints that share a base, or a recipe, are not independent, and a learning rate moves both their flatness and their
forgetting. In simulated tables with no link at all, statistics that ignore this found one in 7 to 100% of the cases.
With `groups`, intervals therefore count whole groups, and with `factors`, runs are compared with runs tuned alike.

`correlate` is here; `correlations` computes the row of each metric, and `estimands` its three correlations: pooled,
among runs tuned alike, and within a group. `held` says what each of them holds fixed, `exchange` which rows and groups
may trade places in permutations, `prediction` how well a metric orders runs and predicts new groups, and `simulation`
how often all this errs on a design like yours. `resampling` says how many draws are made, `statistics` has correlations
of plain arrays, and `table` reads columns. `mixed` fits linear mixed models, as a second opinion.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from landscape.correlation.correlations import COLUMNS, Correlations
from landscape.correlation.estimands import ESTIMANDS, column, estimand_table
from landscape.correlation.mixed import mixed_models
from landscape.correlation.resampling import Resampling
from landscape.correlation.simulation import simulate_design
from landscape.correlation.statistics import METHODS, granulated_kendall
from landscape.correlation.table import checked_metrics, group_levels, numbers_of, read_table, usable_rows
from landscape.errors import InputError, MeasurementWarning, as_typed

if TYPE_CHECKING:
    import pandas

__all__ = [
    "METHODS",
    "Resampling",
    "correlate",
    "estimand_table",
    "granulated_kendall",
    "group_levels",
    "mixed_models",
    "numbers_of",
    "read_table",
    "simulate_design",
    "usable_rows",
]


def correlate(
    table: pandas.DataFrame | Path | str,
    *,
    flatness: Sequence[str] | None = None,
    forgetting: str = "forgetting",
    method: str = "spearman",
    controls: Sequence[str] = (),
    factors: Sequence[str] = (),
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
        controls: Columns of numbers held fixed: metric and outcome (their ranks, unless `method` is "pearson") are
            regressed on them, and the residuals are correlated. "kendall" takes none. A control that is a noisy
            stand-in for a cause, such as a divergence for the learning rate, does not hold that cause fixed.
        factors: Columns of categories held fixed, such as the optimizer and the learning rate; numbers count as
            categories, too, so that an effect may rise and fall. Each combination of their values has a level of its
            own. Runs that agree in all of them are tuned alike.
        groups: Column that says which checkpoints belong together, such as those of one base; nested columns, the
            widest first, are parted by slashes ("recipe/base"). The widest groups must be independent of each other.
        hyperparameters: All columns of a factorial design, for `granulated`, the robust sign error and the conditional
            information. The last two take `factors` where this is empty.
        resampling: Number of resamples, confidence of the intervals, and seed.

    Returns:
        A row per metric; the settings are in its `attrs`. A number that cannot be had is NaN, and `note` says why.
        Three correlations answer three questions. `estimate` is over all runs, `partial` among runs tuned alike (given
        factors and controls), `within_partial` among runs tuned alike within one of the widest groups. The columns are:

        - metric: Name of the flatness metric.
        - n, n_groups: Number of rows that have finite values of metric, outcome and controls, and a factor and group;
          number of the widest groups among them.
        - estimate, low, high: The correlation over all runs and its interval. Without groups, this is a BCa bootstrap
          over rows. With groups, it is a jackknife over the widest groups, with Fisher's z and a t quantile with
          n_groups - 1 degrees of freedom. At a nominal 5% it missed the truth in at most 7% of simulated tables of 3 to
          24 groups; but in 8 to 10% of those of 6 groups whose pooled correlation came from the factors alone, because
          it then depends on how far the groups happen to lie apart. `simulate_design` measures this for your table.
        - p, q: Permutation p-value, twice the smaller tail. It permutes the pairing of metric and outcome (over all
          pairings, where `resamples` are enough). With groups it permutes within them, which tests the link within
          groups alone, or permutes whole groups where one side has one value per group. With factors or nested groups,
          whole groups trade places with groups of the same make-up, and their parts within them, so that the test is
          exact where groups are exchangeable. q controls the false-discovery rate over all metrics.
        - partial, partial_low, partial_high: The correlation given factors and controls, and its interval: a jackknife
          over the widest groups, or over rows where there are factors but no groups; with controls alone and no groups,
          a percentile bootstrap over rows.
        - partial_p, partial_q: p-value of the partial correlation by permuting residuals, and q over all metrics. With
          factors or nested groups, as for p, but rows and groups trade places only with those of the same cells of
          the factors. With controls and one level of groups alone, residuals given controls and groups are permuted
          within groups, which tests what is left within them.
        - within: Mean over groups of Kendall's tau within them.
        - logo_low, logo_high: Range of the estimate when each group in turn is left out.
        - granulated: Mean over hyperparameters of Kendall's tau along one of them with the others fixed.
        - within_partial, within_partial_low, within_partial_high: The correlation within the widest groups, given
          factors and controls, and its jackknife interval. Each cell of each group has a level of its own where most
          rows share theirs; otherwise cells and groups have levels that add up, and `note` says so.
        - within_partial_p, within_partial_q: Its permutation p-value and q. The widest groups stay in place.
        - family_p, family_low, family_high, and the same after partial_ and within_partial_: p-value and interval
          corrected for all metrics of the table: with the chosen confidence, no interval of any metric misses. The
          correction is the minimum of p-values under joint permutation (max-T).
        - robust_sign_error, worst_environment: How often the metric orders two runs wrongly under the worst change of
          one hyperparameter (of one base, if there are groups), and which change that is. A coin flip has 0.5.
        - conditional_information: Information in the order of two runs by the metric about their order by the outcome,
          as a share of what is to be known, given the two hyperparameters for which it is least.
        - held_out_r2, held_out_gain: How well lines fitted to the other groups predict a group left out (ranks, unless
          the method is "pearson"): R2 of the metric alone, and the share that it explains of what factors and
          controls leave. Below zero, the metric makes the prediction worse.
        - note: Why a number is missing, or why to be wary of one.

    Raises:
        InputError: A column is missing, not numeric, there twice or of two roles, or a setting makes no sense.

    Warns:
        MeasurementWarning: Rows, or columns with text among their numbers, are left out.

    Source:
        Efron 1987 (BCa); Miller 1974 (jackknife); Benjamini and Hochberg 1995 (q); Westfall and Young 1993
        (family-wise); Freedman and Lane 1983 (permuted residuals); Winkler et al. 2015 (permutation of nested blocks);
        Jiang et al. 2020 (arXiv 1912.02178), section 4 (granulated Kendall, conditional information); Dziugaite et al.
        2020 (arXiv 2010.11924) (robust sign error).

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

        Twelve runs at two learning rates: both sides rise with the learning rate, and at either of them the metric
        falls as forgetting rises.

        >>> table = pandas.DataFrame({"lr": [1, 2] * 6, "trace": [6, 16, 5, 15, 4, 14, 3, 13, 2, 12, 1, 11]})
        >>> table["forgetting"] = [1, 11, 2, 12, 3, 13, 4, 14, 5, 15, 6, 16]
        >>> row = correlate(table, factors=["lr"], resampling=Resampling(resamples=199)).iloc[0]
        >>> print(f"pooled {row['estimate']:+.2f}, tuned alike {row['partial']:+.2f}")
        pooled +0.51, tuned alike -1.00
    """
    import pandas

    frame = read_table(table)
    if method not in METHODS:
        raise InputError(f"{as_typed('method', method)} is none of {', '.join(METHODS)}.")
    levels = group_levels(frame, groups)
    if method == "kendall" and (controls or factors or len(levels) > 1):
        raise InputError(
            f"{as_typed('method', 'kendall')} has no partial form here: it takes no controls, factors or nested "
            "groups; use spearman."
        )
    metrics = checked_metrics(frame, flatness, forgetting, controls, factors, levels, hyperparameters)
    correlations = Correlations(
        frame=frame,
        numbers={name: numbers_of(frame, name) for name in [forgetting, *controls, *metrics]},
        method=method,
        forgetting=forgetting,
        controls=list(controls),
        factors=list(factors),
        groups=groups,
        hyperparameters=list(hyperparameters),
        resampling=resampling,
    )
    rows = correlations.rows(metrics)
    _note_twins(rows, correlations.numbers)
    _warn_of_rows_left_out(correlations, metrics)
    result = pandas.DataFrame(rows)
    for name in ESTIMANDS:
        result[column(name, "q")] = _q_values(result[column(name, "p")].to_numpy(float))
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
