"""The one exception a user can cause, and the one warning a number can carry."""


class InputError(ValueError):
    """Something the caller gave is wrong.

    The message is one sentence that names the file, tensor or option and says what would be right. The
    command line prints it on stderr and exits with code 2, without a traceback.
    """


class MeasurementWarning(UserWarning):
    """A number was computed, but something about it limits what it can be used for."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, as the end of one of our sentences."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip().rstrip(".") if lines else type(error).__name__) + "."
