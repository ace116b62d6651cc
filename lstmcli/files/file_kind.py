"""What a file is: told by its first bytes, never by its name."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum

from lstmcli.errors import shown
from lstmcli.files.positioned_file import FileBytes, is_file, mode_of, open_readable

HDF5_MAGIC, NPY_MAGIC, ZIP_MAGIC = b"\x89HDF\r\n\x1a\n", b"\x93NUMPY", b"PK"


class FileKind(Enum):
    """What open_by_kind() tells apart."""

    HDF5 = "HDF5"
    NPY = "NPY"
    ZIP = "ZIP"
    STREAM = "a pipe or a device"  # nothing of it was read
    OTHER = "something else"


@contextmanager
def open_by_kind(path: str, pipes: bool = False) -> Iterator[tuple[FileBytes, FileKind]]:
    """Opens a file and says what it is. Raises MissingInputError and StorageError, and DataError for what is no file.

    pipes: takes a pipe or a device as well.
    """
    fd = open_readable(path, pipes)
    try:
        file = FileBytes(fd, shown(path))
        yield file, kind_of(file)
    finally:
        os.close(fd)


def kind_of(file: FileBytes) -> FileKind:
    """Says what an open file is. Raises StorageError."""
    if not stat.S_ISREG(file.opened.st_mode):
        return FileKind.STREAM
    if is_hdf5(file):
        return FileKind.HDF5
    begin = file.take(0, min(len(NPY_MAGIC), file.opened.st_size))
    if begin == NPY_MAGIC:
        return FileKind.NPY
    return FileKind.ZIP if begin.startswith(ZIP_MAGIC) else FileKind.OTHER


def is_hdf5(file: FileBytes) -> bool:
    """Says whether the signature of HDF5 stands at byte 0, 512, 1024, 2048, ..."""
    at = 0
    while at + len(HDF5_MAGIC) <= file.opened.st_size:
        if file.take(at, len(HDF5_MAGIC)) == HDF5_MAGIC:
            return True
        at = max(512, 2 * at)
    return False


def is_several(path: str) -> bool:
    """Says whether an --input names several files: a folder, a pattern, or @ and a file with their names."""
    if os.path.lexists(path):
        return stat.S_ISDIR(mode_of(path))
    return path.startswith("@") or any(mark in path for mark in "*?[")


def split_spec(spec: str) -> tuple[str, str | None]:
    """Splits `path`, `path::/dataset` or `path:/dataset` into path and dataset. An existing file of that name comes first."""
    if not os.path.lexists(spec):
        path, mark, name = spec.rpartition("::")
        if mark:
            return path, "/" + name.lstrip("/")
        path, mark, name = spec.rpartition(":/")
        if mark and is_file(path):
            return path, "/" + name.lstrip("/")
    return spec, None
