"""What is wrong with a label."""

from geochip.errors import WorkError


class LabelError(WorkError):
    """A label could not be read or does not fit its scene; the text names the file."""


def one_line(error: BaseException) -> str:
    """An error's text without line breaks; of errors one behind the other the innermost, which is GDAL's own."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())
