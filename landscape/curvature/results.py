"""What measurements of the Hessian return: eigenvalues, trace, density, and the table by layer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from landscape.results import Provenance, Result
from landscape.weights.directions import Direction

# What a change of the weights that preserves the model's function does to each number.
INVARIANCE = {
    "eigenvalues": "unchanged by rotations and shifts of the weights only; rescaled units and heads move it",
    "trace": "unchanged by rotations and shifts of the weights only; rescaled units and heads move it",
    "adaptive": "unchanged by rescaling and permuting single weights",
    "filter": "unchanged by rescaling and permuting rows, and rotations within them",
    "unit": "unchanged by rescaling and permuting units, and rotations within them",
    "head": "unchanged by rescaling and permuting heads, and rotations within them",
    "layer": "unchanged by rescaling tensors, and rotations within them",
}


def verdict(converged: bool | None) -> str:
    """Return what to print after a value that has not, or not for sure, met its tolerance."""
    return {True: "", False: "  NOT CONVERGED", None: "  CONVERGENCE UNKNOWN"}[converged]


@dataclasses.dataclass(frozen=True)
class Eigenvalues(Result):
    """Eigenvalues of the Hessian or the Gauss-Newton matrix; each is within its residual of a true one.

    Attributes:
        name: The name of the checkpoint.
        data: The name of the data set.
        curvature: "hessian" or "ggn".
        which: "LA", "SA", "LM" or "BE"; see `hessian_eigenvalues`.
        values: The eigenvalues in nats per unit of squared distance, shape (k,), the most wanted first.
        residuals: |H v - value v| for the unit vectors v, shape (k,), with the errors of products. Of weights in half
            precision H v is measured in float32.
        converged: Whether each residual is at most rtol * |value|. None where that cannot be shown: products could not
            be compared with differences of gradients, or what rounding does to them could not be measured.
        rtol: The relative tolerance that was asked for.
        matvecs: The number of Hessian-vector products taken.
        method: "lanczos" or "pyhessian".
        hvp: How products were taken.
        hvp_reason: Why, where that was chosen because another way failed.
        hvp_error: The largest relative discrepancy of finite differences, or error by rounding where that was measured;
            0 for exact products otherwise.
        parameters: The number of weights.
        weight: The number of loss terms (supervised tokens).
        provenance: Where the numbers come from.
        complete: Whether a search with a fresh random vector showed, with probability 0.99, that no eigenvalue beyond
            each of these was overlooked, further copies of repeated ones included. None where nothing was searched
            for, as where one eigenvalue of an end is wanted: a further copy would not matter to it.
        vectors: The eigenvectors as directions, where they were asked for. They are not saved.

    Example:
        The mean of (2 w_1)^2 and w_2^2 has the Hessian diag(4, 1).

        >>> import torch
        >>> from landscape import Scope, hessian_eigenvalues, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> found = hessian_eigenvalues(model, data, k=(1, 1), which="BE", scope=scope)
        >>> found.converged, round(found.ratio, 4)
        ((True, True), 0.25)
    """

    kind_of_result: ClassVar[str] = "eigenvalues"

    name: str
    data: str
    curvature: str
    which: str
    values: np.ndarray
    residuals: np.ndarray
    converged: tuple[bool | None, ...]
    rtol: float
    matvecs: int
    method: str
    hvp: str
    hvp_reason: str
    hvp_error: float
    parameters: int
    weight: float
    provenance: Provenance
    complete: tuple[bool, ...] | None = None
    vectors: tuple[Direction, ...] | None = dataclasses.field(default=None, metadata={"stored": False}, repr=False)

    @property
    def ratio(self) -> float | None:
        """The most negative eigenvalue over the largest; None where `which` did not ask for both ends."""
        return float(self.values.min() / self.values.max()) if self.which == "BE" and self.values.max() > 0 else None

    def rows(self) -> list[tuple[str, str]]:
        """Return what a person wants to see first, as names and values."""
        pairs = zip(self.values, self.residuals, self.converged, strict=True)
        rows = [("eigenvalues", f"{self.name} on {self.data}, {self.curvature}, {self.which}")]
        rows += [
            (f"{i}", f"{value:.6g} +- {residual:.1g}" + verdict(good))
            for i, (value, residual, good) in enumerate(pairs, start=1)
        ]
        if self.overlooked is not None:
            rows.append(("overlooked", self.overlooked))
        if self.ratio is not None:
            rows.append(("lowest / highest", f"{self.ratio:.4g}"))
        rows.append(("matvecs", f"{self.matvecs}, {self.method}, hvp={self.hvp} {self.hvp_reason}".rstrip()))
        rows.append(("invariance", INVARIANCE["eigenvalues"]))
        return rows

    @property
    def overlooked(self) -> str | None:
        """What the search for overlooked eigenvalues showed, in words; None where there was no search."""
        if self.complete is None:
            return None
        shown = [f"{i}" for i, excluded in enumerate(self.complete, start=1) if excluded]
        not_shown = [f"{i}" for i, excluded in enumerate(self.complete, start=1) if not excluded]
        if not not_shown:
            return "none beyond these, copies of repeated ones included, with probability 0.99"
        said = f"none beyond {', '.join(shown)}, with probability 0.99; " if shown else ""
        return f"{said}not excluded beyond {', '.join(not_shown)}, such as a further copy of a repeated one"


@dataclasses.dataclass(frozen=True)
class LayerTrace:
    """The part of a trace that one layer's diagonal block makes.

    All layers are measured with the same probes: v_l'(Hv)_l for the part v_l of a probe v. Two layers share the term
    v_l'H_lk v_k of their common block, which has the mean zero and makes their errors go together. Standard errors of
    layers must therefore not be combined as if they were independent; `confidence_interval` holds for all layers at
    once, whatever their dependence.

    Attributes:
        name: The name of the layer.
        parameters: The number of its weights.
        trace: The trace of its block.
        stderr: The standard error over probes, of this layer alone.
        confidence_interval: (low, high), so wide that the intervals of all layers hold together with the confidence of
            the trace (Bonferroni). None in files that older versions wrote.
    """

    name: str
    parameters: int
    trace: float
    stderr: float
    confidence_interval: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class TraceEstimate(Result):
    """A trace of the Hessian or the Gauss-Newton matrix, possibly weighted, with its confidence interval.

    Attributes:
        name: The name of the checkpoint.
        data: The name of the data set.
        curvature: "hessian" or "ggn".
        weighting: None, "adaptive", "filter", "unit", "head" or "layer"; see `hessian_trace`.
        value: The trace in nats per unit of squared distance, or of squared relative distance where it is weighted. It
            is a mean of `samples` with weights that take out the bias of the rule that ended the sampling.
        stderr: The standard error over probes.
        confidence: The confidence of the interval.
        confidence_interval: (low, high), widened by the error of finite differences.
        rtol: The relative tolerance that was asked for.
        probes: The number of random probes that the mean is of.
        converged: Whether half the interval is at most rtol * |value|.
        method: "hutchinson", "hutch++" or "forward".
        hvp: How products were taken; "loss differences" for method="forward".
        hvp_error: The relative error of finite differences; 0 for exact products.
        samples: v'Hv of each probe, shape (probes,); for method="hutch++" tr(Q'HQ) + v'PHPv with the projection P off
            the basis Q. Each weighting has probes of its own.
        layers: The trace by layer; empty for method="forward". The layers share their probes, and so their errors
            depend on each other.
        parameters: The number of weights.
        weight: The number of loss terms (supervised tokens).
        provenance: Where the numbers come from.
        matvecs: The number of Hessian-vector products, with the 16 that decided about deflation where they are not
            among the probes, and for method="hutch++" two for each vector of the basis. None in files that older
            versions wrote.

    Example:
        The mean of (2 w_1)^2 and w_2^2 has the Hessian diag(4, 1). Random signs are exact for a diagonal.

        >>> import torch
        >>> from landscape import Run, Scope, hessian_trace, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> scope = Scope(loss_fn=supervised_loss(torch.nn.MSELoss()))
        >>> found = hessian_trace(model, data, scope=scope, run=Run(method="hutchinson"))
        >>> [round(end, 3) for end in found.confidence_interval]
        [5.0, 5.0]
    """

    kind_of_result: ClassVar[str] = "trace"

    name: str
    data: str
    curvature: str
    weighting: str | None
    value: float
    stderr: float
    confidence: float
    confidence_interval: tuple[float, ...]
    rtol: float
    probes: int
    converged: bool
    method: str
    hvp: str
    hvp_error: float
    samples: np.ndarray
    layers: tuple[LayerTrace, ...]
    parameters: int
    weight: float
    provenance: Provenance
    matvecs: int | None = None

    def rows(self) -> list[tuple[str, str]]:
        """Return what a person wants to see first, as names and values."""
        low, high = self.confidence_interval
        title = "trace" if self.weighting is None else f"{self.weighting} trace"
        verdict = "" if self.converged else f"  NOT CONVERGED to {self.rtol:g}"
        products = f", {self.matvecs} products in all" if self.matvecs not in (None, 0, self.probes) else ""
        rows = [
            (title, f"{self.name} on {self.data}, {self.curvature}"),
            ("value", f"{self.value:.6g}  [{low:.6g}, {high:.6g}] at {self.confidence:.0%}{verdict}"),
            ("probes", f"{self.probes}, {self.method}, {self.hvp}{products}"),
            ("invariance", INVARIANCE[self.weighting or "trace"]),
        ]
        if self.hvp_error:
            rows.append(("finite differences", f"relative error {self.hvp_error:.1e}"))
        if self.layers:
            rows.append(("layers", f"share their probes; [low, high] of all {len(self.layers)} hold together"))
        return rows + [(f"  {row.name}", _layer_text(row)) for row in self.layers]


def _layer_text(row: LayerTrace) -> str:
    """Return the trace of a layer with its standard error, and with its interval where there is one."""
    text = f"{row.trace:.5g} +- {row.stderr:.2g}"
    if row.confidence_interval is None:
        return text
    low, high = row.confidence_interval
    return f"{text}  [{low:.5g}, {high:.5g}]"


@dataclasses.dataclass(frozen=True)
class SpectralDensity(Result):
    """The density of the eigenvalues: nodes and weights of Gauss quadratures, one row for every probe.

    Attributes:
        name: The name of the checkpoint.
        data: The name of the data set.
        curvature: "hessian" or "ggn".
        nodes: Approximate eigenvalues, shape (probes, steps).
        weights: The share of all eigenvalues at each node, shape (probes, steps). Each row sums to 1.
        traces: v'Hv of each probe, shape (probes,): what a row's first moment times `parameters` must be.
        squares: |Hv|^2 of each probe, shape (probes,): the same for the second moment.
        moment_error: The largest relative difference between those and the moments.
        matvecs: The number of Hessian-vector products taken.
        hvp: How products were taken.
        hvp_reason: Why, where that was chosen because another way failed.
        hvp_error: The largest relative discrepancy of finite differences; 0 for exact products.
        parameters: The number of weights.
        weight: The number of loss terms (supervised tokens).
        provenance: Where the numbers come from.

    Example:
        The mean of (2 w_1)^2 and w_2^2 has the Hessian diag(4, 1), whose eigenvalues have the mean 2.5.

        >>> import torch
        >>> from landscape import Scope, hessian_density, supervised_loss
        >>> model = torch.nn.Linear(2, 1, bias=False)
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> found = hessian_density(model, data, scope=Scope(loss_fn=supervised_loss(torch.nn.MSELoss())))
        >>> [round(number, 3) for number in found.moment(1)]
        [2.5, 0.0]
    """

    kind_of_result: ClassVar[str] = "density"

    name: str
    data: str
    curvature: str
    nodes: np.ndarray
    weights: np.ndarray
    traces: np.ndarray
    squares: np.ndarray
    moment_error: float
    matvecs: int
    hvp: str
    hvp_reason: str
    hvp_error: float
    parameters: int
    weight: float
    provenance: Provenance

    def moment(self, order: int) -> tuple[float, float]:
        """Return the mean of eigenvalue ** order, and its standard error over probes (NaN for one probe)."""
        per_probe = (self.weights * self.nodes**order).sum(1)
        count = len(per_probe)
        spread = float(per_probe.std(ddof=1) / count**0.5) if count > 1 else float("nan")
        return float(per_probe.mean()), spread

    def curve(self, points: int = 512, width: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Return the density smoothed with a Gaussian, whose integral is 1.

        Args:
            points: The number of eigenvalues at which it is evaluated.
            width: The standard deviation of the Gaussian. None takes a hundredth of the range of the nodes.

        Returns:
            Eigenvalues and density, shape (points,) each.
        """
        low, high = float(self.nodes.min()), float(self.nodes.max())
        sigma = width or max(0.01 * (high - low), 1e-12)
        grid = np.linspace(low - 5 * sigma, high + 5 * sigma, points)
        distance = (grid[:, None] - self.nodes.ravel()) / sigma
        kernel = np.exp(-0.5 * distance**2) / (sigma * np.sqrt(2 * np.pi))
        return grid, kernel @ (self.weights.ravel() / len(self.nodes))

    def rows(self) -> list[tuple[str, str]]:
        """Return what a person wants to see first, as names and values."""
        mean, spread = self.moment(1)
        square, square_spread = self.moment(2)
        n = self.parameters
        # Nodes near zero have a sign by rounding alone.
        largest = float(np.abs(self.nodes).max())
        negative = float((self.weights * (self.nodes < -0.01 * largest)).sum() / len(self.nodes))
        probes, steps = self.nodes.shape
        return [
            ("spectral density", f"{self.name} on {self.data}, {self.curvature}"),
            ("range", f"[{self.nodes.min():.5g}, {self.nodes.max():.5g}]"),
            ("negative", f"{negative:.1%} of eigenvalues below {-0.01 * largest:.2g} (1% of the largest node)"),
            ("trace", f"{mean * n:.5g} +- {spread * n:.2g}"),
            ("sum of squares", f"{square * n:.5g} +- {square_spread * n:.2g}"),
            ("quadrature", f"{probes} probes of {steps} steps, hvp={self.hvp} {self.hvp_reason}".rstrip()),
            ("moments", f"agree with v'Hv and |Hv|^2 to {self.moment_error:.1e}"),
        ]


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """Curvature of one layer's diagonal block.

    Attributes:
        name: The name of the layer.
        parameters: The number of its weights.
        trace: The trace of the block.
        trace_stderr: The standard error of the trace over probes, of this layer alone; see `LayerTrace`.
        top: The largest eigenvalue of the block.
        residual: Its residual norm; a true eigenvalue is within it.
        converged: Whether the residual met its tolerance; None where that cannot be shown.
        trace_interval: (low, high) of the trace, so wide that the intervals of all layers hold together with 95%
            confidence. None in files that older versions wrote.
    """

    name: str
    parameters: int
    trace: float
    trace_stderr: float
    top: float
    residual: float
    converged: bool | None
    trace_interval: tuple[float, ...] | None = None


@dataclasses.dataclass(frozen=True)
class LayerCurvature(Result):
    """Trace and largest eigenvalue of every layer's diagonal block of the Hessian or the Gauss-Newton matrix.

    Attributes:
        name: The name of the checkpoint.
        data: The name of the data set.
        curvature: "hessian" or "ggn".
        layers: A row for each layer, in the order of the model. The errors of the traces depend on each other.
        probes: The number of random probes of the traces, which all layers share.
        matvecs: The number of Hessian-vector products taken, for traces and eigenvalues.
        hvp: How products were taken.
        weight: The number of loss terms (supervised tokens).
        provenance: Where the numbers come from.

    Example:
        The mean of (2 w_1)^2 and w_2^2 has the Hessian diag(4, 1), in one layer.

        >>> import torch
        >>> from landscape import Scope, hessian_layers, supervised_loss
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 1, bias=False))
        >>> data = [(torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.zeros(2, 1))]
        >>> found = hessian_layers(model, data, scope=Scope(loss_fn=supervised_loss(torch.nn.MSELoss())))
        >>> [(row.name, row.converged) for row in found.layers]
        [('0', True)]
    """

    kind_of_result: ClassVar[str] = "layers"

    name: str
    data: str
    curvature: str
    layers: tuple[LayerRow, ...]
    probes: int
    matvecs: int
    hvp: str
    weight: float
    provenance: Provenance

    def rows(self) -> list[tuple[str, str]]:
        """Return what a person wants to see first, as names and values."""
        rows = [("curvature by layer", f"{self.name} on {self.data}, {self.curvature}")]
        shared = "of each layer alone; the layers share their probes, and so their errors depend on each other"
        return [
            *rows,
            *(
                (
                    row.name,
                    f"trace {row.trace:.5g} +- {row.trace_stderr:.2g}, top {row.top:.5g} +- {row.residual:.1g}"
                    + verdict(row.converged),
                )
                for row in self.layers
            ),
            ("+-", shared),
        ]
