"""What pictures of correlations share, whichever library draws them: order, panels, colours, words."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.correlation import group_levels, numbers_of, usable_rows
from landscape.errors import InputError, nearest
from landscape.plotting.basics import COLORS, clean, listing, shorten, with_minus_sign
from landscape.plotting.ticks import linear_ticks, log_ticks

if TYPE_CHECKING:
    import pandas

SIGNIFICANT = 0.05  # q below it is marked, where the interval leaves out zero as well
MARKED = {True: f"q < {SIGNIFICANT:g}, interval without 0", False: "not both"}
MARKERS = 5  # shapes in which each colour comes
GREY = "#999999"  # of points whose colour is not given
_SYMBOL = {"spearman": "ρ", "pearson": "r", "kendall": "τ"}
_NAME = {"spearman": "Spearman correlation", "pearson": "Pearson correlation", "kendall": "Kendall's tau-b"}
_NAMES = ("checkpoint", "name", "model")  # columns that say which checkpoint a row is, best first
_LOG_DECADES = 2


@dataclasses.dataclass(frozen=True)
class Forest:
    """The rows of a forest plot from top to bottom, NaN where there is no number."""

    rows: list[dict[str, Any]]  # columns of the result
    intervals: int  # number of rows with an interval, which come first; then come those with a number alone
    numbers: int  # number of rows with a number

    @property
    def partial(self) -> bool:
        """Whether any metric has a partial correlation."""
        return any(np.isfinite(row["partial"]) for row in self.rows)


def forest_of(result: pandas.DataFrame) -> Forest:
    """The rows of `result` by size of the correlation, with those without an interval or a number last.

    Raises:
        InputError: If `result` is not what `correlate` returns.
    """
    need = ("metric", "n", "n_groups", "estimate", "low", "high", "p", "q", "partial", "note")
    missing = [name for name in need if name not in result.columns]
    if missing or result.empty:
        what = f"a column {missing[0]!r}" if missing else "a row"
        raise InputError(f"there is nothing to draw: the correlations lack {what}; take what correlate returned.")
    rows = [{str(key): value for key, value in row.items()} for row in result.to_dict("records")]
    for row in rows:
        row["metric"] = str(row["metric"])
        row["note"] = row["note"] if isinstance(row["note"], str) else ""  # empty ones come back from CSV as NaN

    def rank(row: dict[str, Any]) -> tuple[bool, bool, float]:
        return not np.isfinite(row["estimate"]), not _has_interval(row), -abs(np.nan_to_num(row["estimate"]))

    rows = sorted(rows, key=rank)
    return Forest(rows, sum(map(_has_interval, rows)), int(sum(np.isfinite(row["estimate"]) for row in rows)))


def _has_interval(row: dict[str, Any]) -> bool:
    return bool(np.isfinite([row["estimate"], row["low"], row["high"]]).all())


def significant(row: dict[str, Any]) -> bool:
    """Whether the q-value of a metric is below the mark, and its interval, where it has one, leaves out zero.

    The two can differ: the interval is of a correlation beyond these groups, the permutation of a link within them.
    """
    return bool(row["q"] < SIGNIFICANT) and not (_has_interval(row) and row["low"] <= 0 <= row["high"])


# --- words --------------------------------------------------------------------------------------------------


def symbol_of(result: pandas.DataFrame) -> str:
    """The symbol of the coefficient."""
    return _SYMBOL.get(result.attrs.get("method", ""), "correlation")


def outcome_of(result: pandas.DataFrame) -> str:
    """The column that metrics were correlated with."""
    return str(result.attrs.get("forgetting", "forgetting"))


def signed(value: float) -> str:
    """A correlation with its sign, and a dash if there is none."""
    return with_minus_sign(f"{value:+.2f}") if np.isfinite(value) else "\N{EN DASH}"


def estimate_text(row: dict[str, Any]) -> str:
    """The correlation with its interval."""
    interval = f"[{signed(row['low'])}, {signed(row['high'])}]" if _has_interval(row) else "(no interval)"
    return f"{signed(row['estimate'])} {interval}"


def chance_text(value: float) -> str:
    """A p- or q-value."""
    if not np.isfinite(value):
        return "\N{EN DASH}"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def forest_caption(result: pandas.DataFrame, forest: Forest) -> str:
    """Describe a forest plot to its reader."""
    set_ = result.attrs
    name = _NAME.get(set_.get("method", ""), "Correlation")
    order = ", the strongest first" if len(forest.rows) > 1 else ""
    sentences = [f"{name} of each metric with {clean(outcome_of(result))} over {_amount(result)}{order}"]
    groups = result["n_groups"].notna().any()
    level = f"{set_['confidence']:.0%} " if "confidence" in set_ else ""
    if forest.intervals:
        method = "jackknife over groups" if groups else "BCa bootstrap over rows"
        sentences.append(f"Bars: {level}interval, {method}")
    designed = "factors" in set_ or "levels" in set_
    permuted = " of whole groups" if groups and designed else " within groups" if groups else ""
    tested = int(result["q"].notna().sum())
    if tested:
        over = "metrics" if tested > 1 else "metric"
        sentences.append(
            f"Filled: interval without 0, and q < {SIGNIFICANT:g}, the false-discovery rate over {tested} {over} "
            f"(Benjamini-Hochberg) of p-values by permutation{permuted}"
        )
    if forest.partial:
        given = [clean(str(name)) for name in (*set_.get("factors", ()), *set_.get("controls", ()))]
        sentences.append(f"Diamonds: partial correlation given {listing(given) if given else 'the controls'}")
    return ". ".join([*sentences, *_notes(forest)]) + "."


def _amount(result: pandas.DataFrame) -> str:
    """The number of rows and groups behind the correlations, in words. Metrics without a correlation do not count."""
    known = result[result["estimate"].notna()] if result["estimate"].notna().any() else result
    text = f"{_range_text(known['n'])} rows"
    if known["n_groups"].notna().any():
        by = result.attrs.get("groups")
        text += f" in {_range_text(known['n_groups'].dropna())} groups" + (f" ({clean(str(by))})" if by else "")
    return text


def _range_text(counts: Any) -> str:
    low, high = int(min(counts)), int(max(counts))
    return f"{low}" if low == high else f"{low} to {high}"


def _notes(forest: Forest) -> list[str]:
    """The notes about metrics that have a number, each with its metrics. The plot shows the notes of the others."""
    of: dict[str, list[str]] = {}
    for row in forest.rows[: forest.numbers]:
        for note in filter(None, row["note"].split("; ")):
            of.setdefault(note, []).append(clean(row["metric"]))
    every = forest.numbers
    return [
        f"{'All metrics' if len(names) == every > 1 else listing([shorten(name, 40) for name in names])}: {clean(note)}"
        for note, names in of.items()
    ]


# --- scatter ------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Panel:
    """One metric against the outcome."""

    row: dict[str, Any]
    places: np.ndarray  # the rows of the table that are drawn
    x: np.ndarray
    y: np.ndarray
    low: float  # of the horizontal axis; of its logarithm to base 10 where `log`
    high: float
    log: bool

    def title(self, symbol: str) -> list[str]:
        """The correlation with interval and q-value; if there is none, the reason."""
        if not np.isfinite(self.row["estimate"]):
            return ["no correlation", shorten(clean(self.row["note"].split("; ")[-1]), 28)]  # the last note says why
        return [
            f"{symbol} = {estimate_text(self.row)}",
            f"q {'' if self.row['q'] < 0.001 else '= '}{chance_text(self.row['q'])}, n = {self.row['n']}",
        ]

    def ticks(self, count: int) -> tuple[list[float], list[str]]:
        """Round values along the metric's axis, at most about `count` of them, and their labels."""
        return (log_ticks if self.log else linear_ticks)(self.low, self.high, count)

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the metric's axis, in units of the metric."""
        return (10**self.low, 10**self.high) if self.log else (self.low, self.high)


@dataclasses.dataclass(frozen=True)
class Scatter:
    """The panels of all metrics, in the order of the forest plot, on one outcome axis."""

    panels: list[Panel]
    outcome: str
    low: float  # of the outcome's axis
    high: float
    color: str | None  # the column
    colors: list[str]  # its values in words, in order
    of: np.ndarray  # for each row of the table the index of its colour, -1 where not given
    names: list[str]  # of each row of the table


def scatter_of(result: pandas.DataFrame, table: pandas.DataFrame, color: str | None) -> Scatter:
    """The points that `correlate` made `result` of.

    Raises:
        InputError: If `table` lacks a column, or has more values of `color` than can be told apart.
    """
    forest, outcome, set_ = forest_of(result), outcome_of(result), result.attrs
    if color is None and "optimizer" in table.columns:
        color = "optimizer"
    controls = set_.get("controls", ())
    labels = [*group_levels(table, set_.get("groups")), *set_.get("factors", ())]
    metrics = [row["metric"] for row in forest.rows]
    column = {str(name): name for name in table.columns}
    for name in [outcome, *controls, *metrics, *([color] if color else []), *labels]:
        if str(name) not in column:
            raise InputError(
                f"the table has no column {name!r} to draw; take the one the correlations are of."
                f"{nearest(str(name), column)}"
            )
    y = numbers_of(table, column[outcome])
    panels = []
    for row in forest.rows:
        x = numbers_of(table, column[row["metric"]])
        need = [column[row["metric"]], column[outcome], *controls]
        places = np.flatnonzero(usable_rows(table, need, [column[name] for name in labels]))
        panels.append(_panel(row, places, x[places], y[places]))
    shown = np.concatenate([panel.y for panel in panels])
    low, high = _padded(shown)
    colors, of = _colors(table[column[color]], color) if color else ([], np.full(len(table), -1))
    return Scatter(panels, outcome, low, high, color, colors, of, _names(table))


def _panel(row: dict[str, Any], places: np.ndarray, x: np.ndarray, y: np.ndarray) -> Panel:
    log = len(x) > 0 and bool(x.min() > 0) and float(np.log10(x.max()) - np.log10(x.min())) > _LOG_DECADES
    low, high = _padded(np.log10(x) if log else x)
    return Panel(row, places, x, y, low, high, log)


def _padded(values: np.ndarray) -> tuple[float, float]:
    """The range of an axis that shows all values, whole markers of them."""
    if not len(values):
        return -1.0, 1.0
    low, high = float(values.min()), float(values.max())
    pad = 0.07 * (high - low)
    if pad <= 1e-9 * max(abs(low), abs(high)):  # one value up to rounding
        pad = 0.5 * abs(low) or 1.0
    return low - pad, high + pad


def _colors(column: pandas.Series, name: str) -> tuple[list[str], np.ndarray]:
    import pandas

    codes, values = column.factorize(sort=pandas.api.types.is_numeric_dtype(column))
    most = len(COLORS) * MARKERS
    if len(values) > most:
        raise InputError(f"column {name!r} has {len(values)} values; of {most} at most can colours be told apart.")
    return [f"{value:g}" if isinstance(value, float) else str(value) for value in values], np.asarray(codes)


def _names(table: pandas.DataFrame) -> list[str]:
    for name in _NAMES:
        if name in table.columns:
            return [str(value) for value in table[name]]
    return [f"row {index}" for index in table.index]


def look_of(index: int) -> tuple[str, int]:
    """Colour and number of the marker for the points with one value. The marker changes with every colour."""
    return (COLORS[index % len(COLORS)], index % MARKERS) if index >= 0 else (GREY, 0)


def scatter_caption(result: pandas.DataFrame, scatter: Scatter) -> str:
    """Describe scatter plots to their reader."""
    name = _NAME.get(result.attrs.get("method", ""), "correlation")
    order = ", the strongest correlation first" if len(scatter.panels) > 1 else ""
    sentences = [f"Each metric against {clean(scatter.outcome)}, a point per row of the table{order}"]
    groups = result["n_groups"].notna().any()
    level = f"{result.attrs['confidence']:.0%} " if "confidence" in result.attrs else ""
    method = "jackknife over groups" if groups else "BCa bootstrap over rows"
    symbol = symbol_of(result)
    key = f"{symbol}: {name}" if symbol in _SYMBOL.values() else "Above each panel: correlation"
    sentences.append(f"{key} with its {level}interval ({method}); q: false-discovery rate over the metrics")
    if any(significant(panel.row) for panel in scatter.panels):
        sentences.append(f"Bold: {MARKED[True]}")
    logs = sum(panel.log for panel in scatter.panels)
    if logs:
        all_ = logs == len(scatter.panels)
        which = "Metric axes are" if all_ else "Metric axes over more than two decades are"
        sentences.append(f"{which} logarithmic")
    if scatter.color and (scatter.of < 0).any():
        sentences.append(f"Grey: no {clean(scatter.color)} given")
    return ". ".join(sentences) + "."
