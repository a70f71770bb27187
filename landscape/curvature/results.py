"""What measurements of the Hessian return: eigenvalues, trace, density, and the table by layer."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np

from landscape.results import Provenance, Result
from landscape.weights.directions import Direction

# What a function-preserving change of the weights does to each number (DESIGN 7; SCIENCE (c)).
INVARIANCE = {
    "eigenvalues": "unchanged by rotations of the weights only; rescaled units and heads move it",
    "trace": "unchanged by rotations of the weights only; rescaled units and heads move it",
    "adaptive": "unchanged by rescaling single weights",
    "filter": "unchanged by rescaling a tensor",
    "unit": "unchanged by rescaling units",
    "head": "unchanged by rescaling heads",
    "layer": "unchanged by rescaling a tensor",
}


@dataclasses.dataclass(frozen=True)
class Eigenvalues(Result):
    """Eigenvalues of the Hessian or the Gauss-Newton matrix; each is within its residual of a true one."""

    kind_of_result: ClassVar[str] = "eigenvalues"

    name: str  # of the checkpoint
    data: str  # name of the data set
    curvature: str  # "hessian" | "ggn"
    which: str  # "LA" | "SA" | "LM" | "BE"
    values: np.ndarray  # (k,), nats per unit of squared distance; the most wanted first
    residuals: np.ndarray  # (k,), |H v - value v| for the unit vector v
    converged: tuple[bool, ...]  # residual <= rtol * |value|
    rtol: float
    matvecs: int  # Hessian-vector products taken
    method: str  # "lanczos" | "pyhessian"
    hvp: str  # how products were taken
    hvp_reason: str  # why, where that was chosen because another way failed
    hvp_error: float  # largest relative discrepancy of finite differences; 0 for exact products
    parameters: int  # number of weights
    weight: float  # number of loss terms (supervised tokens)
    provenance: Provenance
    vectors: tuple[Direction, ...] | None = dataclasses.field(default=None, metadata={"stored": False}, repr=False)

    @property
    def ratio(self) -> float | None:
        """The most negative eigenvalue over the largest; None where `which` did not ask for both ends."""
        return float(self.values.min() / self.values.max()) if self.which == "BE" and self.values.max() > 0 else None

    def rows(self) -> list[tuple[str, str]]:
        pairs = zip(self.values, self.residuals, self.converged, strict=True)
        rows = [("eigenvalues", f"{self.name} on {self.data}, {self.curvature}, {self.which}")]
        rows += [
            (f"{i}", f"{value:.6g} +- {residual:.1g}" + ("" if good else "  NOT CONVERGED"))
            for i, (value, residual, good) in enumerate(pairs, start=1)
        ]
        if self.ratio is not None:
            rows.append(("lowest / highest", f"{self.ratio:.4g}"))
        rows.append(("products", f"{self.matvecs}, {self.method}, hvp={self.hvp} {self.hvp_reason}".rstrip()))
        rows.append(("invariance", INVARIANCE["eigenvalues"]))
        return rows


@dataclasses.dataclass(frozen=True)
class LayerTrace:
    """The part of a trace that one layer's diagonal block makes."""

    name: str
    parameters: int
    trace: float
    stderr: float


@dataclasses.dataclass(frozen=True)
class TraceEstimate(Result):
    """A trace of the Hessian or the Gauss-Newton matrix, possibly weighted, with its confidence interval."""

    kind_of_result: ClassVar[str] = "trace"

    name: str
    data: str
    curvature: str  # "hessian" | "ggn"
    weighting: str | None  # None | "adaptive" | "filter" | "unit" | "head" | "layer"
    value: float  # nats per unit of squared distance (per unit of relative distance where weighted)
    stderr: float  # over probes
    confidence: float
    confidence_interval: tuple[float, ...]  # (low, high), widened by the error of finite differences
    rtol: float
    probes: int
    converged: bool  # half the interval is at most rtol * |value|
    method: str  # "hutchinson" | "forward"
    hvp: str  # how products were taken; "loss differences" for method="forward"
    hvp_error: float  # relative error of finite differences; 0 for exact products
    samples: np.ndarray  # (probes,), v'Hv
    layers: tuple[LayerTrace, ...]  # empty for method="forward"
    parameters: int
    weight: float
    provenance: Provenance

    def rows(self) -> list[tuple[str, str]]:
        low, high = self.confidence_interval
        title = "trace" if self.weighting is None else f"{self.weighting} trace"
        said = "" if self.converged else f"  NOT CONVERGED to {self.rtol:g}"
        rows = [
            (title, f"{self.name} on {self.data}, {self.curvature}"),
            ("value", f"{self.value:.6g}  [{low:.6g}, {high:.6g}] at {self.confidence:.0%}{said}"),
            ("probes", f"{self.probes}, {self.method}, {self.hvp}"),
            ("invariance", INVARIANCE[self.weighting or "trace"]),
        ]
        if self.hvp_error:
            rows.append(("finite differences", f"relative error {self.hvp_error:.1e}"))
        return rows + [(f"  {row.name}", f"{row.trace:.5g} +- {row.stderr:.2g}") for row in self.layers]


@dataclasses.dataclass(frozen=True)
class SpectralDensity(Result):
    """Where the eigenvalues are: nodes and weights of Gauss quadratures, one row for every probe."""

    kind_of_result: ClassVar[str] = "density"

    name: str
    data: str
    curvature: str
    nodes: np.ndarray  # (probes, steps), eigenvalues
    weights: np.ndarray  # (probes, steps), share of all eigenvalues; each row sums to 1
    traces: np.ndarray  # (probes,), v'Hv: what each row's first moment times `parameters` must be
    squares: np.ndarray  # (probes,), |Hv|^2: the same for the second moment
    moment_error: float  # the largest relative difference between those and the moments
    matvecs: int
    hvp: str
    hvp_reason: str
    hvp_error: float
    parameters: int
    weight: float
    provenance: Provenance

    def moment(self, order: int) -> tuple[float, float]:
        """Mean of eigenvalue ** order over all eigenvalues, and its standard error over probes (NaN for one probe)."""
        per_probe = (self.weights * self.nodes**order).sum(1)
        count = len(per_probe)
        spread = float(per_probe.std(ddof=1) / count**0.5) if count > 1 else float("nan")
        return float(per_probe.mean()), spread

    def curve(self, points: int = 512, width: float | None = None) -> tuple[np.ndarray, np.ndarray]:
        """The density smoothed with a Gaussian of standard deviation `width`: eigenvalues and density, (points,) each.

        `width` defaults to a hundredth of the range of the nodes. The integral of the density is 1.
        """
        low, high = float(self.nodes.min()), float(self.nodes.max())
        sigma = width or max(0.01 * (high - low), 1e-12)
        grid = np.linspace(low - 5 * sigma, high + 5 * sigma, points)
        distance = (grid[:, None] - self.nodes.ravel()) / sigma
        kernel = np.exp(-0.5 * distance**2) / (sigma * np.sqrt(2 * np.pi))
        return grid, kernel @ (self.weights.ravel() / len(self.nodes))

    def rows(self) -> list[tuple[str, str]]:
        mean, spread = self.moment(1)
        square, square_spread = self.moment(2)
        n = self.parameters
        negative = float((self.weights * (self.nodes < 0)).sum() / len(self.nodes))
        probes, steps = self.nodes.shape
        return [
            ("spectral density", f"{self.name} on {self.data}, {self.curvature}"),
            ("range", f"[{self.nodes.min():.5g}, {self.nodes.max():.5g}], {negative:.1%} of eigenvalues below 0"),
            ("trace", f"{mean * n:.5g} +- {spread * n:.2g}"),
            ("sum of squares", f"{square * n:.5g} +- {square_spread * n:.2g}"),
            ("quadrature", f"{probes} probes of {steps} steps, hvp={self.hvp} {self.hvp_reason}".rstrip()),
            ("moments", f"agree with v'Hv and |Hv|^2 to {self.moment_error:.1e}"),
        ]


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """Curvature of one layer's diagonal block."""

    name: str
    parameters: int
    trace: float
    trace_stderr: float
    top: float  # largest eigenvalue of the block
    residual: float
    converged: bool


@dataclasses.dataclass(frozen=True)
class LayerCurvature(Result):
    """Trace and largest eigenvalue of every layer's diagonal block of the Hessian or the Gauss-Newton matrix."""

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
        rows = [("curvature by layer", f"{self.name} on {self.data}, {self.curvature}")]
        return rows + [
            (
                row.name,
                f"trace {row.trace:.5g} +- {row.trace_stderr:.2g}, top {row.top:.5g} +- {row.residual:.1g}"
                + ("" if row.converged else "  NOT CONVERGED"),
            )
            for row in self.layers
        ]
