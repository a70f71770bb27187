"""What the commands share: the app and its exit codes, and the options that mean the same everywhere."""

from __future__ import annotations

import contextlib
import enum
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from landscape.errors import DiskFull, InputError, MeasurementWarning
from landscape.parallel.distributed import ProcessLost, first_end, share, shared_work

if TYPE_CHECKING:
    from rich.console import Console

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
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Spread a model larger than one device over all GPUs, by accelerate: auto, balanced, sequential. Instead "
        "of --device."
    ),
]
OffloadBase = Annotated[
    bool,
    typer.Option(
        "--offload-base", help="Keep the exact copy of the weights on the host, so that the device holds them once."
    ),
]
Seed = Annotated[int, typer.Option(help="Of random directions and choices.")]
Json = Annotated[bool, typer.Option("--json", help="Print the summary as JSON on stdout instead of a table.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars.")]
Trust = Annotated[bool, typer.Option("--trust-remote-code", help="Let a checkpoint run its own model code.")]


def main() -> None:
    """Run the command line; exit codes: 0 done, 2 bad input or a full disk, 130 interrupted, 1 our fault."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.showwarning = _show_warning
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", MeasurementWarning)
    many = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    said = None
    try:
        with _one_of_many() if many else contextlib.nullcontext():
            code = app(standalone_mode=False) or 0
    except (InputError, DiskFull) as error:
        code, said = 2, " ".join(str(error).split())
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except ProcessLost as error:
        code, said = 1, f"{error}."
    except Exception as error:
        if hasattr(error, "format_message"):
            code, said = 2, error.format_message()  # the parser's own: a wrong option or argument
        elif many:
            code, said = 1, traceback.format_exc()
        else:
            raise
    if code == 130:
        said = "interrupted; the same command again continues where it was."
    if many and said is not None:
        _end_of_many(said, code)
    if said is not None:
        complain(said, code)
    sys.exit(code)


# Commands whose work torchrun's processes share.
SHARED = ("plot", "sharpness", "hessian", "measure")


@contextlib.contextmanager
def _one_of_many() -> Iterator[None]:
    """This process as one of those that torchrun started: they share the work, and the first speaks for all."""

    def stop(*_: Any) -> NoReturn:
        raise ProcessLost(
            "the run was stopped, or another of its processes has ended; what is finished is kept, and the same "
            "command again continues"
        )

    signal.signal(signal.SIGTERM, stop)
    with shared_work(), contextlib.ExitStack() as silence:
        if share().rank > 0:
            nowhere = silence.enter_context(open(os.devnull, "w", encoding="utf-8"))
            silence.enter_context(contextlib.redirect_stdout(nowhere))
            silence.enter_context(contextlib.redirect_stderr(nowhere))
        command = next(iter(sys.argv[1:2]), "")
        others = {known.callback.__name__ for known in app.registered_commands if known.callback} - {*SHARED}
        if command in others:
            raise InputError(f"landscape {command} runs in one process; start it without torchrun.")
        try:
            yield
        except BaseException:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what comes now says why
            raise


def _end_of_many(said: str, code: int) -> NoReturn:
    """End at once, as the others wait for this process or for its end, and let one of them say why."""
    speaks, code = first_end(code)
    if speaks:
        complain(said, code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def complain(sentence: str, code: int) -> int:
    print(f"landscape: {sentence}", file=sys.stderr)
    return code


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"landscape: warning: {message}", file=sys.stderr)


def check_device(device: str, device_map: str | None) -> None:
    """Raise InputError where both say where a model goes."""
    if device_map is not None and device != "auto":
        raise InputError(f"--device-map takes the place of --device; leave out --device {device}.")


def quiet_libraries() -> None:
    """Our progress bars say what happens; transformers' own would write over them."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()


def table_console() -> Console:
    """Where tables go: a terminal as wide as it is, else wide enough, since a file or pipe has no width to fit."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=160)


def adapters_in(checkpoint: dict | None) -> set[str]:
    """How adapters were measured ("merged" or "kept") in the provenance of one checkpoint or of several."""
    found = {checkpoint["adapter"]} if checkpoint and "adapter" in checkpoint else set()
    return found.union(*(adapters_in(part) for part in (checkpoint or {}).values() if isinstance(part, dict)))
