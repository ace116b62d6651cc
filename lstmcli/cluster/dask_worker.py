"""What the workers of a Dask cluster do: they run some of the sequences of a job, and write into the OUT.partial of its client.

Worker and client share a file system. While a worker has OUT.partial open, it holds a shared lock on it, as the client does, so
that no other run can claim the file before the last worker of a dead client is done. Under a lock, NFS sends exactly the bytes
that were written, not the pages around them, which others may be writing.
"""

import fcntl
import os
import signal
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Span, State
from lstmcli.errors import BusyError, ClusterError, DataError, LstmcliError, StorageError, UsageError, shown
from lstmcli.files.partial_file import Partial, partial_name
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.formats.fields import Field
from lstmcli.results.formats.paths import journal_name
from lstmcli.results.formats.result import Result
from lstmcli.results.journal import Fingerprint, StoredSpan, decode_line
from lstmcli.run.computation import Work, computation_of
from lstmcli.run.job import Job, Part
from lstmcli.run.memory import block_limits
from lstmcli.run.opened_job import open_job
from lstmcli.run.pipeline import Pipeline
from lstmcli.run.stop import SIGNALS, Stop
from lstmcli.run.summary import metadata_of
from lstmcli.version import __version__

Place = tuple[str, int, int, tuple[int, ...], str, list[int] | None]  # of rows: OUT, its inode, then as a Field

stopping: set[str] = set()  # the clients that want to stop


def ask_to_stop(client: str) -> None:
    """Keeps the tasks of a client that have not begun from beginning."""
    stopping.add(client)


def run_rows(
    job: dict[str, Any],
    run: Fingerprint,
    output: str,
    rows: tuple[int, int],
    fields: dict[str, Place],
    sums: dict[str, Place],
    version: str,
    client: str,
) -> list[list[Any]] | LstmcliError | None:
    """Computes and stores the sequences rows[0] .. rows[1]. Returns what the client's journal is to note, once all is on disk.

    Returns None if the client wants to stop. An error that another try would meet again is returned; others are raised.
    """
    from distributed import get_worker

    os.environ.setdefault("HDF5_PLUGIN_PRELOAD", "::")  # as the command does
    where = f"worker {get_worker().address}"
    if version != __version__:
        return ClusterError(f"{where}: has lstmcli {__version__}, and the client has {version}; install the same one")
    if client in stopping:
        return None
    try:
        return store_rows(Job.from_content(job)._replace(part=Part(*rows, run)), Path(output), fields, sums)
    except StorageError:
        raise
    except (DataError, UsageError) as error:
        return error
    except LstmcliError as error:
        return type(error)(f"{where}: {error}; workers must see the files that the client sees, under the same names")


def store_rows(job: Job, output: Path, fields: dict[str, Place], checksums: dict[str, Place]) -> list[list[Any]]:
    """Runs a part of a job whose arrays lie in files of the client. Returns what the client's journal is to note, for JSON.

    output: what the client makes of these files, and calls its journal after
    """
    assert job.part
    run = job.part.run
    stores: dict[str, SharedPartial] = {}

    def rows_of(place: Place) -> Field:
        """Returns the rows of this part."""
        path, inode, offset, shape, dtype, begins = place
        if path not in stores:
            stores[path] = SharedPartial(Path(path), inode)
        own = None if begins is None else np.array(begins, np.int64)
        return Field(stores[path], offset, shape, np.dtype(dtype), own)

    try:
        own_fields = {name: rows_of(place) for name, place in fields.items()}
        own_checksums = {name: rows_of(place) for name, place in checksums.items()}
        check_run(output, run)
        with open_job(job) as opened:
            work = Work(int(opened.lengths.sum()), job.resources.max_memory)
            computation = computation_of(opened.model, job.compute, job.resources.threads or 1, work)
            limits = block_limits(computation, opened.source, opened.lengths, job.resources.max_memory, streams=False)
            result = Result(list(stores.values()), own_fields, own_checksums, metadata_of(opened).placed)
            with closing(WorkersResult(result)) as sink:
                Pipeline(opened, computation, limits, sink, Stop(), lambda steps, total: None).run()
                opened.finish()
                sink.flush()
    finally:
        for store in stores.values():
            store.close()
    return [stored._replace(state=None).encode() for stored in sink.stored]


def check_run(output: Path, run: Fingerprint) -> None:
    """Raises BusyError if another run has taken the output since, and ClusterError if the client's journal is not there."""
    name = journal_name(output)
    try:
        with name.open("rb") as journal:
            found = decode_line(journal.readline())["run"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ClusterError(f"{shown(str(name))}: cannot be read: {error}") from error
    if found != run:
        raise BusyError(f"{shown(str(output))}: another run is writing it")


class WorkersResult:
    """A part of a result whose journal the client keeps. What is stored goes to disk while more is computed."""

    def __init__(self, result: Result) -> None:
        self.result = result
        self.stored: list[StoredSpan] = []
        self.thread = ThreadPoolExecutor(1)
        self.syncing: Future[None] | None = None

    def store(self, span: Span, arrays: dict[str, NDArray[Any]], nonfinite: Nonfinite, state: State | None, read: int) -> None:
        """Stores a span, as UnpublishedResult.store()."""
        self.stored.append(StoredSpan(span, self.result.put(span, arrays), nonfinite, state, read))
        if self.syncing and self.syncing.done():
            self.syncing.result()
            self.syncing = None
        if not self.syncing:
            self.syncing = self.thread.submit(self.result.start_sync)

    def flush(self) -> None:
        """Puts all on disk that was stored. Raises StorageError."""
        if self.syncing:
            self.syncing.result()
        self.result.sync()

    def close(self) -> None:
        self.thread.shutdown()


class SharedPartial(Partial):
    """The OUT.partial of a client, for some of its bytes."""

    def __init__(self, path: Path, inode: int) -> None:
        """Raises ClusterError if it is not the file that the client sees, and BusyError if another run has claimed it."""
        self.path, self.name = path, partial_name(path)
        flags = os.O_CLOEXEC | os.O_NOFOLLOW
        with ExitStack() as undo:  # a worker outlives its tasks: a lock that stayed would keep every other run out
            try:
                self.lock = os.open(self.name, os.O_RDONLY | flags)
                undo.callback(os.close, self.lock)
                # Not for reading: NFS would read the pages, and write them whole.
                self.fd = os.open(self.name, os.O_WRONLY | flags)
                undo.callback(os.close, self.fd)
            except OSError as error:
                raise ClusterError(f"{shown(str(self.name))}: {error.strerror}") from error
            try:
                fcntl.flock(self.lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise BusyError(f"{shown(str(path))}: another run is writing it") from error
            except OSError as error:
                raise ClusterError(
                    f"{shown(str(self.name))}: the file system gives no lock ({error.strerror}), without which two machines "
                    "cannot write one file; use lstmcli plan and merge"
                ) from error
            if os.fstat(self.fd).st_ino != inode:
                raise ClusterError(f"{shown(str(self.name))}: is another file there than here")
            undo.pop_all()

    def close(self) -> None:
        os.close(self.fd)
        os.close(self.lock)


def dask_setup(worker: Any) -> None:
    """Lets workers on the client's terminal ignore the signals that are for the client. Dask calls it when a worker starts."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
