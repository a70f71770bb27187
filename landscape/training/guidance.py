"""Fine-tuning guided by an instruction vector: a term that keeps predictions near those of the base with the vector."""

from __future__ import annotations

import logging
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from landscape.training.options import Guidance
from landscape.training.sam_trainer import SAMTrainer
from landscape.weights.attention import attention_of

_log = logging.getLogger(__name__)

TEMPERATURE = 2.0  # that of Jiang et al.'s code


class GuidedTrainer(Trainer):
    """A Trainer whose loss has the term weight * KL(P || P_base+vector) at the last token of each prompt.

    P is the next-token distribution of the model in training, and P_base+vector that of the frozen base with the
    instruction vector added to the attention output of its layer at that token; both at temperature 2. In an example
    without a prompt, such as plain text, that token is the first, where there is no instruction: guidance is for
    records with a prompt. The term is a mean over the examples of a step. A step takes one more forward pass, of the
    base over the prompts, and with SAM two; a copy of the base is in memory.

    Args:
        *args: Arguments of `transformers.Trainer`.
        guidance: The vector and the weight.
        base: The base, frozen.
        **kwargs: Arguments of `transformers.Trainer`.

    Source:
        Jiang et al. 2024 (arXiv 2406.12227); direction, place and temperature as in the code of Jiang et al. 2025
        (arXiv 2502.11019). That code takes the term only where it is above 0.1; here it is always taken.
    """

    def __init__(self, *args: Any, guidance: Guidance, base: nn.Module, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.guidance, self.guiding = guidance, base
        self._attention = attention_of(base)
        passes = 2 if isinstance(self, SAMTrainer) else 1
        _log.info(
            "guidance adds %d forward pass(es) of the base over the prompts to each step, and a copy of its weights.",
            passes,
        )

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the Trainer's loss with the term added."""
        labels, tokens, mask = inputs["labels"], inputs["input_ids"], inputs.get("attention_mask")
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        places = (labels != -100).int().argmax(dim=1) - 1
        term = guiding_term(outputs.logits, self._target(tokens, mask, places), places)
        if num_items_in_batch is not None and self.model_accepts_loss_kwargs:
            term = term / self.current_gradient_accumulation_steps  # The loss is a share of the step's already.
        loss = loss + self.guidance.weight * term
        return (loss, outputs) if return_outputs else loss

    @torch.no_grad()
    def _target(self, tokens: Tensor, mask: Tensor | None, places: Tensor) -> Tensor:
        """Return the logits of the base with the vector at the last token of each prompt, (batch, vocabulary)."""
        cut = int(places.max()) + 1  # The completions do not reach what comes before them.
        vector = torch.tensor(self.guidance.vector, device=tokens.device)
        with self._attention.adding(self.guidance.layer, vector, places):
            given = {} if mask is None else {"attention_mask": mask[:, :cut]}
            logits = self.guiding(input_ids=tokens[:, :cut], **given, use_cache=False).logits
        return logits[torch.arange(len(places), device=places.device), places]


class GuidedSAMTrainer(GuidedTrainer, SAMTrainer):
    """`GuidedTrainer` with SAM's step: both gradients are of the loss with the term."""


def guiding_term(logits: Tensor, target: Tensor, places: Tensor) -> Tensor:
    """Return the mean over examples of KL(P || P_target) at one place of each, at temperature 2.

    Args:
        logits: Of the model in training, (batch, positions, vocabulary).
        target: Of the guiding model, (batch, vocabulary).
        places: The position of each example, (batch,).
    """
    new = logits[torch.arange(len(places), device=places.device), places].float() / TEMPERATURE
    log_new, log_old = new.log_softmax(-1), (target.float() / TEMPERATURE).log_softmax(-1)
    return (log_new.exp() * (log_new - log_old)).sum(-1).mean()
