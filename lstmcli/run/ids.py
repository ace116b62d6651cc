"""The names of sequences and of classes."""

import posixpath
from pathlib import Path

from lstmcli.errors import DataError, MissingInputError, shown
from lstmcli.files import hdf5, hdf5_safety
from lstmcli.inputs.source import Source

IDS = ("ids", "names", "keys")
MAX_LABELS = 64 << 20  # bytes


def read_ids(source: Source, follow_links: bool = False) -> list[str] | None:
    """Returns the ids of all sequences of a file: the strings (N,) in a dataset with one of the names IDS beside an HDF5 input.

    None where there is no such dataset. Raises DataError where it is damaged.
    """
    if source.dataset is None:
        return None
    file, batch = source.dataset.file, source.dataset.shape[source.axes.index("N")]
    for folder in dict.fromkeys((posixpath.dirname(source.dataset.name), "/")):
        for name in IDS:
            path = posixpath.join(folder, name)
            item = hdf5_safety.find(file, path, follow_links)
            if item is not None and getattr(item, "shape", None) == (batch,) and item.dtype.kind in "OS":
                with hdf5.reading(hdf5.label(item)):
                    return [str(value) for value in item.asstr(errors="backslashreplace")[:]]
    return None


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
