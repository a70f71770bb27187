"""Flatness against forgetting: forest plot, scatter plots, and the verdicts of each estimand in words."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas

from landscape.correlation import estimand_table, read_table
from landscape.errors import InputError
from landscape.plotting.basics import listing
from landscape.plotting.correlation.figures import contents
from landscape.plotting.correlation.interactive import correlation_section
from landscape.plotting.page import Cell, Table
from landscape.report.reading import Chapter, File, Found, Part, by_place, titled
from landscape.report.words import of_interval, signed_interval
from landscape.results import digest_of, read_json

_OF_COMMAND = ("command", "table", "digest", "flatness")  # settings that are not attrs of the result
_NAMED = 5  # metrics that a sentence names


@dataclasses.dataclass(frozen=True)
class Correlated:
    """What `landscape correlate` wrote, and the table that it read where that is still there."""

    result: pandas.DataFrame
    settings: dict[str, Any]
    table: pandas.DataFrame | None


def _read(file: File) -> Correlated | None:
    record = file.path.with_name("settings.json")
    if file.path.name != "correlate.csv" or not record.exists():
        return None
    settings = read_json(record)
    if settings.get("command") != "correlate":
        return None
    result = read_table(file.path)
    result["note"] = result["note"].fillna("")
    result.attrs = {name: value for name, value in settings.items() if name not in _OF_COMMAND}
    return Correlated(result, settings, _table_of(settings, file.path.parent))


def _table_of(settings: dict[str, Any], folder: Path) -> pandas.DataFrame | None:
    """The table that was correlated, where a file with the same rows is there."""
    given = Path(str(settings.get("table", "")))
    for path in (given, folder / given.name, folder.parent / given.name):
        try:
            table = read_table(path)
        except InputError:
            continue
        if digest_of(table.to_csv(index=False)) == settings.get("digest"):
            return table
    return None


def _part(found: list[Found[Correlated]]) -> Part:
    whole, places = Part(), by_place(found)
    for place, here in places.items():
        for one in here:
            title = titled("Flatness against forgetting", place, places)
            try:
                _add(whole, one.content, title)
            except (InputError, KeyError) as error:
                whole.problems.append(f"{one.file.path}: {error}")
    return whole


def _add(whole: Part, correlated: Correlated, title: str) -> None:
    section = correlation_section(correlated.result, *contents(correlated.result, correlated.table, None, None), title)
    caption = section.caption
    if correlated.table is None:
        caption += (
            f" The table {correlated.settings.get('table')} is not there any more, or has changed: no scatter plots."
        )
    estimands = estimand_table(correlated.result)
    labels = [str(name) for name in estimands.columns if f"{name}_low" in estimands.columns]
    rows: list[list[str | Cell]] = [
        [str(row["metric"]), *(_cell(row, label) for label in labels), str(row["verdict"])]
        for _, row in estimands.iterrows()
    ]
    table = Table(["metric", *labels, "verdict"], rows, "The same question asked of other rows (estimands)")
    settings = [[name, str(value)] for name, value in correlated.settings.items()]
    folded = [Table(["", "value"], settings, "Settings")]
    section = dataclasses.replace(section, caption=caption, tables=[table, *section.tables], folded=folded)
    whole.sections.append(section)
    whole.sentences += [_sentence(estimands, label, correlated.result.attrs) for label in labels]
    whole.sentences.append("These are correlations over checkpoints, and do not say what causes what.")


def _cell(row: pandas.Series, label: str) -> str | Cell:
    if row[label] != row[label]:
        return Cell("none")
    star = "*" if row[f"{label}_evidence"] else ""
    return of_interval(row[label], (row[f"{label}_low"], row[f"{label}_high"]), f"{row[label]:+.2f}{star}")


def _sentence(estimands: pandas.DataFrame, label: str, attrs: dict[str, Any]) -> str:
    """What one estimand shows, and what it holds fixed."""
    outcome = attrs.get("forgetting", "forgetting")
    found = estimands[estimands[f"{label}_evidence"]]
    parts = []
    for way, sign in (("larger", 1), ("smaller", -1)):
        rows = [row for _, row in found.iterrows() if sign * row[label] > 0]
        if rows:
            parts.append(f"more {outcome} goes with {way} {_metrics(rows, label)}")
    rest = len(estimands) - len(found)
    if found.empty:
        which = f"any of {rest} metrics" if rest > 1 else str(estimands["metric"].iloc[0])
        said = f"no link of {which} with {outcome} is shown"
    else:
        said = " and ".join(parts) + (f"; of {rest} others no link is shown" if rest else "")
    return f"{_scope(label, attrs)}: {said}."


def _metrics(rows: Sequence[pandas.Series], label: str) -> str:
    named = [f"{row['metric']} ({_number(row, label)})" for row in rows[:_NAMED]]
    more = len(rows) - len(named)
    return listing([*named, *([f"{more} more metrics"] if more else [])])


def _number(row: pandas.Series, label: str) -> str:
    low, high = row[f"{label}_low"], row[f"{label}_high"]
    return signed_interval(row[label], low, high, 2) if low == low and high == high else f"{row[label]:+.2g}"


def _scope(label: str, attrs: dict[str, Any]) -> str:
    if label == "pooled":
        return "Over all runs together (pooled)"
    given = [str(name) for name in (*(attrs.get("factors") or ()), *(attrs.get("controls") or ()))]
    if label == "tuned alike":
        return f"Among runs that agree in {listing(given)} (tuned alike)" if given else "Among runs tuned alike"
    return f"Inside each {label.removeprefix('within ')} ({label})"


CHAPTER = Chapter(_read, _part)
