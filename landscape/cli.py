"""The command line: arguments in, calls of the Python API, tables and files out."""

from __future__ import annotations

import enum
import math
import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from landscape.errors import InputError, MeasurementWarning

if TYPE_CHECKING:
    from landscape.surface import Surface

app = typer.Typer(
    help="Loss landscapes, curvature and sharpness of fine-tuned language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Kind(enum.StrEnum):
    random = "random"
    interpolate = "interpolate"
    plane = "plane"


class Normalize(enum.StrEnum):
    filter = "filter"
    unit = "unit"
    head = "head"
    layer = "layer"
    none = "none"


class Dtype(enum.StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"
    auto = "auto"


class Adapter(enum.StrEnum):
    merge = "merge"
    keep = "keep"


class Optimizer(enum.StrEnum):
    adamw = "adamw"
    sam = "sam"


# Options that mean the same on every command.
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="A .jsonl, .txt or .parquet file, a datasets id, builtin:docs or builtin:code; again for more, each "
        "also as name=source. Default: what the checkpoint was evaluated on, else builtin:docs.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="At most this many examples, a seeded random choice.")]
MaxLength = Annotated[int, typer.Option(help="Tokens per example; the model's own limit if that is less.")]
BatchTokens = Annotated[int, typer.Option(help="Tokens a batch may hold: memory, not results.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Type of the weights in memory.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option(help="Of random directions and choices.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let a checkpoint run its own model code.")]


def main() -> None:
    """Run the command line; exit codes: 0 done, 2 bad input, 130 interrupted, 1 our fault."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _show_warning
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", MeasurementWarning)
    try:
        code = app(standalone_mode=False) or 0
    except InputError as error:
        code = _complain(" ".join(str(error).split()), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        code = _complain(error.format_message(), 2)  # the parser's own: a wrong option or argument
    if code == 130:
        _complain("interrupted; the same command again continues where it was.", code)
    sys.exit(code)


def _complain(sentence: str, code: int) -> int:
    print(f"landscape: {sentence}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"landscape: warning: {message}", file=sys.stderr)


@app.command()
def plot(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Checkpoint or adapter folders, or hub ids.")
    ],
    data: Data = None,
    kind: Annotated[
        Kind, typer.Option(help="Random directions; the line between two checkpoints; the plane through three.")
    ] = Kind.random,
    dim: Annotated[int | None, typer.Option(help="1 or 2 (random only). Default 2.", min=1, max=2)] = None,
    points: Annotated[str, typer.Option(help="Grid points per axis: N or N,M.")] = "25",
    span: Annotated[
        str | None,
        typer.Option(
            help="S for [-S, S], or LOW,HIGH, in units of the direction; auto: until the loss has risen by 1 nat. "
            "Default 1. For interpolate LOW,HIGH with a at 0 and b at 1, default -0.5,1.5; for plane the margin around "
            "the three checkpoints as a fraction of their extent, default 0.25."
        ),
    ] = None,
    normalize: Annotated[
        Normalize | None, typer.Option(help="Scale of random directions (Li et al. 2018). Default filter.")
    ] = None,
    log: Annotated[bool, typer.Option("--log", help="Logarithmic loss scale.")] = False,
    levels: Annotated[str, typer.Option(help="Contours: how many, or a list of losses 1.5,2,2.5.")] = "20",
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("landscape-plot"),
    limit: Limit = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "auto",
    seed: Seed = 0,
    adapter: Annotated[Adapter, typer.Option(help="Fold adapters into their base, or perturb them alone.")] = (
        Adapter.merge
    ),
    json_output: Json = False,
    quiet: Quiet = False,
    trust_remote_code: Trust = False,
) -> None:
    """Loss surfaces of checkpoints, side by side: surface.png, .pdf, .html, and a reloadable file for each."""
    shape = _shape_of(kind, dim, points, span, normalize)
    contours = _levels(levels)
    _quiet_libraries()
    from landscape.checkpoints import resolve_device
    from landscape.comparison import compare_surfaces, open_comparison, summarize
    from landscape.plotting import write_figures
    from landscape.results import results_folder, write_json

    comparison = open_comparison(
        checkpoints,
        data or (),
        limit=limit,
        max_length=max_length,
        batch_tokens=batch_tokens,
        seed=seed,
        dtype=dtype.value,
        device=str(resolve_device(device)),
        adapter=adapter.value,
        trust_remote_code=trust_remote_code,
    )
    for described in comparison.data.values():
        print(described.describe(), file=sys.stderr)
    settings = {"command": "plot", **comparison.settings(), **shape, "seed": seed}
    files = ("surface.png", "surface.pdf", "surface.html", "summary.json")
    with results_folder(output, settings, files):
        surfaces = compare_surfaces(comparison, output, **shape, seed=seed, progress=not quiet)
        write_figures(list(surfaces.values()), output / "surface", log=log, levels=contours)
        summary = {"settings": settings, "surfaces": [summarize(name, s) for name, s in surfaces.items()]}
        write_json(output / "summary.json", summary)
    if json_output:
        print((output / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        _print_surfaces(list(surfaces.values()))
    print("wrote " + "  ".join(str(output / name) for name in (*files, *surfaces)), file=sys.stderr)


def _shape_of(kind: Kind, dim: int | None, points: str, span: str | None, normalize: Normalize | None) -> dict:
    """What `--kind --dim --points --span --normalize` say together, checked."""
    natural = 1 if kind is Kind.interpolate else 2
    if kind is not Kind.random and dim not in (None, natural):
        raise InputError(f"--kind {kind.value} is {natural}-dimensional; --dim {dim} does not go with it.")
    if kind is not Kind.random and normalize is not None:
        raise InputError(f"--normalize scales random directions; it does not go with --kind {kind.value}.")
    dim = dim or natural
    counts = [int(n) if n.is_integer() else 0 for n in _numbers(points, "--points")]
    if len(counts) == 1:
        counts *= dim
    if len(counts) != dim or min(counts) < 3:
        raise InputError(f"--points {points} is not {'a number' if dim == 1 else 'N or N,M'} with at least 3 an axis.")
    ends: Any = {Kind.random: 1.0, Kind.interpolate: (-0.5, 1.5), Kind.plane: 0.25}[kind]
    if span == "auto":
        if kind is not Kind.random:
            raise InputError(f"--span auto looks along random directions; it does not go with --kind {kind.value}.")
        ends = "auto"
    elif span is not None:
        ends = _ends_of(kind, span)
    scale = (normalize or Normalize.filter).value if kind is Kind.random else None
    return {"kind": kind.value, "dim": dim, "points": counts, "span": ends, "normalize": scale}


def _ends_of(kind: Kind, span: str) -> float | tuple[float, ...]:
    numbers = _numbers(span, "--span")
    forms = {Kind.random: "S or LOW,HIGH", Kind.interpolate: "LOW,HIGH", Kind.plane: "a margin"}[kind]
    if len(numbers) == 2 and kind is not Kind.plane and numbers[0] < numbers[1]:
        return tuple(numbers)
    if (
        len(numbers) == 1
        and kind is not Kind.interpolate
        and (numbers[0] > 0 or (kind is Kind.plane and numbers[0] == 0))
    ):
        return numbers[0]
    raise InputError(f"--span {span} is not {forms} for --kind {kind.value} (S positive, LOW < HIGH).")


def _numbers(text: str, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.replace("x", ",").split(",")]
    except ValueError as error:
        raise InputError(f"{option} {text} is not a number or a list of numbers.") from error
    if not all(map(math.isfinite, numbers)):
        raise InputError(f"{option} {text} is not finite.")
    return numbers


def _levels(text: str) -> int | list[float]:
    """How many contours, or the losses to draw them at."""
    numbers = _numbers(text, "--levels")
    if len(numbers) > 1:
        if sorted(set(numbers)) != numbers:
            raise InputError(f"--levels {text} must increase.")
        return numbers
    if numbers[0] < 2 or not numbers[0].is_integer():
        raise InputError(f"--levels {text} is neither a count of at least 2 nor a list of losses.")
    return int(numbers[0])


def _print_surfaces(surfaces: list[Surface]) -> None:
    from rich.console import Console
    from rich.table import Table

    from landscape.surface_metrics import compare_metrics

    shown = {
        "surface_curvature": "surface curvature*",
        "average_gradient": "average gradient*",
        "mean_absolute_gradient": "mean abs. gradient*",
        "center_curvature": "curvature at centre",
        "barrier": "barrier",
    }
    table = Table(title=None, show_edge=False, pad_edge=False)
    table.add_column("surface", overflow="fold")
    for heading in ("data", "loss at centre"):
        table.add_column(heading, justify="left" if heading == "data" else "right")
    compared = {}
    for data in dict.fromkeys(s.data for s in surfaces):
        compared[data] = compare_metrics({s.name: s.metrics() for s in surfaces if s.data == data})
    present = [m for m in shown if any(v[m] is not None for row in compared.values() for v in row.values())]
    for metric in present:
        table.add_column(shown[metric], justify="right")
    for heading in ("tokens", "seconds"):
        table.add_column(heading, justify="right")
    for surface in surfaces:
        values = compared[surface.data][surface.name]
        cells = ["-" if values[m] is None else f"{values[m]:.4g}" for m in present]
        table.add_row(
            escape(surface.name),
            escape(surface.data),
            f"{surface.center:.4f}",
            *cells,
            f"{surface.weight:.0f}",
            f"{surface.provenance.seconds:.1f}",
        )
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # a file or pipe has no width to fit
    console.print(table)
    for surface in surfaces:
        for marker in surface.markers:
            console.print(
                f"loss at {escape(marker.name)} on {escape(surface.data)}: {marker.loss:.4f}", highlight=False
            )
    first = surfaces[0]
    grid = ", ".join(f"[{axis[0]:.4g}, {axis[-1]:.4g}] in {len(axis)}" for axis in first.axes)
    draw = (
        f"one draw of directions (seed {first.seed}), normalize={first.normalize}; " if first.kind == "random" else ""
    )
    console.print(
        f"* our reconstructions of the metrics Li et al. 2024 name; they hold for this grid only: {draw}{grid}.",
        highlight=False,
        soft_wrap=True,
    )
    adapters = {how for s in surfaces for how in _adapters(s.provenance.checkpoint)}
    if adapters:
        console.print(f"adapters: {', '.join(sorted(adapters))}", highlight=False)
    for surface in surfaces:
        if surface.nonfinite:
            console.print(f"{escape(surface.name)}: {surface.nonfinite} of {surface.loss.size} losses are not finite.")


def _adapters(checkpoint: dict | None) -> set[str]:
    """How adapters were measured ("merged" or "kept") in the provenance of one checkpoint or of several."""
    found = {checkpoint["adapter"]} if checkpoint and "adapter" in checkpoint else set()
    return found.union(*(_adapters(part) for part in (checkpoint or {}).values() if isinstance(part, dict)))


def _quiet_libraries() -> None:
    """Our progress bars say what happens; transformers' own would write over them."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


@app.command()
def finetune(
    base: Annotated[str, typer.Argument(metavar="BASE", help="Checkpoint folder or hub id to start from.")],
    data: Annotated[str, typer.Option(help="A .jsonl, .txt or .parquet file, a datasets id, builtin:docs or :code.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the tuned checkpoint.")],
    optimizer: Annotated[Optimizer, typer.Option(help="AdamW, or SAM around AdamW.")] = Optimizer.adamw,
    rho: Annotated[float, typer.Option(help="SAM: radius of the ascent step (global l2 norm).")] = 0.05,
    lr: Annotated[float, typer.Option(help="Peak learning rate; 5% warm-up, then linear to 0.")] = 1e-5,
    epochs: Annotated[float, typer.Option(help="Passes over the data.")] = 1.0,
    steps: Annotated[int | None, typer.Option(help="Optimizer steps, instead of epochs.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples a step.")] = 16,
    save_every: Annotated[int, typer.Option(help="Steps between training checkpoints an interrupted run uses.")] = 200,
    limit: Limit = None,
    max_length: MaxLength = 512,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    trust_remote_code: Trust = False,
) -> None:
    """Fine-tune a checkpoint with AdamW or SAM into a Hugging Face folder with landscape.json."""
    _quiet_libraries()
    from landscape.finetune import finetune as run
    from landscape.results import read_json

    folder = run(
        base,
        data,
        output,
        optimizer=optimizer.value,
        rho=rho,
        lr=lr,
        epochs=epochs,
        steps=steps,
        batch_size=batch_size,
        max_length=max_length,
        limit=limit,
        seed=seed,
        save_every=save_every,
        device=device,
        trust_remote_code=trust_remote_code,
        progress=not quiet,
    )
    record = read_json(folder / "landscape.json")
    losses, where = record["losses"], record["evaluated_on"]["source"]
    before, after = losses["evaluated_before"], losses["evaluated_after"]
    print(f"{record['steps_taken']} steps; loss on {where}: {float(before):.4f} before, {float(after):.4f} after")
    print(f"wrote {folder}", file=sys.stderr)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it makes.")] = Path(
        "landscape-demo"
    ),
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """The whole story on built-in data: pre-train on docs, fine-tune on code with AdamW and SAM, compare."""
    _quiet_libraries()
    from landscape.demo import run_demo

    run_demo(output, seed=seed, progress=not quiet)


if __name__ == "__main__":
    main()
