"""The names of classes."""

from lstmcli.errors import DataError
from lstmcli.files.file_kind import open_by_kind

MAX_LABELS = 64 << 20  # bytes


def read_labels(path: str) -> tuple[str, ...]:
    """Returns the lines of a text. Raises MissingInputError and DataError."""
    with open_by_kind(path) as (file, _):
        if file.opened.st_size > MAX_LABELS:
            raise DataError(f"{file.name}: expected a text with the name of a class on each line, got more than 64 MB")
        content = file.take(0, file.opened.st_size)
    try:
        return tuple(content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name}: expected a text with the name of a class on each line, in UTF-8") from error
