"""The second-order account of forgetting: curvature at the base, along the step to the tuned weights."""

from __future__ import annotations

import math

from landscape.curvature.operators.opening import curvature_of
from landscape.sharpness.registry import metric
from landscape.sharpness.result import Measurement
from landscape.sharpness.site import Site, dot, norm_of


@metric(
    "displacement_curvature",
    formula="D'HD, D = w - w_base, H at w_base",
    cost="2 losses, 1 gradient and 1 product with the Hessian",
    invariance="every linear map and shift of both checkpoints that preserves their functions",
    source="second-order Taylor expansion of the loss at the base",
    needs_base=True,
)
def displacement_curvature(site: Site) -> Measurement:
    """The curvature of the base's loss along the step to the tuned weights.

    H is the Hessian of the data's loss at the base. With the data of the old task this is the second-order account of
    forgetting: g'D + D'HD / 2 is in `details`, next to the rise of the loss that it stands for.
    """
    step = site.displacement
    assert step is not None
    _, gradient = site.gradient_at()
    with curvature_of(site.objective, site.parameters, keep_graphs=False) as operator:
        curvature = dot(step, operator(step[None])[0])
    slope = dot(gradient, step)
    rise = site.loss_at(step) - site.center
    details = {
        "gradient_term": slope,
        "curvature_term": curvature / 2,
        "predicted_rise": slope + curvature / 2,
        "rise": rise,
        "distance": norm_of(step),
    }
    return Measurement(curvature, perturbed_loss=site.center + rise, details=details)


@metric(
    "displacement_fisher",
    formula="D'FD, D = w - w_base, F at w_base",
    cost="1 loss and 1 product with the Gauss-Newton matrix",
    invariance="every linear map and shift of both checkpoints that preserves their functions",
    source="second-order Taylor expansion of the KL divergence at the base",
    needs_base=True,
)
def displacement_fisher(site: Site) -> Measurement:
    """Twice the KL divergence between base and tuned model, to second order; never negative.

    F is the Gauss-Newton matrix of the data's loss at the base.
    """
    step = site.displacement
    assert step is not None
    site.excursion.restore()
    with curvature_of(site.objective, site.parameters, curvature="ggn", keep_graphs=False) as operator:
        value = dot(step, operator(step[None])[0])
    return Measurement(value, details={"distance": norm_of(step), "root": math.sqrt(max(value, 0.0))})
