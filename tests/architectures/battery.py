"""What is checked of every causal family of transformers, and the table of it: python tests/architectures/battery.py."""

from __future__ import annotations

import dataclasses
import math
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import transformers
from conftest import assert_same_state, make_batches, plain_loss, state_of
from families import NOT_TRIED, VOCABULARY, families, tiny_model
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from landscape import Run, Scope, compute_surface, hessian_vector_product, load_checkpoint
from landscape.errors import InputError
from landscape.objective.objective import Objective
from landscape.weights.parameters import Parameters

PAGE = Path(__file__).parents[2] / "docs" / "architectures.md"


@dataclasses.dataclass
class Row:
    """One line of the table."""

    family: str
    name: str
    products: str = ""
    refused: str = ""

    def __str__(self) -> str:
        return f"| {self.family} | {self.name} | {self.refused or 'measured'} | {self.products} |"


def measure(family: str) -> Row:
    """Build, save and load a tiny model of a family, and check what is measured of it; refusals are part of the row."""
    row = Row(family, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family])
    with tempfile.TemporaryDirectory() as folder:
        tiny_model(family).save_pretrained(folder)
        try:
            model = load_checkpoint(folder, dtype="float64", device="cpu").model
            check_loss(model)
            check_filters(model)
            check_restoring(model)
            row.products = check_products(model)
        except InputError as error:
            row.refused = f"refused: {str(error).replace(folder, 'it')}"
    return row


def batches_of(rows: int) -> list[dict[str, torch.Tensor]]:
    """Four examples of 4 to 13 tokens in batches of `rows`."""
    return make_batches(rows=rows, examples=4, vocabulary=VOCABULARY)


def check_loss(model: Any) -> None:
    """The loss is the model's own, one example at a time without padding, and the same in every batching."""
    alone = plain_loss(model, batches_of(4))
    for rows in (1, 4):
        found = Objective(model, batches_of(rows)).loss().mean
        # Rounding of float64; norms and softmax are float32 in many models, 6e-8 for each number, 5e-7 at the most here.
        # A mean over batches instead of tokens would be off by 1e-2, an auxiliary loss of a router by 1e-3.
        assert math.isclose(found, alone, rel_tol=2e-6), (rows, found, alone)


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
            # Stacked experts: what they give to the model is as wide as it is (16, or a latent width), unlike their inside.
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
        product = hessian_vector_product(model, batches, vector)
    found = torch.cat([part.flatten() for part in product.values()])
    apart = {}
    for step in (1e-5, 1e-4, 1e-6):
        difference, slope_apart = _difference(model, batches[0], parameters, vector, step)
        apart[step] = float((found - difference).norm() / difference.norm())
        # Truncation and the float32 inside of many models leave up to 1e-3 between differences and the truth. A backward
        # pass that loses a term is off by 1e-1.
        if apart[step] < 3e-3:
            assert slope_apart < 3e-3, slope_apart
            return kind
    raise AssertionError((kind, reason, apart))


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
