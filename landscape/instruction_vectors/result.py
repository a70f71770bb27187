"""The instruction vector of one in-context task in one model, with what its heads do."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
from scipy import stats

from landscape.errors import InputError
from landscape.forgetting.paired import flip_interval, paired_interval
from landscape.results import Provenance, Result


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over prompts, and its interval.

    Attributes:
        value: The mean.
        low: Lower end of the interval.
        high: Upper end of the interval.
    """

    value: float
    low: float
    high: float

    def in_words(self, kind: str = "+.4f") -> str:
        """Return the value and its interval, each in a format such as "+.1%"."""
        return f"{self.value:{kind}} [{self.low:{kind}}, {self.high:{kind}}]"


@dataclasses.dataclass(frozen=True)
class InstructionVector(Result):
    """The instruction vector of a task; the result of `compute_instruction_vector`.

    Attributes:
        name: Name of the model.
        task: Name of the in-context task.
        heads: Layer and head of each chosen head, the largest effect first, counted from 0.
        vector: The vector, (width,): the sum over the chosen heads of what they write into the residual stream on
            average at the last token of clean prompts.
        layer: The layer to whose attention output the vector is added.
        effects: Indirect effect of every head on the probability of the right answer, (prompts, layers, heads).
        few_shot: Share of right answers to other questions, with examples in the prompt.
        zero_shot: The same without examples.
        steered: The same without examples, with the vector added at the last token.
        joint_effect: How much more probable the right answers to other questions, after examples with shuffled answers,
            are when all chosen heads are replaced at once.
        random_effect: The same with as many other heads, drawn at random; the mean of several draws.
        confidence: Confidence of the intervals, which are over prompts.
        questions: Questions on which the shares and the joint effects are measured. None of them is in a prompt that
            the vector was made from; answers may be, in tasks where several questions share one.
        left_out: Pairs of the task that were not used, because their answers are more than one token.
        provenance: Where the numbers come from.
    """

    kind_of_result: ClassVar[str] = "instruction_vector"

    name: str
    task: str
    heads: tuple[tuple[int, ...], ...]
    vector: np.ndarray
    layer: int
    effects: np.ndarray
    few_shot: Estimate
    zero_shot: Estimate
    steered: Estimate
    joint_effect: Estimate
    random_effect: Estimate
    confidence: float
    questions: int
    left_out: int
    provenance: Provenance

    @property
    def mean_effects(self) -> np.ndarray:
        """The average indirect effect of every head, (layers, heads)."""
        return self.effects.mean(axis=0)

    @property
    def effects_stderr(self) -> np.ndarray:
        """The standard errors of the average indirect effects over prompts, (layers, heads)."""
        return self.effects.std(axis=0, ddof=1) / len(self.effects) ** 0.5

    def rows(self) -> list[tuple[str, str]]:
        """Return name and value of what a person wants to see first."""
        prompts, layers, heads = self.effects.shape
        mean, error = self.mean_effects, self.effects_stderr
        rows = [
            ("instruction vector", f"task {self.task} in {self.name}, {self.confidence:.0%} intervals over prompts"),
            (
                "length",
                f"{np.linalg.norm(self.vector):.4g}, of {len(self.vector)} numbers, added to layer {self.layer}",
            ),
            ("few-shot accuracy", f"{self.few_shot.in_words('.1%')} of {self.questions} questions"),
            ("zero-shot accuracy", f"{self.zero_shot.in_words('.1%')}, with the vector {self.steered.in_words('.1%')}"),
            ("effect of its heads", f"{self.joint_effect.in_words()} on the probability of the right answer"),
            ("of as many others", self.random_effect.in_words()),
            ("heads", f"{len(self.heads)} of {layers} x {heads}, chosen over {prompts} prompts"),
        ]
        rows += [
            (f"  layer {layer} head {head}", f"{mean[layer, head]:+.4f} +- {error[layer, head]:.2g}")
            for layer, head in self.heads
        ]
        return rows


def share_of(right: np.ndarray, confidence: float) -> Estimate:
    """Return the share of right answers with the interval of Wilson 1927."""
    found = stats.binomtest(int(right.sum()), len(right)).proportion_ci(confidence, method="wilson")
    return Estimate(float(right.mean()), float(found.low), float(found.high))


def fall_of(falls: np.ndarray, confidence: float) -> Estimate:
    """Return the mean over prompts of 1 (lost), 0 and -1 (gained), with the interval of Tango 1998."""
    return Estimate(float(falls.mean()), *flip_interval(falls, confidence))


def mean_of(
    values: np.ndarray, confidence: float, resamples: int, seed: int, limits: tuple[float, float] | None = None
) -> Estimate:
    """Return the mean over prompts with its studentized bootstrap interval; `limits` as in `paired_interval`."""
    low, high = paired_interval(values, np.ones(len(values)), confidence, resamples, seed, limits)
    return Estimate(float(values.mean()), low, high)


def check_statistics(confidence: float, resamples: int) -> None:
    """Raise InputError where intervals cannot be computed so."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence={confidence} must be between 0 and 1.")
    if resamples < 99:
        raise InputError(f"resamples={resamples} is too few for an interval; give at least 99.")
