"""The spectral density of the Hessian of a model on data."""

from __future__ import annotations

import warnings
from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from landscape.checkpoints import Checkpoint
from landscape.curvature.operators.memory import require_memory
from landscape.curvature.operators.opening import curvature_of
from landscape.curvature.results import SpectralDensity
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning
from landscape.linalg.quadrature import Quadrature, QuadratureState, quadrature
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
    """Estimate the density of the Hessian's eigenvalues by stochastic Lanczos quadrature.

    phi(x) = 1/n sum_i delta(x - lambda_i), approximated by Gauss quadratures from random vectors; see
    `linalg.quadrature`. The moments of the quadrature are checked against v'Hv and |Hv|^2 of the same probes. Compare
    `moment(1)` with `hessian_trace` for a check with other probes.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches that can be read again and again.
        probes: The number of random sign vectors. They run in lockstep, so that their products share graphs.
        steps: The number of Lanczos steps from each, and so of nodes; at most the number of weights.
        seed: Seed of the probes.
        scope: `parameters`, `loss_fn` and `curvature` ("ggn" for the Gauss-Newton matrix) are taken.
        run: `hvp`, `journal` and `progress` are taken; `journal` as for `hessian_eigenvalues`.

    Returns:
        The density. MeasurementWarning where moments differ by more than a thousandth.

    Raises:
        InputError: Arguments make no sense, the run cannot fit in memory, or the model is sharded.

    Source:
        B. Ghorbani, S. Krishnan and Y. Xiao 2019 (arXiv 1901.10159), section 2.

    Example:
        The mean of (2 w_1)^2 and w_2^2 has the Hessian diag(4, 1): two nodes of equal weight.

        >>> import torch
        >>> from landscape import Scope, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> density = hessian_density(model, data, probes=1, scope=scope)
        >>> density.nodes.round(4).tolist(), density.weights.round(4).tolist()
        ([[1.0, 4.0]], [[0.5, 0.5]])
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
        subject.open_journal(run.journal, settings, seed) as journal,
        curvature_of(objective, selected, curvature=scope.curvature, hvp=run.hvp) as operator,
    ):
        snapshots, resume = Snapshots(journal, "density"), None
        if (last := snapshots.last()) is not None:
            state, tensors = last
            numbers = {name: np.array(state[name], dtype=np.float64) for name in ("alphas", "betas", "second")}
            resume = QuadratureState(tensors["current"], tensors["previous"], **numbers, step=state["at"])
            operator.recall(state)

        def save(state: QuadratureState) -> None:
            small = {"alphas": state.alphas, "betas": state.betas, "second": state.second, "at": state.step}
            snapshots.offer(small | operator.learnt(), {"current": state.current, "previous": state.previous})

        require_memory(operator, 4 * probes, show=run.progress)
        with progress_bar(f"{name} density", probes * min(steps, operator.size), "matvec", run.progress) as bar:
            layout = operator.layout
            vectors = torch.stack([layout.random(seed, f"density {i}", rademacher=True) for i in range(probes)])
            quadratures = quadrature(operator, vectors, steps, progress=bar.update, save_state=save, resume=resume)
    error = _moment_error(quadratures)
    if error > 1e-3:
        warnings.warn(
            f"{name}: moments of the spectral density differ from v'Hv and |Hv|^2 by {error:.1e}; products are not "
            "accurate enough.",
            MeasurementWarning,
            stacklevel=2,
        )
    return SpectralDensity(
        curvature=scope.curvature,
        nodes=quadratures.nodes,
        weights=quadratures.weights,
        traces=quadratures.first * selected.numel,
        squares=quadratures.second * selected.numel,
        moment_error=error,
        matvecs=probes * min(steps, operator.size),
        hvp=operator.hvp,
        hvp_reason=operator.reason,
        hvp_error=operator.error,
        parameters=selected.numel,
        **subject.result_fields(settings, seed),
    )


def _moment_error(quadratures: Quadrature) -> float:
    """Return the largest relative difference between moments of the quadratures and v'Hv and |Hv|^2 of their probes."""
    nodes, weights = quadratures.nodes, quadratures.weights
    first, second = (weights * nodes).sum(1), (weights * nodes**2).sum(1)
    scale = max(float(np.sqrt(quadratures.second.max())), 1e-300)
    return float(
        max(np.abs(first - quadratures.first).max() / scale, np.abs(second - quadratures.second).max() / scale**2)
    )
