"""Bytes by their position: of a regular file, or of a pipe, which cannot go back."""

import os
import select
import zlib
from typing import Any, Protocol

from lstmcli.errors import DataError, StorageError

STOP_CHECK = 200  # milliseconds
SAMPLES, SAMPLE = 16, 64 << 10  # pieces of a file, and bytes of each, that stand for the whole


class Bytes(Protocol):
    """Bytes that can be fetched by their position."""

    def fetch(self, view: memoryview, offset: int) -> None:
        """Fills `view` with the bytes at `offset`. DataError: they end too early. StorageError: the read failed."""

    def stop(self) -> None:
        """Ends a fetch that waits in another thread, and all that follow, with StorageError."""

    def finish(self) -> None:
        """DataError if these are not, or no longer, the bytes that the header announced."""

    def identity(self) -> dict[str, Any]:
        """What differs when the bytes do; JSON."""


class FileBytes:
    """A regular file, in any order. `fd` stays the caller's."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name
        self.opened = os.fstat(fd)

    def fetch(self, view: memoryview, offset: int) -> None:
        while view:
            try:
                count = os.preadv(self.fd, [view], offset)
            except OSError as error:
                raise StorageError(f"{self.name}: reading at byte {offset} failed: {error.strerror}") from error
            if count == 0:
                raise DataError(f"{self.name}: ended at byte {offset}, expected {len(view)} bytes more")
            view, offset = view[count:], offset + count

    def take(self, offset: int, count: int) -> bytes:
        """`count` bytes. The caller has checked that the file is so long."""
        taken = bytearray(count)
        self.fetch(memoryview(taken), offset)
        return bytes(taken)

    def stop(self) -> None:
        """A file never waits for long."""

    def finish(self) -> None:
        now = os.fstat(self.fd)
        if (now.st_size, now.st_mtime_ns) != (self.opened.st_size, self.opened.st_mtime_ns):
            raise DataError(f"{self.name}: was changed while it was read; run again when nothing writes to it")

    def identity(self) -> dict[str, Any]:
        size, checksum = self.opened.st_size, 0
        piece = bytearray(min(size, SAMPLE))
        for k in range(SAMPLES):
            self.fetch(memoryview(piece), (size - len(piece)) * k // (SAMPLES - 1))
            checksum = zlib.crc32(piece, checksum)
        return {"bytes": size, "modified_ns": self.opened.st_mtime_ns, "sample": checksum}


class PipeBytes:
    """A stream, from its start to its end. `fd` stays the caller's."""

    def __init__(self, fd: int, name: str) -> None:
        self.fd, self.name = fd, name
        self.at = 0
        self.size: int | None = None  # known after the header
        self.skipped = memoryview(bytearray(64 << 10))
        self.stopped = False
        self.coming = select.poll()
        self.coming.register(fd, select.POLLIN)

    def read(self, view: memoryview) -> int:
        try:
            while not (self.stopped or self.coming.poll(STOP_CHECK)):
                pass
            if self.stopped:
                raise StorageError(f"{self.name}: reading was stopped at byte {self.at}")
            count = os.readv(self.fd, [view])
        except OSError as error:
            raise StorageError(f"{self.name}: reading at byte {self.at} failed: {error.strerror}") from error
        self.at += count
        return count

    def fill(self, view: memoryview) -> None:
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
