"""One metric against the outcome: its correlation, interval and p-value, and what makes them doubtful."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from landscape.correlation.estimands import ESTIMANDS, Block, column, moves_whole_groups
from landscape.correlation.held import Rows, design_of, jackknife_interval
from landscape.correlation.prediction import conditional_information, held_out_r2, robust_sign_error
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
from landscape.correlation.table import codes_within, group_levels, usable_rows

if TYPE_CHECKING:
    import pandas

FEW_ROWS = 10  # Fewer are noted: with 10 rows no rank correlation below 0.65 reaches p = 0.05.
FEW_GROUPS = 10  # Fewer are noted: their t quantiles, from 2.3 upwards, make intervals wide.
_X, _Y = "\0metric", "\0outcome"  # No column of a table has such a name.

COLUMNS = [
    *("metric", "n", "n_groups", "estimate", "low", "high", "p", "q", "partial", "partial_low", "partial_high"),
    *("partial_p", "partial_q", "within", "logo_low", "logo_high", "granulated"),
    *(column("within group", end) for end in ("estimate", "low", "high", "p", "q")),
    *(column(name, end) for name in ESTIMANDS for end in ("family_p", "family_low", "family_high")),
    *("robust_sign_error", "worst_environment", "conditional_information", "held_out_r2", "held_out_gain", "note"),
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
        factors: Names of the columns of categories held fixed.
        groups: Name of the column that says which rows belong together, or names of nested ones, the widest first,
            parted by slashes; None where rows are independent.
        hyperparameters: Names of the columns of a factorial design.
        resampling: How intervals and p-values are drawn.
    """

    frame: pandas.DataFrame
    numbers: dict[str, np.ndarray]
    method: str
    forgetting: str
    controls: list[str]
    factors: list[str]
    groups: str | None
    hyperparameters: list[str]
    resampling: Resampling

    @property
    def levels(self) -> list[str]:
        """Names of the columns of nested groups, the widest first."""
        return group_levels(self.frame, self.groups)

    @property
    def designed(self) -> bool:
        """Whether factors or nested groups are given, so that permutations keep the whole design."""
        return bool(self.factors) or len(self.levels) > 1

    def settings(self) -> dict[str, Any]:
        """Return all but the table, as plain values."""
        settings: dict[str, Any] = {
            "method": self.method,
            "forgetting": self.forgetting,
            "controls": self.controls,
            "groups": self.groups,
            "hyperparameters": self.hyperparameters,
            "confidence": self.resampling.confidence,
            "resamples": self.resampling.resamples,
            "seed": self.resampling.seed,
        }
        # Only what is asked for, so that the settings of a table without a design stay what they were.
        design = {"factors": self.factors, "levels": self.levels if len(self.levels) > 1 else []}
        return settings | {name: value for name, value in design.items() if value}

    def usable(self, metric: str) -> np.ndarray:
        """Return which rows a metric is correlated over; bool, shape (rows,)."""
        return usable_rows(self.frame, [metric, self.forgetting, *self.controls], [*self.levels, *self.factors])

    def left_out(self, metric: str) -> list[str]:
        """Return which rows a metric is not correlated over, in words."""
        finite = usable_rows(self.frame, [metric, self.forgetting, *self.controls])
        reasons = {"without finite values": ~finite}
        for name in [*self.levels, *self.factors]:
            reasons[f"without a {name!r}"] = finite & self.frame[name].isna().to_numpy()
        counts = {reason: int(rows.sum()) for reason, rows in reasons.items()}
        return [
            f"{count} {'row' if count == 1 else 'rows'} {reason} left out" for reason, count in counts.items() if count
        ]

    def design(self, usable: np.ndarray) -> Rows:
        """Return the design of the usable rows."""
        given = [self._values(self.numbers[name][usable]) for name in self.controls]
        return design_of(self.frame[usable], self.levels, self.factors, given)

    def rows(self, metrics: Sequence[str]) -> list[dict[str, Any]]:
        """Return the rows of the result: a value for each of `COLUMNS`, NaN where there is none."""
        rows = [self._row(metric) for metric in metrics]
        if self.method == "kendall":
            return rows
        places: dict[tuple[bytes, bool], list[int]] = {}
        for place, row in enumerate(rows):
            if np.isfinite(row["estimate"]):
                usable = self.usable(row["metric"])
                whole = bool(self.levels) and moves_whole_groups(
                    self.numbers[row["metric"]][usable],
                    self.numbers[self.forgetting][usable],
                    codes_within(self.frame[usable], self.levels)[0],
                )
                places.setdefault((usable.tobytes(), whole and not self.designed), []).append(place)
        for members in places.values():
            usable = self.usable(rows[members[0]]["metric"])
            x = self._values(np.stack([self.numbers[rows[place]["metric"]][usable] for place in members]))
            y = self._values(self.numbers[self.forgetting][usable])
            block = Block(self.design(usable), self.designed, len(places), self.resampling)
            block.fill([rows[place] for place in members], x, y, bool(self.factors or self.controls))
        return rows

    def _values(self, v: np.ndarray) -> np.ndarray:
        """Return the numbers that are correlated: ranks along the last axis, unless the method is "pearson"."""
        return v if self.method == "pearson" or not v.size else np.asarray(stats.rankdata(v, axis=-1))

    def _row(self, metric: str) -> dict[str, Any]:
        """Return what is known of one metric by itself; `rows` adds what is drawn together with others."""
        usable = self.usable(metric)
        x, y = self.numbers[metric][usable], self.numbers[self.forgetting][usable]
        levels = codes_within(self.frame[usable], self.levels)
        labels = levels[0] if levels else np.arange(len(x))
        count = len(np.unique(labels))
        row: dict[str, Any] = dict.fromkeys(COLUMNS, np.nan)
        row |= {"metric": metric, "n": len(x), "n_groups": count if self.groups else np.nan, "worst_environment": ""}
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
                notes.append(f"only {count} groups: intervals take Student's t with {count - 1} degrees of freedom")
            elif count < 3:
                notes.append("no interval: fewer than three groups")
            without = [value_of(statistic, x[labels != g], y[labels != g]) for g in range(count)]
            row["logo_low"], row["logo_high"] = range_of(without)
            row["within"] = kendall_within(x, y, labels)
            if self.method == "kendall":
                ends = jackknife_interval(np.array(row["estimate"]), np.array(without), self.resampling.confidence)
                row["low"], row["high"] = map(float, ends)
        else:
            row["low"], row["high"] = self._interval(x, y, generator, notes)
        if not self.designed:
            row["p"] = self._p_value(x, y, labels, row["estimate"], generator, notes)
        if self.controls and not self.designed:
            given = np.column_stack([self.numbers[name][usable] for name in self.controls])
            row["partial"], row["partial_p"] = self._partial(x, y, given, labels, generator, notes)
            if math.isfinite(row["partial"]) and not self.groups:
                row["partial_low"], row["partial_high"] = self._partial_interval(x, y, given, notes)
        if self.hyperparameters:
            numbers = self.frame[self.hyperparameters][usable].assign(**{_X: x, _Y: y})
            row["granulated"] = granulated_kendall(numbers, _X, _Y, self.hyperparameters)
            if numbers.duplicated(self.hyperparameters).any():
                notes.append("granulated also compares rows that differ in no hyperparameter")
        row |= self._across_design(x, y, usable, levels)
        return row | {"note": "; ".join(notes)}

    def _across_design(
        self, x: np.ndarray, y: np.ndarray, usable: np.ndarray, levels: list[np.ndarray]
    ) -> dict[str, Any]:
        """Return the robust sign error, the conditional information and the prediction of groups left out."""
        columns: dict[str, Any] = {}
        names = self.hyperparameters or self.factors
        if names:
            frame = self.frame[usable]
            factors = [frame[name].factorize(use_na_sentinel=False)[0] for name in names]
            error, worst = robust_sign_error(x, y, factors, levels[-1] if levels else None)
            columns["robust_sign_error"] = error
            columns["conditional_information"] = conditional_information(x, y, factors)
            if worst:
                columns["worst_environment"] = _environment(frame, names, *worst)
        if levels and len(np.unique(levels[0])) > 2:
            design = self.design(usable)
            values = self._values(np.stack([x, y]))
            columns["held_out_r2"], columns["held_out_gain"] = held_out_r2(
                values[0], values[1], design.alike().columns, levels[0]
            )
        return columns

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

    def _partial_interval(
        self, x: np.ndarray, y: np.ndarray, given: np.ndarray, notes: list[str]
    ) -> tuple[float, float]:
        """Return the interval of the partial correlation by resampling rows."""
        ranked, rows = self.method == "spearman", np.arange(len(x))
        draws = resampled_groups(rows, self.resampling.resamples, np.random.default_rng(self.resampling.seed))
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


def _environment(frame: pandas.DataFrame, names: Sequence[str], place: int, pair: np.ndarray) -> str:
    """Return in words which change of which factor a pair of rows stands for, and the setting of the others."""
    first, second = frame.iloc[int(pair[0])], frame.iloc[int(pair[1])]
    others = ", ".join(f"{name}={first[name]}" for index, name in enumerate(names) if index != place)
    return f"{names[place]} {first[names[place]]} or {second[names[place]]}" + (f", {others}" if others else "")
