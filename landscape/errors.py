"""The exceptions that are not our fault, and the one warning that a number can carry."""

import difflib
from collections.abc import Iterable


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


def first_line(error: BaseException) -> str:
    r"""Return the first line of another library's message, as the end of one of our sentences.

    Example:
        >>> first_line(ValueError("unknown type\ntraceback follows"))
        'unknown type.'
        >>> first_line(AttributeError("'list' object has no attribute 'pop'"))
        'one of the values is of a type that it cannot have.'
    """
    if isinstance(
        error, AttributeError
    ):  # A reader met JSON or YAML of another shape, and its words say nothing of it.
        return "one of the values is of a type that it cannot have."
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
