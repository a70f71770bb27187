"""Sharpness from the gradient, the Hessian and the Gauss-Newton matrix at the weights."""

from __future__ import annotations

import dataclasses

from landscape.curvature import eigenvalues
from landscape.curvature import trace as traces
from landscape.curvature.operators.opening import curvature_of
from landscape.sharpness.registry import metric
from landscape.sharpness.result import CONFIDENCE, Measurement
from landscape.sharpness.site import Site, dot, norm_of


@metric(
    "gradient_norm",
    formula="|g|, or |w * g| with adaptive",
    cost="1 gradient",
    invariance="plain: rotations and shifts of the weights; adaptive: rescaling and permuting single weights",
    source="Zhao, Zhang and Hu 2022 (arXiv 2202.03599)",
)
def gradient_norm(site: Site, *, adaptive: bool = False) -> Measurement:
    """The length of the gradient: the first-order part of SAM and ASAM sharpness, divided by rho."""
    _, gradient = site.gradient_at()
    return Measurement(norm_of(gradient * site.scale("adaptive")) if adaptive else norm_of(gradient))


@metric(
    "fisher_rao",
    formula="w'Fw",
    cost="1 gradient, 1 product with the Hessian and 1 with the Gauss-Newton matrix",
    invariance="every linear map and shift of the weights that preserves the function",
    source="Liang, Poggio, Rakhlin and Stokes 2019 (arXiv 1711.01530), Definition 2",
)
def fisher_rao(site: Site) -> Measurement:
    """The Fisher-Rao norm of the weights.

    F is the Gauss-Newton matrix, which is the true Fisher matrix for a cross-entropy. w'Hw and w'g, which share its
    invariance, are in `details`.
    """
    weights = site.weights()
    with curvature_of(site.objective, site.parameters, curvature="ggn", keep_graphs=False) as operator:
        fisher = dot(weights, operator(weights[None])[0])
    with curvature_of(site.objective, site.parameters, keep_graphs=False) as operator:
        curvature = dot(weights, operator(weights[None])[0])
    _, gradient = site.gradient_at()
    return Measurement(fisher, details={"w'Hw": curvature, "w'g": dot(weights, gradient)})


@metric(
    "top_eigenvalue",
    formula="max over v of v'Hv / v'v",
    cost="about 10 to 25 products with the Hessian; at most max_matvecs",
    invariance="rotations and shifts of the weights",
    source="Lanczos with thick restart: Wu and Simon 2000",
)
def top_eigenvalue(
    site: Site, *, rtol: float = 1e-3, max_matvecs: int = 300, curvature: str = "hessian"
) -> Measurement:
    """The largest eigenvalue of the Hessian or the Gauss-Newton matrix.

    A true eigenvalue lies within the residual, which is in `details`. See `hessian_eigenvalues`.
    """
    site.excursion.restore()
    subject = site.rescoped(curvature=curvature)
    top = eigenvalues.eigenvalues_of(subject, rtol=rtol, max_matvecs=max_matvecs, seed=site.seed, run=site.run)
    eigenvalues.warn_unless_converged(top, 1, stacklevel=4)
    details = {"residual": float(top.residuals[0]), "matvecs": top.matvecs, "hvp": top.hvp}
    return Measurement(float(top.values[0]), converged=top.converged[0], details=details)


def _trace(site: Site, weighting: str | None, rtol: float, max_probes: int, curvature: str, method: str) -> Measurement:
    """Estimate a weighted trace on the site's subject."""
    site.excursion.restore()
    estimate = traces.trace_of(
        site.rescoped(curvature=curvature),
        rtol=rtol,
        confidence=CONFIDENCE,
        max_probes=max_probes,
        weighting=weighting,
        seed=site.seed,
        run=dataclasses.replace(site.run, method=method),
    )
    traces.warn_unless_converged(estimate, stacklevel=5)
    low, high = estimate.confidence_interval
    details = {"method": estimate.method, "relative_error_of_differences": estimate.hvp_error}
    return Measurement(estimate.value, estimate.stderr, None, estimate.converged, estimate.probes, details, (low, high))


@metric(
    "trace",
    formula="tr H = sum_i H_ii",
    cost="32 to 140 products with the Hessian, or about twice as many losses; at most max_probes probes",
    invariance="rotations and shifts of the weights",
    source="Hutchinson 1990",
)
def trace(
    site: Site, *, rtol: float = 0.05, max_probes: int = 1000, curvature: str = "hessian", method: str = "auto"
) -> Measurement:
    """The trace of the Hessian or the Gauss-Newton matrix. See `hessian_trace`."""
    return _trace(site, None, rtol, max_probes, curvature, method)


@metric(
    "adaptive_trace",
    formula="sum_i w_i^2 H_ii",
    cost="as trace",
    invariance="rescaling and permuting single weights",
    source="Andriushchenko et al. 2023 (arXiv 2302.07011)",
)
def adaptive_trace(
    site: Site, *, rtol: float = 0.05, max_probes: int = 1000, curvature: str = "hessian", method: str = "auto"
) -> Measurement:
    """The trace in units of the weights: 2 / rho^2 times adaptive average-case sharpness, as rho goes to 0."""
    return _trace(site, "adaptive", rtol, max_probes, curvature, method)


@metric(
    "filter_trace",
    formula="sum_f |w_f|^2 / n_f tr H_ff over the filters f of n_f weights",
    cost="as trace",
    invariance="rescaling and permuting whole filters, and rotations within them",
    source="the mean over the random directions of Li et al. 2018 (arXiv 1712.09913)",
)
def filter_trace(
    site: Site,
    *,
    normalize: str = "unit",
    rtol: float = 0.05,
    max_probes: int = 1000,
    curvature: str = "hessian",
    method: str = "auto",
) -> Measurement:
    """The mean curvature along filter-normalized random directions, one of which a plot draws.

    Tensors of one dimension, biases and norms' weights, have no filters and are left out, as in plots.

    `normalize` is "filter", "unit", "head" or "layer".
    """
    return _trace(site, normalize, rtol, max_probes, curvature, method)
