"""Linear mixed models of the same tables, by statsmodels: a second opinion beside the correlations.

`correlate` makes no assumption on how groups differ, and pays with wide intervals. A mixed model assumes that groups
shift the outcome, and change the metric's slope, by normal amounts. Where that holds, it uses the differences within
and between groups together.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import stats

from landscape.correlation.held import Rows, design_of
from landscape.correlation.statistics import left_over, one_per_group
from landscape.correlation.table import checked_metrics, group_levels, numbers_of, read_table, usable_rows
from landscape.errors import InputError, as_typed

if TYPE_CHECKING:
    import pandas

_LEAST_GROUPS = 3
_COLUMNS = ("metric", "n", "n_groups", "slope", "low", "high", "p", "note")


def mixed_models(
    table: pandas.DataFrame | Path | str,
    *,
    groups: str,
    flatness: Sequence[str] | None = None,
    forgetting: str = "forgetting",
    controls: Sequence[str] = (),
    factors: Sequence[str] = (),
    confidence: float = 0.95,
) -> pandas.DataFrame:
    """Fit a linear mixed model of forgetting on each flatness metric, with groups as random effects.

    The ranks of the outcome, in units of their standard deviation, are the metric's ranks in their unit times a slope,
    plus an effect of each cell of the factors, plus slopes of the controls' ranks, plus normal effects of the groups of
    each level, plus a normal change of the slope in each of the widest groups, plus normal noise of rows. The fit is by
    restricted maximum likelihood. Where the slope's change between groups is estimated as nothing, it is left out, and
    `note` says so.

    Args:
        table: A DataFrame or a CSV file with a row per checkpoint.
        groups: Column that says which checkpoints belong together; nested columns, the widest first, are parted by
            slashes ("recipe/base"). The widest groups must be independent of each other.
        flatness: Columns of metrics, as for `correlate`.
        forgetting: Column of the outcome.
        controls: Columns of numbers held fixed.
        factors: Columns of categories held fixed; each combination of their values has a level of its own.
        confidence: Share of repetitions in which an interval would hold the true slope.

    Returns:
        A row per metric. A number that cannot be had is NaN, and `note` says why. The columns are:

        - metric: Name of the flatness metric.
        - n, n_groups: Number of rows that are used, and of the widest groups among them.
        - slope, low, high: Change of the outcome per change of the metric among runs tuned alike, both in standard
          deviations of ranks, and its interval. The reach is a quantile of Student's distribution with n_groups - 1
          degrees of freedom times the standard error of the model. A nominal 5% was missed in 1 to 6% of 400 simulated
          tables of each of seven designs with 6 or 24 widest groups, slopes that differ between groups among them.
        - p: p-value by the same distribution. It is not corrected for the number of metrics.
        - note: Why a number is missing, or why to be wary of it.

        The settings are in `attrs`.

    Raises:
        InputError: statsmodels is not installed, a column is missing, not numeric, there twice or of two roles, or
            there are fewer than three of the widest groups.

    Source:
        Laird and Ware 1982 (random effects); Baayen, Davidson and Bates 2008, and Barr et al. 2013 (random slopes).

    Example:
        Within each of six bases the outcome follows the metric, and bases differ for other reasons.

        >>> import numpy, pandas
        >>> from landscape import mixed_models
        >>> generator = numpy.random.default_rng(0)
        >>> table = pandas.DataFrame({"base": numpy.arange(6).repeat(8), "trace": generator.normal(size=48)})
        >>> noise = generator.normal(size=48)
        >>> table["forgetting"] = table["trace"] + 3 * (table["base"] % 3) + noise
        >>> row = mixed_models(table, groups="base", flatness=["trace"]).iloc[0]
        >>> bool(row["low"] > 0)
        True
    """
    import pandas

    if importlib.util.find_spec("statsmodels") is None:
        raise InputError("a mixed model needs statsmodels: pip install 'landscape-lm[mixed]'.")
    if not 0 < confidence < 1:
        raise InputError(f"{as_typed('confidence', confidence)} is not between 0 and 1.")
    frame = read_table(table)
    levels = group_levels(frame, groups)
    if not levels:
        raise InputError("a mixed model needs groups, such as the base of each checkpoint.")
    metrics = checked_metrics(frame, flatness, forgetting, controls, factors, levels)
    rows = []
    for name in metrics:
        usable = usable_rows(frame, [name, forgetting, *controls], [*levels, *factors])
        part = frame[usable]
        design = design_of(part, levels, factors, [stats.rankdata(numbers_of(part, control)) for control in controls])
        n_groups = len(np.unique(design.units)) if len(part) else 0
        if n_groups < _LEAST_GROUPS:
            raise InputError(
                f"column {levels[0]!r} has {n_groups} groups with numbers of {name!r}, of {forgetting!r} and of what "
                f"is held fixed; a mixed model needs at least {_LEAST_GROUPS}."
            )
        fit = _fitted(_ranks(numbers_of(part, name)), _ranks(numbers_of(part, forgetting)), design)
        reach = stats.t.ppf((1 + confidence) / 2, n_groups - 1) * fit.stderr
        p = 2 * stats.t.sf(abs(fit.slope) / fit.stderr, n_groups - 1) if fit.stderr > 0 else np.nan
        values = (name, len(part), n_groups, fit.slope, fit.slope - reach, fit.slope + reach, p, fit.note)
        rows.append(dict(zip(_COLUMNS, values, strict=True)))
    result = pandas.DataFrame(rows)
    result.attrs = {
        "forgetting": forgetting,
        "controls": list(controls),
        "factors": list(factors),
        "groups": groups,
        "confidence": confidence,
    }
    return result


@dataclasses.dataclass(frozen=True)
class _Fit:
    """The slope of a mixed model and its standard error, NaN where it cannot be had, and why or of what to be wary."""

    slope: float
    stderr: float
    note: str = ""


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks with mean zero and, unless all are the same, a standard deviation of one; shape (rows,)."""
    ranks = stats.rankdata(values)
    spread = ranks.std()
    return np.asarray((ranks - ranks.mean()) / (spread if spread > 0 else 1))


def _fitted(x: np.ndarray, y: np.ndarray, design: Rows) -> _Fit:
    """Fit the model with slopes that differ between the widest groups, or, where that fails, with one slope."""
    nothing = float("nan")
    held = design.alike()
    own = left_over(x, held.basis) if np.ptp(x) > 0 else None
    if own is None or held.degrees <= len(design.levels) + 1:
        return _Fit(nothing, nothing, "nothing is left of the metric given what is held fixed")
    if one_per_group(y, design.levels[-1]):
        # The model would have no noise of rows, and its copies of one value would count as evidence.
        return _Fit(nothing, nothing, "the outcome has one value in each of the narrowest groups")
    # A metric with one value per group has no slope within groups that could differ.
    varies = [np.ptp(own[design.units == group]) > 1e-9 for group in np.unique(design.units)]
    for differing in [True, False] if sum(varies) >= _LEAST_GROUPS else [False]:
        model = _model(own, y, held.basis, design.levels, differing)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Of a variance estimated as zero, which is an answer.
            try:
                result: Any = model.fit(reml=True, method=["lbfgs", "bfgs", "cg", "powell"])
            except np.linalg.LinAlgError:
                continue
        slope, stderr = float(result.params[0]), float(result.bse[0])
        if result.converged and np.isfinite(slope) and np.isfinite(stderr) and stderr > 0:
            return _Fit(slope, stderr, "" if differing else "one slope for all groups")
    return _Fit(nothing, nothing, "the mixed model did not converge")


def _model(x: np.ndarray, y: np.ndarray, basis: np.ndarray, levels: Sequence[np.ndarray], differing: bool) -> Any:
    """Return the model of statsmodels: x and the basis as fixed effects, groups and slopes as variance components."""
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    top, components = levels[0], []
    groups = [np.flatnonzero(top == group) for group in np.unique(top)]
    for depth, labels in enumerate(levels[1:], 1):
        components.append((f"level {depth}", [(labels[rows][:, None] == np.unique(labels[rows])) for rows in groups]))
    if differing:
        components.append(("slope", [x[rows][:, None] for rows in groups]))
    names = [name for name, _ in components]
    matrices = [[np.asarray(matrix, dtype=float) for matrix in parts] for _, parts in components]
    columns = [
        [[f"{name} {i}" for i in range(part.shape[1])] for part in parts]
        for name, parts in zip(names, matrices, strict=True)
    ]
    scaled = basis * np.sqrt(len(x))  # In the units of x and y, for the optimizer's sake.
    return MixedLM(
        y,
        np.column_stack([x, scaled]),
        groups=top,
        exog_re=np.ones((len(x), 1)),  # The shift of each of the widest groups.
        exog_vc=VCSpec(names, columns, matrices) if components else None,
    )
