"""A file that is filled by position under the name OUT.partial, and gets its own name only when it is whole and on disk."""

import ctypes
import errno
import fcntl
import itertools
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lstmcli.errors import BusyError, OutputError, StorageError, shown
from lstmcli.files.positioned_file import Data, as_bytes, read_at, storing, sync_data, write_at

START_WRITING = 2  # SYNC_FILE_RANGE_WRITE


class Partial:
    """Owns OUT.partial, locked against other runs, until it is published as OUT, discarded, or left for a later run."""

    def __init__(self, path: Path, overwrite: bool, resume: bool = False) -> None:
        """Opens and claims OUT.partial; resume: keeps what an earlier run left in it.

        Raises OutputError where OUT is there and may not be replaced, another run has OUT.partial, or it cannot be created.
        """
        self.path, self.overwrite = path, overwrite
        self.name = partial_name(path)
        self.published = self.kept = False
        check_target(path, overwrite)
        self.fd = claim(self.name, path)
        try:
            if not resume:
                with storing(path):
                    os.ftruncate(self.fd, 0)
        except BaseException:
            os.close(self.fd)
            raise

    def reserve(self, size: int) -> None:
        """Makes the file `size` bytes, zeros where nothing was written, and takes their space. Raises StorageError."""
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

    def share(self) -> None:
        """Lets others lock it too who write parts of it. Another run cannot claim it before the last of them is done."""
        with suppress(OSError):  # a file system without locks
            fcntl.flock(self.fd, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def write(self, data: Data, offset: int) -> None:
        """Writes all of `data` at `offset`. Raises StorageError."""
        with storing(self.path):
            write_at(self.fd, as_bytes(data), offset)

    def take(self, offset: int, count: int) -> bytes:
        """Returns the `count` bytes that lie at `offset` now. Raises StorageError."""
        taken, name = bytearray(count), shown(str(self.name))
        if (got := read_at(self.fd, memoryview(taken), offset, name)) < count:
            raise StorageError(f"{name}: was cut by another program at byte {offset + got}")
        return bytes(taken)

    def has_data(self, offset: int, count: int) -> bool:
        """Says whether any of the `count` bytes at `offset` was ever written, as far as the file system knows."""
        try:
            return os.lseek(self.fd, offset, os.SEEK_DATA) < offset + count
        except OSError as error:
            return error.errno != errno.ENXIO  # nothing but a hole up to the end

    def start_sync(self) -> None:
        """Lets the system begin to put on disk what was written, so that sync() waits for less; failures show there."""
        if start := getattr(ctypes.CDLL(None), "sync_file_range", None):  # Linux
            start(self.fd, ctypes.c_int64(0), ctypes.c_int64(0), START_WRITING)

    def sync(self) -> None:
        """Puts all on disk that was written until now. After a failure nobody knows what is there: never try again."""
        with storing(self.path):
            sync_data(self.fd)

    def seal(self) -> None:
        """Puts the whole file on disk, with its size and all. Raises StorageError."""
        with storing(self.path):
            os.fsync(self.fd)
            os.close(os.dup(self.fd))  # network file systems report some failures only here

    def publish(self) -> None:
        """Gives the file its name, after seal(), and puts the name on disk. Raises StorageError, OutputError."""
        try:
            if self.overwrite:
                self.name.replace(self.path)
            else:
                self._rename_to_new()
            self.published = True
            sync_folder(self.path.parent)
        except OSError as error:
            self.kept = True
            where = self.path if self.published else self.name
            raise StorageError(
                f"{shown(str(self.path))}: naming it failed: {error.strerror}; the result is complete in {shown(str(where))}"
            ) from error

    def _rename_to_new(self) -> None:
        """Renames, but never onto a file that came in the meantime: then the partial file, which is whole, is left."""
        try:
            os.link(self.name, self.path)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
                raise
            if os.path.lexists(self.path):
                self.kept = True
                where, partial = shown(str(self.path)), shown(str(self.name))
                raise OutputError(
                    f"{where}: was made by somebody else meanwhile; this result, complete, is {partial}"
                ) from error
            self.name.rename(self.path)  # a file system without hard links
        else:
            self.name.unlink(missing_ok=True)

    def close(self) -> None:
        """Ends the lock. OUT.partial stays where it was not published."""
        with storing(self.path):
            os.close(self.fd)

    def discard(self) -> None:
        """Removes OUT.partial, or the new file if it was published already as part of a result that failed later.

        One that is complete, and whose name alone could not be given or put on disk, stays.
        """
        with suppress(OSError):  # comes after another failure, which says more
            if not self.published and not self.kept:
                self.name.unlink(missing_ok=True)
            if self.published and not self.kept and not self.overwrite:
                self.path.unlink(missing_ok=True)
            os.close(self.fd)


def write_whole(path: Path, pieces: Sequence[Data], overwrite: bool) -> None:
    """Writes a file of pieces that lie one after the other, whole or not at all. Raises OutputError, StorageError."""
    partial = Partial(path, overwrite, resume=True)  # what a killed command may have left is written over
    views = [as_bytes(piece) for piece in pieces]
    ends = list(itertools.accumulate(map(len, views)))
    try:
        partial.reserve(ends[-1])
        for view, end in zip(views, ends, strict=True):
            partial.write(view, end - len(view))
        partial.seal()
        partial.publish()
        partial.close()
    except BaseException:
        partial.discard()
        raise


def claim(name: Path, owner: Path) -> int:
    """Opens and locks a file of a run on `owner`, made when missing. A lock, unlike a lock file, ends with its process."""
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK, 0o666)
    except OSError as error:
        raise OutputError(f"{shown(str(name))}: cannot be created: {error.strerror}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{shown(str(owner))}: another run is writing it; wait, or choose another --output") from error
        except OSError:
            pass  # a file system without locks
        status = os.fstat(fd)
        if status.st_nlink == 2 and is_named(owner, status):  # it has its name: its command was killed before this one went
            name.unlink()
            os.close(fd)
            return claim(name, owner)
        if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1 or not is_named(name, status):
            raise OutputError(f"{shown(str(name))}: in use or not a plain file; remove it, or choose another --output")
    except BaseException:
        os.close(fd)
        raise
    return fd


def is_named(name: Path, status: os.stat_result) -> bool:
    """Says whether `name` still leads to the file that was opened."""
    try:
        return os.path.samestat(name.lstat(), status)
    except FileNotFoundError:
        return False


def check_left_over(path: Path, journal: Path | None = None) -> None:
    """Raises OutputError where OUT.partial holds what a command that was stopped has left; to go on it needs its journal."""
    name = partial_name(path)
    with suppress(OSError):  # a name that is too long is refused where it is made
        if name.lstat().st_size:
            resumable = journal is not None and journal.exists() and journal.stat().st_size
            what, way_on = ("run", "--resume goes on with it, ") if resumable else ("command", "")
            raise OutputError(f"{shown(str(name))}: is left from a {what} that was stopped; {way_on}--overwrite starts again")


def sync_folder(folder: Path) -> None:
    """Puts the names in a folder on disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def absolute_path(path: Path) -> Path:
    """Returns the path from the root on. Raises OutputError in a folder that was deleted, where no file can be named."""
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise OutputError(f"{shown(str(path))}: the working folder was deleted; go to another one") from error


def partial_name(path: Path) -> Path:
    return path.with_name(path.name + ".partial")


def check_target(path: Path, overwrite: bool) -> None:
    """Raises OutputError unless `path` can become a new file, or may replace an old one."""
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
