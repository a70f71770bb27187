"""What all pictures share, whichever library draws them: colours, places, words."""

from __future__ import annotations

import dataclasses
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
    def name(self) -> str:
        """Name of the checkpoint."""

    @property
    def data(self) -> str:
        """Name of the data set."""

    @property
    def weight(self) -> float:
        """Number of terms that the loss is a mean of."""

    @property
    def provenance(self) -> Provenance:
        """Where the result comes from."""


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
    """Find the place of each result in a figure.

    Args:
        results: At least one result.
        what: What to call the results in a message, in the plural.

    Raises:
        InputError: If two results have the same name and data.
    """
    cells: dict[tuple[str, str], M] = {}
    for result in results:
        if (result.name, result.data) in cells:
            raise InputError(f"two {what} are both {label_of(result)}; give them different names.")
        cells[result.name, result.data] = result
    names, data = (list(dict.fromkeys(keys)) for keys in zip(*cells, strict=True))
    return Places(names, data, cells)


def require_same_data(results: Sequence[Measured]) -> None:
    """Check that results which name their data alike were measured on the same data.

    Raises:
        InputError: If two were not.
    """
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
    """A result in a message: the names of its checkpoint and its data."""
    return f"'{clean(result.name)}' on '{clean(result.data)}'"


def clean(text: str) -> str:
    """`text` on one line, with what has no glyph (control characters, broken Unicode) made visible."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def shorten(text: str, limit: int) -> str:
    """`text` with its middle left out if it is longer than `limit`, because names mostly differ at their ends."""
    if len(text) <= limit:
        return text
    head = (limit - 1) // 2
    return f"{text[:head]}…{text[len(text) - (limit - 1 - head) :]}"


def listing(items: Sequence[str]) -> str:
    """Items as "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def number(value: float, digits: int = 3) -> str:
    """`value` with so many significant digits."""
    return with_minus_sign(f"{value:.{digits}g}")


def with_minus_sign(text: str) -> str:
    """The text of a number with a minus sign in place of the hyphen, which is too short in print."""
    return text.replace("-", "\N{MINUS SIGN}")


def of_tokens(result: Measured) -> bool:
    """Whether the loss is that of a language model. The units of another model's loss are unknown."""
    return "supervised_tokens" in (result.provenance.data or {})


def amount(result: Measured) -> str:
    """The number of terms that the loss is a mean of, in words."""
    count = f"{result.weight:,.10g}"
    return f"{count} supervised tokens" if of_tokens(result) else f"mean of {count}"
