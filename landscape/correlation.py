"""Flatness against forgetting over a table of checkpoints: how strong the link is, and how sure one can be of it.

Checkpoints that share a base, or a recipe, are not independent: a plain p-value over them is wrong 7 to 31% of the time
at a nominal 5% (SCIENCE 6). With `groups`, intervals resample whole groups and p-values permute within them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from landscape.errors import InputError, MeasurementWarning

if TYPE_CHECKING:
    import pandas

METHODS = ("spearman", "pearson", "kendall")
FEW_ROWS = 10  # below it a note says so: at 10 rows a rank correlation of 0.63 is the least that reaches p = 0.05
FEW_GROUPS = 20  # below it bootstraps over groups cover less than they say (SCIENCE 6)

Statistic = Callable[..., np.ndarray]  # (x, y, axis=-1)


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
    flatness         columns to correlate; default: every numeric column that has no other role
    method           "spearman", "pearson" or "kendall" (tau-b)
    controls         columns held fixed in `partial`: both sides (their ranks, unless pearson) are regressed on them and
                     the residuals correlated. Not for kendall
    groups           column that says which checkpoints belong together (their base)
    hyperparameters  columns of a factorial design, for `granulated`: the mean over hyperparameters of Kendall's tau
                     along one with the others fixed (Jiang et al. 2020, arXiv 1912.02178, sec. 4)

    Columns of the result:
    n, n_groups            rows with finite values on both sides; their groups
    estimate, low, high    the correlation and its interval: BCa bootstrap over rows (Efron 1987), or, with groups, the
                           percentile bootstrap over groups, which covers better for few of them
    p, q                   permutation p-value, two-sided: over pairings, or within groups; over whole groups for a
                           metric that is one number per group. q: Benjamini and Hochberg 1995 over all metrics
    partial, partial_p     given controls
    within                 mean over groups of Kendall's tau within them
    logo_low, logo_high    range of the estimate when each group in turn is left out
    granulated             see `hyperparameters`
    note                   why a number is missing, or what to be wary of

    A number that cannot be had is NaN and its row says why. MeasurementWarning where rows are left out. Raises
    InputError for columns that are not there or not numbers, and settings that make no sense.
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
    metrics = list(flatness) if flatness is not None else _numeric_columns(frame, roles)
    for name in [*roles, *metrics]:
        if name not in frame.columns:
            raise InputError(f"the table has no column {name!r}; it has {', '.join(map(str, frame.columns))}.")
    for name in [forgetting, *controls, *metrics]:
        if not pandas.api.types.is_numeric_dtype(frame[name]):
            raise InputError(f"column {name!r} does not hold numbers.")
    if not metrics:
        raise InputError("the table has no numeric column to correlate with forgetting.")
    one = _Correlation(frame, forgetting, method, tuple(controls), groups, tuple(hyperparameters))
    rows = [one.row(name, confidence, resamples, seed) for name in metrics]
    result = pandas.DataFrame(rows)
    known = result["p"].notna()
    result["q"] = np.nan
    if known.any():
        result.loc[known, "q"] = stats.false_discovery_control(result.loc[known, "p"].to_numpy(), method="bh")
    return result[_COLUMNS]


_COLUMNS = [
    "metric",
    "n",
    "n_groups",
    "estimate",
    "low",
    "high",
    "p",
    "q",
    "partial",
    "partial_p",
    "within",
    "logo_low",
    "logo_high",
    "granulated",
    "note",
]


def read_table(table: pandas.DataFrame | Path | str) -> pandas.DataFrame:
    """The table itself, or what a CSV file holds. Raises InputError naming a file that cannot be read."""
    import pandas

    if isinstance(table, pandas.DataFrame):
        frame = table
    else:
        try:
            frame = pandas.read_csv(table)
        except (OSError, ValueError) as error:
            raise InputError(f"{table} cannot be read as a CSV table: {str(error).splitlines()[0]}.") from error
    if frame.empty:
        raise InputError("the table has no rows.")
    return frame


def _numeric_columns(frame: pandas.DataFrame, roles: Sequence[str]) -> list[str]:
    import pandas

    def usable(name: Any) -> bool:
        column = frame[name]
        return pandas.api.types.is_numeric_dtype(column) and not pandas.api.types.is_bool_dtype(column)

    return [name for name in frame.columns if name not in roles and usable(name)]


class _Correlation:
    """The correlation of each metric with one outcome, under one design."""

    def __init__(
        self,
        frame: pandas.DataFrame,
        outcome: str,
        method: str,
        controls: tuple[str, ...],
        groups: str | None,
        hyperparameters: tuple[str, ...],
    ):
        self.frame, self.outcome, self.method = frame, outcome, method
        self.controls, self.groups, self.hyperparameters = controls, groups, hyperparameters

    def row(self, metric: str, confidence: float, resamples: int, seed: int) -> dict[str, Any]:
        numbers = self.frame[[metric, self.outcome, *self.controls]].to_numpy(dtype=float)
        finite = np.isfinite(numbers).all(axis=1)
        x, y = numbers[finite, 0], numbers[finite, 1]
        labels = self.frame[self.groups].to_numpy()[finite] if self.groups else np.arange(len(x))
        _, labels = np.unique(labels.astype(str), return_inverse=True)
        count = int(labels.max()) + 1 if len(labels) else 0
        row: dict[str, Any] = dict.fromkeys(_COLUMNS, np.nan)
        row |= {"metric": metric, "n": len(x), "n_groups": count if self.groups else np.nan}
        notes = []
        left_out = int((~finite).sum())
        if left_out:
            notes.append(f"{left_out} rows without finite values left out")
            warnings.warn(
                f"{metric}: {left_out} of {len(finite)} rows have no finite value and are left out.",
                MeasurementWarning,
                stacklevel=3,
            )
        constant = [name for name, v in ((metric, x), (self.outcome, y)) if len(v) and np.ptp(v) == 0]
        if len(x) < 3 or constant:
            notes.append(f"{constant[0]} is constant" if constant else "fewer than three rows")
            return row | {"note": "; ".join(notes)}
        if len(x) < FEW_ROWS:
            notes.append(f"only {len(x)} rows")
        statistic = _statistic(self.method)
        row["estimate"] = float(statistic(x, y))
        generator = np.random.default_rng(seed)
        if self.groups:
            if count < FEW_GROUPS:
                notes.append(f"only {count} groups: the interval is too narrow")
            if count >= 3:
                row["low"], row["high"] = _cluster_interval(x, y, labels, statistic, confidence, resamples, generator)
                kept = [_of(statistic, x[labels != g], y[labels != g]) for g in range(count)]
                row["logo_low"], row["logo_high"] = _range(kept)
            row["within"] = _within(x, y, labels)
            per_group = all(np.ptp(x[labels == g]) == 0 for g in range(count))
            if per_group:
                notes.append("one value per group: p permutes groups")
            permute: Permute = _permute_groups if per_group else _permute_within
            row["p"] = _permutation_p(x, y, labels, statistic, permute, resamples, generator)
        else:
            row["low"], row["high"] = _interval(x, y, statistic, confidence, resamples, generator)
            row["p"] = _permutation_p(x, y, labels, statistic, _permute_all, resamples, generator)
        if self.controls:
            given = numbers[finite, 2:]
            if len(x) <= given.shape[1] + 3:
                notes.append("too few rows for the controls")
            else:
                rx, ry = _residuals(x, given, self.method), _residuals(y, given, self.method)
                if min(np.ptp(rx), np.ptp(ry)) <= 1e-12 * max(np.ptp(x), np.ptp(y)):
                    notes.append("the controls explain everything")
                else:
                    pearson = _statistic("pearson")
                    permute = _permute_within if self.groups else _permute_all
                    row["partial"] = float(pearson(rx, ry))
                    row["partial_p"] = _permutation_p(rx, ry, labels, pearson, permute, resamples, generator)
        if self.hyperparameters:
            row["granulated"] = granulated_kendall(self.frame[finite], metric, self.outcome, self.hyperparameters)
        if not np.isfinite([row["low"], row["high"]]).all() and "low" not in notes:
            notes.append("no interval: resamples were constant")
        return row | {"note": "; ".join(notes)}


def _statistic(method: str) -> Statistic:
    """A correlation along the last axis of two arrays of one shape; NaN where one side is constant."""

    def pearson(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # constant rows: scipy warns and gives NaN
            return np.asarray(stats.pearsonr(x, y, axis=axis).statistic)

    def spearman(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        return pearson(stats.rankdata(x, axis=axis), stats.rankdata(y, axis=axis), axis)

    def kendall(x: np.ndarray, y: np.ndarray, axis: int = -1) -> np.ndarray:
        x, y = np.broadcast_arrays(np.moveaxis(x, axis, -1), np.moveaxis(y, axis, -1))
        flat = zip(x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1]), strict=True)
        return np.array([stats.kendalltau(a, b).statistic for a, b in flat]).reshape(x.shape[:-1])

    return {"pearson": pearson, "spearman": spearman, "kendall": kendall}[method]


def _interval(
    x: np.ndarray,
    y: np.ndarray,
    statistic: Statistic,
    confidence: float,
    resamples: int,
    generator: np.random.Generator,
) -> tuple[float, float]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scipy's own say what comes back as NaN
        found = stats.bootstrap(
            (x, y),
            statistic,
            paired=True,
            vectorized=True,
            n_resamples=resamples,
            confidence_level=confidence,
            method="BCa",
            rng=generator,
        ).confidence_interval
    return float(found.low), float(found.high)


def _cluster_interval(
    x: np.ndarray,
    y: np.ndarray,
    labels: np.ndarray,
    statistic: Statistic,
    confidence: float,
    resamples: int,
    generator: np.random.Generator,
) -> tuple[float, float]:
    members = [np.flatnonzero(labels == g) for g in range(labels.max() + 1)]
    draws = generator.integers(0, len(members), (resamples, len(members)))
    if len({len(m) for m in members}) == 1:
        rows = np.stack(members)[draws].reshape(resamples, -1)
        values = statistic(x[rows], y[rows])
    else:
        parts = (np.concatenate([members[g] for g in draw]) for draw in draws)
        values = np.array([statistic(x[rows], y[rows]) for rows in parts])
    values = values[np.isfinite(values)]
    if len(values) < resamples / 2:
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


# x, the groups' labels, how many, a generator -> that many permutations of x, one a row
Permute = Callable[[np.ndarray, np.ndarray, int, np.random.Generator], np.ndarray]


def _permute_all(x: np.ndarray, _: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    return generator.permuted(np.tile(x, (count, 1)), axis=1)


def _permute_within(x: np.ndarray, labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    shuffled = np.argsort(labels + generator.random((count, len(x))), axis=1)  # by group, at random within
    out = np.empty((count, len(x)))
    out[:, np.argsort(labels, kind="stable")] = x[shuffled]
    return out


def _permute_groups(x: np.ndarray, labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    first = np.array([x[labels == g][0] for g in range(labels.max() + 1)])
    return _permute_all(first, labels, count, generator)[:, labels]


def _permutation_p(
    x: np.ndarray,
    y: np.ndarray,
    labels: np.ndarray,
    statistic: Statistic,
    permute: Permute,
    resamples: int,
    generator: np.random.Generator,
) -> float:
    """Two-sided, with the observed arrangement counted among the permuted ones (Phipson and Smyth 2010).

    Two-sided is about the mean over permutations, which within groups is not zero: groups differ.
    """
    observed = float(statistic(x, y))
    permuted = permute(x, labels, resamples, generator)
    values = statistic(permuted, np.broadcast_to(y, permuted.shape))
    values = values[np.isfinite(values)]
    if not len(values) or not np.isfinite(observed):
        return float("nan")
    center = values.mean()
    extreme = int((np.abs(values - center) >= abs(observed - center) - 1e-12).sum())
    return (extreme + 1) / (len(values) + 1)


def _residuals(v: np.ndarray, controls: np.ndarray, method: str) -> np.ndarray:
    """What is left of v (of its ranks, unless pearson) after a least-squares fit on the controls."""
    if method == "spearman":
        v, controls = stats.rankdata(v), stats.rankdata(controls, axis=0)
    design = np.column_stack([np.ones(len(v)), controls])
    coefficients, *_ = np.linalg.lstsq(design, v, rcond=None)
    return v - design @ coefficients


def _within(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> float:
    kendall = _statistic("kendall")
    values = [_of(kendall, x[labels == g], y[labels == g]) for g in range(labels.max() + 1)]
    known = [v for v in values if np.isfinite(v)]
    return float(np.mean(known)) if known else float("nan")


def _of(statistic: Statistic, x: np.ndarray, y: np.ndarray) -> float:
    """The statistic of two vectors; NaN where there is nothing to correlate."""
    return float(statistic(x, y)) if len(x) > 1 and np.ptp(x) > 0 and np.ptp(y) > 0 else float("nan")


def _range(values: Sequence[float]) -> tuple[float, float]:
    known = [v for v in values if np.isfinite(v)]
    return (min(known), max(known)) if known else (float("nan"), float("nan"))


def granulated_kendall(table: pandas.DataFrame, metric: str, outcome: str, hyperparameters: Sequence[str]) -> float:
    """Mean over hyperparameters of the mean, over settings of the others, of Kendall's tau along it.

    Jiang et al. 2020 (arXiv 1912.02178), sec. 4. NaN where no setting varies along any hyperparameter.
    """
    kendall = _statistic("kendall")
    along = []
    for name in hyperparameters:
        others = [h for h in hyperparameters if h != name]
        parts = [part for _, part in table.groupby(others, dropna=False)] if others else [table]
        taus = [
            _of(kendall, part[metric].to_numpy(dtype=float), part[outcome].to_numpy(dtype=float))
            for part in parts
            if part[name].nunique(dropna=False) > 1
        ]
        known = [tau for tau in taus if np.isfinite(tau)]
        if known:
            along.append(float(np.mean(known)))
    return float(np.mean(along)) if along else float("nan")
