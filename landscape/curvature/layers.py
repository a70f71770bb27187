"""Curvature layer by layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.curvature.eigenvalues import eigenvalues_of
from landscape.curvature.results import LayerCurvature, LayerRow
from landscape.curvature.trace import trace_of
from landscape.data.batches import Batch
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
    """Estimate the trace and the largest eigenvalue of every layer's diagonal block of the Hessian.

    The block of layer l is H_ll = d2 L / dw_l2. The traces come from one set of probes over all layers together, as in
    `hessian_trace`. Layers share each probe, so the errors of their traces go together, and a `trace_interval` is so
    wide that those of all layers hold at once with 95% confidence. The eigenvalues are one Lanczos run per layer, as in
    `hessian_eigenvalues`.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches that can be read again and again.
        rtol: Half the 95% interval of the whole trace over its absolute value, which decides the number of probes.
        max_probes: The largest number of probes.
        eigenvalue_rtol: A layer's eigenvalue has converged when its residual norm is at most this times its size.
        max_matvecs: The largest number of products for each layer's eigenvalue.
        seed: Seed of probes and starting vectors.
        scope: `parameters`, `loss_fn` and `curvature` ("ggn" for the Gauss-Newton matrix) are taken.
        run: `hvp` and `progress` are taken.

    Returns:
        A row for each layer, with its own standard error, residual and converged flag; there is no warning.

    Raises:
        InputError: Arguments make no sense, or the run cannot fit in memory.

    Source:
        As for `hessian_trace` and `hessian_eigenvalues`.

    Example:
        The mean of (2 w_1)^2 and w_2^2 has the Hessian diag(4, 1), in one layer.

        >>> import torch
        >>> from landscape import Scope, supervised_loss
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> found = hessian_layers(model, data, scope=Scope(loss_fn=supervised_loss(torch.nn.MSELoss())))
        >>> [(row.name, row.parameters, round(row.trace, 3), round(row.top, 3)) for row in found.layers]
        [('0', 2, 5.0, 4.0)]
    """
    scope.only("hessian_layers", "parameters", "loss_fn", "curvature")
    run.only("hessian_layers", "hvp")
    subject = Subject(model, data, scope)
    by_products = dataclasses.replace(run, method="hutchinson")
    trace = trace_of(subject, rtol=rtol, max_probes=max_probes, seed=seed, run=by_products)
    names = subject.parameters.names
    groups = group_by_layer(names)
    rows, matvecs = [], trace.probes
    for part in trace.layers:
        layer = subject.rescoped(parameters=[names[i] for i in groups[part.name]])
        top = eigenvalues_of(layer, rtol=eigenvalue_rtol, max_matvecs=max_matvecs, seed=seed, run=run)
        matvecs += top.matvecs
        value, residual = float(top.values[0]), float(top.residuals[0])
        rows.append(
            LayerRow(
                name=part.name,
                parameters=part.parameters,
                trace=part.trace,
                trace_stderr=part.stderr,
                top=value,
                residual=residual,
                converged=top.converged[0],
                trace_interval=part.confidence_interval,
            )
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
