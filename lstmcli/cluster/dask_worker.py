"""What runs in the workers of a Dask cluster: some of the sequences of a run, written into the one OUT.partial of its client.

Worker and client share a file system. While a worker has OUT.partial open it holds a shared lock on it, as the client does: so
no other run can claim the file before the last worker of a dead client is done. With a lock NFS sends the very bytes that
were written, not the pages around them, which others may be writing.
"""

import fcntl
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli.engine.prepared_model import Forward
from lstmcli.errors import BusyError, ClusterError, DataError, LstmcliError, StorageError, UsageError, shown
from lstmcli.files.partial_file import Partial, partial_name
from lstmcli.results.journal import Done, Fingerprint, Synced, decode_line, journal_name
from lstmcli.results.result import Field, Result
from lstmcli.run.job import Job, Part
from lstmcli.run.opened_job import open_job
from lstmcli.run.run import compute
from lstmcli.run.stop import SIGNALS, Stop
from lstmcli.version import __version__

Place = tuple[str, int, int, tuple[int, ...], str]  # of an array: OUT, its inode, offset, shape, dtype

stopping: set[str] = set()  # the clients that asked for it


def ask_to_stop(client: str) -> None:
    """Its tasks that have not begun shall not."""
    stopping.add(client)


def run_rows(
    job: dict[str, Any],
    run: Fingerprint,
    rows: tuple[int, int],
    fields: dict[str, Place],
    sums: dict[str, Place],
    version: str,
    client: str,
) -> list[list[Any]] | LstmcliError | None:
    """Computes and stores the sequences rows[0] .. rows[1]; what the journal shall note of them once they are on disk.

    None: the client wants to stop. An error that is returned is one that another try would only meet again.
    """
    from distributed import get_worker

    os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")  # as the command does
    where = f"worker {get_worker().address}"
    if version != __version__:
        return ClusterError(f"{where}: has lstmcli {__version__}, and the client has {version}; install the same one")
    if client in stopping:
        return None
    try:
        return store_rows(Job.from_content(job)._replace(part=Part(*rows, run)), fields, sums)
    except StorageError:
        raise
    except (DataError, UsageError) as error:
        return error
    except LstmcliError as error:
        return type(error)(f"{where}: {error}; workers must see the files that the client sees, under the same names")


def store_rows(job: Job, fields: dict[str, Place], sums: dict[str, Place]) -> list[list[Any]]:
    assert job.part
    first, stop, run = job.part
    stores: dict[str, Shared] = {}
    noted = Noted()

    def here(place: Place) -> Field:
        path, inode, offset, shape, dtype = place
        if path not in stores:
            stores[path] = Shared(Path(path), inode)
        size = int(np.prod(shape[1:])) * np.dtype(dtype).itemsize
        return Field(stores[path], offset + first * size, (stop - first, *shape[1:]), np.dtype(dtype))

    try:
        own = {name: here(place) for name, place in fields.items()}
        own_sums = {name: here(place) for name, place in sums.items()}
        check_run(Path(next(iter(fields.values()))[0]), run)
        result = Result(own, list(stores.values()), lambda facts: None, True, own_sums, {})
        with open_job(job) as work:
            forward = Forward(work.model, np.dtype(job.compute.dtype), job.resources.threads or 1)
            compute(work, forward, result, noted, None, Stop(), lambda steps, total: None)
            work.source.finish()
            if work.initial:
                work.initial.finish()
        noted.flush(result)
    finally:
        noted.thread.shutdown()
        for store in stores.values():
            store.close()
    return [done._replace(state=None).encode() for done in noted.done]


def check_run(output: Path, run: Fingerprint) -> None:
    """BusyError: another run has taken the output since. ClusterError: the client's journal is not there."""
    name = journal_name(output)
    try:
        with name.open("rb") as journal:
            found = decode_line(journal.readline())["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{shown(str(name))}: cannot be read: {error}") from error
    if found != run:
        raise BusyError(f"{shown(str(output))}: another run is writing it")


class Noted:
    """In the place of a journal, which is the client's. What is stored goes to disk while more is computed."""

    def __init__(self) -> None:
        self.done: list[Done] = []
        self.thread = ThreadPoolExecutor(1)
        self.syncing: Future[None] | None = None

    def record(self, done: Done, result: Synced) -> None:
        self.done.append(done)
        if self.syncing and self.syncing.done():
            self.syncing.result()
            self.syncing = None
        if not self.syncing:
            self.syncing = self.thread.submit(result.start_sync)

    def flush(self, result: Synced) -> None:
        """All that was recorded is on disk. StorageError."""
        if self.syncing:
            self.syncing.result()
        result.sync()


class Shared(Partial):
    """Some bytes of OUT.partial, which is a client's."""

    def __init__(self, path: Path, inode: int) -> None:
        """ClusterError: it is not the file that the client sees. BusyError: another run has claimed it."""
        self.path, self.name = path, partial_name(path)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        try:
            self.lock = os.open(self.name, os.O_RDONLY | flags)
            self.fd = os.open(self.name, os.O_WRONLY | flags)  # not for reading: NFS would read the pages, and write them whole
            fcntl.flock(self.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BusyError(f"{shown(str(path))}: another run is writing it") from error
        except OSError as error:
            raise ClusterError(f"{shown(str(self.name))}: {error.strerror}") from error
        if os.fstat(self.fd).st_ino != inode:
            raise ClusterError(f"{shown(str(self.name))}: is another file there than here")

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.lock)


def dask_setup(worker: Any) -> None:
    """Of workers on the client's terminal, where all get the signals that are for the client."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
