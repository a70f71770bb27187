"""What all pictures share, whichever library draws them: colours, places, words, ticks."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

from landscape.errors import InputError

if TYPE_CHECKING:
    from landscape.results import Provenance

# Okabe and Ito's colours without the yellow, which is lost on white paper.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#56B4E9", "#E69F00")

# --- places -------------------------------------------------------------------------------------------------


class Measured(Protocol):
    """What every result of one checkpoint on one data set has."""

    @property
    def name(self) -> str: ...
    @property
    def data(self) -> str: ...
    @property
    def weight(self) -> float: ...
    @property
    def provenance(self) -> Provenance: ...


M = TypeVar("M", bound=Measured)


@dataclasses.dataclass(frozen=True)
class Places(Generic[M]):
    """The results of a figure by checkpoint and data set, each in order of first appearance."""

    names: list[str]
    data: list[str]
    cells: dict[tuple[str, str], M]  # by (name, data); what was not measured is missing

    def of_data(self, data: str) -> list[M]:
        """The results measured on one data set, in the order of the checkpoints."""
        return [self.cells[name, data] for name in self.names if (name, data) in self.cells]


def places_of(results: Sequence[M], what: str) -> Places[M]:
    """The place of each of `results`, at least one; InputError where two claim the same. `what` is their plural."""
    cells: dict[tuple[str, str], M] = {}
    for result in results:
        if (result.name, result.data) in cells:
            raise InputError(f"two {what} are both {label_of(result)}; give them different names.")
        cells[result.name, result.data] = result
    names, data = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    return Places(names, data, cells)


def require_same_data(results: Sequence[Measured]) -> None:
    """Raise InputError where two results name their data alike and were not measured on the same."""
    seen: dict[str, Measured] = {}
    for result in results:
        first = seen.setdefault(result.data, result)
        if _what_was_read(first) != _what_was_read(result):
            raise InputError(
                f"{label_of(first)} and {label_of(result)} were measured on different data "
                f"({first.weight:,.10g} and {result.weight:,.10g} terms); use the same for both."
            )


def _what_was_read(result: Measured) -> tuple[float, str | None]:
    """Number of loss terms, and the digest of the tokens; digests of other data change with its batches."""
    return result.weight, (result.provenance.data or {}).get("digest") if of_tokens(result) else None


# --- words --------------------------------------------------------------------------------------------------


def label_of(result: Measured) -> str:
    return f"'{clean(result.name)}' on '{clean(result.data)}'"


def clean(text: str) -> str:
    """`text` on one line, with what has no glyph (control characters, broken Unicode) made visible."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def shorten(text: str, limit: int) -> str:
    """`text`, its middle left out where it is longer than `limit`: names mostly differ at their ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def listing(items: Sequence[str]) -> str:
    """Items as "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def number(value: float, digits: int = 3) -> str:
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def of_tokens(result: Measured) -> bool:
    """Whether the loss is a language model's; that of other models and data has units we do not know."""
    return "supervised_tokens" in (result.provenance.data or {})


def amount(result: Measured) -> str:
    """How many terms the loss is a mean of, in words."""
    count = f"{result.weight:,.10g}"
    return f"{count} supervised tokens" if of_tokens(result) else f"mean of {count}"


# --- ticks --------------------------------------------------------------------------------------------------


def round_ticks(low: float, high: float, count: int) -> list[float]:
    """Multiples of 1, 2, 2.5 or 5 times a power of ten from `low` to `high`, nearest to `count` of them."""
    power = 10.0 ** math.floor(math.log10((high - low) / count))
    steps = [power * factor for factor in (1, 2, 2.5, 5, 10)]
    slack = 1e-6 * (high - low)  # so that rounding does not cost the tick at an edge

    def multiples(step: float) -> list[float]:
        first, last = math.ceil((low - slack) / step), math.floor((high + slack) / step)
        return [i * step for i in range(first, last + 1)]

    return min((multiples(step) for step in steps), key=lambda ticks: abs(len(ticks) - count))


def log_ticks(low: float, high: float, count: int) -> list[float]:
    """Round losses from 10**low to 10**high: 1-2-5 or powers of ten, round numbers within a decade."""
    if high - low < 1:
        return round_ticks(10.0**low, 10.0**high, count)
    decades = range(math.floor(low), math.ceil(high) + 1)
    step = math.ceil((high - low) / count)
    choices = [
        [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)],
        [factor * 10.0**decade for decade in decades for factor in (1, 3)],
        [10.0**decade for decade in decades if decade % step == 0],
    ]
    inside = [[t for t in ticks if low - 1e-9 <= math.log10(t) <= high + 1e-9] for ticks in choices]
    return min(inside, key=lambda ticks: abs(len(ticks) - count))


def labels(ticks: Sequence[float]) -> list[str]:
    """`ticks` as text: no more digits than tell them apart, a proper minus sign."""
    largest = max((abs(tick) for tick in ticks), default=0.0)
    steps = [b - a for a, b in itertools.pairwise(ticks)] or [largest or 1.0]
    if largest >= 1e5 or min(steps) < 1e-6 or max(steps) > 10 * min(steps):  # the last: over several decades
        texts = [f"{tick:.6g}" for tick in ticks]
    else:
        digits = next(d for d in range(9) if all(abs(t - round(t, d)) < 1e-2 * min(steps) for t in ticks))
        texts = [f"{tick:.{digits}f}" for tick in ticks]
    return [text.replace("-", "\N{MINUS SIGN}") for text in texts]
