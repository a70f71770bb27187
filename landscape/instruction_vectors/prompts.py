"""Prompts of in-context tasks: with examples, with examples whose answers are shuffled, and without any."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from landscape.data.encoding import choice_tokens
from landscape.data.sources import shuffled
from landscape.errors import InputError, as_typed
from landscape.instruction_vectors.tasks import InContextTask

FEWEST_QUESTIONS = 10  # With fewer, a share of right answers says next to nothing.


@dataclasses.dataclass(frozen=True)
class VectorOptions:
    """How an instruction vector is made.

    Attributes:
        shots: Examples in a prompt.
        prompts: Prompts over which the outputs and the effects of heads are averaged.
        heads: Heads whose mean outputs the vector is the sum of.
        layer: Layer, counted from 0, to whose attention output the vector is added; None takes that a third of the
            way up, as Todd et al. do.

    Raises:
        InputError: A number is out of range.

    Example:
        >>> VectorOptions(shots=5).heads
        10
    """

    shots: int = 10
    prompts: int = 32
    heads: int = 10
    layer: int | None = None

    def __post_init__(self) -> None:
        for name, least in (("shots", 2), ("prompts", 2), ("heads", 1), ("layer", 0)):
            value = getattr(self, name)
            if value is None and name == "layer":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise InputError(f"{as_typed(name, value)} must be a whole number of at least {least}.")


@dataclasses.dataclass(frozen=True)
class Prompt:
    """The tokens of a prompt, and the token that answers it.

    Attributes:
        tokens: Token ids, up to where the answer comes.
        answer: Token id of the right answer.
    """

    tokens: tuple[int, ...]
    answer: int


@dataclasses.dataclass(frozen=True)
class TaskPrompts:
    """All prompts of a task. Prompts of one index have the same question, in the same order everywhere.

    Attributes:
        clean: Prompts with examples, from which vectors are made and heads are chosen.
        shuffled: The same with the answers of the examples exchanged among them.
        few_shot: Prompts with examples, whose questions occur in none of `clean`; models are judged on them.
        few_shot_shuffled: The same with the answers of the examples exchanged.
        zero_shot: The same questions without examples, after the instruction of the task where it has one.
        pairs: Pairs that were used.
        left_out: Pairs that were not, because their answers are more than one token.
    """

    clean: tuple[Prompt, ...]
    shuffled: tuple[Prompt, ...]
    few_shot: tuple[Prompt, ...]
    few_shot_shuffled: tuple[Prompt, ...]
    zero_shot: tuple[Prompt, ...]
    pairs: int
    left_out: int


def make_prompts(
    task: InContextTask, tokenizer: Any, options: VectorOptions, seed: int, max_positions: int | None = None
) -> TaskPrompts:
    """Make the prompts of a task.

    The pairs are divided into two halves. Questions and examples of the prompts that vectors are made from are all of
    the first half. Questions that models are judged on are those of the second half, each once, with examples of the
    first half. A prompt reads "Q: input", "A: output" and an empty line for each example, then "Q: input", "A:".

    Args:
        task: The task.
        tokenizer: The model's tokenizer.
        options: How many examples and prompts.
        seed: Seed of the division and of all draws.
        max_positions: Positions that the model has; None for no limit.

    Raises:
        InputError: There are too few pairs whose answer is one token, or a prompt is longer than the model's positions.
    """
    one_token = [pair for pair in task.pairs if len(choice_tokens(tokenizer, "A:", pair[1])[1]) == 1]
    left_out = len(task.pairs) - len(one_token)
    order = shuffled(len(one_token), seed)
    first = [one_token[index] for index in order[: len(order) // 2]]
    second = [one_token[index] for index in order[len(order) // 2 :]]
    if len(first) < options.shots + 1 or len(first) < FEWEST_QUESTIONS:
        least = 2 * max(options.shots + 1, FEWEST_QUESTIONS)
        cause = f" ({left_out} more have answers of several tokens)" if left_out else ""
        raise InputError(
            f"task {task.name} has {len(one_token)} pairs whose answer is one token{cause}; "
            f"{options.shots} examples in a prompt need at least {least}."
        )
    if len({answer for _, answer in first}) < 2:
        raise InputError(f"task {task.name} has one answer to everything, which cannot be shuffled.")
    generator = np.random.default_rng(seed)
    made: dict[str, list[Prompt]] = {"clean": [], "shuffled": [], "few_shot": [], "few_shot_shuffled": []}
    questions = [(index, "clean") for index in generator.integers(0, len(first), options.prompts)]
    questions += [(index, "few_shot") for index in range(len(second))]
    for index, kind in questions:
        question = (first if kind == "clean" else second)[index]
        others = [pair for pair in first if pair != question]
        shown = [others[at] for at in generator.permutation(len(others))[: options.shots]]
        answers = [answer for _, answer in shown]
        turn = int(generator.integers(1, len(answers)))  # No example keeps its answer, where all answers differ.
        exchanged = [(asked, answer) for (asked, _), answer in zip(shown, answers[turn:] + answers[:turn], strict=True)]
        pairs = [(kind, shown), ("shuffled" if kind == "clean" else "few_shot_shuffled", exchanged)]
        for name, examples in pairs:
            text = "".join(f"Q: {asked}\nA: {answer}\n\n" for asked, answer in examples)
            made[name].append(_prompt(tokenizer, text, question))
    start = f"{task.instruction}\n\n" if task.instruction else ""
    zero_shot = tuple(_prompt(tokenizer, start, question) for question in second)
    longest = max(len(prompt.tokens) for prompts in made.values() for prompt in prompts)
    if max_positions is not None and longest >= max_positions:
        raise InputError(
            f"task {task.name} makes prompts of up to {longest} tokens, and the model has {max_positions} positions; "
            f"give fewer {as_typed('shots')}."
        )
    return TaskPrompts(
        **{name: tuple(prompts) for name, prompts in made.items()},
        zero_shot=zero_shot,
        pairs=len(one_token),
        left_out=left_out,
    )


def _prompt(tokenizer: Any, start: str, question: tuple[str, str]) -> Prompt:
    """Return the prompt that asks a question after a text."""
    tokens, answer = choice_tokens(tokenizer, f"{start}Q: {question[0]}\nA:", question[1])
    return Prompt(tuple(tokens), answer[0])
