"""Relative flatness: the curvature of one layer, weighted with the products of its own rows."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from landscape.curvature.operators.opening import curvature_of
from landscape.errors import InputError
from landscape.linalg.sampling import sample_mean
from landscape.objective.causal import CausalLoss, model_part, supervised_hidden
from landscape.parallel import distributed
from landscape.parallel.distributed import Share
from landscape.parallel.sharding import is_sharded
from landscape.sharpness.registry import metric
from landscape.sharpness.result import CONFIDENCE, Measurement
from landscape.sharpness.site import Site, dot
from landscape.weights.noise import gaussian_noise
from landscape.weights.parameters import NamedParameter, Parameters


@metric(
    "relative_flatness",
    formula="sum over output units s, s' of <w_s, w_s'> tr H_ss' for one layer",
    cost="1 forward pass for an untied linear head, else as trace by products, in one layer",
    invariance="mixing the outputs of the layer, rotating its inputs and scaling them all alike",
    source="Petzka et al. 2021 (arXiv 2001.00939), Definition 3",
)
def relative_flatness(site: Site, *, layer: str = "head", rtol: float = 0.05, max_probes: int = 1000) -> Measurement:
    """The curvature of one layer's block, weighted with the inner products of the rows of its weight.

    `layer` is the name of a weight of two dimensions, or "head": the output head of a language model. Where that is
    untied and linear, the value has the closed form mean_t |h_t|^2 (sum_s p_s |w_s|^2 - |sum_s p_s w_s|^2), which takes
    one forward pass. For other layers Hutchinson's method takes probes W Z with random signs Z, for which E v'Hv is the
    sum that the formula names.
    """
    if is_sharded(site.module):
        raise InputError("relative_flatness of a sharded model (fully_shard) is not implemented.")
    entry = _layer(site, layer)
    head = model_part(site.module, "get_output_embeddings")
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
                noise = gaussian_noise((inputs, inputs), seed=site.seed, stream=f"flatness {index}", name=entry.name)
                signs = torch.where(noise >= 0, 1.0, -1.0).to(by_unit)
                probe = by_unit @ signs
                flat = (probe.T if isinstance(entry.owner, Conv1D) else probe).reshape(-1)
                values.append(dot(flat, operator(flat[None])[0]))
            return np.array(values)

        mean = sample_mean(draw, rtol=rtol, confidence=CONFIDENCE, max_samples=max_probes, set_total=site.set_total)
    details = {"layer": entry.name}
    return Measurement(mean.value, mean.stderr, None, mean.converged, mean.samples, details, mean.interval)


def _layer(site: Site, layer: str) -> NamedParameter:
    """Return the weight of the option `layer`; raise InputError where there is none of two dimensions."""
    if layer == "head":
        head = model_part(site.module, "get_output_embeddings")
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


@torch.no_grad()
def _of_head(site: Site, head: nn.Linear) -> Measurement:
    """Return the closed form of an untied linear head."""
    site.excursion.restore()
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
    return Measurement(sum(totals) / sum(counts), details={"layer": "head", "closed_form": True})
