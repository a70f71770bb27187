"""Options of `landscape correlate` and `landscape design`: columns, groups and resampling."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from landscape.cli.options.declaring import MOST_RESAMPLES, STATISTICS, at_least, between, choice, flag, value

CorrelationName = Literal["spearman", "pearson", "kendall"]

Table = Annotated[
    Path, typer.Argument(metavar="TABLE", help="A CSV file with one row per checkpoint, as from landscape measure.")
]
Flatness = Annotated[
    list[str] | None,
    value(
        STATISTICS,
        "--flatness",
        "COLUMN",
        "Column to correlate with forgetting. Repeat the option for more columns. Default: every column of numbers but "
        "those of landscape measure that are no metrics. Corrections are over all columns taken.",
    ),
]
ForgettingColumn = Annotated[
    str, value(STATISTICS, "--forgetting", "COLUMN", "Column that holds how much each checkpoint has forgotten.")
]
Method = Annotated[CorrelationName, choice(STATISTICS, "--method", CorrelationName, "Correlation coefficient.")]
Control = Annotated[
    list[str] | None,
    value(
        STATISTICS,
        "--control",
        "COLUMN",
        "Column to hold fixed in the partial correlation. Repeat the option for more columns.",
    ),
]
Factor = Annotated[
    list[str] | None,
    value(
        STATISTICS,
        "--factor",
        "COLUMN",
        "Column of categories to hold fixed, such as optimizer or lr. Numbers count as categories, too. Repeat the "
        "option for more columns.",
    ),
]
Groups = Annotated[
    str | None,
    value(
        STATISTICS,
        "--groups",
        "COLUMN",
        "Column that says which checkpoints belong together, such as their base. Intervals then count whole groups. So "
        "do p-values with --factor or nested columns, and where metric or outcome has one value per group; otherwise p "
        "tests the link within groups alone, which is not what the correlation beside it is about. Nested columns are "
        "parted by slashes, the widest first: recipe/base.",
    ),
]
Mixed = Annotated[
    bool,
    flag(
        STATISTICS,
        "--mixed",
        "Also fit a linear mixed model for each metric, with the groups as random effects (needs statsmodels).",
    ),
]
Like = Annotated[
    str | None,
    value(
        STATISTICS,
        "--like",
        "COLUMN",
        "Column that the simulated metric resembles. Default: the column of what was forgotten.",
    ),
]
Replications = Annotated[
    int,
    value(
        STATISTICS,
        "--replications",
        "N",
        "Number of simulated tables in which nothing is linked.",
        callback=at_least(100, MOST_RESAMPLES),
    ),
]
Hyperparameter = Annotated[
    list[str] | None,
    value(
        STATISTICS,
        "--hyperparameter",
        "COLUMN",
        "Column of a factorial design, for the granulated Kendall coefficient. Repeat the option for more columns.",
    ),
]
Confidence = Annotated[
    float,
    value(
        STATISTICS, "--confidence", "X", "Confidence level of the intervals, between 0 and 1.", callback=between(0, 1)
    ),
]
Resamples = Annotated[
    int,
    value(
        STATISTICS,
        "--resamples",
        "N",
        "Number of bootstrap resamples and of permutations.",
        callback=at_least(99, MOST_RESAMPLES),
    ),
]
