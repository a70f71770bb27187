"""The spectral density of the Hessian of a model on data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.curvature.opening import curvature_of, require_memory
from landscape.curvature.results import (
    SpectralDensity,
)
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning
from landscape.linalg.spectrum import (
    QuadratureState,
    quadrature,
)
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject, progress_bar
from landscape.parallel.sharding import is_sharded
from landscape.results import Snapshots


def hessian_density(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    probes: int = 4,
    steps: int = 64,
    seed: int = 0,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> SpectralDensity:
    """The density of the Hessian's eigenvalues by stochastic Lanczos quadrature, see `spectrum.quadrature`.

    probes   Rademacher vectors, in lockstep: their products share graphs
    steps    Lanczos steps from each, so many nodes
    journal  as for `hessian_eigenvalues`

    The moments of the quadrature are checked against v'Hv and |Hv|^2 of the same probes; MeasurementWarning where they
    differ by more than a thousandth. Compare `moment(1)` with `hessian_trace` for a check with other probes.
    """
    if probes < 1 or steps < 1:
        raise InputError(f"probes={probes}, steps={steps}; both must be at least 1.")
    scope.only("hessian_density", "parameters", "loss_fn", "curvature")
    run.only("hessian_density", "journal", "hvp")
    subject = Subject(model, data, scope)
    name, objective, selected = subject.name, subject.objective, subject.parameters
    if is_sharded(subject.module):
        raise InputError("the spectral density of a sharded model (fully_shard) is not implemented; its trace is.")
    settings = {
        "probes": probes,
        "steps": steps,
        "curvature": scope.curvature,
        "hvp": run.hvp,
        "parameters": scope.parameters,
    }
    with (
        subject.open_journal(run.journal, settings, seed) as log,
        curvature_of(objective, selected, curvature=scope.curvature, hvp=run.hvp) as operator,
    ):
        snapshots, resume = Snapshots(log, "density"), None
        if (last := snapshots.last()) is not None:
            state, tensors = last
            numbers = {name: np.array(state[name], dtype=np.float64) for name in ("alphas", "betas", "second")}
            resume = QuadratureState(tensors["current"], tensors["previous"], **numbers, step=state["at"])
            operator.recall(state)

        def keep(held: QuadratureState) -> None:
            small = {"alphas": held.alphas, "betas": held.betas, "second": held.second, "at": held.step}
            snapshots.offer(small | operator.learnt(), {"current": held.current, "previous": held.previous})

        require_memory(operator, 4 * probes, told=run.progress)
        with progress_bar(f"{name} density", probes * min(steps, operator.size), "product", run.progress) as bar:
            layout = operator.layout
            vectors = torch.stack([layout.random(seed, f"density {i}", rademacher=True) for i in range(probes)])
            found = quadrature(operator, vectors, steps, bar.update, keep, resume)
    first, second = (found.weights * found.nodes).sum(1), (found.weights * found.nodes**2).sum(1)
    scale = max(float(np.sqrt(found.second.max())), 1e-300)
    error = float(max(np.abs(first - found.first).max() / scale, np.abs(second - found.second).max() / scale**2))
    if error > 1e-3:
        warnings.warn(
            f"{name}: moments of the spectral density differ from v'Hv and |Hv|^2 by {error:.1e}; products are not "
            "accurate enough.",
            MeasurementWarning,
            stacklevel=2,
        )
    return SpectralDensity(
        curvature=scope.curvature,
        nodes=found.nodes,
        weights=found.weights,
        traces=found.first * selected.numel,
        squares=found.second * selected.numel,
        moment_error=error,
        matvecs=probes * min(steps, operator.size),
        hvp=operator.hvp,
        hvp_reason=operator.reason,
        hvp_error=operator.error,
        parameters=selected.numel,
        **subject.result_fields(settings, seed),
    )
