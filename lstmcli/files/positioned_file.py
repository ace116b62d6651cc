"""Bytes by their position: read from a regular file, or from a pipe, which cannot go back; and written into a file."""

import os
import select
import stat
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import DataError, MissingInputError, StorageError, shown

Data = bytes | memoryview | NDArray[Any]

STOP_CHECK = 200  # milliseconds
MOST = 1 << 30  # bytes in one call: macOS refuses 2 GiB and more, of which Linux reads or writes a part
SAMPLES, SAMPLE = 16, 64 << 10  # pieces of a file, and bytes of each, that stand for the whole


def mode_of(path: str | Path) -> int:
    """Returns the kind and the permissions of a file; 0 where there is none. For a name that is too long, Path raises."""
    try:
        return Path(path).stat().st_mode
    except (OSError, ValueError):
        return 0


def is_file(path: str | Path) -> bool:
    """Says whether a regular file is there."""
    return stat.S_ISREG(mode_of(path))


def open_readable(path: str, pipes: bool = False) -> int:
    """Returns a new file descriptor. Raises MissingInputError for no such file, a directory, or no permission.

    pipes: of a pipe or a device as well, where opening may wait for somebody who writes; otherwise raises DataError at once.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | (0 if pipes else os.O_NONBLOCK))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MissingInputError(f"{shown(path)}: cannot be opened: {reason}") from error
    mode = os.fstat(fd).st_mode
    if stat.S_ISDIR(mode) or not (pipes or stat.S_ISREG(mode)):
        os.close(fd)
        if stat.S_ISDIR(mode):
            raise MissingInputError(f"{shown(path)}: expected a file, got a directory")
        raise DataError(f"{shown(path)}: expected a file, got a pipe or a device")
    return fd


def read_at(fd: int, view: memoryview, offset: int, name: str) -> int:
    """Fills `view` with the bytes at `offset`, as far as the file goes; returns their number. Raises StorageError."""
    filled = 0
    while filled < len(view):
        try:
            count = os.preadv(fd, [view[filled : filled + MOST]], offset + filled)
        except OSError as error:
            raise StorageError(f"{name}: reading at byte {offset + filled} failed: {error.strerror}") from error
        if count == 0:
            break
        filled += count
    return filled


def sync_data(fd: int) -> None:
    """Puts on disk what was written to a file. Raises OSError."""
    (os.fdatasync if hasattr(os, "fdatasync") else os.fsync)(fd)  # macOS has the second alone


def write_at(fd: int, view: memoryview, offset: int) -> None:
    """Writes all of `view` at `offset`. Raises OSError."""
    while view:
        count = os.pwrite(fd, view[:MOST], offset)
        view, offset = view[count:], offset + count


@contextmanager
def storing(path: Path | str) -> Iterator[None]:
    """Turns the system's refusal to write into StorageError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        raise StorageError(f"{shown(str(path))}: writing failed: {error.strerror}") from error


def as_bytes(data: Data) -> memoryview:
    """Returns the bytes of an array or of bytes, without a copy."""
    # A memoryview of an array with a zero in its shape cannot be cast.
    return data.reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else memoryview(data)


class Bytes(Protocol):
    """Bytes that can be fetched by their position."""

    sequential: bool  # they come once, in their order

    def fetch(self, view: memoryview, offset: int) -> None:
        """Fills `view` with the bytes at `offset`. Raises DataError if they end too early, StorageError if reading fails."""

    def stop(self) -> None:
        """Ends a fetch that waits in another thread, and all that follow, with StorageError."""

    def finish(self) -> None:
        """Raises DataError if these are not, or no longer, the bytes that the header announced."""

    def identity(self) -> dict[str, Any]:
        """Returns what differs when the bytes do, ready for JSON."""


class FileBytes:
    """A regular file, in any order. `fd` stays the caller's."""

    sequential = False

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name
        self.opened = os.fstat(fd)
        self.sample: int | None = None  # as identity() has found it

    def fetch(self, view: memoryview, offset: int) -> None:
        if (count := read_at(self.fd, view, offset, self.name)) < len(view):
            raise DataError(f"{self.name}: ended at byte {offset + count}, expected {len(view) - count} bytes more")

    def take(self, offset: int, count: int) -> bytes:
        """Returns `count` bytes. The caller has checked that the file is so long."""
        taken = bytearray(count)
        self.fetch(memoryview(taken), offset)
        return bytes(taken)

    def stop(self) -> None:
        """Does nothing: a file never waits for long."""

    def finish(self) -> None:
        now = os.fstat(self.fd)
        # Who writes through a mapping that is older than the run does not move the time.
        resampled = self.sample is not None and self._sample() != self.sample
        if resampled or (now.st_size, now.st_mtime_ns) != (self.opened.st_size, self.opened.st_mtime_ns):
            raise DataError(f"{self.name}: was changed while it was read; run again when nothing writes to it")

    def identity(self) -> dict[str, Any]:
        self.sample = self._sample()
        about = {"name": without_folder(self.name), "bytes": self.opened.st_size, "modified_ns": self.opened.st_mtime_ns}
        return about | {"sample": self.sample}

    def _sample(self) -> int:
        """Returns the checksum of SAMPLES pieces of the file."""
        size, checksum = self.opened.st_size, 0
        piece = bytearray(min(size, SAMPLE))
        for k in range(SAMPLES):
            read_at(self.fd, memoryview(piece), (size - len(piece)) * k // (SAMPLES - 1), self.name)
            checksum = zlib.crc32(piece, checksum)
        return checksum


def without_folder(name: str) -> str:
    """Returns `x.h5::/dataset` of `folder/x.h5::/dataset`: what stays when a file is moved with its folder."""
    path, mark, inside = name.partition("::")
    return Path(path).name + mark + inside


class PipeBytes:
    """A stream, from its start to its end. `fd` stays the caller's."""

    sequential = True

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name
        self.at = 0
        self.size: int | None = None  # known after the header
        self.skipped = memoryview(bytearray(64 << 10))
        self.stopped = False
        self.coming = select.poll()
        self.coming.register(fd, select.POLLIN)

    def read(self, view: memoryview) -> int:
        """Reads the next bytes, up to the size of `view`, and returns their number; 0 at the end. Raises StorageError."""
        try:
            while not (self.stopped or self.coming.poll(STOP_CHECK)):
                pass
            if self.stopped:
                raise StorageError(f"{self.name}: reading was stopped at byte {self.at}")
            count = os.readv(self.fd, [view[:MOST]])
        except OSError as error:
            raise StorageError(f"{self.name}: reading at byte {self.at} failed: {error.strerror}") from error
        self.at += count
        return count

    def take_next(self, count: int) -> bytes:
        """Returns the next `count` bytes, or those that are left. Raises StorageError."""
        taken = bytearray(count)
        view = memoryview(taken)
        while view and (got := self.read(view)):
            view = view[got:]
        return bytes(taken[: count - len(view)])

    def fill(self, view: memoryview) -> None:
        """Reads the next bytes until `view` is full. Raises DataError if they end too early, StorageError."""
        while view:
            count = self.read(view)
            if count == 0:
                expected = "its header" if self.size is None else f"{self.size} bytes"
                raise DataError(f"{self.name}: the stream ended after {self.at} bytes, expected {expected}")
            view = view[count:]

    def fetch(self, view: memoryview, offset: int) -> None:
        if offset < self.at:
            raise ValueError(f"{self.name}: asked for byte {offset} of a stream after byte {self.at}")
        while offset > self.at:
            self.fill(self.skipped[: offset - self.at])
        self.fill(view)

    def stop(self) -> None:
        self.stopped = True

    def identity(self) -> dict[str, Any]:
        return {}  # it cannot be read twice

    def finish(self) -> None:
        assert self.size is not None
        self.fetch(memoryview(b""), self.size)
        if self.read(self.skipped[:1]):
            raise DataError(f"{self.name}: more bytes follow after the {self.size} that the header announces")
