"""How an option is declared: its panel in the help, its name, its type, its range and its help text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, get_args

import typer

from landscape.errors import InputError

# The panels that group options in the help.
DATA, MODEL, MEASUREMENT, SURFACE = "Data", "Model", "Measurement", "Surface"
TRAINING, STATISTICS, OUTPUT = "Training", "Statistics", "Output"

MOST_RESAMPLES = 1_000_000  # of bootstraps, permutations and simulations: more change no digit that is printed


def value(panel: str, name: str, metavar: str, text: str, **settings: Any) -> Any:
    """An option that takes a value, shown as `metavar` in the help."""
    return typer.Option(*name.split(), metavar=metavar, help=text, rich_help_panel=panel, **settings)


def choice(panel: str, name: str, choices: Any, text: str, **settings: Any) -> Any:
    """An option that takes one of the names in a Literal type; the help lists them after the text."""
    return value(panel, name, "NAME", f"{text} Choices: {', '.join(get_args(choices))}.", **settings)


def flag(panel: str, name: str, text: str) -> Any:
    """An option that is given or not."""
    return value(panel, name, "", text)


def at_least(least: float, most: float = math.inf) -> Callable[[typer.CallbackParam, Any], Any]:
    """The callback of an option whose number is at least `least` and at most `most`, and finite."""
    words = f"at least {least:,} and finite" if most == math.inf else f"from {least:,} to {most:,}"
    return _in_range(lambda number: least <= number <= most and number < math.inf, words)


def between(low: float, high: float = math.inf) -> Callable[[typer.CallbackParam, Any], Any]:
    """The callback of an option whose number is above `low` and below `high`."""
    words = "positive and finite" if (low, high) == (0, math.inf) else f"between {low:,} and {high:,}"
    return _in_range(lambda number: low < number < high, words)


def _in_range(is_valid: Callable[[float], bool], words: str) -> Callable[[typer.CallbackParam, Any], Any]:
    """The callback of an option that raises InputError where its number is not valid."""

    def check(parameter: typer.CallbackParam, number: Any) -> Any:
        if number is not None and not is_valid(number):  # which NaN is not
            of_kind = words if isinstance(number, float) else words.removesuffix(" and finite")
            raise InputError(f"{parameter.opts[0]} {number} must be {of_kind}.")
        return number

    return check
