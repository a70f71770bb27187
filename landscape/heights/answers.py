"""Heights that are read from the choices of questions: the likelihood of each decides, no text is generated."""

from __future__ import annotations

import abc
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from scipy.special import logsumexp
from torch import Tensor, nn

from landscape.checkpoints import Checkpoint
from landscape.data.batches import Batch
from landscape.data.questions import EncodedQuestion, Questions
from landscape.data.tokens import IGNORED
from landscape.errors import InputError, as_typed
from landscape.forgetting.shared_prompts import SharedPrompts, branch_predictions, predictions, say_unshared
from landscape.heights.height import Height, HeightPass, Reading
from landscape.objective.causal import CausalLoss
from landscape.objective.objective import Loss, Objective


class AnswerPass(HeightPass):
    """One forward pass over all choices of all questions, each prompt once where the model can share it."""

    needs = "questions with choices (records with prompt, choices and answer; load_questions)"

    def __init__(self, heights: Sequence[AnswerHeight], model: nn.Module | Checkpoint, objective: Objective) -> None:
        self.heights = heights
        data = objective.data
        assert isinstance(data, Questions)
        if not isinstance(objective.loss_fn, CausalLoss):
            raise InputError(f"{as_typed('height', heights[0].name)} is of causal language models and their own loss.")
        self.questions = data
        choices = [question.plain for question in data.questions]
        rows = SharedPrompts(choices, data.batch_tokens, data.padding_id)
        with torch.no_grad():
            self.shared = rows.fits(objective)
        if not self.shared:
            say_unshared(data.source, objective.model)
        self.alone = data.as_batches([choice for question in choices for choice in question])
        self.objective = objective.restricted(rows if self.shared else self.alone)

    @classmethod
    def fits(cls, data: Iterable[Batch]) -> bool:
        """Whether the data are questions with choices."""
        return isinstance(data, Questions) and data.multiple_choice

    def losses(self) -> tuple[np.ndarray, np.ndarray]:
        """Return -log P(choice | question) in nats and the number of tokens of each choice, over all questions."""
        count = len(self.alone.examples)
        table = np.zeros((count, 2))
        first = 0
        for values, choices in self.objective.over_batches(self._of_batch):
            if choices is None:  # every row is a choice, in the order of the batches
                places = np.asarray(self.alone.order[first : first + len(values)])
                first += len(values)
                table[places] = values
            else:
                np.add.at(table, choices, values)
        return table[:, 0], table[:, 1]

    @torch.no_grad()
    def _of_batch(self, batch: Batch) -> tuple[np.ndarray, np.ndarray | None]:
        """Return loss and count of each position and its choice; of each row where rows are choices."""
        with torch.autocast(self.objective.device.type, torch.bfloat16, enabled=bool(self.objective.autocast)):
            if self.shared:
                log_p, choice = branch_predictions(self.objective, batch)
            else:
                log_p, choice = predictions(self.objective, batch), None
        labels = batch["labels"][:, 1:]
        targets = labels[labels != IGNORED].to(log_p.device)
        losses = -log_p.gather(1, targets[:, None])[:, 0].double()
        values = torch.stack([losses, torch.ones_like(losses)], dim=1)
        if choice is not None:
            return values.cpu().numpy(), choice.cpu().numpy()
        rows: Tensor = (labels != IGNORED).nonzero()[:, 0].to(values.device)
        table = torch.zeros(len(labels), 2, dtype=torch.float64, device=values.device)
        return table.index_add_(0, rows, values).cpu().numpy(), None

    def read(self) -> tuple[Loss | None, list[Reading]]:
        """Read the loss of the right answers and every height from the losses of all choices."""
        losses, tokens = self.losses()
        right = self.questions.right
        ends = np.cumsum([len(question.lengths) for question in self.questions.questions])[:-1]
        asked = list(zip(self.questions.questions, np.split(losses, ends), strict=True))
        ones = np.ones(len(asked))
        readings = []
        for height in self.heights:
            values = np.array([height.of_choices(question, of_each) for question, of_each in asked])
            readings.append(Reading.of_examples(values, ones))
        weight = float(tokens[right].sum())
        return Loss(float(losses[right].sum()) / weight, weight), readings


class AnswerHeight(Height):
    """A height with a value for every question."""

    read_from = AnswerPass

    @abc.abstractmethod
    def of_choices(self, question: EncodedQuestion, losses: np.ndarray) -> float:
        """Return the value of one question, from -log P(choice | question) of each of its choices in nats."""


class AnswerAccuracy(AnswerHeight):
    """The share of questions whose right choice is the likeliest: `acc` of lm-evaluation-harness."""

    name, unit = "accuracy", "share of questions"

    def of_choices(self, question: EncodedQuestion, losses: np.ndarray) -> float:
        """Return 1 where the answer is right, else 0; a loss that is not finite is no answer."""
        return float(np.isfinite(losses[question.answer]) and int(losses.argmin()) == question.answer)

    def guessing(self, data: Iterable[Batch]) -> float:
        """Return the mean of 1 / number of choices."""
        assert isinstance(data, Questions)
        return data.chance


class ChoiceLogProbability(AnswerHeight):
    """The log-probability of the right choice among the choices, log p(right) / sum of p(choice), in nats a question.

    It says what accuracy does without its steps: an answer that is about to flip shows before it flips.

    Source:
        Schaeffer et al. 2024 (arXiv 2406.04391), p^Choices(Correct Choice), as a logarithm.
    """

    name, unit = "choice", "nats per question"

    def of_choices(self, question: EncodedQuestion, losses: np.ndarray) -> float:
        """Return the log-probability of the right choice."""
        return float(-losses[question.answer] - logsumexp(-losses))

    def guessing(self, data: Iterable[Batch]) -> float:
        """Return the value where all choices are as likely: the mean of -log of their number."""
        assert isinstance(data, Questions)
        return -float(np.mean([np.log(len(question.lengths)) for question in data.questions]))
