"""`landscape hessian`: top eigenvalues, trace, spectral density, layers."""

from __future__ import annotations

import dataclasses
import functools
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from landscape.cli.checks import check_inputs
from landscape.cli.options.checkpoints import Checkpoints
from landscape.cli.options.data import BatchTokens, Data, Limit, MaxLength, Seed
from landscape.cli.options.measurement import (
    Check,
    Curvature,
    Density,
    Hvp,
    MaxMatvecs,
    MaxProbes,
    PerLayer,
    Rtol,
    Top,
    TraceRtol,
    Weighting,
)
from landscape.cli.options.model import Adapter, BasisDevice, Device, Dtype, Parameters, Trust
from landscape.cli.options.output import Json, OutputFolder, Quiet, Style
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
)
from landscape.errors import InputError, typed_as

if TYPE_CHECKING:
    from rich.console import Console

    from landscape.curvature.results import Eigenvalues, LayerCurvature, TraceEstimate

Key = tuple[str, str]  # checkpoint, data set
_OUTPUT = Path("landscape-hessian")


def hessian(
    checkpoints: Checkpoints,
    seed: Seed = 0,
    data: Data = None,
    limit: Limit = None,
    max_length: MaxLength = 512,
    batch_tokens: BatchTokens = 4096,
    top: Top = 5,
    rtol: Rtol = 1e-3,
    max_matvecs: MaxMatvecs = 300,
    trace_rtol: TraceRtol = 0.05,
    max_probes: MaxProbes = 1000,
    weighting: Weighting = None,
    curvature: Curvature = "hessian",
    hvp: Hvp = "auto",
    per_layer: PerLayer = False,
    density: Density = False,
    check: Check = False,
    parameters: Parameters = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    basis_device: BasisDevice = None,
    adapter: Adapter = "merge",
    trust_remote_code: Trust = False,
    output: OutputFolder = _OUTPUT,
    style: Style = "paper",
    json_output: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure the curvature of the loss: top eigenvalues with residuals and the trace with its interval.

    On request the command also measures single layers and the density of all eigenvalues. With --check it measures
    nothing, and says instead whether the products that all of this is made of are right.

    Eigenvalues are ordered by value, not by magnitude as PyHessian orders them. Its top eigenvalue is the lowest one
    here where that is the larger in magnitude, as it may be away from a minimum; in Python which="LM" asks for it.

        landscape hessian runs/adamw runs/sam --density --per-layer
        landscape hessian runs/sam --curvature ggn --top 10
        landscape hessian runs/sam --check -o checked
    """
    extra = {"--per-layer": per_layer, "--density": density, "--weighting": weighting}
    if check and any(extra.values()):
        named = ", ".join(option for option, given in extra.items() if given)
        raise InputError(f"--check measures nothing else; leave {named} out, and measure in a second run.")
    if check and output == _OUTPUT:
        output = Path("landscape-check")  # so that a measurement afterwards finds its own folder empty
    check_inputs(checkpoints, data, output)
    quiet_libraries()
    from landscape.checkpoints import LoadOptions, resolve_device
    from landscape.curvature.checks import CurvatureCheck, check_curvature
    from landscape.curvature.density import hessian_density
    from landscape.curvature.eigenvalues import hessian_eigenvalues
    from landscape.curvature.layers import hessian_layers
    from landscape.curvature.results import Eigenvalues, LayerCurvature, SpectralDensity, TraceEstimate
    from landscape.curvature.trace import hessian_trace
    from landscape.data.tokens import DataOptions
    from landscape.objective.scope import Run, Scope
    from landscape.results import results_folder, write_json
    from landscape.study.comparison import open_comparison
    from landscape.study.effort import effort_of_defaults, eigenvalues_effort, trace_effort
    from landscape.study.runner import Task, file_names, run_tasks

    basis = None if basis_device is None else str(resolve_device(basis_device))
    comparison = open_comparison(
        checkpoints,
        data or (),
        seed=seed,
        data_options=DataOptions(max_length, limit, batch_tokens),
        load_options=LoadOptions(dtype, device, adapter, trust_remote_code=trust_remote_code),
    )
    print_data(tokens.describe() for tokens in comparison.data.values())
    scope = Scope(parameters=tuple(parameters) if parameters else None, curvature=curvature)
    run = Run(hvp=hvp, progress=not quiet)
    matrix: dict[str, Any] = {"hvp": hvp, "seed": seed, "curvature": curvature, "parameters": scope.parameters}
    spectrum: dict[str, Any] = {"k": (top, 1), "which": "BE", "rtol": rtol, "max_matvecs": max_matvecs}
    traces: dict[str, Any] = {"rtol": trace_rtol, "max_probes": max_probes}

    def common(journal: Path | None = None, **changes: Any) -> dict[str, Any]:
        """The arguments that every measurement takes."""
        return {"seed": seed, "scope": scope, "run": dataclasses.replace(run, journal=journal, **changes)}

    def check_products(models: Any, tokens: Any, _: Path) -> CurvatureCheck:
        return check_curvature(models[0], tokens, seed=seed, run=Run(hvp=hvp))

    def eigenvalues(models: Any, tokens: Any, journal: Path) -> Eigenvalues:
        with typed_as({"k": "--top"}):
            return hessian_eigenvalues(models[0], tokens, **spectrum, **common(journal, basis_device=basis))

    def trace(weighting: str | None, models: Any, tokens: Any, journal: Path) -> TraceEstimate:
        with typed_as({"rtol": "--trace-rtol"}):
            return hessian_trace(models[0], tokens, weighting=weighting, **traces, **common(journal))

    def layers(models: Any, tokens: Any, _: Path) -> LayerCurvature:
        with typed_as({name: f"{name} of hessian_layers in Python" for name in ("rtol", "max_probes", "max_matvecs")}):
            return hessian_layers(models[0], tokens, **common())

    def spectral_density(models: Any, tokens: Any, journal: Path) -> SpectralDensity:
        return hessian_density(models[0], tokens, **common(journal))

    if check:
        tasks = [Task("check", CurvatureCheck, check_products)]
    else:
        tasks = [Task("eigenvalues", Eigenvalues, eigenvalues, effort=eigenvalues_effort(top + 1, max_matvecs, rtol))]
        for name in [None, *dict.fromkeys(weighting or ())]:
            named = "trace" if name is None else f"trace-{name}"
            tasks.append(Task(named, TraceEstimate, functools.partial(trace, name), effort=trace_effort(max_probes)))
    if per_layer:
        depth = max(getattr(f.config.get_text_config(), "num_hidden_layers", 1) for f in comparison.files)
        tasks.append(Task("layers", LayerCurvature, layers, effort=effort_of_defaults(hessian_layers, depth)))
    if density:
        tasks.append(Task("density", SpectralDensity, spectral_density, effort=effort_of_defaults(hessian_density)))
    settings = {
        "command": "hessian",
        **comparison.settings(),
        "eigenvalues": matrix | spectrum,
        "trace": matrix | traces,
        "measures": [task.name for task in tasks],
    }
    files = [
        "summary.json",
        *([f"density.{suffix}" for suffix in ("png", "pdf", "txt", "tex", "html")] if density else []),
    ]
    with results_folder(output, settings, [*files, *file_names(comparison, tasks)]):
        results = run_tasks(comparison, output, tasks)
        if density:
            from landscape.plotting import write_density_figures

            write_density_figures(list(results["density"].values()), output / "density", style=style)
        summary = {"settings": settings, "rows": _summary_of_checks(results) if check else _summary(results)}
        write_json(output / "summary.json", summary)
    if json_output:
        print_json(summary)
    elif check:
        _print_checks(results)
    else:
        _print_results(results)
    print_written(*(output / name for name in files))
    if check and any(result.passed is False for result in results["check"].values()):
        raise typer.Exit(1)


def _summary(results: dict[str, dict[Key, Any]]) -> list[dict]:
    """A row per checkpoint and data set, in plain numbers."""
    rows = []
    for key, eigenvalues in results["eigenvalues"].items():
        row: dict[str, Any] = {
            "checkpoint": key[0],
            "data": key[1],
            "eigenvalues": eigenvalues.values,
            "residuals": eigenvalues.residuals,
            "converged": eigenvalues.converged,
            "complete": eigenvalues.complete,
            "lowest_over_highest": eigenvalues.ratio,
            "matvecs": eigenvalues.matvecs,
            "hvp": eigenvalues.hvp,
            "supervised_tokens": eigenvalues.weight,
        }
        for measure in _traces(results):
            trace = results[measure][key]
            row[measure] = {
                "value": trace.value,
                "confidence_interval": trace.confidence_interval,
                "converged": trace.converged,
                "probes": trace.probes,
                "method": trace.method,
            }
        rows.append(row)
    return rows


def _summary_of_checks(results: dict[str, dict[Key, Any]]) -> list[dict]:
    """A row per checkpoint and data set, with the outcome of every check; null where it is undecided."""
    return [
        {
            "checkpoint": key[0],
            "data": key[1],
            "checks_passed": result.passed,
            "checks": {check.name: {"passed": check.passed, "said": check.said} for check in result.checks},
        }
        for key, result in results["check"].items()
    ]


def _print_checks(results: dict[str, dict[Key, Any]]) -> None:
    console = open_console()
    for result in results["check"].values():
        console.print(str(result), markup=False, highlight=False)


def _traces(results: dict[str, dict[Key, Any]]) -> list[str]:
    return [measure for measure in results if measure.startswith("trace")]


def _print_results(results: dict[str, dict[Key, Any]]) -> None:
    console = open_console()
    traces = _traces(results)
    headings = ["checkpoint", "data", "top eigenvalues\n(residual)", "lowest", "lowest/highest"]
    headings += ["trace" if measure == "trace" else f"{measure.removeprefix('trace-')} trace" for measure in traces]
    headings += ["matvecs", "probes", "tokens", "seconds"]
    rows = []
    for key, eigenvalues in results["eigenvalues"].items():
        estimates = [results[measure][key] for measure in traces]
        *highest, lowest = _eigenvalue_cells(eigenvalues)
        seconds = eigenvalues.provenance.seconds + sum(e.provenance.seconds for e in estimates)
        rows.append(
            [
                *key,
                "\n".join(highest),
                lowest,
                "-" if eigenvalues.ratio is None else f"{eigenvalues.ratio:.3g}",
                *map(_trace_cell, estimates),
                f"{eigenvalues.matvecs}",
                f"{estimates[0].probes}",
                f"{eigenvalues.weight:.0f}",
                f"{seconds:.1f}",
            ]
        )
    spare = ("seconds", "tokens", "probes", "matvecs", "lowest/highest")
    print_table(console, headings, rows, left=("data",), spare=spare, file="summary.json")
    first: Eigenvalues = next(iter(results["eigenvalues"].values()))
    trace: TraceEstimate = next(iter(results["trace"].values()))
    matrix = "Hessian" if first.curvature == "hessian" else "Gauss-Newton matrix"
    print_note(
        console,
        f"{matrix} of the token-weighted mean loss in {first.parameters:,} parameters; eigenvalues by Lanczos with "
        f"{first.hvp} products, each within its residual of a true one; traces by {trace.method} with "
        f"{trace.confidence:.0%} intervals; * not converged, ? not known whether. "
        "Rescaling units or heads moves all of these, though the function stays.",
    )
    for key, eigenvalues in results["eigenvalues"].items():
        if eigenvalues.overlooked is not None:
            print_note(console, f"{key[0]} on {key[1]}: eigenvalues overlooked: {eigenvalues.overlooked}")
    print_adapters(console, (e.provenance.checkpoint for e in results["eigenvalues"].values()))
    for key, density in results.get("density", {}).items():
        mean, spread = density.moment(1)
        other = results["trace"][key]
        distance = abs(mean * density.parameters - other.value)
        error = math.hypot(spread * density.parameters, other.stderr)
        print_note(
            console,
            f"{key[0]} on {key[1]}: the density's own trace is {mean * density.parameters:.5g} +- "
            f"{spread * density.parameters:.2g}, {distance / error:.1f} standard errors from the trace above",
        )
    for result in results.get("layers", {}).values():
        console.print()
        _print_layers(console, result)


def _eigenvalue_cells(result: Eigenvalues) -> list[str]:
    triples = zip(result.values, result.residuals, result.converged, strict=True)
    return [f"{value:.5g} ({residual:.1g}){_mark(good)}" for value, residual, good in triples]


def _mark(converged: bool | None) -> str:
    """What follows a number that has not, or not for sure, met its tolerance."""
    return {True: "", False: "*", None: "?"}[converged]


def _trace_cell(result: TraceEstimate) -> str:
    low, high = result.confidence_interval
    return with_interval(f"{result.value:.5g}{'' if result.converged else '*'}", f"{low:.5g}", f"{high:.5g}")


def _print_layers(console: Console, result: LayerCurvature) -> None:
    rows = [
        [
            row.name,
            f"{row.parameters:,}",
            f"{row.trace:.4g} +- {row.trace_stderr:.2g}",
            f"{row.top:.4g} ({row.residual:.1g}){_mark(row.converged)}",
        ]
        for row in result.layers
    ]
    headings = ("layer", "parameters", "trace", "top eigenvalue (residual)")
    print_table(console, headings, rows, title=f"{result.name} on {result.data}, by layer", file="summary.json")
