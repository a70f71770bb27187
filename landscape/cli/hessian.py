"""`landscape hessian`: top eigenvalues, trace, spectral density, layers."""

from __future__ import annotations

import dataclasses
import enum
import functools
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from landscape.cli.common import (
    Adapter,
    BatchTokens,
    Data,
    Device,
    Dtype,
    DtypeOption,
    Json,
    Limit,
    MaxLength,
    Quiet,
    Seed,
    Trust,
    adapters_in,
    app,
    quiet_libraries,
    table_console,
)
from landscape.errors import InputError

if TYPE_CHECKING:
    from landscape.curvature.results import Eigenvalues, LayerCurvature, TraceEstimate

Key = tuple[str, str]  # checkpoint, data set


class Curvature(enum.StrEnum):
    hessian = "hessian"
    ggn = "ggn"


class Hvp(enum.StrEnum):
    auto = "auto"
    exact = "exact"
    forward_over_reverse = "forward_over_reverse"
    finite_difference = "finite_difference"


class Weighting(enum.StrEnum):
    adaptive = "adaptive"
    filter = "filter"
    unit = "unit"
    head = "head"
    layer = "layer"


@app.command()
def hessian(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CKPT...", help="Checkpoint or adapter folders, or hub ids.")
    ],
    data: Data = None,
    top: Annotated[int, typer.Option(help="Largest eigenvalues to find; the lowest one always comes with them.")] = 5,
    rtol: Annotated[float, typer.Option(help="Of eigenvalues: residual norm over value.")] = 1e-3,
    max_products: Annotated[int, typer.Option(help="Hessian-vector products for eigenvalues, at the most.")] = 300,
    trace_rtol: Annotated[float, typer.Option(help="Of the trace: half the 95% interval over value.")] = 0.05,
    max_probes: Annotated[int, typer.Option(help="Probes of a trace, at the most.")] = 1000,
    weighting: Annotated[
        list[Weighting] | None,
        typer.Option(help="Also a weighted trace: adaptive, or the mean over random directions of a normalization."),
    ] = None,
    curvature: Annotated[Curvature, typer.Option(help="The Hessian, or the Gauss-Newton matrix.")] = Curvature.hessian,
    hvp: Annotated[Hvp, typer.Option(help="How products with it are taken.")] = Hvp.auto,
    parameters: Annotated[
        list[str] | None, typer.Option(help="Only parameters whose names match, such as 'model.layers.*.mlp.*'.")
    ] = None,
    per_layer: Annotated[bool, typer.Option("--per-layer", help="Trace and top eigenvalue of every layer.")] = False,
    density: Annotated[bool, typer.Option("--density", help="Spectral density, drawn to density.png.")] = False,
    check: Annotated[
        bool, typer.Option("--check", help="First check products: symmetry, differences, the head in closed form.")
    ] = False,
    host_vectors: Annotated[
        bool, typer.Option("--host-vectors", help="Keep Lanczos vectors in the host's memory.")
    ] = False,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")] = Path("landscape-hessian"),
    limit: Limit = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    dtype: DtypeOption = Dtype.float32,
    device: Device = "auto",
    seed: Seed = 0,
    adapter: Annotated[Adapter, typer.Option(help="Fold adapters into their base, or measure them alone.")] = (
        Adapter.merge
    ),
    json_output: Json = False,
    quiet: Quiet = False,
    trust_remote_code: Trust = False,
) -> None:
    """Curvature of checkpoints: top eigenvalues with residuals, trace with its interval, density, layers."""
    if top < 1:
        raise InputError(f"--top {top} must be at least 1.")
    quiet_libraries()
    from landscape.checkpoints import resolve_device
    from landscape.curvature import results as results
    from landscape.curvature.checks import CurvatureCheck, check_curvature
    from landscape.curvature.density import hessian_density
    from landscape.curvature.eigenvalues import hessian_eigenvalues
    from landscape.curvature.layers import hessian_layers
    from landscape.curvature.trace import hessian_trace
    from landscape.linalg.sampling import check_precision
    from landscape.objective.scope import Run, Scope
    from landscape.results import results_folder, write_json
    from landscape.study.comparison import open_comparison
    from landscape.study.measurements import measure_each, result_files

    check_precision(trace_rtol, 0.95, max_probes)
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
    scope = Scope(parameters=tuple(parameters) if parameters else None, curvature=curvature.value)
    run = Run(hvp=hvp.value, progress=not quiet)
    matrix: dict[str, Any] = {
        "hvp": hvp.value,
        "seed": seed,
        "curvature": curvature.value,
        "parameters": scope.parameters,
    }
    spectrum: dict[str, Any] = {"k": (top, 1), "which": "BE", "rtol": rtol, "max_matvecs": max_products}
    traces: dict[str, Any] = {"rtol": trace_rtol, "max_probes": max_probes}

    def at(journal: Path, **changes: Any) -> dict[str, Any]:
        return {"seed": seed, "scope": scope, "run": dataclasses.replace(run, journal=journal, **changes)}

    measures: dict[str, Any] = {}
    if check:
        measures["check"] = (CurvatureCheck, lambda m, d, _: check_curvature(m, d, seed=seed, run=Run(hvp=hvp.value)))
    basis = "cpu" if host_vectors else None
    measures["eigenvalues"] = (
        results.Eigenvalues,
        lambda m, d, j: hessian_eigenvalues(m, d, **spectrum, **at(j, basis_device=basis)),
    )
    for weight in [None, *dict.fromkeys(weighting or ())]:
        name = "trace" if weight is None else f"trace-{weight.value}"
        options = traces | {"weighting": weight and weight.value}
        take = functools.partial(_trace, hessian_trace, options, at)
        measures[name] = (results.TraceEstimate, take)
    if per_layer:
        measures["layers"] = (
            results.LayerCurvature,
            lambda m, d, _: hessian_layers(m, d, seed=seed, scope=scope, run=run),
        )
    if density:
        measures["density"] = (results.SpectralDensity, lambda m, d, j: hessian_density(m, d, **at(j)))
    settings = {
        "command": "hessian",
        **comparison.settings(),
        "eigenvalues": matrix | spectrum,
        "trace": matrix | traces,
        "measures": list(measures),
    }
    figures = ["density.png", "density.pdf", "density.html"] if density else []
    files = ["summary.json", *figures]
    with results_folder(output, settings, [*files, *result_files(comparison, measures)]):
        found = measure_each(comparison, output, measures)
        if density:
            from landscape.plotting import write_density_figures

            write_density_figures(list(found["density"].values()), output / "density")
        write_json(output / "summary.json", {"settings": settings, "rows": _summary(found)})
    if json_output:
        print((output / "summary.json").read_text(encoding="utf-8"), end="")
    else:
        _print(found)
    print("wrote " + "  ".join(str(output / name) for name in files), file=sys.stderr)
    if check and not all(result.passed for result in found["check"].values()):
        raise typer.Exit(1)


def _trace(measure: Any, options: dict, at: Any, checkpoint: Any, data: Any, journal: Path) -> TraceEstimate:
    return measure(checkpoint, data, **options, **at(journal))


def _summary(found: dict[str, dict[Key, Any]]) -> list[dict]:
    """A row per checkpoint and data set, in plain numbers."""
    rows = []
    for key, eigenvalues in found["eigenvalues"].items():
        row: dict[str, Any] = {
            "checkpoint": key[0],
            "data": key[1],
            "eigenvalues": eigenvalues.values,
            "residuals": eigenvalues.residuals,
            "converged": eigenvalues.converged,
            "lowest_over_highest": eigenvalues.ratio,
            "products": eigenvalues.matvecs,
            "hvp": eigenvalues.hvp,
            "supervised_tokens": eigenvalues.weight,
        }
        for measure, results in found.items():
            if measure.startswith("trace"):
                trace = results[key]
                row[measure] = {
                    "value": trace.value,
                    "confidence_interval": trace.confidence_interval,
                    "converged": trace.converged,
                    "probes": trace.probes,
                    "method": trace.method,
                }
        if "check" in found:
            row["checks_passed"] = found["check"][key].passed
        rows.append(row)
    return rows


def _print(found: dict[str, dict[Key, Any]]) -> None:
    from rich.table import Table

    console = table_console()
    traces = [measure for measure in found if measure.startswith("trace")]
    table = Table(show_edge=False, pad_edge=False)
    table.add_column("checkpoint", overflow="fold")
    table.add_column("data")
    for heading in ("top eigenvalues (residual)", "lowest", "lowest/highest"):
        table.add_column(heading, justify="right")
    for measure in traces:
        table.add_column("trace" if measure == "trace" else f"{measure.removeprefix('trace-')} trace", justify="right")
    for heading in ("products", "probes", "tokens", "seconds"):
        table.add_column(heading, justify="right")
    for key, eigenvalues in found["eigenvalues"].items():
        estimates = [found[measure][key] for measure in traces]
        shown = [*_eigenvalues(eigenvalues)]
        seconds = eigenvalues.provenance.seconds + sum(e.provenance.seconds for e in estimates)
        table.add_row(
            escape(key[0]),
            escape(key[1]),
            "\n".join(shown[:-1]),
            shown[-1],
            "-" if eigenvalues.ratio is None else f"{eigenvalues.ratio:.3g}",
            *(_trace_cell(e) for e in estimates),
            str(eigenvalues.matvecs),
            "\n".join(str(e.probes) for e in estimates[:1]),
            f"{eigenvalues.weight:.0f}",
            f"{seconds:.1f}",
        )
    console.print(table)
    first: Eigenvalues = next(iter(found["eigenvalues"].values()))
    trace: TraceEstimate = next(iter(found["trace"].values()))
    what = "Hessian" if first.curvature == "hessian" else "Gauss-Newton matrix"
    console.print(
        f"{what} of the token-weighted mean loss in {first.parameters:,} parameters; eigenvalues by Lanczos with "
        f"{first.hvp} products, each within its residual of a true one; traces by {trace.method} with "
        f"{trace.confidence:.0%} intervals; * not converged. Rescaling units or heads moves all of these, though the "
        "function stays.",
        highlight=False,
        soft_wrap=True,
    )
    adapters = {how for e in found["eigenvalues"].values() for how in adapters_in(e.provenance.checkpoint)}
    if adapters:
        console.print(f"adapters: {', '.join(sorted(adapters))}", highlight=False)
    for key, density in found.get("density", {}).items():
        mean, spread = density.moment(1)
        other = found["trace"][key]
        apart = abs(mean * density.parameters - other.value)
        error = math.hypot(spread * density.parameters, other.stderr)
        console.print(
            escape(
                f"{key[0]} on {key[1]}: the density's own trace is {mean * density.parameters:.5g} +- "
                f"{spread * density.parameters:.2g}, {apart / error:.1f} standard errors from the trace above"
            ),
            highlight=False,
            soft_wrap=True,
        )
    for measure in ("check", "layers"):
        for result in found.get(measure, {}).values():
            console.print()
            console.print(_layers(result) if measure == "layers" else escape(str(result)), highlight=False)


def _eigenvalues(found: Eigenvalues) -> list[str]:
    triples = zip(found.values, found.residuals, found.converged, strict=True)
    return [f"{value:.5g} ({residual:.1g}){'' if good else '*'}" for value, residual, good in triples]


def _trace_cell(found: TraceEstimate) -> str:
    low, high = found.confidence_interval
    return f"{found.value:.5g}{'' if found.converged else '*'}\n[{low:.5g}, {high:.5g}]"


def _layers(found: LayerCurvature) -> Any:
    from rich.table import Table

    table = Table(title=escape(f"{found.name} on {found.data}, by layer"), show_edge=False, title_justify="left")
    for heading in ("layer", "parameters", "trace", "top eigenvalue (residual)"):
        table.add_column(heading, justify="left" if heading == "layer" else "right")
    for row in found.layers:
        mark = "" if row.converged else "*"
        table.add_row(
            escape(row.name),
            f"{row.parameters:,}",
            f"{row.trace:.4g} +- {row.trace_stderr:.2g}",
            f"{row.top:.4g} ({row.residual:.1g}){mark}",
        )
    return table
