"""Heights that are read from a model's predictions, of the next token or of a class, at every supervised position."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from landscape.checkpoints import Checkpoint, identify
from landscape.data.batches import Batch
from landscape.data.tokens import IGNORED
from landscape.errors import InputError, as_typed
from landscape.heights.height import Height, HeightPass, Reading
from landscape.objective.loss_functions import OutputLoss
from landscape.objective.objective import Loss, Objective
from landscape.weights.preservation import preserved
from landscape.weights.vectors import vector_digest

_MOST_BYTES = 4 * 2**30  # of the centre's predictions, which are kept for the divergence from them


class PredictionPass(HeightPass):
    """One forward pass over the data: the loss and all heights are read from the same logits."""

    needs = "batches with labels or (inputs, targets) pairs, with a loss of the model's outputs"

    def __init__(
        self, heights: Sequence[PredictionHeight], model: nn.Module | Checkpoint, objective: Objective
    ) -> None:
        self.heights, self.objective = heights, objective
        names = ", ".join(height.name for height in heights)
        if not isinstance(objective.loss_fn, OutputLoss):
            raise InputError(f"{as_typed('height', names)} is read from a model's outputs, which this loss_fn hides.")
        for height in heights:
            height.prepare(self)

    def log_probabilities(self, batch: Batch, model: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits at the supervised positions, their log-probabilities, and the targets there."""
        logits = self.objective.loss_fn.outputs(model, batch)  # type: ignore[attr-defined]
        targets = _targets(batch)[0].to(logits.device)
        if logits.ndim != 2 or targets.is_floating_point() or len(targets) != len(logits):
            raise InputError(
                f"{as_typed('height', self.heights[0].name)} needs logits of classes and a class as the target of "
                f"each; the outputs have the shape {tuple(logits.shape)} and the targets {tuple(targets.shape)}."
            )
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits, torch.log_softmax(wide, dim=-1), targets

    @torch.no_grad()
    def read(self) -> tuple[Loss | None, list[Reading]]:
        """Read the loss and every height from one forward pass over the data."""
        place = 0  # of the next supervised position: pieces of batches come in order

        def measure(batch: Batch) -> tuple[Tensor, Tensor]:
            nonlocal place
            with torch.autocast(self.objective.device.type, torch.bfloat16, enabled=bool(self.objective.autocast)):
                logits, log_p, targets = self.log_probabilities(batch, self.objective.model)
                loss, weight = self.objective.loss_fn.of_outputs(logits, batch)  # type: ignore[attr-defined]
            columns = [height.of_predictions(log_p, targets, place) for height in self.heights]
            terms = torch.stack([torch.ones_like(log_p[:, 0]), *columns], dim=1).double()
            place += len(targets)
            rows, count = _targets(batch)[1:]
            table = torch.zeros(count, terms.shape[1], dtype=torch.float64, device=terms.device)
            total = torch.stack([loss.detach().double().cpu(), torch.as_tensor(weight).double().cpu()])
            return table.index_add_(0, rows.to(terms.device), terms).cpu(), total

        torch.clear_autocast_cache()
        parts = list(self.objective.over_batches(measure))
        total, weight = torch.stack([part for _, part in parts]).sum(0).tolist()
        terms, *columns = torch.cat([table for table, _ in parts]).numpy().T
        return Loss(total / weight, weight), [Reading.of_examples(np.asarray(values), terms) for values in columns]


class PredictionHeight(Height):
    """A height with a value at every supervised position."""

    read_from = PredictionPass

    def prepare(self, opened: PredictionPass) -> None:
        """Get ready, while the model has the weights of the centre."""

    @abc.abstractmethod
    def of_predictions(self, log_p: Tensor, targets: Tensor, place: int) -> Tensor:
        """Return the value at each position.

        Args:
            log_p: Log-probabilities, shape (positions, classes).
            targets: The right classes, shape (positions,).
            place: The number of the first position, counted over all data.

        Returns:
            Shape (positions,).
        """


class PredictionAccuracy(PredictionHeight):
    """The share of supervised tokens (or of pairs) whose target is the model's first choice."""

    name, unit = "accuracy", "share of tokens"

    def of_predictions(self, log_p: Tensor, targets: Tensor, place: int) -> Tensor:
        """Return 1 where the prediction is right, else 0; NaN where the model predicts nothing."""
        right = (log_p.argmax(-1) == targets).to(log_p)
        return torch.where(log_p[:, 0].isnan(), log_p[:, 0], right)


class KLDivergence(PredictionHeight):
    """KL(reference || point) of the predictions at the supervised positions, in nats per token.

    Args:
        reference: The model whose predictions are the reference; None takes the model at the centre of the surface.

    Source:
        Shenfeld et al. 2025 (arXiv 2509.04259), for KL to the base as a predictor of forgetting.
    """

    name, unit = "kl", "nats per token"
    higher_is_better = False

    def __init__(self, reference: nn.Module | Checkpoint | None = None):
        self.reference = reference
        self._log_p = torch.empty(0)

    def identity(self) -> str:
        """Return the name, and a digest of the weights of a reference that is not the centre."""
        if self.reference is None:
            return self.name
        return f"{self.name} to {vector_digest(dict(identify(self.reference)[0].named_parameters()))}"

    @torch.no_grad()
    def prepare(self, opened: PredictionPass) -> None:
        """Keep the predictions of the reference, in float32."""
        objective = opened.objective
        model = objective.model if self.reference is None else identify(self.reference)[0]
        kept: list[Tensor] = []
        with preserved(model):
            for log_p in objective.over_batches(lambda batch: opened.log_probabilities(batch, model)[1]):
                size = sum(part.numel() for part in kept) + log_p.numel()
                if size * log_p.element_size() > _MOST_BYTES:
                    raise InputError(
                        f"{as_typed('height', self.name)} keeps the reference's predictions of every supervised token, "
                        f"more than {_MOST_BYTES // 2**30} GiB; lower {as_typed('limit')}."
                    )
                kept.append(log_p)
        self._log_p = torch.cat(kept)

    def of_predictions(self, log_p: Tensor, targets: Tensor, place: int) -> Tensor:
        """Return the divergence at each position."""
        reference = self._log_p[place : place + len(targets)]
        if reference.shape != log_p.shape:
            raise InputError("the reference of kl has another vocabulary than the model.")
        return (reference.exp() * (reference - log_p)).sum(-1)


def _targets(batch: Batch) -> tuple[Tensor, Tensor, int]:
    """Return the targets of a batch at supervised positions, the example of each, and the number of examples."""
    if isinstance(batch, Mapping):
        labels = batch["labels"][:, 1:]
        supervised = labels != IGNORED
        return labels[supervised], supervised.nonzero()[:, 0], len(labels)
    targets = batch[1]
    return targets, torch.arange(len(targets), device=targets.device), len(targets)
