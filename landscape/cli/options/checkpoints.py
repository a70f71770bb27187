"""Arguments that name checkpoints."""

from __future__ import annotations

from typing import Annotated

import typer

from landscape.cli.options.declaring import MEASUREMENT, value

_CHECKPOINT_HELP = "Folders of checkpoints or of adapters, GGUF files, or Hugging Face hub ids, also as id@revision."
Checkpoints = Annotated[list[str], typer.Argument(metavar="CKPT", help=_CHECKPOINT_HELP)]
TunedCheckpoints = Annotated[
    list[str], typer.Argument(metavar="CKPT", help=f"The fine-tuned checkpoints. {_CHECKPOINT_HELP}")
]
Base = Annotated[
    str, typer.Argument(metavar="BASE", help="The checkpoint that the others were fine-tuned from: a folder or hub id.")
]
BaseOption = Annotated[
    str | None,
    value(
        MEASUREMENT,
        "--base",
        "CKPT",
        "The checkpoint that the others were fine-tuned from, for metrics that need it. Without --metric, the "
        "curvature of the loss along the step from it to each checkpoint (displacement_curvature) is then measured "
        "too; beside --metric, name it there.",
    ),
]

StartingCheckpoint = Annotated[
    str, typer.Argument(metavar="BASE", help="The checkpoint to start from: a folder or hub id.")
]
MergeBase = Annotated[str, typer.Argument(metavar="BASE", help="The checkpoint that alpha = 0 gives back.")]
MergeTuned = Annotated[
    str,
    typer.Argument(metavar="CKPT", help="The checkpoint or adapter tuned from it, which alpha = 1 gives back."),
]
