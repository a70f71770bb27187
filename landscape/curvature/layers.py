"""Curvature layer by layer."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable

from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.curvature.eigenvalues import hessian_eigenvalues
from landscape.curvature.results import LayerCurvature, LayerRow
from landscape.curvature.trace import hessian_trace
from landscape.data.batches import Batch
from landscape.errors import MeasurementWarning
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject, group_by_layer


def hessian_layers(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    rtol: float = 0.1,
    max_probes: int = 100,
    eigenvalue_rtol: float = 1e-2,
    max_matvecs: int = 50,
    seed: int = 0,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> LayerCurvature:
    """Trace and largest eigenvalue of every layer's diagonal block.

    The traces come from one set of probes over all layers together (`hessian_trace`), whose number `rtol` and
    `max_probes` decide; each layer has its own standard error. The eigenvalues are one Lanczos run per layer.
    """
    scope.only("hessian_layers", "parameters", "loss_fn", "curvature")
    run.only("hessian_layers", "hvp")
    subject = Subject(model, data, scope)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeasurementWarning)  # every layer carries its own error
        trace = hessian_trace(
            model,
            data,
            rtol=rtol,
            max_probes=max_probes,
            seed=seed,
            scope=scope,
            run=dataclasses.replace(run, method="hutchinson"),
        )
        everything = subject.parameters.names
        groups = group_by_layer(everything)
        rows, matvecs = [], trace.probes
        for part in trace.layers:
            names = [everything[i] for i in groups[part.name]]
            top = hessian_eigenvalues(
                model,
                data,
                rtol=eigenvalue_rtol,
                max_matvecs=max_matvecs,
                seed=seed,
                scope=dataclasses.replace(scope, parameters=names),
                run=run,
            )
            matvecs += top.matvecs
            value, residual = float(top.values[0]), float(top.residuals[0])
            rows.append(
                LayerRow(part.name, part.parameters, part.trace, part.stderr, value, residual, top.converged[0])
            )
    settings = {
        "rtol": rtol,
        "max_probes": max_probes,
        "eigenvalue_rtol": eigenvalue_rtol,
        "max_matvecs": max_matvecs,
        "curvature": scope.curvature,
        "hvp": run.hvp,
        "parameters": scope.parameters,
    }
    return LayerCurvature(
        curvature=scope.curvature,
        layers=tuple(rows),
        probes=trace.probes,
        matvecs=matvecs,
        hvp=trace.hvp,
        **subject.result_fields(settings, seed),
    )
