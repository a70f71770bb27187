"""Options that say what data is read, how it is cut into examples, and the seed."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from landscape.cli.options.declaring import DATA, at_least, between, choice, flag, value

_SOURCE_HELP = "a .jsonl, .txt or .parquet file, the id of a Hugging Face data set, `builtin:docs` or `builtin:code`"
Data = Annotated[
    list[str] | None,
    value(
        DATA,
        "--data",
        "SOURCE",
        f"Data to measure the loss on: {_SOURCE_HELP}. Repeat the option for more data sets, and write name=source to "
        "name one. Default: the examples that the first checkpoint was evaluated on, if it says so, otherwise "
        "`builtin:docs`. With --limit these may be others of the same source, also such that it was tuned on.",
    ),
]
TrainingData = Annotated[str, value(DATA, "--data", "SOURCE", f"Training data: {_SOURCE_HELP}.")]
OldData = Annotated[
    str, value(DATA, "--old", "SOURCE", f"Old data, which stands for what the base could do: {_SOURCE_HELP}.")
]
NewData = Annotated[
    str, value(DATA, "--new", "SOURCE", "New data, which the checkpoints were fine-tuned for. Same forms as --old.")
]
Rehearse = Annotated[
    str | None,
    value(DATA, "--rehearse", "SOURCE", "Old data to mix into the training data. Same forms as --data."),
]
RehearseRatio = Annotated[
    float | None,
    value(
        DATA,
        "--rehearse-ratio",
        "SHARE",
        "Share of old examples among the training examples. Default: 0.1.",
        callback=between(0, 1),
    ),
]
Limit = Annotated[
    int | None,
    value(
        DATA,
        "--limit",
        "N",
        "Maximum number of examples, sampled at random with --seed. Default: all of them.",
        callback=at_least(1),
    ),
]
LimitInHalves = Annotated[
    int | None,
    value(
        DATA,
        "--limit",
        "N",
        "Maximum number of examples of each data set, sampled at random with --seed. Flatness is measured on one half "
        "of them and losses on the other half. Default: all of them.",
        callback=at_least(1),
    ),
]
MaxLength = Annotated[
    int,
    value(
        DATA,
        "--max-length",
        "N",
        "Maximum tokens per example. Longer examples are cut at the end; a model that has fewer positions lowers the "
        "maximum.",
        callback=at_least(1),
    ),
]
BatchTokens = Annotated[
    int,
    value(
        DATA,
        "--batch-tokens",
        "N",
        "Maximum tokens per batch. Changes memory use, never results.",
        callback=at_least(1),
    ),
]
Seed = Annotated[
    int,
    typer.Option(
        "--seed",
        metavar="N",
        help="Seed of all that is random: sampled examples, directions, probes, bootstrap and permutations, and in "
        "fine-tuning the order of the examples, dropout and the start of an adapter.",
        callback=at_least(0),
    ),
]
PromptName = Literal["auto", "chat", "plain"]
PromptFormat = Annotated[
    PromptName,
    choice(
        DATA,
        "--prompt-format",
        PromptName,
        "How questions are asked: chat is a turn of the user in the tokenizer's chat template, plain is bare text, and "
        "auto takes the template where there is one.",
    ),
]
ListChoices = Annotated[
    bool, flag(DATA, "--list-choices", "List the choices of a question in its prompt before they are scored.")
]
