"""One metric against the outcome: its correlation, interval and p-value, and what makes them doubtful."""

from __future__ import annotations

import dataclasses
import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from landscape.correlation.resampling import Resampling
from landscape.correlation.statistics import (
    Permute,
    basis_of,
    granulated_kendall,
    is_constant,
    kendall_within,
    left_over,
    one_per_group,
    partial_correlations,
    permute_all,
    permute_groups,
    permute_within,
    range_of,
    resampled_groups,
    statistic_of,
    value_of,
)
from landscape.correlation.table import usable_rows

if TYPE_CHECKING:
    import pandas

FEW_ROWS = 10  # Fewer are noted: with 10 rows no rank correlation below 0.65 reaches p = 0.05.
# Fewer are noted: a bootstrap over groups then covers less than it says. With a confidence of 95% and a correlation of
# 0.5, its intervals held the truth in 91% of simulated tables of 6 or 12 groups, and in 97% of those of 24.
FEW_GROUPS = 20
_X, _Y = "\0metric", "\0outcome"  # No column of a table has such a name.

COLUMNS = [
    *("metric", "n", "n_groups", "estimate", "low", "high", "p", "q", "partial", "partial_low", "partial_high"),
    *("partial_p", "partial_q", "within", "logo_low", "logo_high", "granulated", "note"),
]


@dataclasses.dataclass(frozen=True)
class Correlations:
    """The correlation of each metric with one outcome, all computed in the same way.

    Attributes:
        frame: The table, with a row per checkpoint.
        numbers: The columns of the metrics, the outcome and the controls as float64, shape (rows,).
        method: "spearman", "pearson" or "kendall".
        forgetting: Name of the outcome's column.
        controls: Names of the columns held fixed in the partial correlation.
        groups: Name of the column that says which rows belong together; None where rows are independent.
        hyperparameters: Names of the columns of a factorial design.
        resampling: How intervals and p-values are drawn.
    """

    frame: pandas.DataFrame
    numbers: dict[str, np.ndarray]
    method: str
    forgetting: str
    controls: list[str]
    groups: str | None
    hyperparameters: list[str]
    resampling: Resampling

    def settings(self) -> dict[str, Any]:
        """Return all but the table, as plain values."""
        return {
            "method": self.method,
            "forgetting": self.forgetting,
            "controls": self.controls,
            "groups": self.groups,
            "hyperparameters": self.hyperparameters,
            "confidence": self.resampling.confidence,
            "resamples": self.resampling.resamples,
            "seed": self.resampling.seed,
        }

    def usable(self, metric: str) -> np.ndarray:
        """Return which rows a metric is correlated over; bool, shape (rows,)."""
        return usable_rows(self.frame, [metric, self.forgetting, *self.controls], self.groups)

    def left_out(self, metric: str) -> list[str]:
        """Return which rows a metric is not correlated over, in words."""
        finite = usable_rows(self.frame, [metric, self.forgetting, *self.controls], None)
        reasons = {"without finite values": ~finite, f"without a {self.groups!r}": finite & ~self.usable(metric)}
        counts = {reason: int(rows.sum()) for reason, rows in reasons.items()}
        return [
            f"{count} {'row' if count == 1 else 'rows'} {reason} left out" for reason, count in counts.items() if count
        ]

    def row(self, metric: str) -> dict[str, Any]:
        """Return the row of the result for one metric: a value for each of `COLUMNS`, NaN where there is none."""
        usable = self.usable(metric)
        x, y = self.numbers[metric][usable], self.numbers[self.forgetting][usable]
        labels = np.arange(len(x))
        if self.groups:
            labels = self.frame[self.groups][usable].factorize()[0]
        count = len(np.unique(labels))
        row: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
        row |= {"metric": metric, "n": len(x), "n_groups": count if self.groups else np.nan}
        notes = self.left_out(metric)
        constant = [name for name, v in ((metric, x), (self.forgetting, y)) if is_constant(v)]
        if len(x) < 3 or constant:
            notes.append("fewer than three rows" if len(x) < 3 else f"{constant[0]} is constant")
            return row | {"note": "; ".join(notes)}
        if len(x) < FEW_ROWS:
            notes.append(f"only {len(x)} rows")
        generator = np.random.default_rng(self.resampling.seed)
        statistic = statistic_of(self.method)
        row["estimate"] = float(statistic(x, y))
        if self.groups:
            if 3 <= count < FEW_GROUPS:
                notes.append(f"only {count} groups: the interval is too narrow")
            without = [value_of(statistic, x[labels != g], y[labels != g]) for g in range(count)]
            row["logo_low"], row["logo_high"] = range_of(without)
            row["within"] = kendall_within(x, y, labels)
            row["low"], row["high"] = self._cluster_interval(x, y, labels, generator, notes)
        else:
            row["low"], row["high"] = self._interval(x, y, generator, notes)
        row["p"] = self._p_value(x, y, labels, row["estimate"], generator, notes)
        if self.controls:
            given = np.column_stack([self.numbers[name][usable] for name in self.controls])
            row["partial"], row["partial_p"] = self._partial(x, y, given, labels, generator, notes)
            if math.isfinite(row["partial"]):
                row["partial_low"], row["partial_high"] = self._partial_interval(x, y, given, labels, notes)
        if self.hyperparameters:
            numbers = self.frame[self.hyperparameters][usable].assign(**{_X: x, _Y: y})
            row["granulated"] = granulated_kendall(numbers, _X, _Y, self.hyperparameters)
            if numbers.duplicated(self.hyperparameters).any():
                notes.append("granulated also compares rows that differ in no hyperparameter")
        return row | {"note": "; ".join(notes)}

    def _interval(
        self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator, notes: list[str]
    ) -> tuple[float, float]:
        """Return the interval of the correlation by resampling rows (BCa); NaN, and a note, where there is none."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # scipy warns of what comes back as NaN.
            interval = stats.bootstrap(
                (x, y),
                statistic_of(self.method),
                paired=True,
                vectorized=True,
                n_resamples=self.resampling.resamples,
                confidence_level=self.resampling.confidence,
                method="BCa",
                rng=generator,
            ).confidence_interval
        if not np.isfinite(interval).all():
            notes.append("no interval: resamples are constant or all alike")
            return float("nan"), float("nan")
        return float(interval.low), float(interval.high)

    def _cluster_interval(
        self, x: np.ndarray, y: np.ndarray, labels: np.ndarray, generator: np.random.Generator, notes: list[str]
    ) -> tuple[float, float]:
        """Return the interval of the correlation by resampling whole groups, in percentiles.

        Percentiles cover better than BCa where groups are few.
        """
        if labels.max() < 2:
            notes.append("no interval: fewer than three groups")
            return float("nan"), float("nan")
        statistic = statistic_of(self.method)
        draws = resampled_groups(labels, self.resampling.resamples, generator)
        return self._percentiles(np.concatenate([statistic(x[rows], y[rows]) for rows in draws]), "interval", notes)

    def _partial_interval(
        self, x: np.ndarray, y: np.ndarray, given: np.ndarray, labels: np.ndarray, notes: list[str]
    ) -> tuple[float, float]:
        """Return the interval of the partial correlation by resampling groups; without groups each row is one."""
        if labels.max() < 2:
            return float("nan"), float("nan")
        ranked = self.method == "spearman"
        draws = resampled_groups(labels, self.resampling.resamples, np.random.default_rng(self.resampling.seed))
        values = [partial_correlations(x[rows], y[rows], given[rows], ranked) for rows in draws]
        return self._percentiles(np.concatenate(values), "interval of partial", notes)

    def _percentiles(self, values: np.ndarray, of: str, notes: list[str]) -> tuple[float, float]:
        """Return the interval that holds the middle of the resampled values."""
        known = values[np.isfinite(values)]
        lost = 1 - len(known) / len(values)
        if lost > 0.05:  # The rest is then no longer a fair sample of the resamples.
            notes.append(f"no {of}: {lost:.0%} of the resamples are constant")
            return float("nan"), float("nan")
        low, high = np.quantile(known, [(1 - self.resampling.confidence) / 2, (1 + self.resampling.confidence) / 2])
        return float(low), float(high)

    def _p_value(
        self,
        x: np.ndarray,
        y: np.ndarray,
        labels: np.ndarray,
        estimate: float,
        generator: np.random.Generator,
        notes: list[str],
    ) -> float:
        """Return the permutation p-value: over all pairings, or with groups within or between them."""
        statistic = statistic_of(self.method)
        sizes = np.bincount(labels)
        if not self.groups:
            arrangements = math.lgamma(len(x) + 1)
            p_value = stats.permutation_test(
                (x,),
                lambda v, axis: statistic(v, np.broadcast_to(y, v.shape)),
                permutation_type="pairings",
                vectorized=True,
                n_resamples=self.resampling.resamples,
                rng=generator,
            ).pvalue
        else:
            permute, arrangements = permute_within, sum(math.lgamma(m + 1) for m in sizes)
            if one_per_group(y, labels):
                x, y = y, x
            if one_per_group(x, labels):
                permute, arrangements = permute_groups, math.lgamma(len(sizes) + 1)
                notes.append("one value per group: p permutes groups")
            test = stats.monte_carlo_test(
                x,
                lambda size: permute(x, labels, size[0], generator),
                lambda v, axis: statistic(v, np.broadcast_to(y, v.shape)),
                vectorized=True,
                n_resamples=self.resampling.resamples,
            )
            p_value = test.pvalue
            link = estimate - test.null_distribution.mean()
            if p_value < 0.05 and link * estimate < 0:
                notes.append("p is of the link within groups, whose sign is the other")
        least = 2 * math.exp(-arrangements)
        if least > 0.05:
            notes.append(f"p cannot be less than {min(least, 1):.2g}")
        return float(p_value)

    def _partial(
        self,
        x: np.ndarray,
        y: np.ndarray,
        given: np.ndarray,
        labels: np.ndarray,
        generator: np.random.Generator,
        notes: list[str],
    ) -> tuple[float, float]:
        """Return the partial correlation and its p-value."""
        if self.method == "spearman":
            x, y, given = stats.rankdata(x), stats.rankdata(y), stats.rankdata(given, axis=0)
        basis = basis_of(given)
        if len(x) < basis.shape[1] + 3:
            notes.append("too few rows for the controls")
            return float("nan"), float("nan")
        rx, ry = left_over(x, basis), left_over(y, basis)
        if rx is None or ry is None:
            notes.append("the controls explain everything")
            return float("nan"), float("nan")
        partial = float(rx @ ry / np.sqrt((rx @ rx) * (ry @ ry)))
        permute: Permute = permute_all
        if self.groups:
            # A control may rise with the metric between groups and fall with it within them. Residuals are exchangeable
            # within groups only if the groups are among the controls.
            permute = permute_within
            basis = basis_of(np.column_stack([given, labels[:, None] == np.arange(labels.max() + 1)]))
            rx, ry = left_over(x, basis), left_over(y, basis)
            if rx is None or ry is None or len(x) < basis.shape[1] + 3:
                notes.append("no p of partial: nothing varies within groups given the controls")
                return partial, float("nan")
        fixed, moved = rx, ry

        def statistic(v: np.ndarray, axis: int = -1) -> np.ndarray:
            # Permuted residuals are no longer orthogonal to the controls. Unless they are made so again, p is too small
            # where rows are few.
            v = v - (v @ basis) @ basis.T
            return v @ fixed / np.sqrt((v * v).sum(-1) * (fixed @ fixed))

        test = stats.monte_carlo_test(
            moved,
            lambda size: permute(moved, labels, size[0], generator),
            statistic,
            vectorized=True,
            n_resamples=self.resampling.resamples,
        )
        return partial, float(test.pvalue)
