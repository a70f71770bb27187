"""The three correlations of each metric: over all runs, among runs tuned alike, and within a top-level group.

They answer different questions, and can differ in sign. Each has its interval and p-value, and family-wise ones that
hold for all metrics of the table at once.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.correlation.exchange import exchange_of
from landscape.correlation.held import Held, Rows, family_of, jackknife_interval, permutation_p
from landscape.correlation.resampling import Resampling
from landscape.correlation.statistics import one_per_group

if TYPE_CHECKING:
    import pandas

# The words for the three estimands, and the prefix of their columns.
ESTIMANDS = {"pooled": "", "tuned alike": "partial_", "within group": "within_partial_"}
_LEAST_DEGREES = 2  # With one, a correlation is one or minus one.


def column(estimand: str, end: str) -> str:
    """Return the name of a column of the result: `end` is estimate, low, high, p, q, family_p, family_low, ..."""
    prefix = ESTIMANDS[estimand]
    if end == "estimate":
        return prefix.rstrip("_") or "estimate"
    return prefix + end


ENDS = ("estimate", "low", "high", "p", "q", "family_p", "family_low", "family_high")


def estimand_table(result: pandas.DataFrame) -> pandas.DataFrame:
    """Return the three correlations of each metric side by side, and in words what they are evidence of.

    Args:
        result: What `correlate` returned.

    Returns:
        A row per metric. For each estimand that the result has there are five columns: the correlation under its
        name, and with the endings `_low` and `_high` its interval, `_family_p` the p-value corrected for all metrics,
        and `_evidence` whether there is evidence of a link: the interval leaves out zero, and the family-wise p is
        below one minus the confidence. Where p tests another estimand than the pooled one (within groups, if there is
        one level of groups and no factor), the family-wise interval decides. `verdict` says it in words.

    Example:
        >>> import pandas
        >>> from landscape import Resampling, correlate, estimand_table
        >>> table = pandas.DataFrame({"trace": range(10), "forgetting": [0, 1, 2, 3, 4, 5, 6, 7, 9, 8]})
        >>> estimand_table(correlate(table, resampling=Resampling(resamples=199)))["verdict"][0]
        'more forgetting: pooled'
    """
    import pandas

    columns: dict[str, Any] = {"metric": result["metric"]}
    top = str(result.attrs.get("groups") or "").split("/")[0]
    names = {"within group": f"within {top}"} if top else {}
    shown = [name for name in ESTIMANDS if name == "pooled" or result[column(name, "estimate")].notna().any()]
    for name in shown:
        label = names.get(name, name)
        columns[label] = result[column(name, "estimate")]
        for end in ("low", "high", "family_p"):
            columns[f"{label}_{end}"] = result[column(name, end)]
    in_groups = bool(top) and not result.attrs.get("factors") and "levels" not in result.attrs
    alpha = 1 - result.attrs.get("confidence", 0.95)
    verdicts: list[str] = []
    evidence: dict[str, list[bool]] = {names.get(name, name): [] for name in shown}
    for _, row in result.iterrows():
        says: dict[str, list[str]] = {"more forgetting": [], "less forgetting": [], "no evidence": []}
        for name in shown:
            by_interval = in_groups and name != "within group"
            ends = ("family_low", "family_high") if by_interval else ("low", "high")
            low, high = (row[column(name, end)] for end in ends)
            tested = by_interval or row[column(name, "family_p")] < alpha
            sign = (
                "more forgetting" if tested and low > 0 else "less forgetting" if tested and high < 0 else "no evidence"
            )
            says[sign].append(names.get(name, name))
            evidence[names.get(name, name)].append(sign != "no evidence")
        verdicts.append("; ".join(f"{sign}: {', '.join(where)}" for sign, where in says.items() if where))
    columns |= {f"{label}_evidence": flags for label, flags in evidence.items()}
    return pandas.DataFrame(columns | {"verdict": verdicts})


@dataclasses.dataclass(frozen=True)
class Block:
    """Metrics that are correlated over the same rows, so that their permutations are drawn together.

    Attributes:
        design: The design of the rows.
        designed: Whether factors or nested groups are given. Permutations then keep the whole design, for each
            estimand. Otherwise they stay within the groups, if there are any.
        blocks: Number of blocks in the table. Over these, family-wise values are corrected by Bonferroni.
        resampling: Number of permutations, confidence of intervals, and seed.
    """

    design: Rows
    designed: bool
    blocks: int
    resampling: Resampling

    def fill(self, rows: Sequence[dict[str, Any]], x: np.ndarray, y: np.ndarray, given: bool) -> None:
        """Add to the rows of the result what is still missing in the columns of the three estimands.

        Args:
            rows: One for each metric. Numbers that are there already stay.
            x: The metrics, ranks if the method takes ranks, shape (metrics, rows).
            y: The outcome, likewise, shape (rows,).
            given: Whether factors or controls are held fixed.
        """
        whole = bool(self.design.levels) and moves_whole_groups(x, y, self.design.levels[0])
        for name, held, permuted in estimands_of(self.design, self.designed, given, whole):
            self._estimate(rows, name, held, permuted, x, y)

    def _estimate(
        self, rows: Sequence[dict[str, Any]], name: str, held: Held, permuted: Held, x: np.ndarray, y: np.ndarray
    ) -> None:
        """Fill the columns of one estimand."""
        speaks = self.designed or name == "within group"
        if held.degrees < _LEAST_DEGREES:
            _note(rows if speaks else [], f"{name}: too few rows for what is held fixed")
            return
        estimates, left_out = held.correlation(x, y), held.left_out(x, y)
        drawn = permuted.null(x, y, self.resampling.resamples, np.random.default_rng(self.resampling.seed))
        new = permutation_p(estimates, drawn)
        p = np.array([_keep(row, column(name, "p"), value) for row, value in zip(rows, new, strict=True)])
        alpha = 1 - self.resampling.confidence
        family, level = family_of(p, drawn, alpha / self.blocks)
        low, high = jackknife_interval(estimates, left_out, 1 - alpha)
        family_low, family_high = jackknife_interval(estimates, left_out, 1 - level)
        for place, row in enumerate(rows):
            if not math.isfinite(estimates[place]):
                _note([row] if speaks else [], f"{name}: nothing is left to correlate")
                continue
            _keep(row, column(name, "estimate"), estimates[place])
            row[column(name, "family_p")] = min(1.0, self.blocks * float(family[place]))
            if self.design.levels or self.designed:
                row[column(name, "low")], row[column(name, "high")] = float(low[place]), float(high[place])
            # Without groups the interval of one metric comes from a bootstrap; that for all is never the narrower one.
            row[column(name, "family_low")] = float(np.minimum(family_low[place], row[column(name, "low")]))
            row[column(name, "family_high")] = float(np.maximum(family_high[place], row[column(name, "high")]))
        if held.note:
            _note(rows if speaks else [], held.note)
        least = 2 * math.exp(-permuted.exchange.log_arrangements)
        if least > 0.05 and speaks:
            _note(rows, f"{name}: p cannot be less than {min(least, 1):.2g}")


def estimands_of(design: Rows, designed: bool, given: bool, whole: bool) -> list[tuple[str, Held, Held]]:
    """Return the estimands of a design, each with what it holds fixed and with what its permutations hold fixed.

    Args:
        design: The design of the rows.
        designed: Whether factors or nested groups are given. Otherwise permutations stay within the groups.
        given: Whether factors or controls are held fixed.
        whole: Whether one side has one value per group, so that only whole groups can be permuted.
    """
    pooled, in_groups = design.pooled(), bool(design.levels) and not designed
    permuted = pooled
    if in_groups and not whole:
        exchange = exchange_of(design.levels, np.zeros_like(design.cells), shuffles_top=False)
        permuted = dataclasses.replace(pooled, exchange=exchange)
    estimands = [("pooled", pooled, permuted)]
    within = design.within() if design.levels else None
    if given:
        alike = design.alike()
        estimands.append(("tuned alike", alike, within if within and in_groups else alike))
    return estimands + ([("within group", within, within)] if within else [])


def moves_whole_groups(x: np.ndarray, y: np.ndarray, labels: np.ndarray) -> bool:
    """Return whether metrics or the outcome have one value per group, so that nothing can move within groups."""
    return one_per_group(y, labels) or all(one_per_group(v, labels) for v in np.atleast_2d(x))


def _keep(row: dict[str, Any], name: str, value: float) -> float:
    """Put a value into a row unless it has one, and return the one that it has."""
    if not math.isfinite(row[name]):
        row[name] = float(value)
    return float(row[name])


def _note(rows: Sequence[dict[str, Any]], note: str) -> None:
    """Add a note to rows."""
    for row in rows:
        row["note"] = "; ".join(filter(None, [row["note"], note]))
