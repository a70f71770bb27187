"""Curvature layer by layer."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.curvature.eigenvalues import hessian_eigenvalues
from landscape.curvature.results import LayerCurvature, LayerRow
from landscape.curvature.trace import hessian_trace
from landscape.data.batches import Batch
from landscape.errors import MeasurementWarning
from landscape.objective.loss_functions import LossFunction
from landscape.objective.subject import Globs, Subject, group_by_layer


def hessian_layers(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    rtol: float = 0.1,
    max_probes: int = 100,
    eigenvalue_rtol: float = 1e-2,
    max_matvecs: int = 50,
    curvature: str = "hessian",
    hvp: str = "auto",
    parameters: Globs = None,
    seed: int = 0,
    loss_fn: LossFunction | None = None,
    progress: bool = False,
) -> LayerCurvature:
    """Trace and largest eigenvalue of every layer's diagonal block.

    The traces come from one set of probes over all layers together (`hessian_trace`), whose number `rtol` and
    `max_probes` decide; each layer has its own standard error. The eigenvalues are one Lanczos run per layer.
    """
    subject = Subject(model, data, parameters, loss_fn)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MeasurementWarning)  # every layer carries its own error
        trace = hessian_trace(
            model,
            data,
            rtol=rtol,
            max_probes=max_probes,
            method="hutchinson",
            curvature=curvature,
            hvp=hvp,
            parameters=parameters,
            seed=seed,
            loss_fn=loss_fn,
            progress=progress,
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
                curvature=curvature,
                hvp=hvp,
                parameters=names,
                seed=seed,
                loss_fn=loss_fn,
                progress=progress,
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
        "curvature": curvature,
        "hvp": hvp,
        "parameters": parameters,
    }
    return LayerCurvature(
        curvature=curvature,
        layers=tuple(rows),
        probes=trace.probes,
        matvecs=matvecs,
        hvp=trace.hvp,
        **subject.result_fields(settings, seed),
    )
