"""Answers to questions before and after tuning, without generation: by the likelihood of each choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats
from torch import nn

from landscape.data.questions import Questions
from landscape.data.tokens import Example
from landscape.forgetting.paired import compare_examples, paired_interval


@dataclasses.dataclass(frozen=True)
class AnswerForgetting:
    """Answers to questions in one format, before and after tuning. Intervals are paired, over questions.

    A choice's score is the log-probability of its tokens after the question, their sum; the answer is the choice of
    the highest (`acc` of lm-evaluation-harness), or of the highest per character (`acc_norm` there, for choices of
    different lengths). An answer without alternatives counts as given where every token of it is the model's first
    choice (`acc` of its `loglikelihood` tasks), and `norm` is NaN.
    """

    accuracy_before: float  # share of questions
    accuracy_after: float
    accuracy_loss: float
    accuracy_interval: tuple[float, ...]
    p_value: float  # that tuning turned as many right answers wrong as wrong ones right: McNemar's test, exact
    norm_before: float
    norm_after: float
    norm_loss: float
    norm_interval: tuple[float, ...]
    loss_before: float  # -log P(right answer | question), nats per answer
    loss_after: float
    forgetting: float  # rise of the loss
    forgetting_interval: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class ChoiceForgetting:
    """Questions before and after tuning, and how much of what is lost is knowledge and how much the format.

    As Jiang et al. 2024 (arXiv 2406.12227) have it, P(y|x) of the bare question is knowledge, and P(y|c,x) of the same
    question with its instruction c is following the instruction. What falls under `instructed` more than under `plain`
    is lost to the format alone.
    """

    name: str
    questions: int
    chance: float  # accuracy of guessing; NaN without alternatives
    plain: AnswerForgetting
    instructed: AnswerForgetting | None = None  # where the questions have an instruction
    format_accuracy_loss: float = math.nan  # fall of accuracy, instructed - plain
    format_accuracy_interval: tuple[float, ...] = (math.nan, math.nan)
    format_forgetting: float = math.nan  # rise of the loss, instructed - plain, nats per answer
    format_forgetting_interval: tuple[float, ...] = (math.nan, math.nan)

    def rows(self) -> list[tuple[str, str]]:
        guessing = "" if math.isnan(self.chance) else f", guessing gives {self.chance:.2%}"
        rows = [(f"{self.name}, as answers", f"{self.questions} questions{guessing}")]
        for title, a in (("plain", self.plain), ("instructed", self.instructed)):
            if a is not None:
                accuracy = _change(a.accuracy_before, a.accuracy_after, a.accuracy_loss, a.accuracy_interval)
                rows.append((f"  {title} accuracy", f"{accuracy}, p {a.p_value:.3g}"))
                if not math.isnan(a.norm_before):
                    rows.append(
                        ("    per character", _change(a.norm_before, a.norm_after, a.norm_loss, a.norm_interval))
                    )
                rise = f"{a.loss_before:.4f} to {a.loss_after:.4f}, {nats(a.forgetting, a.forgetting_interval)}"
                rows.append(("    forgetting", rise))
        if self.instructed is not None:
            lost = f"accuracy {shares(self.format_accuracy_loss, self.format_accuracy_interval)}"
            rows.append(("  lost to the format", lost))
            rows.append(("", nats(self.format_forgetting, self.format_forgetting_interval)))
        return rows


def _change(before: float, after: float, fall: float, interval: Sequence[float]) -> str:
    return f"{before:.2%} to {after:.2%}, lost {shares(fall, interval)}"


def shares(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.2%} [{interval[0]:+.2%}, {interval[1]:+.2%}]"


def nats(value: float, interval: Sequence[float]) -> str:
    return f"{value:+.4f} [{interval[0]:+.4f}, {interval[1]:+.4f}] nats per answer"


def measure_answers(
    name: str,
    data: Questions,
    before: nn.Module,
    after: nn.Module,
    *,
    confidence: float,
    resamples: int,
    seed: int,
) -> ChoiceForgetting:
    """Score every choice of every question under both models, in each format; models as they stand.

    Intervals are BCa over questions, paired: a question keeps its answers under both models and in both formats.
    """

    def interval(values: np.ndarray) -> tuple[float, float]:
        return paired_interval(values, np.ones(len(values)), confidence, resamples, seed)

    def of_format(examples: Sequence[Sequence[Example]]) -> tuple[AnswerForgetting, np.ndarray, np.ndarray]:
        """The answers in one format, and of each question the fall of accuracy and the rise of the loss."""
        scores = _Scores.of(name, data, examples, before, after)
        fall, norm_fall = (values[:, 0] - values[:, 1] for values in (scores.right, scores.norm))
        rise = scores.loss[:, 1] - scores.loss[:, 0]
        changed, lost = int((fall != 0).sum()), int((fall > 0).sum())
        found = AnswerForgetting(
            accuracy_before=float(scores.right[:, 0].mean()),
            accuracy_after=float(scores.right[:, 1].mean()),
            accuracy_loss=float(fall.mean()),
            accuracy_interval=interval(fall),
            p_value=float(stats.binomtest(lost, changed).pvalue) if changed else 1.0,
            norm_before=float(scores.norm[:, 0].mean()),
            norm_after=float(scores.norm[:, 1].mean()),
            norm_loss=float(norm_fall.mean()),
            norm_interval=interval(norm_fall) if data.multiple_choice else (math.nan, math.nan),
            loss_before=float(scores.loss[:, 0].mean()),
            loss_after=float(scores.loss[:, 1].mean()),
            forgetting=float(rise.mean()),
            forgetting_interval=interval(rise),
        )
        return found, fall, rise

    plain, fall, rise = of_format([asked.plain for asked in data.questions])
    found = ChoiceForgetting(name, len(data.questions), data.chance, plain)
    if not data.questions[0].instructed:
        return found
    instructed, fall_instructed, rise_instructed = of_format([asked.instructed for asked in data.questions])
    return dataclasses.replace(
        found,
        instructed=instructed,
        format_accuracy_loss=float((fall_instructed - fall).mean()),
        format_accuracy_interval=interval(fall_instructed - fall),
        format_forgetting=float((rise_instructed - rise).mean()),
        format_forgetting_interval=interval(rise_instructed - rise),
    )


class _Scores(NamedTuple):
    """Of each question before and after, shape (questions, 2)."""

    right: np.ndarray  # 1 where the answer is right
    norm: np.ndarray  # the same by log-probability per character; NaN without alternatives
    loss: np.ndarray  # of the right answer, nats

    @classmethod
    def of(
        cls,
        name: str,
        data: Questions,
        examples: Sequence[Sequence[Example]],
        before: nn.Module,
        after: nn.Module,
    ) -> _Scores:
        batches = data.as_batches([example for choices in examples for example in choices])
        table = compare_examples(name, batches, before, after)
        scored = np.split(table, np.cumsum([len(choices) for choices in examples])[:-1])
        right, norm, loss = (np.full((len(scored), 2), math.nan) for _ in range(3))
        for index, (rows, asked) in enumerate(zip(scored, data.questions, strict=True)):
            tokens, losses, first_choices = rows[:, :1], rows[:, 1:3], rows[:, 3:5]
            loss[index] = losses[asked.answer]
            if data.multiple_choice:
                per_character = losses / np.array(asked.lengths)[:, None]
                known = np.isfinite(losses[asked.answer])  # argmin would choose what is not a number
                right[index] = (losses.argmin(0) == asked.answer) & known
                norm[index] = (per_character.argmin(0) == asked.answer) & known
            else:
                right[index] = first_choices[0] == tokens[0]
        return cls(right, norm, loss)
