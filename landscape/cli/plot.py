"""`landscape plot`: loss surfaces, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.cli.checks import check_device, check_inputs, check_tasks
from landscape.cli.options.checkpoints import Checkpoints
from landscape.cli.options.data import BatchTokens, Data, Limit, MaxLength, Seed
from landscape.cli.options.model import Adapter, Autocast, Device, DeviceMap, Dtype, OffloadBase, Trust
from landscape.cli.options.output import Json, OutputFolder, Quiet, Style
from landscape.cli.options.surfaces import (
    Dim,
    Draws,
    Height,
    Kind,
    Levels,
    Log,
    Margin,
    Normalize,
    Points,
    Span,
    Topology,
)
from landscape.cli.tables import (
    open_console,
    print_adapters,
    print_data,
    print_json,
    print_note,
    print_table,
    print_written,
    quiet_libraries,
    with_interval,
    with_stderr,
)
from landscape.errors import InputError
from landscape.heights.options import LOSS, benchmark_names, parse_heights
from landscape.surfaces.kinds import SURFACE_KINDS
from landscape.surfaces.options import MOST_LEVELS, check_topology_extra, parse_numbers

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from landscape.surfaces.result import Surface

HEADINGS = {
    "surface_curvature": "surface curvature*",
    "average_gradient": "average gradient*",
    "mean_absolute_gradient": "mean abs. gradient*",
    "center_curvature": "curvature at centre",
    "barrier": "barrier",
}


def plot(
    checkpoints: Checkpoints,
    seed: Seed = 0,
    data: Data = None,
    limit: Limit = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    kind: Kind = "random",
    dim: Dim = None,
    points: Points = "25",
    span: Span = None,
    margin: Margin = None,
    normalize: Normalize = None,
    draws: Draws = 1,
    height: Height = LOSS,
    topology: Topology = False,
    log: Log = False,
    levels: Levels = "20",
    dtype: Dtype = "float32",
    autocast: Autocast = None,
    device: Device = "auto",
    device_map: DeviceMap = None,
    offload_base: OffloadBase = False,
    adapter: Adapter = "merge",
    trust_remote_code: Trust = False,
    output: OutputFolder = Path("landscape-plot"),
    style: Style = "paper",
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Draw the loss surfaces of checkpoints side by side, on the same axes and colour scale.

    The command writes surface.png, surface.pdf, an interactive surface.html, and one file per surface that Python can
    load again. The caption stands in surface.txt, and for LaTeX in surface.tex. With --topology there are a
    persistence diagram topology-loss.png, one for each other height, and a file per surface with its minima.

        landscape plot runs/adamw runs/sam --data old=alpaca.jsonl
        landscape plot base runs/adamw runs/sam --kind plane
        landscape plot runs/adamw runs/sam --draws 8 --style talk
        landscape plot base runs/sam --kind interpolate --data quiz=questions.jsonl --height accuracy,choice
    """
    surface_kind = SURFACE_KINDS[kind].from_options(
        dim=dim, points=points, span=span, margin=margin, normalize=normalize, seed=seed
    )
    surface_kind.draws(draws)
    contours = _levels(levels, log)
    heights = [name for name in parse_heights(height) if name != LOSS]
    if log and heights:
        raise InputError(f"--log is of losses; it does not go with --height {height}.")
    check_tasks(",".join(benchmark_names(heights)))
    if topology:
        check_topology_extra()
    if offload_base and "offload_base" not in surface_kind.run_options:
        names = [name for name, other in SURFACE_KINDS.items() if "offload_base" in other.run_options]
        raise InputError(
            f"--offload-base goes with --kind {' and '.join(names)}; --kind {kind} holds other models too."
        )
    check_device(device, device_map)
    checkpoints = surface_kind.sources(checkpoints)
    surface_kind.check_count(len(checkpoints))
    check_inputs(checkpoints, data, output)
    quiet_libraries()
    from landscape.checkpoints import LoadOptions
    from landscape.data.tokens import DataOptions
    from landscape.objective.scope import Run
    from landscape.plotting import write_figures
    from landscape.plotting.surfaces.persistence import write_persistence
    from landscape.results import results_folder, write_json
    from landscape.study.comparison import open_comparison, with_questions
    from landscape.study.surfaces import compare_surfaces, summarize, surface_files
    from landscape.study.topology import find_topologies, topology_files, topology_rows

    comparison = open_comparison(
        checkpoints,
        data or (),
        seed=seed,
        data_options=DataOptions(max_length, limit, batch_tokens),
        load_options=LoadOptions(dtype, device, adapter, device_map, trust_remote_code),
    )
    if heights:
        comparison = with_questions(comparison)
    print_data(tokens.describe(comparison.files[0].vocabulary_size) for tokens in comparison.data.values())
    settings = {"command": "plot", **comparison.settings(), **surface_kind.folder_settings()}
    settings |= ({"autocast": autocast} if autocast else {}) | {"seed": seed}
    settings |= {"heights": heights} if heights else {}
    files = ("surface.png", "surface.pdf", "surface.txt", "surface.tex", "surface.html", "summary.json")
    kept = surface_files(comparison, surface_kind, draws)
    kept += topology_files(surface_files(comparison, surface_kind, 1), heights) if topology else []
    with results_folder(output, settings, (*files, *kept)):
        run = Run(autocast=autocast, offload_base=offload_base, progress=not quiet)
        surfaces = compare_surfaces(comparison, output, surface_kind, draws=draws, heights=heights, run=run)
        first = dict(list(surfaces.items())[: len(surfaces) // draws])  # of the draws; the others are for the numbers
        drawn = list(first.values())
        over_draws = _over_draws(list(surfaces.values())) if draws > 1 else None
        write_figures(drawn, output / "surface", log=log, levels=contours, style=style)
        summary: dict[str, Any] = {"settings": settings}
        summary["surfaces"] = [summarize(name, s) for name, s in surfaces.items()]
        if over_draws is not None:
            summary["over_draws"] = over_draws.to_dict("records")
        pictures: list[Path] = []
        if topology:
            found = find_topologies(first, output)
            for stem, topologies in found.items():
                pictures += write_persistence(topologies, output / stem, style=style)[:1]
            summary["topology"] = topology_rows(found, list(surfaces.values()) if draws > 1 else ())
        write_json(output / "summary.json", summary)
    if json_output:
        print_json(summary)
    else:
        _print_surfaces(drawn, draws)
        if over_draws is not None:
            _print_draws(over_draws)
        if topology:
            _print_topology(summary["topology"])
    print_written(*(output / name for name in (*files, *first)), *pictures)


# --- options ------------------------------------------------------------------------------------------------


def _levels(text: str, log: bool) -> int | list[float]:
    """How many contours, or the losses to draw them at."""
    numbers = parse_numbers(text, "--levels")
    if len(numbers) > MOST_LEVELS or (len(numbers) == 1 and numbers[0] > MOST_LEVELS):
        raise InputError(f"--levels {text} asks for too many contour lines; a picture has at most {MOST_LEVELS:,}.")
    if len(numbers) > 1:
        if log and min(numbers) <= 0:
            raise InputError(f"--levels {text} does not go with --log, whose losses are above 0.")
        if sorted(set(numbers)) != numbers:
            raise InputError(f"--levels {text} must increase.")
        return numbers
    if numbers[0] < 2 or not numbers[0].is_integer():
        raise InputError(f"--levels {text} is neither a count of at least 2 nor a list of losses.")
    return int(numbers[0])


# --- printing -----------------------------------------------------------------------------------------------


def _print_surfaces(surfaces: list[Surface], draws: int) -> None:
    from landscape.surfaces.metrics import compare_metrics

    compared: dict[str, Any] = {}
    for data in dict.fromkeys(s.data for s in surfaces):
        compared[data] = compare_metrics({s.name: s.metrics() for s in surfaces if s.data == data})
    shown = [m for m in HEADINGS if any(v[m] is not None for row in compared.values() for v in row.values())]
    rows = []
    for surface in surfaces:
        values = compared[surface.data][surface.name]
        cells = ["-" if values[m] is None else f"{values[m]:.4g}" for m in shown]
        weight, seconds = f"{surface.weight:.0f}", f"{surface.provenance.seconds:.1f}"
        rows.append([surface.name, surface.data, f"{surface.center:.4f}", *cells, weight, seconds])
    console = open_console()
    headings = ["surface", "data", "loss at centre", *(HEADINGS[m] for m in shown), "tokens", "seconds"]
    print_table(console, headings, rows, left=("data",), file="summary.json")
    for surface in surfaces:
        _print_markers(console, surface)
    _print_heights(console, surfaces)
    first = surfaces[0]
    if first.path is not None:
        print_note(
            console,
            f"the plane holds {sum(first.path.explained):.1%} of the path's variance about its end "
            f"({', '.join(f'{part:.1%}' for part in first.path.explained)}); a random walk of as many steps, "
            f"{sum(first.path.random_walk):.1%}. Checkpoints lie up to {max(first.path.residuals):.4g} beside it.",
        )
    grid = ", ".join(f"[{axis[0]:.4g}, {axis[-1]:.4g}] in {len(axis)}" for axis in first.axes)
    others = "" if draws > 1 else "; --draws 8 shows how far others are from it"
    draw = f"one draw of directions (seed {first.seed}{others}), normalize={first.normalize}; "
    draw = draw if first.kind_type.is_random else ""
    print_note(
        console,
        f"* our reconstructions of the metrics Li et al. 2024 name; they hold for this grid only: {draw}{grid}.",
    )
    for surface in surfaces:
        if surface.autocast:
            print_note(
                console,
                f"{surface.name} on {surface.data}: forward passes in {surface.autocast.dtype} (autocast), which moves "
                f"the loss at the centre by {surface.autocast.deviation:+.1e} nats.",
            )
    print_adapters(console, (s.provenance.checkpoint for s in surfaces))
    for surface in surfaces:
        if surface.nonfinite:
            print_note(console, f"{surface.name}: {surface.nonfinite} of {surface.loss.size} losses are not finite.")


def _print_heights(console: Console, surfaces: list[Surface]) -> None:
    """Every height at the centre with its standard error, and its range over the grid."""
    import numpy as np

    rows = []
    for surface in surfaces:
        for grid in surface.heights:
            finite = grid.values[np.isfinite(grid.values)]
            seen = f"{finite.min():.4g} to {finite.max():.4g}" if finite.size else "nowhere finite"
            center = with_stderr(f"{grid.center:.4g}", grid.center_stderr)
            rows.append([surface.name, surface.data, grid.name, center, seen, f"{grid.weight:.0f}", grid.unit])
    if rows:
        headings = ["surface", "data", "height", "at centre", "over the grid", "terms", "unit"]
        title = "Heights, with standard errors over examples"
        print_table(console, headings, rows, left=("data", "height", "unit"), title=title, file="summary.json")


def _print_topology(rows: list[dict[str, Any]]) -> None:
    """Minima and saddles of every grid, and how many of them the noise cannot have made."""
    cells = []
    for row in rows:
        known = row["surviving"] is not None
        above = f"{row['surviving']} of {row['minima'] - 1}" if known else "not known"
        cells.append([row["checkpoint"], row["data"], row["height"], str(row["minima"]), f"{row['smad']:.4g}"])
        cells[-1] += [f"{row['largest_persistence']:.4g}", above]
        if draws := row["minima_of_draws"]:
            cells[-1].append(f"{min(draws)} to {max(draws)}")
    if cells:
        console = open_console()
        headings = ["surface", "data", "height", "minima", "SMAD", "most persistent", "saddles above noise"]
        headings += ["minima over draws"] if len(cells[0]) > len(headings) else []
        title = "Minima of the grid, which need not be minima of the model, and their saddles"
        print_table(console, headings, cells, left=("data", "height"), title=title, file="summary.json")


def _over_draws(surfaces: list[Surface]) -> pd.DataFrame:
    """The metrics over all draws, data set by data set."""
    import pandas as pd

    from landscape.surfaces.draws import metrics_over_draws

    tables = []
    for data in dict.fromkeys(surface.data for surface in surfaces):
        table = metrics_over_draws([surface for surface in surfaces if surface.data == data])
        table.insert(1, "data", data)
        tables.append(table)
    return pd.concat(tables, ignore_index=True)


def _print_draws(over_draws: pd.DataFrame) -> None:
    """The mean of each metric over the draws, and the differences between checkpoints."""
    shown = [metric for metric in HEADINGS if (over_draws["metric"] == metric).any()]
    count, first = over_draws["draws"].iloc[0], over_draws["name"].iloc[0]
    means, differences = [], []
    for (name, data), own in over_draws.groupby(["name", "data"], sort=False):
        by_metric = own.set_index("metric")
        cells = [with_stderr(f"{by_metric['mean'][m]:.4g}", by_metric["stderr"][m]) for m in shown]
        spreads = [f"{by_metric['spread'][m]:.1%}" for m in shown]
        means.append([str(name), str(data), *(f"{c}\nspread {p}" for c, p in zip(cells, spreads, strict=True))])
        if name != first:
            of = by_metric[["difference", "low", "high"]]
            cells = [with_interval(*(f"{of[part][m]:.3g}" for part in of)) for m in shown]
            differences.append([f"{name} - {first}", str(data), *cells])
    console = open_console()
    headings = ["surface", "data", *(HEADINGS[m].rstrip("*") for m in shown)]
    title = f"Mean over {count} draws of directions, its standard error, and the spread of one draw"
    print_table(console, headings, means, left=("data",), title=title, file="summary.json")
    if differences:
        title = f"Difference to {first}, draw by draw, with its 95% interval (each alone)"
        print_table(console, headings, differences, left=("data",), title=title, file="summary.json")


def _print_markers(console: Console, surface: Surface) -> None:
    """The losses at the checkpoints on a surface."""
    if surface.path:
        losses = " ".join(f"{marker.loss:.4f}" for marker in surface.markers)
        print_note(console, f"loss on {surface.data} where the path projects to: {losses}")
        return
    for marker in surface.markers:
        print_note(console, f"loss at {marker.name} on {surface.data}: {marker.loss:.4f}")
