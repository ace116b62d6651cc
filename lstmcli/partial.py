"""A file that is filled by position under the name OUT.partial, and gets its own name only when it is whole and on disk."""

import errno
import fcntl
import os
import stat
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.errors import LstmcliError, OutputError, StorageError, shown

Data = bytes | memoryview | NDArray[Any]


class Partial:
    """Owns OUT.partial, locked against other runs, until it is published as OUT or discarded."""

    def __init__(self, path: Path, overwrite: bool) -> None:
        """OutputError: OUT or OUT.partial is there and may not be replaced, or cannot be created."""
        self.path, self.overwrite = path, overwrite
        self.name = partial_name(path)
        self.published = self.kept = False
        check_target(path, overwrite)
        self.fd = self._claim()

    def _claim(self) -> int:
        """Opens and locks the partial file. A lock, unlike a lock file, ends with the process that holds it."""
        try:
            fd = os.open(self.name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
        except OSError as error:
            raise OutputError(f"{shown(str(self.name))}: cannot be created: {error.strerror}") from error
        try:
            status = os.fstat(fd)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputError(
                    f"{shown(str(self.path))}: another run is writing it; wait, or choose another --output"
                ) from error
            except OSError:
                pass  # a file system without locks
            if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or not self._is_named(status):
                raise OutputError(f"{shown(str(self.name))}: in use or not a plain file; remove it, or choose another --output")
            if status.st_size and not self.overwrite:
                raise OutputError(
                    f"{shown(str(self.name))}: is left from a run that was stopped; start again with --overwrite, or remove it"
                )
            os.ftruncate(fd, 0)
        except BaseException:
            os.close(fd)
            raise
        return fd

    def _is_named(self, status: os.stat_result) -> bool:
        try:
            return os.path.samestat(self.name.lstat(), status)
        except FileNotFoundError:
            return False

    def reserve(self, size: int) -> None:
        """Makes the file `size` bytes of zeros, with their space taken. StorageError if there is not so much."""
        try:
            os.ftruncate(self.fd, size)
            if size and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(self.fd, 0, size)
        except OSError as error:
            free = os.statvfs(self.path.parent)
            raise StorageError(
                f"{shown(str(self.path))}: {error.strerror}: expected {size:,} bytes of space, "
                f"got {free.f_bavail * free.f_frsize:,}; nothing was computed"
            ) from error

    def write(self, data: Data, offset: int) -> None:
        view = as_bytes(data)
        try:
            while view:
                count = os.pwrite(self.fd, view, offset)
                view, offset = view[count:], offset + count
        except OSError as error:
            raise storage_error(shown(str(self.path)), error) from error

    def read(self, size: int, offset: int) -> bytes:
        try:
            return os.pread(self.fd, size, offset)
        except OSError as error:
            raise storage_error(shown(str(self.path)), error) from error

    def publish(self) -> None:
        """Data on disk, then the name, then the name on disk."""
        try:
            os.fsync(self.fd)
            if self.overwrite:
                self.name.replace(self.path)
            else:
                self._rename_to_new()
            self.published = True
            folder = os.open(self.path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError as error:
            raise storage_error(shown(str(self.path)), error) from error

    def _rename_to_new(self) -> None:
        """Renames, but never onto a file that came in the meantime: then the partial file is left, as it is whole."""
        try:
            os.link(self.name, self.path)
        except FileExistsError as error:
            self.kept = True
            where, partial = shown(str(self.path)), shown(str(self.name))
            raise OutputError(f"{where}: was made by somebody else meanwhile; this result, complete, is {partial}") from error
        except OSError as error:
            if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            self.name.rename(self.path)  # a file system without hard links
        else:
            self.name.unlink()

    def close(self) -> None:
        """After publish(), or before: then the partial file is removed."""
        if not self.published and not self.kept:
            self.name.unlink(missing_ok=True)
        os.close(self.fd)

    def discard(self) -> None:
        """As close(); and a new file that was published already, as part of a result that failed later, is removed too."""
        if self.published and not self.overwrite:
            self.path.unlink(missing_ok=True)
        self.close()


class Stream:
    """Standard output, written from the start to the end: what is left out between two writes is zeros."""

    def __init__(self) -> None:
        if sys.stdout is None:
            raise StorageError("standard output: is closed")
        self.at = self.size = 0
        sys.stdout.flush()

    def reserve(self, size: int) -> None:
        self.size = size

    def write(self, data: Data, offset: int) -> None:
        zeros = bytes(min(offset - self.at, 1 << 20))
        while self.at < offset:
            self._put(memoryview(zeros)[: offset - self.at])
        self._put(as_bytes(data))

    def _put(self, view: memoryview) -> None:
        try:
            while view:
                count = os.write(1, view)
                view, self.at = view[count:], self.at + count
        except BrokenPipeError:
            raise
        except OSError as error:
            raise storage_error("standard output", error) from error

    def publish(self) -> None:
        self.write(b"", self.size)

    def close(self) -> None:
        pass

    def discard(self) -> None:
        pass


def partial_name(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def as_bytes(data: Data) -> memoryview:
    # A memoryview of an array with a zero in its shape cannot be cast.
    return data.reshape(-1).view(np.uint8).data if isinstance(data, np.ndarray) else memoryview(data)


def check_target(path: Path, overwrite: bool) -> None:
    """OutputError unless `path` can become a new file, or may replace an old one."""
    where = shown(str(path))
    try:
        status = path.lstat()
    except FileNotFoundError:
        if not path.parent.is_dir():
            raise OutputError(f"{where}: its folder does not exist; make it first") from None
        return
    except OSError as error:
        raise OutputError(f"{where}: cannot be created: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise OutputError(f"{where}: expected a new file, got something that is not a plain file; choose another name")
    if not overwrite:
        raise OutputError(f"{where}: exists already; --overwrite replaces it")


def storage_error(where: str, error: OSError) -> LstmcliError:
    return StorageError(f"{where}: writing failed: {error.strerror}")
