"""Options of how far a capability holds."""

from __future__ import annotations

from typing import Annotated

from landscape.cli.options.declaring import MEASUREMENT, at_least, between, value

Drop = Annotated[
    float | None,
    value(
        MEASUREMENT,
        "--drop",
        "X",
        "How far the height may fall, or a loss or divergence rise. Default: 0.1 nat for these, and two standard "
        "errors of the height for the others.",
        callback=between(0),
    ),
]
Directions = Annotated[
    int,
    value(
        MEASUREMENT,
        "--directions",
        "N",
        "Number of random directions. The interval of their median radius needs six.",
        callback=at_least(1, 10_000),
    ),
]
Sigma = Annotated[
    float | None,
    value(
        MEASUREMENT,
        "--sigma",
        "S",
        "Length of Gaussian noise on the weights over their norm, for the bound of randomized smoothing on what a step "
        "can do. Default: no bound.",
        callback=between(0),
    ),
]
BasinBase = Annotated[
    str | None,
    value(
        MEASUREMENT,
        "--base",
        "CKPT",
        "The checkpoint that the others were fine-tuned from: whether the step from it to each left its basin.",
    ),
]
