"""The texts of the study within recipes: what is trained on, and held-out parts that share no page."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from study_measures import spread
from study_models import QUESTIONS, SUMS, write_questions, write_sums
from transformers import AutoTokenizer

import landscape


class Texts(NamedTuple):
    """Data of a pair of tasks: what is trained on, and disjoint held-out parts for everything that is measured."""

    training: str
    metric: dict[str, Any]
    outcome: dict[str, Any]
    validation: Any  # new text


@functools.cache
def read_texts(output: Path, settings_text: str, pair: str) -> Texts:
    """The texts of a pair, read once in a process; settings as JSON, so that they can be remembered by."""
    settings = json.loads(settings_text)
    of = settings["pairs"][pair]
    tokenizer = AutoTokenizer.from_pretrained(output / "tokenizer")
    made = {QUESTIONS: write_questions, SUMS: write_sums}
    training, held_out = of["new"], f"{of['new']}@heldout"
    if of["new"] in made:
        training, held_out = map(str, made[of["new"]](output / "data"))
    old, new = (
        landscape.load_data(source, tokenizer, max_length=of["max_length"], batch_tokens=2048)
        for source in (f"{of['old']}@heldout", held_out)
    )
    metric_old, outcome_old = parts_of(old, [settings["metric_tokens"]], settings["outcome_examples"])
    metric_new, validation, outcome_new = parts_of(
        new, [settings["metric_tokens"], settings["validation_tokens"]], settings["outcome_examples"]
    )
    return Texts(training, {"old": metric_old, "new": metric_new}, {"old": outcome_old, "new": outcome_new}, validation)


def parts_of(data: Any, tokens: list[int], examples: int) -> list[Any]:
    """Stretches of the text, each its own: one for each number of supervised tokens, the last for the outcome.

    Within a stretch, examples stand at even distances, so that no page is behind two parts.
    """
    mean = data.tokens / len(data.examples)
    counts = [math.ceil(count / mean) for count in tokens]
    counts.append(min(examples, len(data.examples) - sum(counts)))
    if counts[-1] < 8:
        raise landscape.InputError(f"{data.describe()} is too short for {tokens} tokens and an outcome.")
    ends = np.cumsum([0, *counts]) * len(data.examples) // sum(counts)
    return [
        dataclasses.replace(data, examples=spread(data.examples[first:end], count))
        for first, end, count in zip(ends[:-1], ends[1:], counts, strict=True)
    ]
