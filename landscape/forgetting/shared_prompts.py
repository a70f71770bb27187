"""The choices of a question in one row: their common prompt once, and after it each choice in a branch of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from landscape.data.batches import Batch, on_device, take_rows
from landscape.data.tokens import IGNORED, Example, batch_ends, pad_examples
from landscape.objective.objective import Objective

SHARED, PADDING = -1, -2  # in place of the number of a choice: tokens of the common prompt, and those that fill rows

_ROW_TOKENS = 512  # A longer row would spend more on the attention between branches, all of it masked, than it saves.
_log = logging.getLogger(__name__)


class _Row(NamedTuple):
    """One row: the tokens of a common prompt, and choices, by number, of which it says all but those tokens."""

    prompt: int
    choices: tuple[int, ...]
    length: int


@dataclass(frozen=True, eq=False)
class SharedPrompts:
    """Choices of questions as batches of rows, each with the common prompt of a question and several of its choices.

    A row is the prompt without its last token, and then for each choice a branch: the last token of the prompt, which
    predicts the first token of the choice, and the tokens of the choice. A branch sees the prompt and itself, and its
    positions go on from the prompt's, so that each choice has the log-probability that it has alone. What choices share
    is found in their token ids, however the tokenizer splits them.

    A batch is a mapping of int64 tensors of shape (rows, longest row): `input_ids`, `labels`, `position_ids`, and
    `choice`, the number of the choice that a token belongs to, counted over all questions, or SHARED or PADDING.

    Attributes:
        questions: The choices of each question.
        batch_tokens: Maximum tokens per batch, with padding.
        padding_id: Token id that fills the rows.

    Example:
        >>> choices = [Example((5, 6, 7), (-100, -100, 7)), Example((5, 6, 8, 9), (-100, -100, 8, 9))]
        >>> (batch,) = SharedPrompts([choices])
        >>> batch["input_ids"].tolist(), batch["choice"].tolist()
        ([[5, 6, 7, 6, 8, 9]], [[-1, 0, 0, 1, 1, 1]])
        >>> batch["position_ids"].tolist(), batch["labels"].tolist()
        ([[0, 1, 2, 1, 2, 3]], [[-100, -100, 7, -100, 8, 9]])
    """

    questions: Sequence[Sequence[Example]]
    batch_tokens: int = 4096
    padding_id: int = 0

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self._batches)

    @cached_property
    def choices(self) -> list[Example]:
        """The choices of all questions, in order."""
        return [choice for choices in self.questions for choice in choices]

    @cached_property
    def _batches(self) -> list[dict[str, Tensor]]:
        """The batches, made once; those that take most memory come first."""
        rows = sorted(self._rows(), key=lambda row: -row.length)
        ends = batch_ends([row.length for row in rows], self.batch_tokens)
        groups = sorted(
            (rows[start:end] for start, end in pairwise([0, *ends])),
            key=lambda group: -len(group) * group[0].length ** 2,
        )
        return [self._batch(group) for group in groups]

    def _rows(self) -> Iterator[_Row]:
        """Yield the rows: as many choices of a question in each as its length allows, at least one."""
        first = 0
        for choices in self.questions:
            prompt = _shared_tokens(choices)
            longest = min(self.batch_tokens, max(_ROW_TOKENS, 2 * prompt))
            taken: list[int] = []
            length = prompt
            for number, choice in enumerate(choices, start=first):
                added = len(choice.input_ids) - prompt
                if taken and length + added > longest:
                    yield _Row(prompt, tuple(taken), length)
                    taken, length = [], prompt
                taken.append(number)
                length += added
            yield _Row(prompt, tuple(taken), length)
            first += len(choices)

    def _batch(self, rows: Sequence[_Row]) -> dict[str, Tensor]:
        """Return the rows as one batch."""
        shape = (len(rows), rows[0].length)
        batch = {
            "input_ids": torch.full(shape, self.padding_id),
            "labels": torch.full(shape, IGNORED),
            "position_ids": torch.zeros(shape, dtype=torch.int64),
            "choice": torch.full(shape, PADDING),
        }
        for index, row in enumerate(rows):
            prompt = self.choices[row.choices[0]].input_ids[: row.prompt]
            batch["input_ids"][index, : row.prompt] = torch.tensor(prompt)
            batch["position_ids"][index, : row.prompt] = torch.arange(row.prompt)
            batch["choice"][index, : row.prompt] = SHARED
            start = row.prompt
            for number in row.choices:
                choice = self.choices[number]
                end = start + len(choice.input_ids) - row.prompt
                batch["input_ids"][index, start:end] = torch.tensor(choice.input_ids[row.prompt :])
                batch["labels"][index, start:end] = torch.tensor(choice.labels[row.prompt :])
                batch["position_ids"][index, start:end] = torch.arange(row.prompt, len(choice.input_ids))
                batch["choice"][index, start:end] = number
                start = end
        return batch

    def fits(self, objective: Objective) -> bool:
        """Whether the model gives the choices of the longest row the log-probabilities that it gives them alone.

        The first and the last choice of that row are evaluated both ways. Models that take no mask of four dimensions,
        that read tokens in sequence or that look at places rather than at positions show as a difference.

        Args:
            objective: The model with its loss on the choices.
        """
        model = objective.model
        rows = next(iter(self))
        row = take_rows(rows, slice(0, 1), len(rows["choice"]))
        held = sorted({int(number) for number in row["choice"].unique() if number >= 0})
        checked = sorted({held[0], held[-1]})
        examples = [self.choices[number] for number in checked]
        window = _window(model)
        if window is not None and window < max(len(example.input_ids) for example in examples):
            return False  # A mask of our own would replace the model's own, which hides what lies further back.
        expected = predictions(objective, on_device(pad_examples(examples, self.padding_id), objective.device))
        try:
            found, numbers = branch_predictions(objective, on_device(row, objective.device))
        except torch.OutOfMemoryError:
            raise
        except (TypeError, ValueError, IndexError, KeyError, AttributeError, NotImplementedError, RuntimeError):
            return False
        kept = torch.isin(numbers, torch.tensor(checked, device=numbers.device))
        difference = (found[kept.to(found.device)] - expected).square().mean().sqrt()
        # Both are one computation in another order. In float32 that moved the log-probabilities by up to 3e-7 of their
        # size in 110 tiny models of as many families and by 7e-7 in SmolLM2, in bfloat16 by 3e-3 and 7e-3. The 46
        # families that compute something else in a branch moved them by 5e-3 at least.
        rounding = 1e-5 if _itemsize(model) >= 4 else 1.2e-2
        return bool(difference <= rounding * expected.square().mean().sqrt())


def say_unshared(task: str, model: nn.Module) -> None:
    """Say that each choice of a task is evaluated with its whole prompt."""
    _log.info(
        "%s: every choice is evaluated with its whole prompt, because %s cannot share a prompt among choices.",
        task,
        type(model).__name__,
    )


def predictions(objective: Objective, batch: Batch) -> Tensor:
    """Return log-probabilities at the supervised positions, in float32 or wider, shape (positions, vocabulary)."""
    loss_fn: Any = objective.loss_fn
    logits = loss_fn.outputs(objective.model, batch)
    return torch.log_softmax(logits.to(torch.promote_types(logits.dtype, torch.float32)), dim=-1)


def branch_predictions(objective: Objective, batch: Batch) -> tuple[Tensor, Tensor]:
    """Return what `predictions` returns of a batch of `SharedPrompts`, and the number of each position's choice."""
    choice, labels = batch["choice"], batch["labels"]
    places = torch.arange(choice.shape[1], device=choice.device)
    sees = (choice[:, :, None] == choice[:, None, :]) | (choice[:, None, :] == SHARED)
    sees &= places[:, None] >= places
    dtype = objective.model.get_input_embeddings().weight.dtype  # type: ignore[operator]
    mask = torch.zeros(sees.shape, dtype=dtype, device=choice.device).masked_fill_(~sees, torch.finfo(dtype).min)
    inputs = {key: batch[key] for key in ("input_ids", "position_ids", "labels")}
    found = predictions(objective, {**inputs, "attention_mask": mask[:, None]})
    return found, choice[:, 1:][labels[:, 1:] != IGNORED]


def _shared_tokens(choices: Sequence[Example]) -> int:
    """Return how many tokens the choices have in common, up to the last one before a choice, which predicts it."""
    first = min(next(i for i, label in enumerate(choice.labels) if label != IGNORED) for choice in choices)
    columns = zip(*(choice.input_ids[: max(0, first - 1)] for choice in choices), strict=True)
    return next((i for i, tokens in enumerate(columns) if len(set(tokens)) > 1), max(0, first - 1))


def _window(model: nn.Module) -> int | None:
    """Return how far back the attention of a model sees where that is limited, by what its configuration says."""
    config: Any = getattr(model, "config", None)
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    windows = (getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size"))
    return min((window for window in windows if isinstance(window, int) and window > 0), default=None)


def _itemsize(model: nn.Module) -> int:
    """Return the bytes of the narrowest of a model's weights."""
    return min(parameter.dtype.itemsize for parameter in model.parameters())
