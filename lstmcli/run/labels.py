"""The names of classes."""

from pathlib import Path

from lstmcli.errors import DataError, MissingInputError, shown

MAX_LABELS = 64 << 20  # bytes


def read_labels(path: str) -> tuple[str, ...]:
    """Returns the lines of a text. Raises MissingInputError and DataError."""
    try:
        with Path(path).open("rb") as file:
            content = file.read(MAX_LABELS + 1)
        if len(content) > MAX_LABELS:
            raise DataError(f"{shown(path)}: expected a text with the name of a class on each line, got more than 64 MB")
        return tuple(content.decode("utf-8-sig").splitlines())
    except UnicodeDecodeError as error:
        raise DataError(f"{shown(path)}: expected a text with the name of a class on each line, in UTF-8") from error
    except OSError as error:
        raise MissingInputError(f"{shown(path)}: {error.strerror}") from error
