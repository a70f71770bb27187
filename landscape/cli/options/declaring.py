"""How an option is declared: its panel in the help, its name, its type and its help text."""

from __future__ import annotations

from typing import Any, get_args

import typer

# The panels that group options in the help.
DATA, MODEL, MEASUREMENT, SURFACE = "Data", "Model", "Measurement", "Surface"
TRAINING, STATISTICS, OUTPUT = "Training", "Statistics", "Output"


def value(panel: str, name: str, metavar: str, text: str, **settings: Any) -> Any:
    """An option that takes a value, shown as `metavar` in the help."""
    return typer.Option(*name.split(), metavar=metavar, help=text, rich_help_panel=panel, **settings)


def choice(panel: str, name: str, choices: Any, text: str, **settings: Any) -> Any:
    """An option that takes one of the names in a Literal type; the help lists them after the text."""
    return value(panel, name, "NAME", f"{text} Choices: {', '.join(get_args(choices))}.", **settings)


def flag(panel: str, name: str, text: str) -> Any:
    """An option that is given or not."""
    return value(panel, name, "", text)
