"""`landscape plot`: loss surfaces, side by side."""

from __future__ import annotations

import enum
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from landscape.cli.common import (
    Adapter,
    BatchTokens,
    Data,
    Device,
    DeviceMap,
    Dtype,
    DtypeOption,
    Json,
    Limit,
    MaxLength,
    OffloadBase,
    Quiet,
    Seed,
    Trust,
    adapters_in,
    app,
    check_device,
    quiet_libraries,
    table_console,
)
from landscape.errors import InputError
from landscape.surfaces.kinds import SURFACE_KINDS
from landscape.surfaces.options import parse_numbers

if TYPE_CHECKING:
    from landscape.surfaces.result import Surface


Kind = enum.StrEnum("Kind", {name: name for name in SURFACE_KINDS})  # type: ignore[misc]
DEFAULT_KIND = Kind("random")


class Normalize(enum.StrEnum):
    filter = "filter"
    unit = "unit"
    head = "head"
    layer = "layer"
    none = "none"


class Autocast(enum.StrEnum):
    bfloat16 = "bfloat16"


@app.command()
def plot(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Checkpoint or adapter folders, or hub ids.")
    ],
    data: Data = None,
    kind: Annotated[
        Kind,
        typer.Option(help=" ".join(f"{name}: {kind.help}" for name, kind in SURFACE_KINDS.items())),
    ] = DEFAULT_KIND,
    dim: Annotated[int | None, typer.Option(help="1 or 2 (random and eigen). Default 2.", min=1, max=2)] = None,
    points: Annotated[str, typer.Option(help="Grid points per axis: N or N,M.")] = "25",
    span: Annotated[
        str | None,
        typer.Option(
            help="S for [-S, S], or LOW,HIGH, in units of the direction; auto: until the loss has risen by 1 nat. "
            "Default 1. For interpolate LOW,HIGH with a at 0 and b at 1, default -0.5,1.5; for eigen a distance, "
            "default auto."
        ),
    ] = None,
    margin: Annotated[
        float | None,
        typer.Option(
            help="For plane and trajectory, the border around the checkpoints as a fraction of their extent. "
            "Default 0.25."
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
    autocast: Annotated[
        Autocast | None,
        typer.Option(help="Forward passes in this type; what that does to the loss is measured and said."),
    ] = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    offload_base: OffloadBase = False,
    seed: Seed = 0,
    adapter: Annotated[Adapter, typer.Option(help="Fold adapters into their base, or perturb them alone.")] = (
        Adapter.merge
    ),
    json_output: Json = False,
    quiet: Quiet = False,
    trust_remote_code: Trust = False,
) -> None:
    """Loss surfaces of checkpoints, side by side: surface.png, .pdf, .html, and a reloadable file for each."""
    chosen = SURFACE_KINDS[kind.value].from_options(
        dim=dim, points=points, span=span, margin=margin, normalize=normalize and normalize.value, seed=seed
    )
    contours = _levels(levels, log)
    if offload_base and "offload_base" not in chosen.run_options:
        fitting = [name for name, other in SURFACE_KINDS.items() if "offload_base" in other.run_options]
        raise InputError(
            f"--offload-base goes with --kind {' and '.join(fitting)}; --kind {kind.value} holds other models too."
        )
    check_device(device, device_map)
    quiet_libraries()
    from landscape.checkpoints import resolve_device
    from landscape.objective.scope import Run
    from landscape.plotting import write_figures
    from landscape.results import results_folder, write_json
    from landscape.study.comparison import open_comparison
    from landscape.study.surfaces import compare_surfaces, summarize

    checkpoints = chosen.sources(checkpoints)
    chosen.check_count(len(checkpoints))
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
        device_map=device_map,
    )
    for described in comparison.data.values():
        print(described.describe(comparison.files[0].vocabulary_size), file=sys.stderr)
    settings = {"command": "plot", **comparison.settings(), **chosen.folder_settings()}
    settings |= ({"autocast": autocast.value} if autocast else {}) | {"seed": seed}
    files = ("surface.png", "surface.pdf", "surface.html", "summary.json")
    results = comparison.file_names("surface", of_all=not chosen.is_of_each()).values()
    with results_folder(output, settings, (*files, *results)):
        run = Run(autocast=autocast and autocast.value, offload_base=offload_base, progress=not quiet)
        surfaces = compare_surfaces(comparison, output, chosen, run=run)
        write_figures(list(surfaces.values()), output / "surface", log=log, levels=contours)
        summary = {"settings": settings, "surfaces": [summarize(name, s) for name, s in surfaces.items()]}
        write_json(output / "summary.json", summary)
    if json_output:
        print((output / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        _print_surfaces(list(surfaces.values()))
    print("wrote " + "  ".join(str(output / name) for name in (*files, *surfaces)), file=sys.stderr)


def _levels(text: str, log: bool) -> int | list[float]:
    """How many contours, or the losses to draw them at."""
    numbers = parse_numbers(text, "--levels")
    if len(numbers) > 1:
        if log and min(numbers) <= 0:
            raise InputError(f"--levels {text} does not go with --log, whose losses are above 0.")
        if sorted(set(numbers)) != numbers:
            raise InputError(f"--levels {text} must increase.")
        return numbers
    if numbers[0] < 2 or not numbers[0].is_integer():
        raise InputError(f"--levels {text} is neither a count of at least 2 nor a list of losses.")
    return int(numbers[0])


def _print_surfaces(surfaces: list[Surface]) -> None:
    from rich.table import Table

    from landscape.surfaces.metrics import compare_metrics

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
    console = table_console()
    console.print(table)
    for surface in surfaces:
        if surface.path:
            along = " ".join(f"{marker.loss:.4f}" for marker in surface.markers)
            console.print(
                f"loss on {escape(surface.data)} where the path projects to: {along}", highlight=False, soft_wrap=True
            )
            continue
        for marker in surface.markers:
            console.print(
                f"loss at {escape(marker.name)} on {escape(surface.data)}: {marker.loss:.4f}", highlight=False
            )
    if (path := surfaces[0].path) is not None:
        console.print(
            f"the plane holds {sum(path.explained):.1%} of the path's variance about its end "
            f"({', '.join(f'{part:.1%}' for part in path.explained)}); a random walk of as many steps, "
            f"{sum(path.random_walk):.1%}. Checkpoints lie up to {max(path.residuals):.4g} beside it.",
            highlight=False,
            soft_wrap=True,
        )
    first = surfaces[0]
    grid = ", ".join(f"[{axis[0]:.4g}, {axis[-1]:.4g}] in {len(axis)}" for axis in first.axes)
    draw = (
        f"one draw of directions (seed {first.seed}), normalize={first.normalize}; "
        if first.kind_type.is_random
        else ""
    )
    console.print(
        f"* our reconstructions of the metrics Li et al. 2024 name; they hold for this grid only: {draw}{grid}.",
        highlight=False,
        soft_wrap=True,
    )
    for surface in surfaces:
        if surface.autocast:
            console.print(
                f"{escape(surface.name)} on {escape(surface.data)}: forward passes in "
                f"{surface.autocast.dtype} (autocast), which moves the loss at the centre by "
                f"{surface.autocast.deviation:+.1e} nats.",
                highlight=False,
                soft_wrap=True,
            )
    adapters = {how for s in surfaces for how in adapters_in(s.provenance.checkpoint)}
    if adapters:
        console.print(f"adapters: {', '.join(sorted(adapters))}", highlight=False)
    for surface in surfaces:
        if surface.nonfinite:
            console.print(f"{escape(surface.name)}: {surface.nonfinite} of {surface.loss.size} losses are not finite.")
