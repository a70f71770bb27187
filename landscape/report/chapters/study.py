"""Tables of `landscape measure`: a row per checkpoint with error bars, and the Pareto front."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pandas

from landscape.correlation import read_table
from landscape.plotting.forgetting.interactive import pareto_figure, pareto_front
from landscape.plotting.page import Cell, Plot, Section, Table
from landscape.report.reading import Chapter, File, Found, Part
from landscape.report.words import mark_of, of_error, of_interval
from landscape.study.table import details_path

_ENDING = ".details.csv"
_SETTINGS = ("optimizer", "rho", "lr", "seed", "steps")
_FOLDED = ("source", "digest", "base", "base_digest")


@dataclasses.dataclass(frozen=True)
class Study:
    """A table, and how sure its numbers are."""

    path: Path
    table: pandas.DataFrame
    details: pandas.DataFrame


def _read(file: File) -> Study | None:
    if file.path.suffix != ".csv" or file.path.name.endswith(_ENDING) or not details_path(file.path).exists():
        return None
    details = read_table(details_path(file.path))
    table = read_table(file.path)
    if not {"digest", "column", "value", "stderr", "low", "high", "converged"} <= set(details.columns):
        return None
    return Study(file.path, table, details) if {"name", "digest", "forgetting"} <= set(table.columns) else None


def _part(found: list[Found[Study]]) -> Part:
    whole = Part()
    for one in found:
        study = one.content
        known = {(row["digest"], row["column"]): row for _, row in study.details.iterrows()}
        ends = [known.get((digest, "forgetting")) for digest in study.table["digest"]]
        low, high = (np.array([math.nan if row is None else row[end] for row in ends]) for end in ("low", "high"))
        plots, caption = [], ""
        if "loss_after_new" in study.table.columns:
            costs = study.table[["loss_after_new", "forgetting"]].to_numpy(dtype=float)
            front = [str(name) for name in study.table["name"][pareto_front(costs)]]
            words = f"Loss on new data against forgetting of {len(study.table)} checkpoints, and their Pareto front"
            plots = [Plot(pareto_figure(study.table, low, high), words, title="Learning and keeping")]
            caption = (
                "To the left is what learned the new data best, at the bottom what kept the old best. Bars: 95% "
                "intervals over examples. The dotted front is that of the values: within their intervals it may run "
                "elsewhere. "
            )
            whole.sentences.append(
                f"{len(front)} of {len(study.table)} checkpoints are on the Pareto front of new loss and forgetting, "
                "by their values" + (f": {', '.join(front)}." if len(front) <= 4 else ".")
            )
        caption += "Ends in brackets are 95% intervals, ± standard errors; * has not met its tolerance."
        identity = [name for name in ("name", *_FOLDED) if name in study.table.columns]
        origin = Table(identity, [[str(row[name]) for name in identity] for _, row in study.table.iterrows()], "Origin")
        title = f"Measurements of {len(study.table)} checkpoints ({study.path.name})"
        whole.sections.append(Section(title, plots, caption, [_table(study, known)], [origin]))
    return whole


def _table(study: Study, known: dict) -> Table:
    settings = [name for name in _SETTINGS if name in study.table.columns and study.table[name].notna().any()]
    first = ["forgetting", "loss_after_old", "loss_after_new", "kl_old", "kl_new", "distance"]
    first = [name for name in first if name in study.table.columns]
    left_out = {"name", *_FOLDED, *_SETTINGS, *first}
    others = [str(name) for name in study.table.columns if name not in left_out]
    rows: list[list[str | Cell]] = []
    for _, row in study.table.iterrows():
        cells: list[str | Cell] = [str(row["name"])]
        cells += [_setting(row[name]) for name in settings]
        cells += [_cell(row[name], known.get((row["digest"], name))) for name in (*first, *others)]
        rows.append(cells)
    return Table(["checkpoint", *(name.replace("_", " ") for name in (*settings, *first, *others))], rows)


def _setting(value: object) -> str | Cell:
    if isinstance(value, str):
        return value
    return Cell("" if value != value else f"{value:g}", float(value))  # type: ignore[arg-type]


def _cell(value: object, detail: pandas.Series | None) -> str | Cell:
    try:
        number = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return str(value)
    if not math.isfinite(number):
        return Cell("")
    if detail is None:
        return of_error(number, None)
    mark = mark_of(str(detail["converged"]) != "False")
    if math.isfinite(detail["low"]) and math.isfinite(detail["high"]):
        return of_interval(number, (detail["low"], detail["high"]), f"{number:.4g}{mark}")
    return of_error(number, detail["stderr"], mark)


CHAPTER = Chapter(_read, _part)
