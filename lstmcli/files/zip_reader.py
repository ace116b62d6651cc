"""ZIP archives of other people: what zipfile raises as this program's errors, and the arrays of an NPZ read by rows."""

import errno
import math
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import IO, Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, BadZipFile, ZipFile, ZipInfo

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, LstmcliError, StorageError, shown
from lstmcli.files.npy import NpyArray, read_header
from lstmcli.files.positioned_file import FileBytes, as_bytes

LOCAL_HEADER = 30  # bytes in front of a member, before its name
ENCRYPTED = 1
PIECE = 1 << 22  # bytes read at a time for a checksum
MEMORY = 256 << 20  # bytes of a deflated array, which is decoded as a whole


@contextmanager
def reading_zip(where: str) -> Iterator[None]:
    """Turns whatever zipfile raises into StorageError (the system said no) or DataError (the file is bad)."""
    try:
        yield
    except LstmcliError:
        raise
    except (BadZipFile, zlib.error, struct.error, OSError, EOFError, ValueError, RuntimeError, OverflowError) as error:
        # zipfile itself raises an OSError without an errno, or EINVAL for an offset, where the file is bad.
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise StorageError(f"{where}: reading failed: {error.strerror}") from error
        raise DataError(f"{where}: damaged ZIP archive: {shown(str(error))[:200]}") from error


class NpzArray(NpyArray):
    """An array of an NPZ, stored or deflated. Reading on is cheap, reading back starts again.

    Its checksum is compared when its last rows are read, where all were read one after the other (zipfile gives that up when
    it seeks), and otherwise over the whole array: before rows that do not follow the others, and by finish().
    """

    def __init__(self, stream: IO[bytes], size: int, checksum: int, name: str) -> None:
        super().__init__(partial(fetch_from, stream, name), name)
        header = bytearray(self.offset)
        self.fetch(memoryview(header), 0)
        self.expected, self.found, self.summed = checksum, zlib.crc32(header), 0  # rows are in the checksum found
        if self.fortran:
            raise DataError(f"{name}: is in Fortran order; save np.ascontiguousarray(...) of it")
        self.check_size(size)

    def rows(self, first: int, count: int) -> NDArray[Any]:
        if first > self.summed:
            self.finish()
        rows = super().rows(first, count)
        if first == self.summed:
            self.found = zlib.crc32(as_bytes(rows), self.found)
            self.summed += count
            if self.summed == self.shape[0] and self.found != self.expected:
                raise DataError(f"{self.name}: is not what was written: its checksum differs")
        return rows

    def finish(self) -> None:
        """Reads the rows that were not read, for the checksum. Raises DataError where it differs."""
        step = max(1, PIECE // max(1, self.dtype.itemsize * math.prod(self.shape[1:])))
        while self.summed < self.shape[0]:
            self.rows(self.summed, min(step, self.shape[0] - self.summed))


def fetch_from(stream: IO[bytes], name: str, view: memoryview, offset: int) -> None:
    """Fills `view` with the bytes at `offset` of a member of an archive. Raises DataError, StorageError."""
    with reading_zip(name):
        stream.seek(offset)
        content = stream.read(len(view))
    if len(content) < len(view):
        raise DataError(f"{name}: ended at byte {offset + len(content)}, expected {len(view) - len(content)} more")
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
            arrays[name] = NpzArray(opened.enter_context(archive.open(info)), info.file_size, info.CRC, where)
    return arrays


class NpzMember(FileBytes):
    """An array of an NPZ as the bytes of an NPY file: read in place where it is stored, decoded into memory where deflated."""

    def __init__(self, file: FileBytes, names: list[str], name: str) -> None:
        """names: of all arrays, for messages. Raises DataError, also for a deflated array of more than MEMORY bytes."""
        super().__init__(file.fd, f"{file.name}::{shown(name)}")
        if name not in names:
            raise DataError(f"{file.name}: no array {shown(name)}; there is {shown(', '.join(names[:10])) or 'none at all'}")
        with reading_zip(self.name), os.fdopen(os.dup(file.fd), "rb") as content, ZipFile(content) as archive:
            info = archive.infolist()[names.index(name)]
            self.size, self.decoded, self.begin = info.file_size, bytearray(), 0
            if names.count(name) > 1:
                raise DataError(f"{self.name}: is there twice; save the arrays again with np.savez")
            if info.compress_type not in (ZIP_STORED, ZIP_DEFLATED) or info.flag_bits & ENCRYPTED:
                raise DataError(f"{self.name}: expected what np.savez or np.savez_compressed writes, got another compression")
            if info.compress_type == ZIP_STORED:
                self.begin = begin_of(info, file, self.name)
            elif self.size > MEMORY:
                raise DataError(
                    f"{self.name}: is compressed, and {self.size:,} bytes are more than the {MEMORY:,} that are decoded into "
                    "memory; save the array of the NPZ with np.save"
                )
            else:
                self.decoded = decoded(archive, info, self.name)

    def fetch(self, view: memoryview, offset: int) -> None:
        if offset + len(view) > self.size:
            raise DataError(f"{self.name}: ended at byte {self.size}, expected {offset + len(view) - self.size} bytes more")
        if self.decoded:
            view[:] = self.decoded[offset : offset + len(view)]
        else:
            super().fetch(view, self.begin + offset)

    def identity(self) -> dict[str, Any]:
        return super().identity() | {"member_at": self.begin}


def decoded(archive: ZipFile, info: ZipInfo, name: str) -> bytearray:
    """Returns a deflated member. Raises DataError where it is not as long as it claims, without decoding more than that."""
    content, at = bytearray(info.file_size), 0
    with archive.open(info) as stream:
        while part := stream.read(PIECE):  # by itself zipfile decodes all there is, and has it twice
            content[at : at + len(part)] = part
            at += len(part)
    if at != info.file_size:
        raise DataError(f"{name}: damaged ZIP archive: expected {info.file_size} bytes, got {at}")
    return content


def begin_of(info: ZipInfo, file: FileBytes, name: str) -> int:
    """Returns where the bytes of a stored member begin in the file. Raises DataError where they do not all lie in it."""
    if info.header_offset + LOCAL_HEADER > file.opened.st_size or info.header_offset < 0:
        raise DataError(f"{name}: damaged ZIP archive: it begins at byte {info.header_offset}")
    sizes = struct.unpack_from("<2H", file.take(info.header_offset, LOCAL_HEADER), LOCAL_HEADER - 4)
    begin: int = info.header_offset + LOCAL_HEADER + sum(sizes)
    if begin + info.file_size > file.opened.st_size or info.compress_size != info.file_size:
        raise DataError(f"{name}: damaged ZIP archive: it ends at byte {begin + info.file_size}")
    return begin


def npz_forms(file: FileBytes) -> dict[str, tuple[tuple[int, ...], np.dtype[Any]]]:
    """Returns shape and dtype of each array of an NPZ that is one of numbers, without its values. DataError, StorageError."""
    forms = {}
    with reading_zip(file.name), os.fdopen(os.dup(file.fd), "rb") as content, ZipFile(content) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            with suppress(DataError), archive.open(info) as stream:
                where = f"{file.name}::{shown(name)}"
                dtype, _, shape, _ = read_header(partial(fetch_from, stream, where), where)
                forms[name] = shape, dtype
    return forms


def npz_names(file: FileBytes) -> list[str]:
    """Lists the arrays of an NPZ in their order. Raises DataError, StorageError."""
    with reading_zip(file.name), os.fdopen(os.dup(file.fd), "rb") as content, ZipFile(content) as archive:
        return [name.removesuffix(".npy") for name in archive.namelist()]
