"""The exceptions that are not our fault, the one warning that a number can carry, and the words of their messages."""

import contextlib
import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from types import MappingProxyType


class InputError(ValueError):
    """Something that the caller gave is wrong.

    The message is one sentence that names the file, tensor or option and says what would be right. The command line
    prints it on stderr and exits with code 2, without a traceback.

    Example:
        >>> from landscape import load_checkpoint
        >>> try:
        ...     load_checkpoint("runs/no-such-run/checkpoint")
        ... except InputError as error:
        ...     print(error)
        runs/no-such-run/checkpoint does not exist.
    """


class DiskFull(OSError):
    """There is no room to write to the folder `filename`.

    What was finished is kept. The command line says so in one sentence and exits with code 2, because the caller chose
    where results go and has to change it.
    """

    def __str__(self) -> str:
        reason = (self.strerror or "no space left").lower()
        return (
            f"{self.filename}: {reason}; what is finished is kept, and the same command again continues with more room."
        )


class MeasurementWarning(UserWarning):
    """A number was computed, but something about it limits what it can be used for.

    Example:
        A script that must not go on with such a number turns the warning into an error:

        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", MeasurementWarning)
        ...     warnings.warn("the eigenvalue did not converge", MeasurementWarning)
        Traceback (most recent call last):
        ...
        landscape.errors.MeasurementWarning: the eigenvalue did not converge
    """


# How the parameters of functions are called where the caller gave them, by their names; Python's own names otherwise.
_spellings: ContextVar[Mapping[str, str]] = ContextVar("spellings", default=MappingProxyType({}))


@contextlib.contextmanager
def typed_as(spellings: Mapping[str, str]) -> Iterator[None]:
    """Let messages inside the block call parameters by what the user typed for them, see `as_typed`.

    Blocks may be nested; the innermost that knows a parameter decides. Mapping a parameter to its own name gives it
    back the spelling of Python.

    Args:
        spellings: The option that was typed for a parameter, by the name of the parameter.

    Example:
        >>> with typed_as({"rtol": "--trace-rtol"}):
        ...     print(as_typed("rtol", 0.1), "and", as_typed("seed", 3))
        --trace-rtol 0.1 and seed=3
    """
    token = _spellings.set({**_spellings.get(), **spellings})
    try:
        yield
    finally:
        _spellings.reset(token)


def as_typed(name: str, *value: object) -> str:
    """A parameter in a message, as whoever reads the message has typed it.

    Every message that names a parameter of a public function names it with this function. A caller in Python reads the
    parameter's own name; the command line says with `typed_as` which option it was.

    Args:
        name: The name of the parameter.
        value: Its value, where the message says it; at most one.

    Example:
        >>> as_typed("max_probes"), as_typed("kind", "trace")
        ('max_probes', "kind='trace'")
    """
    option = _spellings.get().get(name, name)
    if not value:
        return option
    if not option.startswith("-"):
        return f"{option}={value[0]!r}"
    return option if value[0] is True else f"{option} {value[0]}"


def first_line(error: BaseException) -> str:
    r"""Return the first line of another library's message, as the end of one of our sentences.

    Example:
        >>> first_line(ValueError("unknown type\ntraceback follows"))
        'unknown type.'
        >>> first_line(AttributeError("'list' object has no attribute 'pop'"))
        'one of the values is of a type that it cannot have.'
        >>> first_line(TypeError("Task.__init__() got an unexpected keyword argument 'speling'"))
        "it has no entry 'speling'."
    """
    if isinstance(
        error, AttributeError
    ):  # A reader met JSON or YAML of another shape, and its words say nothing of it.
        return "one of the values is of a type that it cannot have."
    if entry := re.search(r"got an unexpected keyword argument ('\w*')", str(error)):
        return f"it has no entry {entry[1]}."  # what was read from a file was handed to a function
    lines = str(error).strip().splitlines()
    return (lines[0].strip().rstrip(".") if lines else type(error).__name__) + "."


def nearest(name: str, names: Iterable[str]) -> str:
    """The end of an error message about a name that does not exist: the valid name that it most resembles.

    Args:
        name: The name as it was given.
        names: All valid names.

    Returns:
        The sentence " Did you mean ...?" with a space before it, or an empty text where no valid name is alike.

    Example:
        >>> nearest("worst_cas", ["worst_case", "average_case"])
        " Did you mean 'worst_case'?"
        >>> nearest("sharp", ["trace"])
        ''
    """
    matches = difflib.get_close_matches(name, list(names), n=1)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def nearest_path(path: str | Path) -> str:
    """The end of an error message about a file or folder that does not exist: the one beside it that is alike.

    Args:
        path: The file or folder that is missing.

    Returns:
        As `nearest`, with the folder as it was given.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "alpaca.jsonl").touch()
        ...     os.path.basename(nearest_path(f"{folder}/alpcaa.jsonl"))
        "alpaca.jsonl'?"
    """
    wanted = Path(path)
    try:
        beside = os.listdir(wanted.expanduser().parent)
    except (OSError, RuntimeError, ValueError):
        return ""
    matches = difflib.get_close_matches(wanted.name, beside, n=1)
    return f" Did you mean {str(wanted.with_name(matches[0]))!r}?" if matches else ""
