"""The exceptions that are not our fault, and the one warning a number can carry."""


class InputError(ValueError):
    """Something the caller gave is wrong.

    The message is one sentence that names the file, tensor or option and says what would be right. The
    command line prints it on stderr and exits with code 2, without a traceback.
    """


class DiskFull(OSError):
    """There is no room to write to the folder `filename`.

    What was finished is kept. The command line says so in one sentence and exits with code 2: where results go is
    what the caller gave, and what has to change.
    """

    def __str__(self) -> str:
        reason = (self.strerror or "no space left").lower()
        return (
            f"{self.filename}: {reason}; what is finished is kept, and the same command again continues with more room."
        )


class MeasurementWarning(UserWarning):
    """A number was computed, but something about it limits what it can be used for."""


def first_line(error: BaseException) -> str:
    """The first line of another library's message, as the end of one of our sentences."""
    lines = str(error).strip().splitlines()
    return (lines[0].strip().rstrip(".") if lines else type(error).__name__) + "."
