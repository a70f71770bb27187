"""Extreme eigenvalues of the Hessian of a model on data, and the directions they belong to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from landscape.checkpoints import Checkpoint
from landscape.curvature.opening import WORKING_VECTORS, curvature_of, require_memory, vectors_that_fit
from landscape.curvature.pyhessian import pyhessian_eigenvalues
from landscape.curvature.results import (
    Eigenvalues,
)
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning
from landscape.linalg.spectrum import (
    LanczosState,
    RitzPairs,
    check_wanted,
    default_basis_size,
    lanczos,
)
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject, progress_bar
from landscape.parallel.sharding import is_sharded
from landscape.results import Snapshots
from landscape.weights.directions import Direction


def hessian_eigenvalues(
    model: nn.Module | Checkpoint,
    data: Iterable[Batch],
    *,
    k: int | tuple[int, int] = 1,
    which: str = "LA",
    rtol: float = 1e-3,
    max_matvecs: int = 300,
    vectors: bool = False,
    seed: int = 0,
    scope: Scope = Scope(),
    run: Run = Run(),
) -> Eigenvalues:
    """Extreme eigenvalues of the Hessian of the weighted mean loss, each certified by its residual norm.

    k, which      how many, from where: "LA" largest, "SA" smallest, "LM" largest magnitude, "BE" both ends (then `k`
                  may be (from the high end, from the low end))
    rtol          a value has converged when its residual norm is at most rtol * |value|; a true eigenvalue lies
                  within the residual
    method        "lanczos" (see `spectrum.lanczos`), or "pyhessian": PyHessian's power iteration on the same
                  objective, with `which="LM"` and its own stopping rule at `rtol`; residuals are measured afterwards
    curvature     "hessian", or "ggn" for the Gauss-Newton matrix
    hvp           "exact", "forward_over_reverse", "finite_difference" or "auto"; see `curvature.curvature_of`
    parameters    shell globs over parameter names
    vectors       also return unit eigenvectors, as directions to plot along
    basis_device  where Lanczos vectors live; "cpu" keeps them on the host
    journal       a file, for lanczos; its vectors are kept beside it, as often as takes a tenth of the time or less. A
                  killed run started again with it loses the products since, and ends with the same result: bit for
                  bit where sums are taken in the same order (device, threads and number of processes), else to
                  rounding

    MeasurementWarning where a value has not converged within `max_matvecs`. Raises InputError for arguments that make
    no sense, and where the run cannot fit in memory.
    """
    scope.only("hessian_eigenvalues", "parameters", "loss_fn", "curvature")
    run.only("hessian_eigenvalues", "journal", "method", "hvp", "basis_device")
    method = "lanczos" if run.method is None else run.method
    subject = Subject(model, data, scope)
    name, objective, selected = subject.name, subject.objective, subject.parameters
    if method not in ("lanczos", "pyhessian"):
        raise InputError(f"method={method!r} is none of lanczos, pyhessian.")
    if is_sharded(subject.module) and (vectors or method == "pyhessian" or run.basis_device is not None):
        raise InputError("of a sharded model (fully_shard) there are eigenvalues by lanczos, without vectors=True.")
    if run.journal is not None and method == "pyhessian":
        raise InputError("method='pyhessian' keeps no journal; method='lanczos' does.")
    settings = {
        "k": k,
        "which": which,
        "rtol": rtol,
        "max_matvecs": max_matvecs,
        "method": method,
        "curvature": scope.curvature,
        "hvp": run.hvp,
        "parameters": scope.parameters,
    }
    count = sum(check_wanted(selected.numel, k, which, rtol))
    with (
        subject.open_journal(run.journal, settings, seed) as log,
        curvature_of(objective, selected, curvature=scope.curvature, hvp=run.hvp) as operator,
    ):
        snapshots, resume = Snapshots(log, "lanczos"), None
        if (last := snapshots.last()) is not None:
            state, tensors = last
            resume = LanczosState(tensors["basis"], np.array(state["projected"], dtype=np.float64), state["products"])
            basis_size = int(state["basis_size"])  # restarts come where they came before
            operator.recall(state)
        else:
            basis_size = vectors_that_fit(operator, default_basis_size(count), count + 2, run.basis_device)

        def keep(held: LanczosState) -> None:
            small = {"projected": held.projected, "products": held.products, "basis_size": basis_size}
            snapshots.offer(small | operator.learnt(), {"basis": held.basis})

        held = basis_size if method == "lanczos" else 2 * count
        require_memory(operator, held + WORKING_VECTORS, run.basis_device, told=run.progress)
        with progress_bar(f"{name} eigenvalues", count + 12, "product", run.progress) as bar:
            if method == "pyhessian":
                found = pyhessian_eigenvalues(operator, count, which, rtol, max_matvecs, seed, bar.update)
            else:
                found = lanczos(
                    operator,
                    operator.layout.random(seed, "lanczos"),
                    k,
                    which=which,
                    rtol=rtol,
                    max_products=max_matvecs,
                    basis_size=basis_size,
                    vectors=vectors,
                    basis_device=run.basis_device,
                    told=_shown_in(bar),
                    keep=keep,
                    resume=resume,
                )
    # a finite difference's error is part of what separates H v from value v
    residuals = found.residuals + operator.error * np.abs(found.values)
    converged = found.converged & (operator.error <= rtol)
    missing = int((~converged).sum()) + count - len(found.values)
    if missing:
        warnings.warn(
            f"{name}: {missing} of {count} eigenvalues have not converged to rtol={rtol:g} after {found.products} "
            "products; raise max_matvecs or rtol.",
            MeasurementWarning,
            stacklevel=2,
        )
    directions = None
    if vectors and found.vectors is not None:
        kind = "eigenvector" if scope.curvature == "hessian" else "Gauss-Newton eigenvector"
        directions = tuple(
            Direction(
                operator.layout.named(vector.to(operator.device)),
                "eigen",
                f"{kind} of {value:.4g} (+- {residual:.1g})",
            )
            for vector, value, residual in zip(found.vectors, found.values, residuals, strict=True)
        )
    return Eigenvalues(
        curvature=scope.curvature,
        which=which,
        values=found.values.astype(np.float64),
        residuals=residuals.astype(np.float64),
        converged=tuple(bool(c) for c in converged),
        rtol=rtol,
        matvecs=found.products,
        method=method,
        hvp=operator.hvp,
        hvp_reason=operator.reason,
        hvp_error=operator.error,
        parameters=selected.numel,
        **subject.result_fields(settings, seed),
        vectors=directions,
    )


def eigen_directions(
    model: nn.Module | Checkpoint, data: Iterable[Batch], count: int = 2, **options: Any
) -> list[Direction]:
    """Unit eigenvectors to plot along: of the largest eigenvalue, and for `count=2` also of the most negative.

    Random planes show mean curvature and hide saddles; these two show the extremes (Boettcher and Wheeler 2024,
    arXiv 2208.13219). `options` are those of `hessian_eigenvalues`.
    """
    if count not in (1, 2):
        raise InputError(f"count={count}; a surface has 1 or 2 directions.")
    which: dict[str, Any] = {"k": 1, "which": "LA"} if count == 1 else {"k": (1, 1), "which": "BE"}
    found = hessian_eigenvalues(model, data, **(which | {"vectors": True} | options))
    return list(found.vectors or ())


def _shown_in(bar: tqdm) -> Callable[[RitzPairs], None]:
    """Shows after every product what it brought; the total is a guess that grows with need."""

    def told(found: RitzPairs) -> None:
        if bar.total is not None and found.products >= bar.total and not found.converged.all():
            bar.total = found.products + 4
        bar.update(found.products - bar.n)
        done = int(found.converged.sum())
        bar.set_postfix_str(f"{done}/{len(found.values)} converged, first {found.values[0]:.5g}", refresh=False)

    return told
