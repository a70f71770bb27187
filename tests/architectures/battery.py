"""What is checked of every causal family of transformers, and its line in the table of docs/architectures.md."""

from __future__ import annotations

import dataclasses
import itertools
import math
import tempfile
import warnings
from typing import Any

import torch
from conftest import assert_same_state, make_batches, plain_loss, state_of
from families import NOT_TRIED, VOCABULARY, tiny_model
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from landscape import Run, compute_surface, hessian_vector_product, load_checkpoint
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.weights.parameters import Parameters


@dataclasses.dataclass
class Row:
    """One line of the table."""

    family: str
    losses: str
    products: str = ""

    def __str__(self) -> str:
        return (
            f"| `{self.family}` | {MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[self.family]} | {self.losses} | {self.products} |"
        )


def measure(family: str) -> Row:
    """Build, save and load a tiny model of a family, and check what is measured of it; a refusal is a sentence.

    In float64, differences of gradients show the most. Where a model does not compute in it, float32 has to do.
    """
    if family in NOT_TRIED:
        return Row(family, f"not tried: {NOT_TRIED[family]}")
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(family).save_pretrained(folder)
        losses = "measured"
        for dtype in ("float64", "float32"):
            try:
                model = load_checkpoint(folder, dtype=dtype, device="cpu").model
                check_loss(model)
                check_filters(model)
                check_restoring(model)
                return Row(family, losses, check_products(model))
            except InputError as error:
                refusal = f"refused: {str(error).replace(folder, 'it')}"
                losses = "measured in float32 only"
    return Row(family, refusal)


def batches_of(rows: int) -> list[dict[str, torch.Tensor]]:
    """Four examples of 4 to 13 tokens in batches of `rows`."""
    return make_batches(rows=rows, examples=4, vocabulary=VOCABULARY)


def check_loss(model: Any) -> None:
    """The loss is the model's own, one example at a time without padding, and the same in every batching."""
    found = {rows: Objective(model, batches_of(rows)).loss().mean for rows in (1, 4)}
    alone = plain_loss(model, batches_of(4))
    for value in found.values():
        # Norms and softmax are float32 in many models: 6e-8 for each number, 5e-7 at the most here, 4e-6 in float32.
        # A mean over batches instead of tokens would be off by 1e-2, an auxiliary loss of a router by 1e-3.
        assert math.isclose(value, alone, rel_tol=2e-6 if model.dtype == torch.float64 else 1e-5), (found, alone)


def check_filters(model: Any) -> None:
    """Every tensor is one parameter, and the filters of a matrix hold each of its numbers once."""
    parameters = Parameters(model)
    trained = {id(tensor) for tensor in model.parameters() if tensor.requires_grad}
    assert sorted(map(id, parameters.tensors)) == sorted(trained)
    for entry in parameters:
        if entry.tensor.ndim < 2:
            continue
        filters = parameters.filters(entry.name, "filter")
        norms, others = filters.norms(entry.tensor.detach()), math.prod(entry.tensor.shape)
        assert norms.ndim == entry.tensor.ndim
        # Cut twice or left out, a number would change the sum of squares by about 1e-3. Rounding is that of float32 in
        # routers, which some models keep in it.
        assert math.isclose(float(norms.square().sum()), float(entry.tensor.detach().square().sum()), rel_tol=1e-5), (
            entry.name
        )
        assert 1 < norms.numel() < others or 1 in entry.tensor.shape, (entry.name, tuple(entry.tensor.shape))
        leaf, widths = entry.name.rsplit(".", 1)[-1], entry.tensor.shape[1:]
        if entry.tensor.ndim == 3 and leaf in ("gate_up_proj", "down_proj") and widths[0] != widths[1]:
            # Stacked experts: what they give to the model is 16 wide, or a latent width, and their inside is not.
            width = getattr(model.config, "moe_latent_size", None) or 16
            assert norms.shape[0] == len(entry.tensor)
            assert (norms.shape[1:].numel() == width) == (leaf == "down_proj"), (entry.name, tuple(widths))


def check_restoring(model: Any) -> None:
    """A surface leaves the model as it was, bit for bit."""
    before = state_of(model)
    surface = compute_surface(model, batches_of(4), dim=1, points=3, span=(-0.5, 0.5))
    assert_same_state(before, state_of(model))
    assert surface.loss[0] != surface.loss[1]  # The weights did move.


def check_products(model: Any) -> str:
    """The product with the Hessian is the difference of gradients of the model's own loss; return how it was taken."""
    batches = batches_of(4)
    parameters = Parameters(model)
    generator = torch.Generator().manual_seed(1)
    vector = {
        name: torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype) * tensor.detach().abs().mean()
        for name, tensor in zip(parameters.names, parameters.tensors, strict=True)
    }
    kind, reason = "exact", ""
    try:
        product = hessian_vector_product(model, batches, vector, run=Run(hvp="exact"))
    except InputError as error:
        kind, reason = "differences", str(error)
        try:
            product = hessian_vector_product(model, batches, vector)
        except InputError as refusal:
            return f"refused: {refusal}"
    found = torch.cat([part.flatten() for part in product.values()])
    exact = model.dtype == torch.float64
    apart, differences = {}, []
    for step in (1e-5, 1e-4, 1e-6) if exact else (1e-2, 1e-1, 1e-3):
        difference, slope_apart = _difference(model, batches[0], parameters, vector, step)
        apart[step] = float((found - difference).norm() / difference.norm())
        # Truncation and the float32 inside of many models leave up to 1e-3 between differences and the truth, and all
        # of a model in float32 leaves 2e-2. A backward pass that loses a term is off by 1e-1.
        if apart[step] < (3e-3 if exact else 3e-2):
            assert slope_apart < 3e-3, slope_apart
            return kind
        differences.append(difference)
    spread = min(float((a - b).norm() / a.norm()) for a, b in itertools.combinations(differences, 2))
    assert spread > 0.1, (kind, reason, apart)  # The differences agree with each other, and not with the product.
    return f"{kind}, not confirmed: differences of its gradients disagree with each other"


def _difference(
    model: Any, batch: dict, parameters: Parameters, vector: dict, step: float
) -> tuple[torch.Tensor, float]:
    """The central difference of the gradients of `model(**batch).loss`, which knows nothing of this package.

    Also returned is how far the mean of the two gradients is from the difference of the losses, as a part of it.
    """
    gradients, losses = [], []
    originals = [tensor.detach().clone() for tensor in parameters.tensors]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for sign in (1, -1):
            with torch.no_grad():
                for name, tensor in zip(parameters.names, parameters.tensors, strict=True):
                    tensor.add_(vector[name], alpha=sign * step)
            loss = model(**batch, use_cache=False).loss
            losses.append(float(loss))
            parts = torch.autograd.grad(loss, parameters.tensors, allow_unused=True)
            gradients.append(
                torch.cat(
                    [
                        (torch.zeros_like(tensor) if part is None else part).flatten()
                        for part, tensor in zip(parts, parameters.tensors, strict=True)
                    ]
                )
            )
            with torch.no_grad():
                for tensor, original in zip(parameters.tensors, originals, strict=True):
                    tensor.copy_(original)
    along = torch.cat([vector[name].flatten() for name in parameters.names])
    slope = (losses[0] - losses[1]) / (2 * step)
    mean = (gradients[0] + gradients[1]) / 2
    return (gradients[0] - gradients[1]) / (2 * step), abs(float(mean @ along) - slope) / float(
        mean.norm() * along.norm()
    )
