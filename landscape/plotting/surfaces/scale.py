"""One scale for the losses of several surfaces: heights, contours and ticks, linear or logarithmic."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from landscape.errors import InputError, as_typed
from landscape.plotting.surfaces.arrangement import finite_losses, shown_name
from landscape.plotting.ticks import linear_ticks, log_ticks
from landscape.surfaces.options import MOST_LEVELS

if TYPE_CHECKING:
    from landscape.surfaces.result import Surface


@dataclasses.dataclass(frozen=True)
class LossScale:
    """One scale for the losses of several surfaces, which draws a loss at the height `heights(loss)`."""

    low: float  # heights
    high: float
    levels: np.ndarray  # heights of the contours, increasing
    chosen: bool  # whether a person chose the levels
    log: bool
    empty: bool  # there is no finite loss to draw
    shown: str = "loss"  # or the height that is drawn in its place

    @property
    def name(self) -> str:
        """The label of an axis with this scale."""
        return f"{self.shown} (log scale)" if self.log else self.shown

    def heights(self, loss: np.ndarray | float) -> np.ndarray:
        """Heights at which to draw `loss`: the loss itself or its log10, and NaN where that is not finite."""
        loss = np.asarray(loss, dtype=np.float64)
        drawable = np.isfinite(loss) & ((loss > 0) | (not self.log))
        heights = np.where(drawable, loss, np.nan)
        return np.log10(heights) if self.log else heights

    def losses(self, heights: Sequence[float] | np.ndarray) -> list[float]:
        """The inverse of `heights`, for an axis that is logarithmic by itself."""
        return [float(10**height if self.log else height) for height in heights]

    def ticks(self, count: int) -> tuple[list[float], list[str]]:
        """Heights of round losses, at most about `count` of them, and their labels in units of loss."""
        if self.empty:
            return [], []
        losses, texts = (log_ticks if self.log else linear_ticks)(self.low, self.high, count)
        return [float(self.heights(loss)) for loss in losses], texts

    def bar_ticks(self, count: int = 9) -> tuple[list[float], list[str]]:
        """Ticks of the colour bar: the levels if a person chose them, otherwise about `count` round losses."""
        if self.chosen and len(self.levels) <= 12:
            return list(self.levels), [f"{loss:.6g}" for loss in self.losses(self.levels)]
        low, high = self.levels[0], self.levels[-1]
        inside = [(at, text) for at, text in zip(*self.ticks(count), strict=True) if low <= at <= high]
        return [at for at, _ in inside], [text for _, text in inside]


def loss_scale(surfaces: Sequence[Surface], log: bool, levels: int | Sequence[float] = 20) -> LossScale:
    """The scale that `surfaces` share.

    Args:
        surfaces: All surfaces that are drawn on this scale.
        log: Whether the scale is logarithmic.
        levels: The number of contours, or the losses to draw them at.

    Raises:
        InputError: If `levels` are neither.
    """
    finite = finite_losses(surfaces)
    empty = len(finite) == 0
    bounds = (1.0, 10.0) if empty else (float(finite.min()), float(finite.max()))
    low, high = (math.log10(bound) for bound in bounds) if log else bounds
    if high - low <= 1e-9 * max(abs(low), abs(high)):  # all alike up to rounding: give it room to be seen in
        pad = 0.05 * max(abs(low), 1.0 if log or low == 0 else 0.0)
        low, high = low - pad, high + pad
    if isinstance(levels, int):
        if not 2 <= levels <= MOST_LEVELS:
            raise InputError(
                f"{as_typed('levels', levels)} is neither a count from 2 to {MOST_LEVELS:,} nor an increasing list of "
                "losses."
            )
        heights = np.linspace(low, high, levels)
    else:
        heights = np.asarray(levels, dtype=np.float64)
        is_list = heights.ndim == 1 and 2 <= len(heights) <= MOST_LEVELS and bool(np.isfinite(heights).all())
        if not is_list or (np.diff(heights) <= 0).any():
            raise InputError(
                f"{as_typed('levels', levels)} is neither a number nor an increasing list of at most {MOST_LEVELS:,} "
                "losses."
            )
        if log:
            if heights[0] <= 0:
                raise InputError(f"{as_typed('levels', levels)} do not fit a logarithmic scale; give losses above 0.")
            heights = np.log10(heights)
    return LossScale(low, high, heights, not isinstance(levels, int), log, empty, shown_name(surfaces[0]))
