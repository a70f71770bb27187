"""The app: its commands in the order of the help, its exit codes, and its processes where torchrun starts several."""

from __future__ import annotations

import ast
import contextlib
import io
import logging
import os
import re
import signal
import stat
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Annotated, Any, NoReturn

import typer
import typer.core

import landscape
from landscape.cli.basin import basin
from landscape.cli.correlate import correlate
from landscape.cli.demo import demo
from landscape.cli.design import design
from landscape.cli.fetch import fetch
from landscape.cli.finetune import finetune
from landscape.cli.forgetting import forgetting
from landscape.cli.hessian import hessian
from landscape.cli.instruction_vectors import instruction_vectors
from landscape.cli.measure import measure
from landscape.cli.merge import merge
from landscape.cli.metrics import metrics
from landscape.cli.plot import plot
from landscape.cli.report import report
from landscape.cli.sharpness import sharpness
from landscape.errors import DiskFull, InputError, MeasurementWarning, nearest, typed_as
from landscape.parallel.distributed import ProcessLost, first_end, share, shared_work

COMMANDS = {
    "Start here": (demo, metrics),
    "Measure checkpoints": (plot, sharpness, hessian, basin, forgetting, instruction_vectors, measure),
    "Analyze measurements": (correlate, design, report),
    "Make checkpoints": (fetch, finetune, merge),
}
SHARED = (plot, sharpness, hessian, instruction_vectors, measure)  # commands whose work the processes of torchrun share


class _Command(typer.core.TyperCommand):
    """A command in whose messages parameters are called by the options that the user types."""

    def invoke(self, ctx: Any) -> Any:
        options = {parameter.name: parameter.opts[0] for parameter in self.params if parameter.opts[0][:1] == "-"}
        with typed_as(options):
            return super().invoke(ctx)


app = typer.Typer(
    help="Loss landscapes, curvature and sharpness of fine-tuned language models.",
    epilog="`landscape COMMAND --help` explains a command and its options.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for panel, commands in COMMANDS.items():
    for function in commands:
        app.command(cls=_Command, rich_help_panel=panel)(function)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        print(f"landscape {landscape.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", metavar="", callback=_print_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line and exit: 0 done, 2 wrong input or a full disk, 130 interrupted, 1 an error of ours."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    _keep_writing()
    notes = logging.getLogger("landscape")  # what the rooms say of their work goes to standard error
    notes.handlers, notes.level, notes.propagate = [_Notes()], logging.INFO, False
    warnings.showwarning = _show_warning
    warnings.simplefilter("ignore")
    warnings.simplefilter("always", MeasurementWarning)
    is_one_of_many = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"
    sentence = None
    try:
        with _one_of_many() if is_one_of_many else contextlib.nullcontext():
            code = app(prog_name="landscape", standalone_mode=False) or 0
    except (InputError, DiskFull) as error:
        code, sentence = 2, " ".join(str(error).split())
    except (KeyboardInterrupt, typer.Abort):
        code = 130
    except ProcessLost as error:
        code, sentence = 1, f"{error}."
    except Exception as error:
        if hasattr(error, "format_message"):
            code, sentence = 2, usage_error(error) or None  # without a command, the help is the answer
        elif isinstance(error, OSError) and _was_typed(error.filename):
            code, sentence = 2, f"{error.filename} cannot be used: {error.strerror}."
        elif is_one_of_many:
            code, sentence = 1, traceback.format_exc()
        else:
            raise
    if code == 130:
        sentence = "interrupted; the same command again continues where it was."
    if is_one_of_many and sentence is not None:
        _end_of_many(sentence, code)
    if sentence is not None:
        _complain(sentence)
    sys.exit(code)


def _was_typed(path: Any) -> bool:
    """Whether the path that the system refused stands in what the user typed, such as a name too long for a file."""
    return isinstance(path, (str, os.PathLike)) and any(os.fspath(path) in word for word in sys.argv[1:])


def usage_error(error: Any) -> str:
    """The message of a command-line parser's exception, with the nearest valid name where one was mistyped.

    typer itself does so for commands. Its messages have no stable parts beyond their words, so that the choices of an
    option are read from them.
    """
    message = error.format_message()
    if hasattr(error, "option_name") and hasattr(error, "possibilities"):
        names = [name for option in error.ctx.command.get_params(error.ctx) for name in option.opts]
        return f"{error.message.rstrip('.')}.{nearest(error.option_name, names)}"
    choice = re.fullmatch(r"(Invalid value.*?: )(?:Value error, )?('.*?') is not one of (.+?)\.?", message, re.DOTALL)
    if choice:
        start, value, choices = choice.groups()
        with contextlib.suppress(ValueError, SyntaxError):
            suggestion = nearest(ast.literal_eval(value), ast.literal_eval(f"[{choices}]"))
            return f"{start}{value} is not one of {choices}.{suggestion}"
    return message


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
        alone = {
            function.__name__ for functions in COMMANDS.values() for function in functions if function not in SHARED
        }
        if command in alone:
            raise InputError(f"landscape {command} runs in one process; start it without torchrun.")
        try:
            yield
        except BaseException:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the error that is reported next says why
            raise


def _end_of_many(sentence: str, code: int) -> NoReturn:
    """End at once, as the others wait for this process or for its end, and let one of them say why."""
    speaks, code = first_end(code)
    if speaks:
        _complain(sentence)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class _Notes(logging.Handler):
    """Prints what the rooms say of their work."""

    def emit(self, record: logging.LogRecord) -> None:
        _complain(("warning: " if record.levelno >= logging.WARNING else "") + record.getMessage())


class _UntilClosed(io.FileIO):
    """A pipe that takes everything, also after its reader has gone: `landscape plot ... | head -1`."""

    def write(self, data: Any) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return len(data)


def _keep_writing() -> None:
    """Let the work go on, and its files be written, where the reader of its output has had enough."""
    for name, itself in (("stdout", sys.__stdout__), ("stderr", sys.__stderr__)):
        stream = getattr(sys, name)
        if stream is not itself or stream is None:
            continue
        with contextlib.suppress(OSError, ValueError):
            if stat.S_ISFIFO(os.fstat(stream.fileno()).st_mode):
                stream.flush()
                pipe = io.BufferedWriter(_UntilClosed(stream.fileno(), "w", closefd=False))
                by_line = stream.line_buffering or stream.write_through  # which PYTHONUNBUFFERED asks for
                own = io.TextIOWrapper(pipe, encoding=stream.encoding, errors=stream.errors, line_buffering=by_line)
                setattr(sys, name, own)


def _complain(sentence: str) -> None:
    print(f"landscape: {sentence}", file=sys.stderr)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    _complain(f"warning: {message}")
