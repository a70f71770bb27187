"""Ticks of an axis with their labels, chosen by matplotlib's locators and formatters for figures and pages alike.

Matplotlib is imported inside the functions: a picture needs ticks only once it is drawn.
"""

from __future__ import annotations

import math

from landscape.plotting.basics import with_minus_sign

# On an axis from 10**5 on, or below 10**-5, labels are written like 1e+06.
_DECIMAL_POWERS = (-5, 6)


def linear_ticks(low: float, high: float, count: int) -> tuple[list[float], list[str]]:
    """Choose round numbers from `low` to `high`, and their labels.

    Args:
        low: Lower end of the axis.
        high: Upper end of the axis.
        count: Largest number of steps between ticks that fits on the axis.

    Returns:
        Positions in increasing order, none outside the axis, and a label for each.
    """
    from matplotlib.ticker import MaxNLocator, ScalarFormatter, StrMethodFormatter

    locator = MaxNLocator(count, steps=[1, 2, 2.5, 5, 10])
    slack = 1e-6 * (high - low)  # so that rounding does not cost the tick at an edge
    positions = [float(tick) for tick in locator.tick_values(low, high) if low - slack <= tick <= high + slack]
    formatter = ScalarFormatter(useOffset=False, useLocale=False)
    formatter.set_powerlimits(_DECIMAL_POWERS)
    formatter.create_dummy_axis()
    assert formatter.axis is not None
    formatter.axis.set_view_interval(low, high)
    texts = formatter.format_ticks(positions)
    if formatter.get_offset():  # a power of ten that all labels share; none of our axes has a place for it
        texts = StrMethodFormatter("{x:g}").format_ticks(positions)
    return positions, [with_minus_sign(text) for text in texts]


def log_ticks(low: float, high: float, count: int) -> tuple[list[float], list[str]]:
    """Choose round numbers on a logarithmic axis from 10**`low` to 10**`high`, and their labels.

    Args:
        low: Logarithm to base 10 of the lower end of the axis.
        high: Logarithm to base 10 of the upper end of the axis.
        count: About the number of ticks that fit on the axis.

    Returns:
        Positions (not their logarithms) in increasing order, none outside the axis, and a label for each.
    """
    from matplotlib.ticker import LogLocator, StrMethodFormatter

    if high - low < 1:  # within one decade, powers of ten are too sparse
        return linear_ticks(10.0**low, 10.0**high, count)
    crowded = 3 * (high - low) > count + 2  # 1, 2 and 5 in every decade would be too many
    locator = LogLocator(subs=(1,) if crowded else (1, 2, 5), numticks=count)
    ticks = [float(tick) for tick in locator.tick_values(10.0**low, 10.0**high)]
    positions = [tick for tick in ticks if low - 1e-9 <= math.log10(tick) <= high + 1e-9]
    return positions, [with_minus_sign(text) for text in StrMethodFormatter("{x:g}").format_ticks(positions)]
