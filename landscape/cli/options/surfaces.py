"""Options of the kind, the grid and the picture of a loss surface."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from landscape.cli.options.declaring import SURFACE, at_least, choice, flag, value
from landscape.heights.options import HEIGHT_NAMES
from landscape.surfaces.kinds import SURFACE_KINDS

if TYPE_CHECKING:
    KindName = str
else:  # A new kind of surface is a new file, which the command line offers without being told.
    KindName = Literal[tuple(SURFACE_KINDS)]
NormalizationName = Literal["filter", "unit", "head", "layer", "none"]

Kind = Annotated[
    KindName,
    choice(
        SURFACE,
        "--kind",
        KindName,
        " ".join(
            ["Kind of surface."]
            + [f"For {name}, {kind.help[0].lower()}{kind.help[1:]}" for name, kind in SURFACE_KINDS.items()]
        ),
    ),
]
Dim = Annotated[
    int | None,
    value(SURFACE, "--dim", "N", "Number of axes of a random or eigen surface. Default: 2.", callback=at_least(1, 2)),
]
Points = Annotated[
    str,
    value(SURFACE, "--points", "N|N,M", "Number of grid points per axis: one number for all axes, or one for each."),
]
Span = Annotated[
    str | None,
    value(
        SURFACE,
        "--span",
        "S|LOW,HIGH|auto",
        "Range of each axis: from -S to S, or from LOW to HIGH. For random surfaces the unit is the length of the "
        "direction (default 1), for eigen and worst_case surfaces the distance in weight space (default auto), and "
        "for interpolate, which takes LOW,HIGH alone, the first checkpoint is at 0 and the second at 1 (default "
        "-0.5,1.5). auto finds where the loss has risen by 1 nat; several checkpoints and data sets share the largest "
        "of their ranges.",
    ),
]
Margin = Annotated[
    float | None,
    value(
        SURFACE,
        "--margin",
        "FRACTION",
        "Border around the checkpoints in plane and trajectory surfaces, as a fraction of the distance that they "
        "span. Default: 0.25.",
        callback=at_least(0),
    ),
]
Normalize = Annotated[
    NormalizationName | None,
    choice(
        SURFACE,
        "--normalize",
        NormalizationName,
        "Give each part of a random direction the length of the same part of the weights (Li et al. 2018), where a "
        "part is a filter, a unit, an attention head or a layer. Default: filter.",
    ),
]
Draws = Annotated[
    int,
    value(
        SURFACE,
        "--draws",
        "N",
        "Number of draws of random directions, with the seeds from --seed on. The picture shows the first; the table "
        "says how far the numbers of one draw are from the mean of all, and compares the checkpoints draw by draw.",
        callback=at_least(1, 1000),
    ),
]
Height = Annotated[
    str,
    value(
        SURFACE,
        "--height",
        "NAME[,NAME...]",
        "The outcome that is measured. Surfaces have the loss, and beside it as many others as are named. "
        + " ".join(f"{name} is {meaning}." for name, meaning in HEIGHT_NAMES.items())
        + " Any other name is a task of lm-evaluation-harness that needs no generation.",
    ),
]
Topology = Annotated[
    bool,
    flag(
        SURFACE,
        "--topology",
        "Find the minima of each surface's grid and the saddles between them, and draw their persistence diagram "
        "(extra topology). On a coarse grid of noisy values most of them are noise; --draws shows how many change.",
    ),
]
Log = Annotated[bool, flag(SURFACE, "--log", "Draw the loss on a logarithmic scale.")]
Levels = Annotated[
    str,
    value(SURFACE, "--levels", "N|A,B,...", "Contour lines: their number, or the losses to draw them at."),
]
