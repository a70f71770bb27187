"""Options of instruction vectors."""

from __future__ import annotations

from typing import Annotated

from landscape.cli.options.declaring import DATA, MEASUREMENT, at_least, value

InContextTasks = Annotated[
    list[str] | None,
    value(
        DATA,
        "--tasks",
        "SOURCE",
        "In-context tasks: a .jsonl file of records {task, input, output}, also with instruction, or "
        "`builtin:words:NAME` for a list of words that comes with the package. Repeat the option for more. Default: "
        "`builtin:words`, all of those lists.",
    ),
]
ComparedBase = Annotated[
    str | None,
    value(
        MEASUREMENT,
        "--base",
        "CKPT",
        "The checkpoint that the others were fine-tuned from. With it, the vectors are compared with those of the "
        "base, and the base's vectors are added to each checkpoint.",
    ),
]
Shots = Annotated[int, value(MEASUREMENT, "--shots", "N", "Number of examples in a prompt.", callback=at_least(2))]
Prompts = Annotated[
    int,
    value(
        MEASUREMENT,
        "--prompts",
        "N",
        "Number of prompts over which outputs and effects of heads are averaged.",
        callback=at_least(2),
    ),
]
Heads = Annotated[
    int,
    value(MEASUREMENT, "--heads", "N", "Number of heads whose outputs a vector is the sum of.", callback=at_least(1)),
]
Layer = Annotated[
    int | None,
    value(
        MEASUREMENT,
        "--layer",
        "N",
        "Layer, counted from 0, to whose attention output vectors are added. Default: a third of the way up.",
        callback=at_least(0),
    ),
]
