"""How often the verdicts of `correlate` err on a design, and how strong a link must be for the design to show it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from landscape.correlation.estimands import estimands_of, moves_whole_groups
from landscape.correlation.held import Held, Rows, design_of, jackknife_interval, permutation_p
from landscape.correlation.statistics import is_constant
from landscape.correlation.table import group_levels, numbers_of, read_table, usable_rows
from landscape.errors import InputError, as_typed, nearest

if TYPE_CHECKING:
    import pandas

ALPHA = 0.05  # Nominal rate of false positives.
POWER = 0.8
_PERMUTATIONS = 199  # Of each table; the rate of p <= 0.05 is then exactly 0.05 where the permutations are right.
_CORRELATIONS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
_COPIES = 200  # of the design, in the population that gives the true pooled correlation
NOTHING, FACTORS = "nothing links them", "only the factors link them"


def simulate_design(
    table: pandas.DataFrame | Path | str,
    *,
    like: str | None = None,
    forgetting: str = "forgetting",
    controls: Sequence[str] = (),
    factors: Sequence[str] = (),
    groups: str | None = None,
    replications: int = 1000,
    seed: int = 0,
) -> pandas.DataFrame:
    """Simulate tables of the same design as yours, and count how often `correlate` (Spearman) errs on them.

    Metric and outcome are drawn as normal numbers with the factors' and controls' effects, and the shares of variance
    between groups, that your table has. First nothing else links them: each statement that they are linked is a false
    positive. Then a correlation is planted between what the factors and controls leave, at every level of the groups.

    Args:
        table: A DataFrame or a CSV file with a row per checkpoint.
        like: The column whose effects and shares of variance the simulated metric has. None takes those of the
            outcome.
        forgetting: Column of the outcome.
        controls: As for `correlate`; their values are those of the table.
        factors: As for `correlate`.
        groups: As for `correlate`.
        replications: Number of simulated tables without a link. The standard error of a rate of 5% over 1000 is 0.7%.
            A quarter as many are drawn for each of nine planted correlations.
        seed: Seed for the draws.

    Returns:
        A row for each null hypothesis, estimand ("pooled", "tuned alike", "within group") and verdict. The estimated
        shares of variance between groups are in `attrs`, as `shares`. The columns are:

        - estimand: Which of the three correlations of `correlate` is judged.
        - verdict: "interval" is false where the interval leaves out the true value, "p" where it is at most 0.05,
          "both" where the interval leaves out zero and p is at most 0.05.
        - null: "nothing links them" for the pooled correlation means that the metric does not follow the factors
          either. "only the factors link them" shows how often the pooled correlation would be taken for a link among
          runs tuned alike.
        - false_positives, stderr: The rate over the simulated tables, and its standard error.
        - smallest: The smallest planted correlation that is found in 80% of tables; NaN where 0.9 is not.

    Raises:
        InputError: A column is missing or constant, there are fewer than 100 replications, or there is neither a
            factor nor a group.

    Example:
        Runs of 12 bases at two learning rates. With the learning rate as a factor, a link that it alone makes is not
        mistaken for one among runs tuned alike.

        >>> import pandas
        >>> from landscape import simulate_design
        >>> table = pandas.DataFrame({"base": [i // 2 for i in range(24)], "lr": [1, 2] * 12})
        >>> table["forgetting"] = [10 * lr + i % 7 for i, lr in enumerate(table["lr"])]
        >>> rates = simulate_design(table, factors=["lr"], groups="base", replications=100)
        >>> rates = rates[rates["verdict"] == "both"].set_index(["estimand", "null"])["false_positives"]
        >>> float(rates["pooled", "only the factors link them"])
        1.0
        >>> bool(rates["tuned alike", "nothing links them"] <= 0.1)
        True
    """
    import pandas

    frame = read_table(table)
    levels = group_levels(frame, groups)
    for name in (forgetting, *controls, *factors, *levels, *([like] if like else [])):
        if name not in frame.columns:
            raise InputError(
                f"the table has no column {name!r}; it has {', '.join(map(str, frame.columns))}."
                f"{nearest(name, map(str, frame.columns))}"
            )
    if not factors and not levels:
        raise InputError("a design has factors or groups; without either, rows are independent and nothing is to test.")
    if replications < 100:
        raise InputError(f"{as_typed('replications', replications)} are too few for a rate of 5%; take at least 100.")
    sides = [like or forgetting, forgetting]
    frame = frame[usable_rows(frame, [*sides, *controls], [*levels, *factors])]
    for name in sides:
        if len(frame) < 3 or is_constant(numbers_of(frame, name)):
            raise InputError(f"column {name!r} is constant over the {len(frame)} rows that can be used.")
    design = design_of(frame, levels, factors, [stats.rankdata(numbers_of(frame, name)) for name in controls])
    simulation = _Simulation(
        design=design,
        designed=bool(factors) or len(levels) > 1,
        given=bool(factors or controls),
        sides=tuple(_Side.of(numbers_of(frame, name), design) for name in sides),
    )
    rows = simulation.false_positives(replications, np.random.default_rng(seed))
    smallest = simulation.smallest(max(25, replications // 4), np.random.default_rng([seed, 1]))
    result = pandas.DataFrame(rows)
    result["stderr"] = np.sqrt(result["false_positives"] * (1 - result["false_positives"]) / replications)
    found = [smallest[row["estimand"], row["verdict"]] for row in rows]
    result["smallest"] = np.where(result["null"] == NOTHING, found, np.nan)
    names = [like or f"{forgetting} (for the metric, too)", forgetting]
    shares = [dict(zip([*levels, "row"], side.shares, strict=True)) for side in simulation.sides]
    result.attrs = {
        "n": len(frame),
        "shares": dict(zip(names, shares, strict=True)),
        "controls": list(controls),
        "factors": list(factors),
        "groups": groups,
        "replications": replications,
        "seed": seed,
    }
    return result


@dataclasses.dataclass(frozen=True)
class _Side:
    """How a simulated metric or outcome is made: effects of what is held fixed, and shares of variance beside them.

    Attributes:
        effects: What factors and controls do to each row, in units of the spread that they leave, shape (rows,).
        shares: Shares of the variance that is left, for each level of groups and for the row itself; they add up to 1.
    """

    effects: np.ndarray
    shares: tuple[float, ...]

    @classmethod
    def of(cls, values: np.ndarray, design: Rows) -> _Side:
        """Estimate it from the values of a column, by their normal scores."""
        scores = stats.norm.ppf((stats.rankdata(values) - 0.5) / len(values))
        basis = design.alike().basis
        effects = basis @ (basis.T @ scores)
        left = scores - effects
        spread = np.sqrt((left * left).sum() / max(1, len(left) - basis.shape[1]))
        if spread <= 1e-9:
            return cls(effects, (*[0.0] * len(design.levels), 1.0))
        return cls(effects / spread, variance_shares(left, design.levels))

    def draw(self, noise: Sequence[np.ndarray], levels: Sequence[np.ndarray], effects: bool = True) -> np.ndarray:
        """Return simulated columns, shape (tables, rows), from standard normal noise of each level and of rows."""
        parts = [values[:, labels] for values, labels in zip(noise, levels, strict=False)]
        left = sum(np.sqrt(share) * part for share, part in zip(self.shares, [*parts, noise[-1]], strict=True))
        return np.asarray(left + self.effects) if effects else np.asarray(left)


def variance_shares(left: np.ndarray, levels: Sequence[np.ndarray]) -> tuple[float, ...]:
    """Return the shares of variance of nested groups, and of the rows in them.

    The share of a level is the mean product of two residuals that share its group and no narrower one, minus that of
    two residuals that share the next wider group alone, in units of the mean square. Rows that share nothing are the
    zero point, as residuals add up to zero. A negative share counts as zero.

    Args:
        left: Residuals, shape (rows,).
        levels: Labels of nested groups, the widest first, each of shape (rows,).

    Returns:
        A share for each level, and that of the rows; they add up to 1. The shares of levels are the intraclass
        correlations between two rows that share this level, less that of the wider one.
    """
    first, second = np.triu_indices(len(left), 1)
    products = left[first] * left[second]
    depth = sum(((labels[first] == labels[second]).astype(int) for labels in levels), np.zeros(len(first), dtype=int))
    means = [products[depth == d].mean() if (depth == d).any() else np.nan for d in range(len(levels) + 1)]
    base = means[0] if np.isfinite(means[0]) else 0.0
    total, shares, reached = float((left * left).mean() - base), [], base
    for mean in means[1:]:  # A level without pairs of its own has no share.
        shares.append(max(0.0, float(mean - reached) / total) if np.isfinite(mean) and total > 0 else 0.0)
        reached = max(reached, mean) if np.isfinite(mean) else reached
    whole = sum(shares)
    shares = [share / max(whole, 1.0) for share in shares]
    return (*shares, 1 - sum(shares))


@dataclasses.dataclass(frozen=True)
class _Simulation:
    """A design, and how metric and outcome are drawn on it."""

    design: Rows
    designed: bool
    given: bool
    sides: tuple[_Side, ...]

    def draw(
        self, correlation: float, count: int, generator: np.random.Generator, effects: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return metrics and outcomes of simulated tables, shape (tables, rows) each; `effects` are the metric's."""
        sizes = [*(labels.max() + 1 for labels in self.design.levels), len(self.design.cells)]
        x_noise = [generator.standard_normal((count, size)) for size in sizes]
        other = [generator.standard_normal((count, size)) for size in sizes]
        own = np.sqrt(1 - correlation**2)
        y_noise = [correlation * a + own * b for a, b in zip(x_noise, other, strict=True)]
        metric, outcome = self.sides
        return metric.draw(x_noise, self.design.levels, effects), outcome.draw(y_noise, self.design.levels)

    def false_positives(self, count: int, generator: np.random.Generator) -> list[dict]:
        """Return the rate at which each verdict is false where metric and outcome are not linked."""
        rows = []
        x, y = self.draw(0, count, generator)
        population = [v.reshape(1, -1) for v in self.draw(0, _COPIES, generator)]
        truth = float(stats.spearmanr(population[0][0], population[1][0]).statistic)
        free = self.draw(0, count, generator, effects=False)
        for name, held, permuted in self.estimands(x, y):
            pooled = name == "pooled"
            rates = verdicts(held, permuted, *(free if pooled else (x, y)), generator)
            rows += [
                {"estimand": name, "verdict": key, "null": NOTHING, "false_positives": v} for key, v in rates.items()
            ]
            if pooled and self.given:
                rates = verdicts(held, permuted, x, y, generator)
                rates["interval"] = verdicts(held, permuted, x, y, generator, truth)["interval"]
                rows += [
                    {"estimand": name, "verdict": key, "null": FACTORS, "false_positives": v}
                    for key, v in rates.items()
                ]
        return rows

    def smallest(self, count: int, generator: np.random.Generator) -> dict[tuple[str, str], float]:
        """Return the smallest planted correlation that each verdict finds in 80% of tables; NaN where none is."""
        found: dict[tuple[str, str], list[float]] = {}
        for correlation in _CORRELATIONS:
            x, y = self.draw(correlation, count, generator)
            free = self.draw(correlation, count, generator, effects=False)
            for name, held, permuted in self.estimands(x, y):
                rates = verdicts(held, permuted, *(free if name == "pooled" else (x, y)), generator)
                for verdict, rate in rates.items():
                    found.setdefault((name, verdict), []).append(rate)
        return {key: _crossing(_CORRELATIONS, rates) for key, rates in found.items()}

    def estimands(self, x: np.ndarray, y: np.ndarray) -> list[tuple[str, Held, Held]]:
        """Return the estimands as `correlate` has them."""
        whole = bool(self.design.levels) and moves_whole_groups(x[:1], y[0], self.design.levels[0])
        estimands = estimands_of(self.design, self.designed, self.given, whole)
        return [(name, held, permuted) for name, held, permuted in estimands if held.degrees > 1]


def verdicts(
    held: Held, permuted: Held, x: np.ndarray, y: np.ndarray, generator: np.random.Generator, truth: float = 0.0
) -> dict[str, float]:
    """Return how often each verdict on simulated tables says that the correlation is not the true one.

    Args:
        held: What the estimand holds fixed.
        permuted: What its permutations hold fixed.
        x: Metrics, shape (tables, rows).
        y: Outcomes, shape (tables, rows).
        generator: Source of the permutations.
        truth: The true correlation.

    Returns:
        The rates of "interval" (it leaves out the truth), "p" (at most 0.05), and "both" (the interval leaves out zero
        and p is at most 0.05).
    """
    x, y = stats.rankdata(x, axis=-1), stats.rankdata(y, axis=-1)
    low, high = jackknife_interval(held.correlation(x, y), held.left_out(x, y), 1 - ALPHA)
    p = permutation_p(permuted.correlation(x, y), permuted.null(x, y, _PERMUTATIONS, generator)) <= ALPHA
    missed, nonzero = (low > truth) | (high < truth), (low > 0) | (high < 0)
    return {"interval": float(missed.mean()), "p": float(p.mean()), "both": float((nonzero & p).mean())}


def _crossing(places: Sequence[float], rates: Sequence[float]) -> float:
    """Return where rates first reach the power wanted, on straight lines between places; NaN where they never do."""
    before = (0.0, 0.0)
    for place, rate in zip(places, rates, strict=True):
        if rate >= POWER:
            return float(before[0] + (place - before[0]) * (POWER - before[1]) / max(rate - before[1], 1e-12))
        before = (place, rate)
    return float("nan")
