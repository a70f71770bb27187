"""The texts of options of `landscape plot`: numbers, grid points and spans."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Sequence
from typing import Literal

from landscape.errors import InputError, as_typed

MOST_POINTS = 250_000  # of a grid: 500 by 500, four times the finest that any picture shows
MOST_LEVELS = 1000  # of contour lines: a picture of 2000 pixels has no room for more


def check_topology_extra() -> None:
    """Raise InputError where the library that finds minima and saddles is not installed."""
    if importlib.util.find_spec("gudhi") is None:
        raise InputError("topology needs gudhi: pip install 'landscape-lm[topology]'.")


def parse_numbers(text: str, option: str) -> list[float]:
    """The numbers in a text such as "1.5" or "1,2".

    Args:
        text: Numbers with commas, or with "x", between them.
        option: The name of the option that has the text, for the message.

    Raises:
        InputError: The text holds something else, or a number that is not finite.
    """
    try:
        numbers = [float(part) for part in text.replace("x", ",").split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text} is not a number or a list of numbers.") from error
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{option} {text} is not finite.")
    return numbers


def parse_points(text: str, dim: int) -> list[int]:
    """The number of grid points along each of `dim` axes that `--points` says.

    Raises:
        InputError: The text is neither one whole number nor one for each axis, or has a number below 3: pictures and
            surface metrics need 3 points.
    """
    counts = [int(number) if number.is_integer() else 0 for number in parse_numbers(text, "--points")]
    if len(counts) == 1:
        counts *= dim
    if len(counts) != dim or min(counts) < 3:
        raise InputError(f"--points {text} is not {'a number' if dim == 1 else 'N or N,M'} with at least 3 an axis.")
    check_points(counts)
    return counts


def check_points(counts: Sequence[int]) -> None:
    """Check that a grid with that many points along each axis is not larger than any run could measure.

    Raises:
        InputError: It has more than `MOST_POINTS` points.
    """
    if math.prod(counts) > MOST_POINTS:
        given = ",".join(map(str, counts)) if len(set(counts)) > 1 else counts[0]
        raise InputError(
            f"{as_typed('points', given)} makes {math.prod(counts):,} points, each of which takes a pass over the "
            f"data; a surface has at most {MOST_POINTS:,}."
        )


def parse_span(text: str, kind: str, *, single: bool, auto: bool) -> float | tuple[float, float] | Literal["auto"]:
    """The span of an axis that `--span` says.

    Args:
        text: "S", "LOW,HIGH" or "auto".
        kind: The name of the kind of surface, for the message.
        single: Whether a single number S may stand for [-S, S].
        auto: Whether "auto" is a span.

    Raises:
        InputError: The text has none of the forms.
    """
    if text == "auto":
        if not auto:
            raise InputError(f"--span auto looks along directions; it does not go with --kind {kind}.")
        return "auto"
    numbers = parse_numbers(text, "--span")
    if len(numbers) == 2 and numbers[0] < numbers[1]:
        return numbers[0], numbers[1]
    if len(numbers) == 1 and numbers[0] > 0 and single:
        return numbers[0]
    forms = "S or LOW,HIGH" if single else "LOW,HIGH"
    raise InputError(f"--span {text} is not {forms} for --kind {kind} (S positive, LOW < HIGH).")
