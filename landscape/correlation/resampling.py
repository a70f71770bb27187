"""How intervals and p-values are drawn: the bootstrap and the permutations."""

from __future__ import annotations

from dataclasses import dataclass

from landscape.errors import InputError, as_typed


@dataclass(frozen=True)
class Resampling:
    """How the bootstrap and the permutations behind intervals and p-values are drawn.

    Attributes:
        resamples: Number of bootstrap samples and of permutations, at least 99. No p-value can be below
            2 / (resamples + 1).
        confidence: Share of repetitions of a study in which the intervals would hold the true value.
        seed: Seed for the draws; the same seed gives the same numbers.

    Raises:
        InputError: A value is out of range.

    Example:
        >>> from landscape import Resampling
        >>> Resampling(resamples=999)
        Resampling(resamples=999, confidence=0.95, seed=0)
    """

    resamples: int = 9999
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.confidence < 1:
            raise InputError(f"{as_typed('confidence', self.confidence)} must be between 0 and 1.")
        if self.resamples < 99:
            raise InputError(f"{as_typed('resamples', self.resamples)} are too few for an interval; take at least 99.")
