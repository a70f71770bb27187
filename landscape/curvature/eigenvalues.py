"""Extreme eigenvalues of the Hessian of a model on data, and the directions they belong to."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from landscape.checkpoints import Checkpoint
from landscape.curvature.certificates import certificate, needs_wider
from landscape.curvature.operators.curvature import CurvatureOperator
from landscape.curvature.operators.memory import WORKING_VECTORS, is_large, require_memory, vectors_that_fit
from landscape.curvature.operators.opening import curvature_of
from landscape.curvature.pyhessian import pyhessian_eigenvalues
from landscape.curvature.results import Eigenvalues
from landscape.data.batches import Batch
from landscape.errors import InputError, MeasurementWarning, as_typed
from landscape.linalg.basis import PACKED_RTOL, PACKED_SHARE
from landscape.linalg.lanczos import LanczosState, RitzPairs, check_wanted, default_basis_size, lanczos
from landscape.objective.scope import Run, Scope
from landscape.objective.subject import Subject, progress_bar
from landscape.parallel.sharding import is_sharded
from landscape.results import Journal, Snapshots
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
    """Compute extreme eigenvalues of the Hessian of the weighted mean loss, each certified by its residual norm.

    H v = lambda v with H = d2 L / dw2. For an approximate pair with the unit vector v, a true eigenvalue lies within
    |H v - lambda v| of lambda.

    The top eigenvalue of PyHessian is the one of largest magnitude, which may be negative: of SmolLM2-135M-Instruct on
    chat examples it was -3038, beside a largest eigenvalue of +1927. `which="LM"` asks for that one.

    A model of 50 million weights or more is measured in little memory. Lanczos vectors are kept as 16-bit integers,
    k + 3 of them (unless `rtol` is below 1e-3); residuals are measured with one more product for each value in the end.
    The graph of a micro-batch takes no more than 1.25 times the memory of the weights.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches that can be read again and again.
        k: The number of eigenvalues. For "BE" it may be (from the high end, from the low end).
        which: "LA" for the largest, "SA" for the smallest, "LM" for the largest in magnitude, "BE" for both ends.
        rtol: A value has converged when its residual norm is at most rtol * |value|.
        max_matvecs: The largest number of Hessian-vector products.
        vectors: Return unit eigenvectors, too, as directions to plot along.
        seed: Seed of the starting vector.
        scope: `parameters`, `loss_fn` and `curvature` ("ggn" for the Gauss-Newton matrix) are taken.
        run: `method`, `hvp`, `basis_device`, `journal` and `progress` are taken. `method` is "lanczos" (the default) or
            "pyhessian": PyHessian's power iteration on the same objective, with `which="LM"` and its own stopping rule
            at `rtol`, whose residuals are measured afterwards. `basis_device="cpu"` keeps Lanczos vectors on the host.
            `journal` (for lanczos) keeps vectors beside the file, as often as takes a tenth of the time or less. A
            killed run that is started again with it loses the products since, and ends with the same result: bit for
            bit where sums are taken in the same order (device, threads and number of processes), else to rounding.

    Returns:
        The eigenvalues, the most wanted first. MeasurementWarning where one has not converged within `max_matvecs`.

    Raises:
        InputError: Arguments make no sense, or the run cannot fit in memory.

    Source:
        Lanczos with thick restart: K. Wu and H. Simon 2000, SIAM J. Matrix Anal. Appl. 22. Exact products: B.
        Pearlmutter 1994, Neural Computation 6. PyHessian: Z. Yao et al. 2020 (arXiv 1912.07145).

    Example:
        The mean of (2 w_1)^2 and w_2^2 is w' diag(4, 1) w / 2, whose Hessian is diag(4, 1).

        >>> import torch
        >>> from landscape import Scope, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> hessian_eigenvalues(model, data, k=2, scope=scope).values.round(4).tolist()
        [4.0, 1.0]
    """
    scope.only("hessian_eigenvalues", "parameters", "loss_fn", "curvature")
    run.only("hessian_eigenvalues", "journal", "method", "hvp", "basis_device")
    subject = Subject(model, data, scope)
    eigenvalues = eigenvalues_of(
        subject, k=k, which=which, rtol=rtol, max_matvecs=max_matvecs, vectors=vectors, seed=seed, run=run
    )
    warn_unless_converged(eigenvalues, k, stacklevel=3)
    return eigenvalues


def eigenvalues_of(
    subject: Subject,
    *,
    k: int | tuple[int, int] = 1,
    which: str = "LA",
    rtol: float,
    max_matvecs: int,
    vectors: bool = False,
    seed: int,
    run: Run,
) -> Eigenvalues:
    """Compute eigenvalues on an opened subject, without a warning; the arguments are those of `hessian_eigenvalues`."""
    method = "lanczos" if run.method is None else run.method
    _check_method(subject, method, vectors, run)
    curvature, selected = subject.scope.curvature, subject.parameters
    settings = {
        "k": k,
        "which": which,
        "rtol": rtol,
        "max_matvecs": max_matvecs,
        "method": method,
        "curvature": curvature,
        "hvp": run.hvp,
        "parameters": subject.scope.parameters,
    }
    count = sum(check_wanted(selected.numel, k, which, rtol))
    with (
        subject.open_journal(run.journal, settings, seed) as journal,
        curvature_of(subject.objective, selected, curvature=curvature, hvp=run.hvp) as operator,
    ):
        kept = _KeptBasis(journal, operator, count, rtol, run.basis_device)
        held = kept.vectors if method == "lanczos" else 2 * count
        require_memory(operator, held + WORKING_VECTORS, run.basis_device, show=run.progress)
        with progress_bar(f"{subject.name} eigenvalues", count + 12, "matvec", run.progress) as bar:
            if method == "pyhessian":
                pairs = pyhessian_eigenvalues(operator, count, which, rtol, max_matvecs, seed, bar.update)
            else:
                pairs = lanczos(
                    operator,
                    operator.layout.random(seed, "lanczos"),
                    k,
                    which=which,
                    rtol=rtol,
                    max_matvecs=max_matvecs,
                    basis_size=kept.basis_size,
                    packed=kept.packed,
                    vectors=vectors or needs_wider(operator, rtol),
                    basis_device=run.basis_device,
                    progress=_shown_in(bar),
                    save_state=kept.save,
                    resume=kept.resume,
                    fresh=lambda i: operator.layout.random(seed, f"lanczos again {i}"),
                )
        shown = certificate(operator, pairs, rtol)
    return Eigenvalues(
        curvature=curvature,
        which=which,
        values=pairs.values.astype(np.float64),
        residuals=shown.residuals,
        converged=shown.converged,
        rtol=rtol,
        matvecs=pairs.matvecs + shown.matvecs,
        method=method,
        complete=None if pairs.complete is None else tuple(bool(shown) for shown in pairs.complete),
        hvp=operator.hvp,
        hvp_reason=operator.reason,
        hvp_error=shown.error,
        parameters=selected.numel,
        **subject.result_fields(settings, seed),
        vectors=_directions_of(pairs, shown.residuals, operator, curvature) if vectors else None,
    )


def warn_unless_converged(eigenvalues: Eigenvalues, k: int | tuple[int, int], *, stacklevel: int) -> None:
    """Warn, on behalf of the caller `stacklevel` levels up, where fewer than the wanted eigenvalues have converged."""
    count = k if isinstance(k, int) else sum(k)
    missing = count - sum(done is not False for done in eigenvalues.converged)
    unknown = sum(done is None for done in eigenvalues.converged)
    if unknown:
        warnings.warn(
            f"{eigenvalues.name}: of {unknown} of {count} eigenvalues it cannot be shown whether they are within "
            f"{as_typed('rtol', eigenvalues.rtol)}; load the model in float32 or float64.",
            MeasurementWarning,
            stacklevel=stacklevel,
        )
    if missing and eigenvalues.hvp_error > eigenvalues.rtol:
        warnings.warn(
            f"{eigenvalues.name}: {missing} of {count} eigenvalues have not converged to "
            f"{as_typed('rtol', eigenvalues.rtol)}; products are off by up to {eigenvalues.hvp_error:.1e} of a value, "
            f"so load the model in a wider dtype, or raise {as_typed('rtol')}.",
            MeasurementWarning,
            stacklevel=stacklevel,
        )
    elif missing:
        warnings.warn(
            f"{eigenvalues.name}: {missing} of {count} eigenvalues have not converged to "
            f"{as_typed('rtol', eigenvalues.rtol)} after {eigenvalues.matvecs} matvecs; raise "
            f"{as_typed('max_matvecs')} or {as_typed('rtol')}.",
            MeasurementWarning,
            stacklevel=stacklevel,
        )


def eigen_directions(
    model: nn.Module | Checkpoint, data: Iterable[Batch], count: int = 2, **options: Any
) -> list[Direction]:
    """Compute unit eigenvectors to plot along: of the largest eigenvalue, and of the most negative one.

    Random planes show mean curvature and hide saddles; these two directions show the extremes.

    Args:
        model: A module or a loaded checkpoint.
        data: Batches that can be read again and again.
        count: 1 for the largest eigenvalue, 2 for both ends of the spectrum.
        **options: The options of `hessian_eigenvalues`.

    Returns:
        One direction for each.

    Raises:
        InputError: `count` is neither 1 nor 2, or `hessian_eigenvalues` refuses the options.

    Source:
        L. Boettcher and G. Wheeler 2024 (arXiv 2208.13219).

    Example:
        The loss is w' diag(4, 1) w / 2, so the two directions are the axes.

        >>> import torch
        >>> from landscape import Scope, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> high, low = eigen_directions(model, data, scope=scope)
        >>> high.tensors["weight"].abs().round(decimals=3).tolist()
        [[1.0, 0.0]]
    """
    if count not in (1, 2):
        raise InputError(f"count={count}; a surface has 1 or 2 directions.")
    ends: dict[str, Any] = {"k": 1, "which": "LA"} if count == 1 else {"k": (1, 1), "which": "BE"}
    eigenvalues = hessian_eigenvalues(model, data, **(ends | {"vectors": True} | options))
    return list(eigenvalues.vectors or ())


def _check_method(subject: Subject, method: str, vectors: bool, run: Run) -> None:
    """Raise InputError for a method that does not exist or cannot do what is asked of it."""
    if method not in ("lanczos", "pyhessian"):
        raise InputError(f"method={method!r} is none of lanczos, pyhessian.")
    if is_sharded(subject.module):
        if vectors or method == "pyhessian" or run.basis_device is not None:
            raise InputError("of a sharded model (fully_shard) there are eigenvalues by lanczos, without vectors=True.")
        if run.journal is not None:
            raise InputError("the vectors of a sharded model (fully_shard) are kept in no journal; leave journal out.")
    if run.journal is not None and method == "pyhessian":
        raise InputError("method='pyhessian' keeps no journal; method='lanczos' does.")


class _KeptBasis:
    """The Lanczos basis as a journal keeps it.

    Attributes:
        basis_size: The number of vectors that are kept at once: as many as the journal's run had, or as there is room
            for.
        packed: Whether they are kept as 16-bit integers: those of a large model, where residuals are to be no smaller
            than the rounding of such vectors allows.
        resume: The state to continue from; None at the start.
    """

    def __init__(
        self, journal: Journal | None, operator: CurvatureOperator, count: int, rtol: float, basis_device: str | None
    ):
        self._operator = operator
        self._snapshots = Snapshots(journal, "lanczos")
        self.resume: LanczosState | None = None
        last = self._snapshots.last()
        if last is None:
            self.packed = is_large(operator) and rtol >= PACKED_RTOL and not is_sharded(operator.objective.model)
            wanted = min(default_basis_size(count, self.packed), operator.size)
            share = PACKED_SHARE if self.packed else 1.0
            self.basis_size = vectors_that_fit(operator, wanted, count + 2, basis_device, share)
            return
        state, tensors = last
        projected = np.array(state["projected"], dtype=np.float64)
        defects = np.array(state.get("defects", [0.0] * len(projected)))
        self.resume = LanczosState(tensors, projected, state["products"], defects)
        self.basis_size = int(state["basis_size"])  # restarts come where they came before
        self.packed = "basis" not in tensors
        operator.recall(state)

    @property
    def vectors(self) -> float:
        """The memory of the basis, in vectors of the operator's type."""
        return self.basis_size * (PACKED_SHARE if self.packed else 1)

    def save(self, state: LanczosState) -> None:
        """Keep a state where it is time to."""
        # "products" is what files have called matvecs so far
        small = {"projected": state.projected, "products": state.matvecs, "basis_size": self.basis_size}
        small["defects"] = state.defects
        self._snapshots.offer(small | self._operator.learnt(), state.basis)


def _directions_of(
    pairs: RitzPairs, residuals: np.ndarray, operator: CurvatureOperator, curvature: str
) -> tuple[Direction, ...] | None:
    """Return the eigenvectors as directions that say which eigenvalue is theirs."""
    if pairs.vectors is None:
        return None
    kind = "eigenvector" if curvature == "hessian" else "Gauss-Newton eigenvector"
    return tuple(
        Direction(
            operator.layout.named(vector.to(operator.device)),
            "eigen",
            f"{kind} of {value:.4g} (+- {residual:.1g})",
        )
        for vector, value, residual in zip(pairs.vectors, pairs.values, residuals, strict=True)
    )


def _shown_in(bar: tqdm) -> Callable[[RitzPairs], None]:
    """Return a function that shows after every product what it brought; the bar's total is a guess that grows."""

    def show(pairs: RitzPairs) -> None:
        if bar.total is not None and pairs.matvecs >= bar.total and not pairs.converged.all():
            bar.total = pairs.matvecs + 4
        bar.update(pairs.matvecs - bar.n)
        done = int(pairs.converged.sum())
        bar.set_postfix_str(f"{done}/{len(pairs.values)} converged, first {pairs.values[0]:.5g}", refresh=False)

    return show
