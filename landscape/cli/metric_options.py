"""How commands take metrics: NAME, or NAME:option=value,option=value."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from landscape.errors import InputError


def parse_metric(text: str) -> tuple[str, tuple[str, dict[str, Any]]]:
    """A column's name, the metric, and its options, from NAME or NAME:option=value,..."""
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--metric {text}: {part} is not option=value.")
        options[option.strip()] = _value(value.strip())
    column = "-".join([name, *(f"{option}_{value}" for option, value in options.items())])
    column = re.sub(r"[^\w.-]+", "_", column)  # it names files
    return column, (name, options)


def _value(text: str) -> Any:
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def print_metrics(known: Mapping[str, Mapping[str, Any]]) -> None:
    """What `--metric help` says: every metric with its options and their defaults."""
    for name, options in known.items():
        print(f"{name}  " + " ".join(f"{option}={value}" for option, value in options.items()))
