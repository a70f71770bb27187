"""`--metric` and how its text is read, and the argument of `landscape metrics`."""

from __future__ import annotations

import re
from typing import Annotated, Any

import typer

from landscape.cli.options.declaring import MEASUREMENT, value
from landscape.errors import InputError

MetricName = Annotated[
    str | None, typer.Argument(metavar="NAME", help="The metric to explain. Default: list all of them.")
]


def _show_metrics(metrics: list[str] | None) -> list[str] | None:
    """Answer `--metric help` before anything else is asked for."""
    if metrics and "help" in metrics:
        from landscape.cli.metrics import print_metrics

        print_metrics()
        raise typer.Exit
    return metrics


Metric = Annotated[
    list[str] | None,
    value(
        MEASUREMENT,
        "--metric",
        "METRIC",
        "Sharpness metric to measure: its name, or name:option=value,option=value to change its options. Repeat the "
        "option for more. `landscape metrics` lists all metrics. Default: a few cheap metrics of different kinds.",
        callback=_show_metrics,
        is_eager=True,
    ),
]


def parse_metric(text: str) -> tuple[str, tuple[str, dict[str, Any]]]:
    """Parse NAME or NAME:option=value,option=value into a column name, the metric's name and its options.

    The column name also names files, so that it holds letters, digits and `_ . -` only.

    >>> parse_metric("worst_case:steps=1,adaptive=true")
    ('worst_case-steps_1-adaptive_True', ('worst_case', {'steps': 1, 'adaptive': True}))
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--metric {text}: {part} must have the form option=value.")
        options[option.strip()] = _parse_value(value.strip())
    column = "-".join([name, *(f"{option}_{value}" for option, value in options.items())])
    return re.sub(r"[^\w.-]+", "_", column), (name, options)


def _parse_value(text: str) -> Any:
    """The number, truth value or None that a text spells, otherwise the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text
