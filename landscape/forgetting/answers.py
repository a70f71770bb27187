"""Answers to questions before and after tuning: the likelihood of each choice decides, no text is generated."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from landscape.data.questions import Questions
from landscape.forgetting.paired import Pair, compare_choices, flip_interval, paired_interval


@dataclasses.dataclass(frozen=True)
class AnswerForgetting:
    """Answers to questions in one format, before and after tuning. Intervals are paired, over questions.

    The score of a choice is log P(choice | question), the sum over its tokens. The model's answer is the choice with
    the highest score (`acc` of lm-evaluation-harness), or with the highest score per character (`acc_norm` there, for
    choices of different lengths). An answer without alternatives counts as given where each of its tokens is the
    model's first choice (`acc` of the harness's `loglikelihood` tasks); fields for scores per character are then NaN.

    Attributes:
        accuracy_before: Share of questions that the base answers rightly.
        accuracy_after: Share of questions that the tuned model answers rightly.
        accuracy_loss: Fall of the accuracy.
        accuracy_interval: Its interval: the score interval of Tango 1998, of a model beside itself (0, 0).
        p_value: Exact p-value of McNemar's test that tuning turned as many right answers wrong as wrong ones right.
        norm_before: Accuracy of the base by scores per character.
        norm_after: Accuracy of the tuned model by scores per character.
        norm_loss: Fall of that accuracy.
        norm_interval: Its interval, likewise.
        loss_before: -log P(right answer | question) under the base, in nats per answer.
        loss_after: The same under the tuned model.
        forgetting: Rise of that loss.
        forgetting_interval: Its interval.
    """

    accuracy_before: float
    accuracy_after: float
    accuracy_loss: float
    accuracy_interval: tuple[float, ...]
    p_value: float
    norm_before: float
    norm_after: float
    norm_loss: float
    norm_interval: tuple[float, ...]
    loss_before: float
    loss_after: float
    forgetting: float
    forgetting_interval: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ChoiceForgetting:
    """Answers to questions before and after tuning: how much of what is lost is knowledge, and how much the format.

    `measure_forgetting` gives one for each task that is `Questions`. P(y | x) of the bare question x is knowledge;
    P(y | c, x) of the same question with its instruction c is the following of instructions. What falls under
    `instructed` more than under `plain` is lost to the format alone.

    Attributes:
        name: Name of the task.
        questions: Number of questions.
        chance: Accuracy of guessing; NaN without alternatives.
        plain: Answers to the bare questions.
        instructed: Answers to the questions with their instruction; None where they have none.
        format_accuracy_loss: Fall of the accuracy, `instructed` minus `plain`.
        format_accuracy_interval: Its interval.
        format_forgetting: Rise of the loss, `instructed` minus `plain`, in nats per answer.
        format_forgetting_interval: Its interval.
        prompt_format: "chat" where the questions are asked in the tokenizer's chat template, else "plain".
        lists_choices: Whether the prompts list the choices.

    Source:
        Jiang et al. 2024 (arXiv 2406.12227).

    Example:
        Two of four answers are lost, and with them 1 nat per answer.

        >>> from landscape import ChoiceForgetting
        >>> from landscape.forgetting.answers import AnswerForgetting
        >>> nan = float("nan")
        >>> plain = AnswerForgetting(
        ...     accuracy_before=0.75, accuracy_after=0.25, accuracy_loss=0.5, accuracy_interval=(0.0, 1.0), p_value=0.5,
        ...     norm_before=nan, norm_after=nan, norm_loss=nan, norm_interval=(nan, nan),
        ...     loss_before=0.5, loss_after=1.5, forgetting=1.0, forgetting_interval=(0.2, 1.8),
        ... )
        >>> for name, value in ChoiceForgetting("facts", questions=4, chance=0.25, plain=plain).rows():
        ...     print(f"{name}: {value}")
        facts, as answers: 4 questions, asked in plain text, guessing gives 25.00%
          plain accuracy: 75.00% to 25.00%, lost +50.00% [+0.00%, +100.00%], p 0.5
            forgetting: 0.5000 to 1.5000, +1.0000 [+0.2000, +1.8000] nats per answer
    """

    name: str
    questions: int
    chance: float
    plain: AnswerForgetting
    instructed: AnswerForgetting | None = None
    format_accuracy_loss: float = math.nan
    format_accuracy_interval: tuple[float, ...] = (math.nan, math.nan)
    format_forgetting: float = math.nan
    format_forgetting_interval: tuple[float, ...] = (math.nan, math.nan)
    prompt_format: str = "plain"
    lists_choices: bool = False

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of what a person wants to see first."""
        guessing = "" if math.isnan(self.chance) else f", guessing gives {self.chance:.2%}"
        listed = ", choices listed" if self.lists_choices else ""
        asked = f", asked in {'the chat template' if self.prompt_format == 'chat' else 'plain text'}{listed}"
        rows = [(f"{self.name}, as answers", f"{self.questions} questions{asked}{guessing}")]
        for title, a in ((self.prompt_format, self.plain), ("instructed", self.instructed)):
            if a is not None:
                accuracy = _change(a.accuracy_before, a.accuracy_after, a.accuracy_loss, a.accuracy_interval)
                rows.append((f"  {title} accuracy", f"{accuracy}, p {a.p_value:.3g}"))
                if not math.isnan(a.norm_before):
                    rows.append(
                        ("    per character", _change(a.norm_before, a.norm_after, a.norm_loss, a.norm_interval))
                    )
                rise = f"{a.loss_before:.4f} to {a.loss_after:.4f}, {_nats(a.forgetting, a.forgetting_interval)}"
                rows.append(("    forgetting", rise))
        if self.instructed is not None:
            lost = f"accuracy {_shares(self.format_accuracy_loss, self.format_accuracy_interval)}"
            rows.append(("  lost to the format", lost))
            rows.append(("", _nats(self.format_forgetting, self.format_forgetting_interval)))
        return rows


def _change(before: float, after: float, fall: float, interval: Sequence[float]) -> str:
    """Return an accuracy before and after with its fall, in words."""
    return f"{before:.2%} to {after:.2%}, lost {_shares(fall, interval)}"


def _shares(value: float, interval: Sequence[float]) -> str:
    """Return a difference of shares with its interval, in percent."""
    return f"{value:+.2%} [{interval[0]:+.2%}, {interval[1]:+.2%}]"


def _nats(value: float, interval: Sequence[float]) -> str:
    """Return a difference of losses with its interval."""
    return f"{value:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}] nats per answer"


def measure_answers(
    name: str,
    data: Questions,
    pair: Pair,
    bare: np.ndarray,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> ChoiceForgetting:
    """Compare the answers of both models, in each format that the questions have.

    Args:
        name: Name of the task.
        data: The questions.
        pair: The base model and the tuned one, as they stand.
        bare: What `compare_choices` returned for the choices after their bare prompts.
        confidence: Confidence of the intervals.
        resamples: Number of bootstrap samples over questions. They are paired: a question keeps its answers under
            both models and in both formats.
        seed: Seed for the bootstrap samples.

    Returns:
        The answers in each format that the questions have, and the difference between the formats.
    """

    def interval(values: np.ndarray) -> tuple[float, float]:
        """Return the interval of the mean over questions."""
        return paired_interval(values, np.ones(len(values)), confidence, resamples, seed)

    def of_answers(fall: np.ndarray, rise: np.ndarray) -> tuple[float, float]:
        """Return the interval of a fall of accuracy; none of a model beside itself, whose losses are all the same."""
        return flip_interval(fall, confidence) if rise.any() else (0.0, 0.0)

    def in_format(table: np.ndarray) -> tuple[AnswerForgetting, np.ndarray, np.ndarray]:
        """Return the answers in one format, and for each question the fall of accuracy and the rise of the loss."""
        scores = _Scores.of(data, table)
        fall, norm_fall = (values[:, 0] - values[:, 1] for values in (scores.right, scores.norm))
        rise = scores.loss[:, 1] - scores.loss[:, 0]
        changed, lost = int((fall != 0).sum()), int((fall > 0).sum())
        answers = AnswerForgetting(
            accuracy_before=float(scores.right[:, 0].mean()),
            accuracy_after=float(scores.right[:, 1].mean()),
            accuracy_loss=float(fall.mean()),
            accuracy_interval=of_answers(fall, rise),
            p_value=float(stats.binomtest(lost, changed).pvalue) if changed else 1.0,
            norm_before=float(scores.norm[:, 0].mean()),
            norm_after=float(scores.norm[:, 1].mean()),
            norm_loss=float(norm_fall.mean()),
            norm_interval=of_answers(norm_fall, rise) if data.multiple_choice else (math.nan, math.nan),
            loss_before=float(scores.loss[:, 0].mean()),
            loss_after=float(scores.loss[:, 1].mean()),
            forgetting=float(rise.mean()),
            forgetting_interval=interval(rise),
        )
        return answers, fall, rise

    plain, fall, rise = in_format(bare)
    result = ChoiceForgetting(
        name,
        len(data.questions),
        data.chance,
        plain,
        prompt_format=data.prompt_format,
        lists_choices=data.lists_choices,
    )
    if not data.questions[0].instructed:
        return result
    with_instruction = [question.instructed for question in data.questions]
    instructed, fall_instructed, rise_instructed = in_format(compare_choices(name, data, with_instruction, pair))
    more = fall_instructed - fall
    limits = (-2.0, 2.0) if rise.any() else None
    return dataclasses.replace(
        result,
        instructed=instructed,
        format_accuracy_loss=float(more.mean()),
        format_accuracy_interval=paired_interval(more, np.ones(len(more)), confidence, resamples, seed, limits),
        format_forgetting=float((rise_instructed - rise).mean()),
        format_forgetting_interval=interval(rise_instructed - rise),
    )


class _Scores(NamedTuple):
    """The scores of each question before and after tuning, each of shape (questions, 2).

    Attributes:
        right: 1 where the answer is right, else 0.
        norm: The same by scores per character; NaN without alternatives.
        loss: Loss of the right answer, in nats.
    """

    right: np.ndarray
    norm: np.ndarray
    loss: np.ndarray

    @classmethod
    def of(cls, data: Questions, table: np.ndarray) -> _Scores:
        """Score the questions by what `compare_choices` returned of their choices in one format."""
        scored = np.split(table, np.cumsum([len(question.lengths) for question in data.questions])[:-1])
        right, norm, loss = (np.full((len(scored), 2), math.nan) for _ in range(3))
        for index, (rows, question) in enumerate(zip(scored, data.questions, strict=True)):
            tokens, losses, first_choices = rows[:, :1], rows[:, 1:3], rows[:, 3:5]
            loss[index] = losses[question.answer]
            if data.multiple_choice:
                per_character = losses / np.array(question.lengths)[:, None]
                known = np.isfinite(losses[question.answer])  # Of losses that are NaN, argmin would choose one.
                right[index] = (losses.argmin(0) == question.answer) & known
                norm[index] = (per_character.argmin(0) == question.answer) & known
            else:
                right[index] = first_choices[0] == tokens[0]
        return cls(right, norm, loss)
