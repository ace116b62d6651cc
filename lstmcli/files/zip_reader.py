"""ZIP archives of other people: what zipfile raises as this program's errors, and the arrays of an NPZ read by rows."""

import errno
import math
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, LstmcliError, StorageError, shown
from lstmcli.files.npy import read_header


@contextmanager
def reading_zip(where: str) -> Iterator[None]:
    """Turns whatever zipfile raises into StorageError (the system said no) or DataError (the file is bad)."""
    try:
        yield
    except LstmcliError:
        raise
    except (BadZipFile, zlib.error, OSError, EOFError, ValueError, RuntimeError, OverflowError) as error:
        # zipfile itself raises an OSError without an errno, or EINVAL for an offset, where the file is bad.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise StorageError(f"{where}: reading failed: {error.strerror}") from error
        raise DataError(f"{where}: damaged ZIP archive: {shown(str(error))[:200]}") from error


class NpzArray:
    """An array of an NPZ, stored or deflated. Reading on is cheap, reading back starts again."""

    def __init__(self, stream: IO[bytes], size: int, name: str) -> None:
        self.stream, self.name = stream, name
        self.dtype, fortran, self.shape, self.offset = read_header(self._fetch, name)
        if fortran:
            raise DataError(f"{name}: is in Fortran order; save np.ascontiguousarray(...) of it")
        if size != (expected := self.offset + math.prod(self.shape) * self.dtype.itemsize):
            raise DataError(f"{name}: expected {expected} bytes for shape {self.shape} of {self.dtype}, got {size}")

    def _fetch(self, view: memoryview, offset: int) -> None:
        with reading_zip(self.name):
            self.stream.seek(offset)
            content = self.stream.read(len(view))
        if len(content) < len(view):
            raise DataError(f"{self.name}: ended at byte {offset + len(content)}, expected {len(view) - len(content)} more")
        view[:] = content

    def rows(self, first: int, count: int) -> NDArray[Any]:
        """Returns rows first .. first + count of a rank-2 array, (count, width), as stored. Raises DataError, StorageError."""
        rows = np.empty((count, self.shape[1]), self.dtype)
        if rows.size:
            self._fetch(rows.reshape(-1).view(np.uint8).data, self.offset + first * rows[0].nbytes)
        return rows


def open_npz(file: IO[bytes], path: str, opened: ExitStack) -> dict[str, NpzArray]:
    """Opens all arrays of an NPZ, by their names; `opened` keeps them. Raises DataError, StorageError."""
    with reading_zip(path):
        archive = opened.enter_context(ZipFile(file))
        arrays: dict[str, NpzArray] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            where = f"{path}, {shown(name)}"
            if name in arrays:
                raise DataError(f"{where}: is there twice; save the arrays again with np.savez")
            if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED):
                raise DataError(f"{where}: expected what np.savez or np.savez_compressed writes, got another compression")
            arrays[name] = NpzArray(opened.enter_context(archive.open(info)), info.file_size, where)
    return arrays
