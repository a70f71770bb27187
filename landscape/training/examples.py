"""The examples of a fine-tuning: what it trains on, what it rehearses, and what it is evaluated on."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from landscape.checkpoints import CheckpointFiles
from landscape.data.tokens import DataOptions, TokenData, check_vocabulary, load_data
from landscape.errors import InputError
from landscape.training.options import Optimization, Rehearsal

# A run is evaluated on 64 examples, and on 16 where it trains on so few that 64 would not be short beside them. Two
# evaluations of 64 cost as much as the forward and backward passes of 43 examples, which is a twentieth of 860.
_EVALUATED, _EVALUATED_IN_A_SHORT_RUN, _SHORT_RUN = 64, 16, 860
_MOST_HELD_OUT = 0.1  # Of the training examples; where they are fewer, those that are evaluated are trained on, too.


def load_parts(
    data: str | Path,
    tokenizer: Any,
    options: DataOptions,
    optimization: Optimization,
    seed: int,
    files: CheckpointFiles,
) -> tuple[TokenData, TokenData, dict[str, Any]]:
    """Load the training data and the examples that a run is evaluated on before and after.

    Args:
        data: Training data, as `load_data` takes it.
        tokenizer: The tokenizer of the checkpoint that is trained.
        options: How the data are read.
        optimization: What says how many examples the run trains on.
        seed: Which examples `options.limit` draws.
        files: The checkpoint, which has to have an embedding for each token.

    Returns:
        Training data without what is held out of them; the examples to evaluate on; and how those were read: "limit",
        "seed", and whether they are "held_out" of the training.
    """
    source = _absolute(data)
    train = _load_part(source, tokenizer, options, seed, "train", files)
    steps = optimization.steps
    seen = optimization.epochs * len(train.examples) if steps is None else steps * optimization.batch_size
    count = _EVALUATED if seen >= _SHORT_RUN else _EVALUATED_IN_A_SHORT_RUN
    sample = replace(options, limit=count)
    read_with: dict[str, Any] = {"limit": count, "seed": 0}
    if source.startswith("builtin:"):
        corpus = source.partition("@")[0]
        evaluated = _load_part(corpus, tokenizer, sample, 0, "heldout", None)
        return train, evaluated, read_with | {"held_out": not source.endswith("@heldout")}
    evaluated = _load_part(source, tokenizer, sample, 0, "train", files)
    chosen = set(evaluated.examples)
    left = tuple(example for example in train.examples if example not in chosen)
    is_held_out = len(left) >= (1 - _MOST_HELD_OUT) * len(train.examples)
    return replace(train, examples=left) if is_held_out else train, evaluated, read_with | {"held_out": is_held_out}


def load_rehearsal(
    rehearsal: Rehearsal | None, tokenizer: Any, new: int, options: DataOptions, seed: int, files: CheckpointFiles
) -> TokenData | None:
    """Load the old examples that make up the rehearsal's ratio of the mix with `new` new ones.

    Raises:
        InputError: There are fewer of them.
    """
    if rehearsal is None:
        return None
    count = rehearsal.examples_beside(new)
    source = _absolute(rehearsal.data)
    old = _load_part(source, tokenizer, replace(options, limit=count), seed, "train", files)
    if len(old.examples) < count:
        raise InputError(
            f"rehearsal with ratio={rehearsal.ratio} beside {new} new examples takes {count} old ones, but "
            f"{old.source} gives {len(old.examples)}; lower it."
        )
    return old


def _absolute(source: str | Path) -> str:
    """A file or folder with its absolute path, so that it is found from anywhere; what is neither stays as it is."""
    return os.path.abspath(source) if os.path.exists(source) else str(source)


def _load_part(
    source: str, tokenizer: Any, options: DataOptions, seed: int, part: str, files: CheckpointFiles | None
) -> TokenData:
    """Read data whose tokens, where `files` are given, that checkpoint has embeddings for."""
    data = load_data(
        source,
        tokenizer,
        max_length=options.max_length,
        limit=options.limit,
        batch_tokens=options.batch_tokens,
        seed=seed,
        part=part,
    )
    if files is not None and files.vocabulary_size is not None:
        check_vocabulary(data, files.vocabulary_size, files.source)
    return data
