"""Every argument and option of the command line, declared once: its name, its type, its help and its help panel.

Commands use these declarations as the types of their parameters and add the default, as in `seed: Seed = 0`. Choices
are `Literal` types written out here, because `--help` must not wait for the modules that define them; a test compares
them with those modules.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import typer

from landscape.errors import InputError, nearest
from landscape.surfaces.kinds import SURFACE_KINDS

# The panels that group options in the help.
DATA, MODEL, MEASUREMENT, SURFACE = "Data", "Model", "Measurement", "Surface"
TRAINING, STATISTICS, OUTPUT = "Training", "Statistics", "Output"

DtypeName = Literal["float32", "bfloat16", "float16", "float64", "auto"]
AdapterMode = Literal["merge", "keep"]
DeviceMapName = Literal["auto", "balanced", "balanced_low_0", "sequential"]
AutocastName = Literal["bfloat16"]
if TYPE_CHECKING:
    KindName = str
else:  # A new kind of surface is a new file, which the command line offers without being told.
    KindName = Literal[tuple(SURFACE_KINDS)]
NormalizationName = Literal["filter", "unit", "head", "layer", "none"]
CurvatureName = Literal["hessian", "ggn"]
HvpName = Literal["auto", "exact", "forward_over_reverse", "finite_difference"]
WeightingName = Literal["adaptive", "filter", "unit", "head", "layer"]
FlatnessOnName = Literal["old", "new", "both"]
OptimizerName = Literal["adamw", "sam", "asam"]
CorrelationName = Literal["spearman", "pearson", "kendall"]


def _value(panel: str, name: str, metavar: str, text: str, **settings: Any) -> Any:
    """An option that takes a value, shown as `metavar` in the help."""
    return typer.Option(*name.split(), metavar=metavar, help=text, rich_help_panel=panel, **settings)


def _choice(panel: str, name: str, choices: Any, text: str, **settings: Any) -> Any:
    """An option that takes one of the names in a Literal type; the help lists them after the text."""
    return _value(panel, name, "NAME", f"{text} Choices: {', '.join(get_args(choices))}.", **settings)


def _flag(panel: str, name: str, text: str) -> Any:
    """An option that is given or not."""
    return _value(panel, name, "", text)


# --- what is measured ---------------------------------------------------------------------------------------

_CHECKPOINT_HELP = "Folders of checkpoints or of adapters, or Hugging Face hub ids, also as id@revision."
Checkpoints = Annotated[list[str], typer.Argument(metavar="CKPT", help=_CHECKPOINT_HELP)]
TunedCheckpoints = Annotated[
    list[str], typer.Argument(metavar="CKPT", help=f"The fine-tuned checkpoints. {_CHECKPOINT_HELP}")
]
Base = Annotated[
    str, typer.Argument(metavar="BASE", help="The checkpoint that the others were fine-tuned from: a folder or hub id.")
]
BaseOption = Annotated[
    str | None,
    _value(
        MEASUREMENT,
        "--base",
        "CKPT",
        "The checkpoint that the others were fine-tuned from. With it, the curvature of the loss along the step from "
        "it to each checkpoint is measured too.",
    ),
]

Seed = Annotated[int, typer.Option("--seed", metavar="N", help="Seed for random directions and for sampling examples.")]

# --- data ---------------------------------------------------------------------------------------------------

_SOURCE_HELP = "a .jsonl, .txt or .parquet file, the id of a Hugging Face data set, `builtin:docs` or `builtin:code`"
Data = Annotated[
    list[str] | None,
    _value(
        DATA,
        "--data",
        "SOURCE",
        f"Data to measure the loss on: {_SOURCE_HELP}. Repeat the option for more data sets, and write name=source to "
        "name one. Default: the data that the first checkpoint was evaluated on, if it says so, otherwise "
        "`builtin:docs`.",
    ),
]
TrainingData = Annotated[str, _value(DATA, "--data", "SOURCE", f"Training data: {_SOURCE_HELP}.")]
OldData = Annotated[
    str, _value(DATA, "--old", "SOURCE", f"Old data, which stands for what the base could do: {_SOURCE_HELP}.")
]
NewData = Annotated[
    str, _value(DATA, "--new", "SOURCE", "New data, which the checkpoints were fine-tuned for. Same forms as --old.")
]
Rehearse = Annotated[
    str | None,
    _value(DATA, "--rehearse", "SOURCE", "Old data to mix into the training data. Same forms as --data."),
]
RehearseRatio = Annotated[
    float | None,
    _value(DATA, "--rehearse-ratio", "SHARE", "Share of old examples among the training examples. Default: 0.1."),
]
Limit = Annotated[
    int | None,
    _value(DATA, "--limit", "N", "Maximum number of examples, sampled at random with --seed. Default: all of them."),
]
LimitInHalves = Annotated[
    int | None,
    _value(
        DATA,
        "--limit",
        "N",
        "Maximum number of examples of each data set, sampled at random with --seed. Flatness is measured on one half "
        "of them and losses on the other half. Default: all of them.",
    ),
]
MaxLength = Annotated[
    int,
    _value(
        DATA,
        "--max-length",
        "N",
        "Maximum tokens per example. Longer examples are cut at the end; a model that has fewer positions lowers the "
        "maximum.",
    ),
]
BatchTokens = Annotated[
    int, _value(DATA, "--batch-tokens", "N", "Maximum tokens per batch. Changes memory use, never results.")
]

# --- model --------------------------------------------------------------------------------------------------

Dtype = Annotated[
    DtypeName,
    _choice(MODEL, "--dtype", DtypeName, "Number format of the weights in memory. auto is the format on disk."),
]
Device = Annotated[
    str, _value(MODEL, "--device", "DEVICE", "Device to compute on: auto, cpu, cuda, cuda:1 or mps. auto takes a GPU.")
]
DeviceMap = Annotated[
    DeviceMapName | None,
    _choice(
        MODEL,
        "--device-map",
        DeviceMapName,
        "Spread one model over all GPUs with accelerate, for models larger than one GPU. Takes the place of --device.",
    ),
]
OffloadBase = Annotated[
    bool,
    _flag(
        MODEL,
        "--offload-base",
        "Keep the exact copy of the weights in the memory of the host. The device then holds the weights only once.",
    ),
]
BasisDevice = Annotated[
    str | None,
    _value(
        MODEL,
        "--basis-device",
        "DEVICE",
        "Device that stores the basis vectors of the Lanczos method; cpu saves GPU memory. Default: the device of the "
        "model.",
    ),
]
Autocast = Annotated[
    AutocastName | None,
    _choice(
        MODEL,
        "--autocast",
        AutocastName,
        "Compute forward passes in this number format. The change that this makes to the loss is measured and "
        "reported. Default: the format of the weights.",
    ),
]
Adapter = Annotated[
    AdapterMode,
    _choice(
        MODEL,
        "--adapter",
        AdapterMode,
        "How to treat adapters. merge adds them to the weights of their base and measures the whole model; keep "
        "measures the adapter's own weights alone.",
    ),
]
Parameters = Annotated[
    list[str] | None,
    _value(
        MODEL,
        "--parameters",
        "PATTERN",
        "Measure only the parameters whose names match, such as `'model.layers.*.mlp.*'`. Repeat the option for more "
        "patterns.",
    ),
]
Trust = Annotated[
    bool,
    _flag(
        MODEL, "--trust-remote-code", "Allow a checkpoint to run Python code of its own. Use it only if you trust it."
    ),
]

# --- measurement --------------------------------------------------------------------------------------------

NormalizeLogits = Annotated[
    bool,
    _flag(
        MEASUREMENT,
        "--normalize-logits",
        "Divide the logits by their standard deviation before the loss, so that a model's confidence does not count.",
    ),
]
FlatnessOn = Annotated[
    FlatnessOnName,
    _choice(
        MEASUREMENT,
        "--flatness-on",
        FlatnessOnName,
        "Measure flatness of the loss on the old data, the new data, or both.",
    ),
]
Top = Annotated[
    int,
    _value(
        MEASUREMENT,
        "--top",
        "K",
        "Number of largest eigenvalues to compute. The lowest eigenvalue is always computed as well.",
    ),
]
Rtol = Annotated[
    float,
    _value(
        MEASUREMENT,
        "--rtol",
        "X",
        "Relative tolerance of eigenvalues: an eigenvalue has converged when its residual is at most this fraction of "
        "it.",
    ),
]
MaxMatvecs = Annotated[
    int,
    _value(
        MEASUREMENT,
        "--max-matvecs",
        "N",
        "Maximum number of matrix-vector products (matvecs) for eigenvalues.",
    ),
]
TraceRtol = Annotated[
    float,
    _value(
        MEASUREMENT,
        "--trace-rtol",
        "X",
        "Relative tolerance of a trace: it has converged when half of its 95% interval is at most this fraction of it.",
    ),
]
MaxProbes = Annotated[
    int,
    _value(
        MEASUREMENT, "--max-probes", "N", "Maximum number of random probe vectors that the estimate of a trace may use."
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
    _choice(
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
    _choice(
        MEASUREMENT, "--curvature", CurvatureName, "Matrix to measure: the Hessian, or the Gauss-Newton matrix (ggn)."
    ),
]
Hvp = Annotated[
    HvpName,
    _choice(
        MEASUREMENT,
        "--hvp",
        HvpName,
        "How to compute Hessian-vector products. auto is exact where the model allows it, otherwise it takes "
        "differences of gradients.",
    ),
]
PerLayer = Annotated[
    bool, _flag(MEASUREMENT, "--per-layer", "Also measure the trace and the top eigenvalue of every layer.")
]
Density = Annotated[
    bool, _flag(MEASUREMENT, "--density", "Also estimate the density of all eigenvalues and draw it to density.png.")
]
Check = Annotated[
    bool,
    _flag(
        MEASUREMENT,
        "--check",
        "Check the matrix-vector products, and measure nothing else: symmetry, agreement with differences of gradients "
        "and the exact result for the output layer. The exit code is 1 if a product is shown to be wrong.",
    ),
]
Tasks = Annotated[
    str | None,
    _value(
        MEASUREMENT,
        "--tasks",
        "NAMES",
        "Benchmarks of lm-evaluation-harness to run as well: names or paths of YAML task files, separated by commas. "
        "--limit then takes the first documents of each.",
    ),
]
BootstrapResamples = Annotated[
    int, _value(MEASUREMENT, "--resamples", "N", "Number of bootstrap resamples of the examples.", min=99)
]

# --- surfaces -----------------------------------------------------------------------------------------------

Kind = Annotated[
    KindName,
    _choice(
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
    _value(SURFACE, "--dim", "N", "Number of axes of a random or eigen surface. Default: 2.", min=1, max=2),
]
Points = Annotated[
    str,
    _value(SURFACE, "--points", "N|N,M", "Number of grid points per axis: one number for all axes, or one for each."),
]
Span = Annotated[
    str | None,
    _value(
        SURFACE,
        "--span",
        "S|LOW,HIGH|auto",
        "Range of each axis: from -S to S, or from LOW to HIGH. For random surfaces the unit is the length of the "
        "direction (default 1), for eigen surfaces the distance in weight space (default auto), and for interpolate "
        "the first checkpoint is at 0 and the second at 1 (default -0.5,1.5). auto widens the range until the loss "
        "has risen by 1 nat.",
    ),
]
Margin = Annotated[
    float | None,
    _value(
        SURFACE,
        "--margin",
        "FRACTION",
        "Border around the checkpoints in plane and trajectory surfaces, as a fraction of the distance that they "
        "span. Default: 0.25.",
    ),
]
Normalize = Annotated[
    NormalizationName | None,
    _choice(
        SURFACE,
        "--normalize",
        NormalizationName,
        "Give each part of a random direction the length of the same part of the weights (Li et al. 2018), where a "
        "part is a filter, a unit, an attention head or a layer. Default: filter.",
    ),
]
Log = Annotated[bool, _flag(SURFACE, "--log", "Draw the loss on a logarithmic scale.")]
Levels = Annotated[
    str,
    _value(SURFACE, "--levels", "N|A,B,...", "Contour lines: their number, or the losses to draw them at."),
]

# --- training and merging -----------------------------------------------------------------------------------

StartingCheckpoint = Annotated[
    str, typer.Argument(metavar="BASE", help="The checkpoint to start from: a folder or hub id.")
]
MergeBase = Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint that alpha = 0 gives back.")]
MergeTuned = Annotated[
    str,
    typer.Argument(metavar="CKPT", help="The checkpoint or adapter tuned from it, which alpha = 1 gives back."),
]
Alpha = Annotated[
    float, _value(TRAINING, "--alpha", "X", "Share of the tuned weights in the merged weights, from 0 to 1.")
]
Optimizer = Annotated[
    OptimizerName,
    _choice(
        TRAINING,
        "--optimizer",
        OptimizerName,
        "Optimizer: AdamW alone, or AdamW with sharpness-aware minimization (sam) or its adaptive form (asam).",
    ),
]
Rho = Annotated[
    float | None,
    _value(
        TRAINING,
        "--rho",
        "RADIUS",
        "Radius of the ascent step of sam and asam, in the l2 norm over all weights. Default: 0.05 for sam, 0.5 for "
        "asam.",
    ),
]
LearningRate = Annotated[
    float,
    _value(
        TRAINING,
        "--lr",
        "RATE",
        "Peak learning rate. It rises during the first 5% of the steps and then falls linearly to 0.",
    ),
]
Epochs = Annotated[float, _value(TRAINING, "--epochs", "X", "Number of passes over the training data.")]
Steps = Annotated[
    int | None, _value(TRAINING, "--steps", "N", "Number of optimizer steps. Takes the place of --epochs.")
]
BatchSize = Annotated[int, _value(TRAINING, "--batch-size", "N", "Examples per optimizer step.")]
Accumulate = Annotated[
    int,
    _value(
        TRAINING,
        "--accumulate",
        "N",
        "Number of parts that each batch is split into; only one part is in memory at a time.",
    ),
]
Lora = Annotated[
    int | None,
    _value(
        TRAINING,
        "--lora",
        "RANK",
        "Train a LoRA adapter of this rank on all linear layers except the output layer, instead of all weights.",
    ),
]
SaveEvery = Annotated[
    int,
    _value(TRAINING, "--save-every", "N", "Steps between the training states that an interrupted run continues from."),
]
KeepTrajectory = Annotated[
    int | None,
    _value(
        TRAINING,
        "--keep-trajectory",
        "N",
        "Keep N evenly spaced checkpoints of the run, for `landscape plot --kind trajectory`.",
    ),
]

# --- statistics ---------------------------------------------------------------------------------------------

Table = Annotated[
    Path, typer.Argument(metavar="TABLE", help="A CSV file with one row per checkpoint, as from landscape measure.")
]
Flatness = Annotated[
    list[str] | None,
    _value(
        STATISTICS,
        "--flatness",
        "COLUMN",
        "Column to correlate with forgetting. Repeat the option for more columns. Default: every column of numbers.",
    ),
]
ForgettingColumn = Annotated[
    str, _value(STATISTICS, "--forgetting", "COLUMN", "Column that holds how much each checkpoint has forgotten.")
]
Method = Annotated[CorrelationName, _choice(STATISTICS, "--method", CorrelationName, "Correlation coefficient.")]
Control = Annotated[
    list[str] | None,
    _value(
        STATISTICS,
        "--control",
        "COLUMN",
        "Column to hold fixed in the partial correlation. Repeat the option for more columns.",
    ),
]
Factor = Annotated[
    list[str] | None,
    _value(
        STATISTICS,
        "--factor",
        "COLUMN",
        "Column of categories to hold fixed, such as optimizer or lr. Numbers count as categories, too. Repeat the "
        "option for more columns.",
    ),
]
Groups = Annotated[
    str | None,
    _value(
        STATISTICS,
        "--groups",
        "COLUMN",
        "Column that says which checkpoints belong together, such as their base. Intervals and p-values then count "
        "whole groups. Nested columns are parted by slashes, the widest first: recipe/base.",
    ),
]
Like = Annotated[
    str | None,
    _value(
        STATISTICS,
        "--like",
        "COLUMN",
        "Column that the simulated metric resembles. Default: the column of what was forgotten.",
    ),
]
Replications = Annotated[
    int, _value(STATISTICS, "--replications", "N", "Number of simulated tables in which nothing is linked.", min=100)
]
Hyperparameter = Annotated[
    list[str] | None,
    _value(
        STATISTICS,
        "--hyperparameter",
        "COLUMN",
        "Column of a factorial design, for the granulated Kendall coefficient. Repeat the option for more columns.",
    ),
]
Confidence = Annotated[
    float, _value(STATISTICS, "--confidence", "X", "Confidence level of the intervals, between 0 and 1.")
]
Resamples = Annotated[int, _value(STATISTICS, "--resamples", "N", "Number of bootstrap resamples and of permutations.")]

# --- output -------------------------------------------------------------------------------------------------

OutputFolder = Annotated[Path, _value(OUTPUT, "--output -o", "FOLDER", "Folder for the results.")]
OutputCheckpoint = Annotated[Path, _value(OUTPUT, "--output -o", "FOLDER", "Folder for the new checkpoint.")]
OutputTable = Annotated[Path, _value(OUTPUT, "--output -o", "FILE", "CSV file for the table.")]
Color = Annotated[
    str | None,
    _value(
        OUTPUT,
        "--color",
        "COLUMN",
        "Column that colours the points of scatter plots. Default: optimizer, if the table has that column.",
    ),
]
Json = Annotated[
    bool, _flag(OUTPUT, "--json", "Print one JSON document to standard output in place of text and tables.")
]
Quiet = Annotated[bool, _flag(OUTPUT, "--quiet -q", "Show no progress bars.")]


# --- metrics ------------------------------------------------------------------------------------------------

MetricName = Annotated[
    str | None, typer.Argument(metavar="NAME", help="The metric to explain. Default: list all of them.")
]


def _show_metrics(metrics: list[str] | None) -> list[str] | None:
    """Answer `--metric help` before anything else is asked for."""
    if metrics and "help" in metrics:
        from landscape.cli.metrics import print_metrics

        print_metrics()
        raise typer.Exit
    return metrics


Metric = Annotated[
    list[str] | None,
    _value(
        MEASUREMENT,
        "--metric",
        "METRIC",
        "Sharpness metric to measure: its name, or name:option=value,option=value to change its options. Repeat the "
        "option for more. `landscape metrics` lists all metrics. Default: a few cheap metrics of different kinds.",
        callback=_show_metrics,
        is_eager=True,
    ),
]


def parse_metric(text: str) -> tuple[str, tuple[str, dict[str, Any]]]:
    """Parse NAME or NAME:option=value,option=value into a column name, the metric's name and its options.

    The column name also names files, so that it holds letters, digits and `_ . -` only.

    >>> parse_metric("worst_case:steps=1,adaptive=true")
    ('worst_case-steps_1-adaptive_True', ('worst_case', {'steps': 1, 'adaptive': True}))
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for part in filter(None, rest.split(",")):
        option, equals, value = part.partition("=")
        if not equals:
            raise InputError(f"--metric {text}: {part} must have the form option=value.")
        options[option.strip()] = _parse_value(value.strip())
    column = "-".join([name, *(f"{option}_{value}" for option, value in options.items())])
    return re.sub(r"[^\w.-]+", "_", column), (name, options)


def _parse_value(text: str) -> Any:
    """The number, truth value or None that a text spells, otherwise the text."""
    words = {"true": True, "false": False, "none": None}
    if text.lower() in words:
        return words[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def check_device(device: str, device_map: str | None) -> None:
    """Raise InputError where both options say where the model goes."""
    if device_map is not None and device != "auto":
        raise InputError(f"--device-map takes the place of --device; leave out --device {device}.")
