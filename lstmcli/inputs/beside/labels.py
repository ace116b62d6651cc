"""The names of classes."""

import codecs

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
        # Bytes are split at ends of lines alone, a str at a form feed and U+2028 as well.
        return tuple(line.decode() for line in content.removeprefix(codecs.BOM_UTF8).splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{file.name}: expected a text with the name of a class on each line, in UTF-8") from error
