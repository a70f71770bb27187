"""Sharpness from gradients and curvature at the weights."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from landscape.curvature.eigenvalues import hessian_eigenvalues
from landscape.curvature.opening import curvature_of
from landscape.curvature.trace import hessian_trace
from landscape.errors import InputError
from landscape.linalg.sampling import sample_mean
from landscape.objective.causal import CausalLoss, supervised_hidden
from landscape.objective.scope import Run
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.parallel.sharding import is_sharded
from landscape.sharpness.registry import Found, Site, dot, metric, norm_of
from landscape.weights.noise import gaussian_noise
from landscape.weights.parameters import NamedParameter, Parameters


@metric("gradient_norm", invariance="rotations of the weights; adaptive: rescaling single weights")
def gradient_norm(site: Site, *, adaptive: bool = False) -> Found:
    """|g|, or |w * g| with `adaptive` (Zhao et al. 2022; the first-order part of SAM and ASAM sharpness over rho)."""
    _, gradient = site.gradient_at()
    return Found(norm_of(gradient * site.scale("adaptive")) if adaptive else norm_of(gradient))


@metric("fisher_rao", invariance="every linear rescaling or mixing that preserves the function")
def fisher_rao(site: Site) -> Found:
    """w'Fw, F the Gauss-Newton (true Fisher) matrix (Liang et al. 2019, arXiv 1711.01530, Def. 2), by one product.

    Also in `details`: w'Hw and w'g, which share its invariance.
    """
    weights = site.weights()
    with curvature_of(site.objective, site.parameters, curvature="ggn", keep_graphs=False) as operator:
        fisher = dot(weights, operator(weights[None])[0])
    with curvature_of(site.objective, site.parameters, keep_graphs=False) as operator:
        curvature = dot(weights, operator(weights[None])[0])
    _, gradient = site.gradient_at()
    return Found(fisher, details={"w'Hw": curvature, "w'g": dot(weights, gradient)})


@metric("top_eigenvalue", invariance="rotations of the weights only")
def top_eigenvalue(site: Site, *, rtol: float = 1e-3, max_matvecs: int = 300, curvature: str = "hessian") -> Found:
    """The largest eigenvalue of the Hessian (or Gauss-Newton matrix); its residual bounds the error.

    See `hessian_eigenvalues`.
    """
    site.trip.restore()
    found = hessian_eigenvalues(
        site.model_as_given,
        site.data,
        rtol=rtol,
        max_matvecs=max_matvecs,
        seed=site.seed,
        scope=dataclasses.replace(site.scope, curvature=curvature),
        run=Run(journal=site.journal, progress=site.progress),
    )
    details = {"residual": float(found.residuals[0]), "products": found.matvecs, "hvp": found.hvp}
    return Found(float(found.values[0]), converged=found.converged[0], details=details)


def _trace(site: Site, weighting: str | None, rtol: float, max_probes: int, curvature: str, method: str) -> Found:
    site.trip.restore()
    found = hessian_trace(
        site.model_as_given,
        site.data,
        weighting=weighting,
        rtol=rtol,
        max_probes=max_probes,
        seed=site.seed,
        scope=dataclasses.replace(site.scope, curvature=curvature),
        run=Run(journal=site.journal, progress=site.progress, method=method),
    )
    low, high = found.confidence_interval
    details = {
        "confidence_interval": [low, high],
        "method": found.method,
        "relative_error_of_differences": found.hvp_error,
    }
    return Found(found.value, found.stderr, None, found.converged, found.probes, details)


@metric("trace", invariance="rotations of the weights only")
def trace(
    site: Site, *, rtol: float = 0.05, max_probes: int = 1000, curvature: str = "hessian", method: str = "auto"
) -> Found:
    """The trace of the Hessian (or Gauss-Newton matrix). See `hessian_trace`."""
    return _trace(site, None, rtol, max_probes, curvature, method)


@metric("adaptive_trace", invariance="rescaling single weights")
def adaptive_trace(
    site: Site, *, rtol: float = 0.05, max_probes: int = 1000, curvature: str = "hessian", method: str = "auto"
) -> Found:
    """sum_i w_i^2 H_ii: 2 / rho^2 times adaptive average-case sharpness for rho to 0 (Andriushchenko et al. 2023)."""
    return _trace(site, "adaptive", rtol, max_probes, curvature, method)


@metric("filter_trace", invariance="rescaling the filters of its normalization")
def filter_trace(
    site: Site,
    *,
    normalize: str = "unit",
    rtol: float = 0.05,
    max_probes: int = 1000,
    curvature: str = "hessian",
    method: str = "auto",
) -> Found:
    """sum_f |w_f|^2 / n_f tr H_ff: the mean curvature along filter-normalized directions, one of which a plot draws."""
    return _trace(site, normalize, rtol, max_probes, curvature, method)


# --- relative flatness --------------------------------------------------------------------------------------


@metric("relative_flatness", invariance="mixing the inputs of the layer, and scaling the whole layer")
def relative_flatness(site: Site, *, layer: str = "head", rtol: float = 0.05, max_probes: int = 1000) -> Found:
    """sum over output units s, s' of <w_s, w_s'> tr H_ss' for one layer's weight (Petzka et al. 2021, Definition 3).

    layer  the name of a weight of two dimensions, or "head": the output head of a language model, for which the
           value has the closed form mean_t |h_t|^2 (sum_s p_s |w_s|^2 - |sum_s p_s w_s|^2), one forward pass, where the
           head is untied and linear

    Other layers: Hutchinson with probes W Z, Z random signs, for which E v'Hv is this sum.
    """
    if is_sharded(site.module):
        raise InputError("relative_flatness of a sharded model (fully_shard) is not implemented.")
    entry = _layer(site, layer)
    head = _part(site.module, "get_output_embeddings")
    closed = head is not None and entry.tensor is head.weight and not entry.aliases
    if closed and isinstance(site.objective.loss_fn, CausalLoss) and site.objective.loss_fn.linear_head:
        return _of_head(site, head)
    if not any(e.name == entry.name for e in site.parameters):
        raise InputError(f"layer={layer!r} is not among the selected parameters.")
    selected = Parameters(site.module, entry.name, frozen=True)
    weight = entry.tensor.detach().to(site.layout.dtype)
    by_unit = weight.T if isinstance(entry.owner, Conv1D) else weight  # (output units, inputs)
    inputs = by_unit.shape[1]
    with curvature_of(site.objective, selected) as operator:

        def draw(start: int, stop: int) -> np.ndarray:
            values = []
            for index in range(start, stop):
                draw = gaussian_noise((inputs, inputs), seed=site.seed, stream=f"flatness {index}", name=entry.name)
                signs = torch.where(draw >= 0, 1.0, -1.0).to(by_unit)
                probe = by_unit @ signs
                flat = (probe.T if isinstance(entry.owner, Conv1D) else probe).reshape(-1)
                values.append(dot(flat, operator(flat[None])[0]))
            return np.array(values)

        mean = sample_mean(draw, rtol=rtol, max_samples=max_probes, expecting=site.expect)
    return Found(mean.value, mean.stderr, None, mean.converged, mean.samples, {"layer": entry.name})


def _layer(site: Site, layer: str) -> NamedParameter:
    if layer == "head":
        head = _part(site.module, "get_output_embeddings")
        matching = [e for e in Parameters(site.module, frozen=True) if head is not None and e.tensor is head.weight]
        if not matching:
            raise InputError("layer='head': the model has no output head; name a weight.")
        return matching[0]
    matching = [e for e in Parameters(site.module, frozen=True) if layer in (e.name, *e.aliases)]
    if not matching:
        raise InputError(f"layer={layer!r} is not the name of a parameter.")
    if matching[0].tensor.ndim != 2:
        raise InputError(f"layer={layer!r} has {matching[0].tensor.ndim} dimensions; relative flatness takes 2.")
    return matching[0]


def _part(model: nn.Module, getter: str) -> Any:
    return getattr(model, getter)() if hasattr(model, getter) else None


@torch.no_grad()
def _of_head(site: Site, head: nn.Linear) -> Found:
    site.trip.restore()
    weight = head.weight.double()
    squares = weight.square().sum(1)

    def part(share: Share) -> tuple[float, int]:
        total, count = 0.0, 0
        for _, hidden in site.objective.over_share(share, lambda batch: supervised_hidden(site.module, batch)):
            for piece in hidden.split(max(1, 2**22 // len(weight))):
                p = torch.softmax(head(piece).double(), dim=-1)
                spread = p @ squares - (p @ weight).square().sum(1)
                total += float((piece.double().square().sum(1) * spread).sum())
                count += len(piece)
        return total, count

    totals, counts = zip(*distributed.gathered(part), strict=True)
    return Found(sum(totals) / sum(counts), details={"layer": "head", "closed_form": True})


# --- the second-order account of forgetting -----------------------------------------------------------------


def _taylor(site: Site) -> dict[str, float]:
    """g'D + D'HD / 2 at the base, and the rise it stands for."""
    step = site.displacement
    assert step is not None
    _, gradient = site.gradient_at()
    with curvature_of(site.objective, site.parameters, keep_graphs=False) as operator:
        curvature = dot(step, operator(step[None])[0])
    slope = dot(gradient, step)
    return {
        "gradient_term": slope,
        "curvature_term": curvature / 2,
        "predicted_rise": slope + curvature / 2,
        "rise": site.loss_at(step) - site.center,
        "distance": norm_of(step),
    }


@metric("displacement_curvature", invariance="every symmetry that acts on both checkpoints", needs_base=True)
def displacement_curvature(site: Site) -> Found:
    """D'HD for the step D from the base to the tuned weights, H the Hessian of the data's loss at the base.

    With the data of the old task: the second-order account of forgetting, g'D + D'HD / 2, is in `details` next to the
    rise of the loss that it stands for.
    """
    parts = _taylor(site)
    return Found(2 * parts["curvature_term"], perturbed_loss=site.center + parts["rise"], details=parts)


@metric("displacement_fisher", invariance="every symmetry that acts on both checkpoints", needs_base=True)
def displacement_fisher(site: Site) -> Found:
    """D'FD, F the Gauss-Newton matrix at the base: twice the KL divergence to second order, and never negative."""
    step = site.displacement
    assert step is not None
    site.trip.restore()
    with curvature_of(site.objective, site.parameters, curvature="ggn", keep_graphs=False) as operator:
        value = dot(step, operator(step[None])[0])
    return Found(value, details={"distance": norm_of(step), "root": math.sqrt(max(value, 0.0))})
