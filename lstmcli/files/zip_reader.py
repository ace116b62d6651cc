"""ZIP archives of other people: what zipfile raises as this program's errors, and the arrays of an NPZ read by rows."""

import errno
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import IO
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile

from lstmcli.errors import DataError, LstmcliError, StorageError, shown
from lstmcli.files.npy import NpyArray


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


class NpzArray(NpyArray):
    """An array of an NPZ, stored or deflated. Reading on is cheap, reading back starts again."""

    def __init__(self, stream: IO[bytes], size: int, name: str) -> None:
        self.stream, self.name = stream, name
        super().__init__(self._fetch, name)
        if self.fortran:
            raise DataError(f"{name}: is in Fortran order; save np.ascontiguousarray(...) of it")
        self.check_size(size)

    def _fetch(self, view: memoryview, offset: int) -> None:
        with reading_zip(self.name):
            self.stream.seek(offset)
            content = self.stream.read(len(view))
        if len(content) < len(view):
            raise DataError(f"{self.name}: ended at byte {offset + len(content)}, expected {len(view) - len(content)} more")
        view[:] = content


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
