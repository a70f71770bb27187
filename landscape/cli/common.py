"""What the commands share: the app and its exit codes, and the options that mean the same everywhere."""

from __future__ import annotations

import enum
import os
import sys
import warnings
from typing import Annotated, Any

import typer

from landscape.errors import InputError, MeasurementWarning

app = typer.Typer(
    help="Loss landscapes, curvature and sharpness of fine-tuned language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


class Dtype(enum.StrEnum):
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    float64 = "float64"
    auto = "auto"


class Adapter(enum.StrEnum):
    merge = "merge"
    keep = "keep"


# Options that mean the same on every command.
Data = Annotated[
    list[str] | None,
    typer.Option(
        "--data",
        help="A .jsonl, .txt or .parquet file, a datasets id, builtin:docs or builtin:code; again for more, each "
        "also as name=source. Default: what the checkpoint was evaluated on, else builtin:docs.",
    ),
]
Limit = Annotated[int | None, typer.Option(help="At most this many examples, a seeded random choice.")]
MaxLength = Annotated[int, typer.Option(help="Tokens per example; the model's own limit if that is less.")]
BatchTokens = Annotated[int, typer.Option(help="Tokens a batch may hold: memory, not results.")]
DtypeOption = Annotated[Dtype, typer.Option(help="Type of the weights in memory.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.")]
Seed = Annotated[int, typer.Option(help="Of random directions and choices.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let a checkpoint run its own model code.")]


def main() -> None:
    """Run the command line; exit codes: 0 done, 2 bad input, 130 interrupted, 1 our fault."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _show_warning
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", MeasurementWarning)
    try:
        code = app(standalone_mode=False) or 0
    except InputError as error:
        code = complain(" ".join(str(error).split()), 2)
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except Exception as error:
        if not hasattr(error, "format_message"):
            raise
        code = complain(error.format_message(), 2)  # the parser's own: a wrong option or argument
    if code == 130:
        complain("interrupted; the same command again continues where it was.", code)
    sys.exit(code)


def complain(sentence: str, code: int) -> int:
    print(f"landscape: {sentence}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"landscape: warning: {message}", file=sys.stderr)


def quiet_libraries() -> None:
    """Our progress bars say what happens; transformers' own would write over them."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def adapters_in(checkpoint: dict | None) -> set[str]:
    """How adapters were measured ("merged" or "kept") in the provenance of one checkpoint or of several."""
    found = {checkpoint["adapter"]} if checkpoint and "adapter" in checkpoint else set()
    return found.union(*(adapters_in(part) for part in (checkpoint or {}).values() if isinstance(part, dict)))
