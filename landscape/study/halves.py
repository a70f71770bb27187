"""Two halves of a data set that share no example."""

from __future__ import annotations

import dataclasses
import hashlib

from landscape.data.tokens import Example, TokenData
from landscape.errors import InputError


def disjoint_halves(data: TokenData) -> tuple[TokenData, TokenData]:
    """Split the examples of a data set into two halves that share none: one for flatness, the other for outcomes.

    The loss of a tuned model enters its forgetting with a plus, and its sharpness too. On the same examples, evaluation
    noise that both share would therefore correlate them.

    Distinct examples, sorted by the SHA-256 of their tokens, go to the two halves in turn, so that the split depends on
    the content of the data alone. Examples that occur more than once stay together.

    Args:
        data: The data set.

    Returns:
        The first and the second half. The first has the distinct example more where their number is odd.

    Raises:
        InputError: All examples are the same.

    Example:
        Three distinct examples, one of them twice:

        >>> from landscape.data.tokens import Example, TokenData
        >>> texts = [(1, 2), (1, 3), (1, 4), (1, 2)]
        >>> data = TokenData("example", tuple(Example(ids, (-100, ids[1])) for ids in texts))
        >>> flatness, outcomes = disjoint_halves(data)
        >>> len(set(flatness.examples)), len(set(outcomes.examples))
        (2, 1)
        >>> set(flatness.examples) & set(outcomes.examples)
        set()
    """
    distinct = sorted(set(data.examples), key=_example_digest)
    if len(distinct) < 2:
        raise InputError(
            f"{data.source} has one distinct example; flatness and outcomes are measured on different ones."
        )
    first = set(distinct[::2])
    of_first = tuple(example for example in data.examples if example in first)
    of_second = tuple(example for example in data.examples if example not in first)
    return dataclasses.replace(data, examples=of_first), dataclasses.replace(data, examples=of_second)


def _example_digest(example: Example) -> str:
    return hashlib.sha256(repr((example.input_ids, example.labels)).encode()).hexdigest()
