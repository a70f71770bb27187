"""Options of what is measured: eigenvalues, traces, flatness, benchmarks."""

from __future__ import annotations

from typing import Annotated, Literal, get_args

from landscape.cli.options.declaring import MEASUREMENT, MOST_RESAMPLES, at_least, between, choice, flag, value
from landscape.errors import InputError, nearest

CurvatureName = Literal["hessian", "ggn"]
HvpName = Literal["auto", "exact", "forward_over_reverse", "finite_difference"]
WeightingName = Literal["adaptive", "filter", "unit", "head", "layer"]
FlatnessOnName = Literal["old", "new", "both"]

NormalizeLogits = Annotated[
    bool,
    flag(
        MEASUREMENT,
        "--normalize-logits",
        "Divide the logits by their standard deviation before the loss, so that a model's confidence does not count.",
    ),
]
FlatnessOn = Annotated[
    FlatnessOnName,
    choice(
        MEASUREMENT,
        "--flatness-on",
        FlatnessOnName,
        "Measure flatness of the loss on the old data, the new data, or both.",
    ),
]
Top = Annotated[
    int,
    value(
        MEASUREMENT,
        "--top",
        "K",
        "Number of largest eigenvalues to compute. The lowest eigenvalue is always computed as well: PyHessian's top "
        "eigenvalue is whichever of the two ends is larger in magnitude.",
        callback=at_least(1),
    ),
]
Rtol = Annotated[
    float,
    value(
        MEASUREMENT,
        "--rtol",
        "X",
        "Relative tolerance of eigenvalues: an eigenvalue has converged when its residual is at most this fraction of "
        "it.",
        callback=between(0),
    ),
]
MaxMatvecs = Annotated[
    int,
    value(
        MEASUREMENT,
        "--max-matvecs",
        "N",
        "Maximum number of matrix-vector products (matvecs) for eigenvalues.",
        callback=at_least(1),
    ),
]
TraceRtol = Annotated[
    float,
    value(
        MEASUREMENT,
        "--trace-rtol",
        "X",
        "Relative tolerance of a trace: it has converged when half of its 95% interval is at most this fraction of it.",
        callback=between(0),
    ),
]
MaxProbes = Annotated[
    int,
    value(
        MEASUREMENT,
        "--max-probes",
        "N",
        "Maximum number of random probe vectors that the estimate of a trace may use.",
        callback=at_least(2),
    ),
]


def _check_weightings(names: list[str] | None) -> list[str] | None:
    """Raise InputError for names that are no weightings; typer does so for options that are given once."""
    choices = get_args(WeightingName)
    for name in names or ():
        if name not in choices:
            raise InputError(f"--weighting {name} is none of {', '.join(choices)}.{nearest(name, choices)}")
    return names


Weighting = Annotated[
    list[str] | None,
    choice(
        MEASUREMENT,
        "--weighting",
        WeightingName,
        "Also estimate a weighted trace. adaptive weights each diagonal entry by the squared weight; the others give "
        "the mean curvature along random directions with that normalization. Repeat the option for more.",
        callback=_check_weightings,
    ),
]
Curvature = Annotated[
    CurvatureName,
    choice(
        MEASUREMENT, "--curvature", CurvatureName, "Matrix to measure: the Hessian, or the Gauss-Newton matrix (ggn)."
    ),
]
Hvp = Annotated[
    HvpName,
    choice(
        MEASUREMENT,
        "--hvp",
        HvpName,
        "How to compute Hessian-vector products. auto is exact where the model allows it, otherwise it takes "
        "differences of gradients.",
    ),
]
PerLayer = Annotated[
    bool, flag(MEASUREMENT, "--per-layer", "Also measure the trace and the top eigenvalue of every layer.")
]
Density = Annotated[
    bool, flag(MEASUREMENT, "--density", "Also estimate the density of all eigenvalues and draw it to density.png.")
]
Check = Annotated[
    bool,
    flag(
        MEASUREMENT,
        "--check",
        "Check the matrix-vector products, and measure nothing else: symmetry, agreement with differences of gradients "
        "and the exact result for the output layer. The exit code is 1 if a product is shown to be wrong.",
    ),
]
Tasks = Annotated[
    str | None,
    value(
        MEASUREMENT,
        "--tasks",
        "NAMES",
        "Benchmarks of lm-evaluation-harness to run as well: names or paths of YAML task files, separated by commas. "
        "--limit then takes the first documents of each.",
    ),
]
OwnSamples = Annotated[
    bool,
    flag(
        MEASUREMENT,
        "--own-samples",
        "Also measure on a completion of each prompt that the base samples itself, as data set NAME.own: KL to base "
        "there is that of what the base says.",
    ),
]
BootstrapResamples = Annotated[
    int,
    value(
        MEASUREMENT,
        "--resamples",
        "N",
        "Number of bootstrap resamples of the examples.",
        callback=at_least(99, MOST_RESAMPLES),
    ),
]
