"""A run whose sequences are computed by the workers of a Dask cluster, which write them into OUT.partial where they belong.

Tasks carry paths, numbers and the fingerprint; arrays go through the file system that the client and the workers share. The
client lays out the result, notes in OUT.journal what the workers have put on disk, and completes the result. The journal is in
the order of the sequences; what came before its turn is noted when the run stops. So all that holds for a local run holds here:
it may end at any instant, and --resume goes on, with a cluster or without.
"""

import math
import os
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lstmcli.blocks import steps_until
from lstmcli.cluster.dask_connect import connect
from lstmcli.cluster.dask_worker import Place, ask_to_stop, run_rows
from lstmcli.cluster.plan import split
from lstmcli.errors import ClusterError, LstmcliError, StoppedError, UsageError
from lstmcli.files.partial_file import Partial
from lstmcli.inputs.nonfinite import Nonfinite
from lstmcli.results.formats.fields import Field
from lstmcli.results.formats.paths import Paths, check_paths, refuse_inputs
from lstmcli.results.formats.result import Result
from lstmcli.results.journal import StoredSpan, sequences_until
from lstmcli.results.naming import UnpublishedResult, publishing
from lstmcli.run.job import Job
from lstmcli.run.opened_job import OpenedJob, open_job
from lstmcli.run.pipeline import Progress
from lstmcli.run.stop import Stop
from lstmcli.run.summary import describe, measured, metadata_of, with_origins
from lstmcli.version import __version__

if TYPE_CHECKING:
    from distributed import Client, Future

RETRIES = 2  # of a task that could not read or write
AHEAD = 3  # tasks that are submitted at a time for each thread of the workers
FEWEST = 8  # tasks that are submitted in any case, so that a cluster that grows on demand sees some
TASKS = 8  # tasks in all for each thread, so that the threads end at about the same time
SHORTEST, LONGEST = 0.25, 20  # seconds that a task should take: more than its start, and not much to lose
FLOPS, BYTES = 5e10, 5e8  # what a thread does in a second, about
START = 5  # seconds to wait for the first worker before the user is told that there is none
WAIT = 0.2  # seconds between two looks at what may end the run
READ = 16 << 20  # bytes of the input that are read at a time, to see that they are still what was read
ANSWER = 5  # seconds to wait until all workers have heard that they are to stop
PATIENCE = 60  # seconds to wait for running tasks to end, of this client or of an earlier one


def run_on(scheduler: str, job: Job, on_progress: Progress, stop: Stop, note: Callable[[str], None]) -> dict[str, Any]:
    """Runs the job on a Dask cluster. Returns the facts of run(), and which cluster it was.

    The result has the same bytes, and is made as safely. note: called with a text that says what is waited for. Raises
    LstmcliError.
    """
    options = job.resources
    paths = job.paths()
    if paths.main is None or job.inputs.input == "-":
        raise UsageError("--scheduler: the workers open the files themselves; expected files as input and output, got -")
    refuse_inputs(paths, job.files(), job.inputs.follow_links)
    with open_job(job) as opened, connect(scheduler) as client:
        check_paths(paths, options.overwrite, options.resume)
        if opened.source.sequential:
            raise UsageError(f"{opened.source.name}: every worker opens the input, so it cannot be a pipe; give a file")
        with suppress(TimeoutError):
            client.wait_for_workers(1, timeout=START)
        began = time.perf_counter()
        tasks = Tasks(client, opened, paths.main, stop, on_progress)
        with stop.deferred(), tasks:
            if not tasks.threads:
                note(f"no workers at {client.scheduler.address}; waits for some")
            nonfinite = make(opened, paths, tasks)
        seconds = time.perf_counter() - began
        about_cluster = {
            "scheduler": client.scheduler.address,
            "tasks": tasks.count,
            "threads": tasks.threads * (options.threads or 1),
        }
        return describe(opened, paths) | measured(opened, tasks.resumed, nonfinite, seconds) | about_cluster


def make(opened: OpenedJob, paths: Paths, tasks: "Tasks") -> Nonfinite | None:
    """Makes the result. Returns which steps are not finite; None: an earlier run has stored everything."""
    compute, resources = opened.job.compute, opened.job.resources
    arrays = compute.arrays(opened.model, len(opened.lengths), opened.source.shape[1])
    fingerprint = opened.fingerprint()
    made = with_origins(metadata_of(opened), opened.job, fingerprint)
    until = time.monotonic() + PATIENCE

    def wait() -> bool:
        time.sleep(WAIT)
        return not tasks.stop.reason() and time.monotonic() < until

    with publishing(paths, arrays, made, fingerprint, resources.overwrite, resources.resume, wait) as result:
        if not result:
            return None
        nonfinite = tasks.fill(result)
        result.seal(nonfinite if compute.nonfinite != "pass" else None)
    return nonfinite


def cut(opened: OpenedJob, start: int, ahead: list[tuple[int, int]], threads: int) -> list[tuple[int, int]]:
    """Cuts the sequences from `start` on into (first, stop) for tasks with about as many steps each.

    ahead: (first, stop) of those behind them that are done, which stay as they are.
    """
    job, lengths = opened.job, opened.lengths.copy()
    for first, stop in ((0, start), *ahead):
        lengths[first:stop] = 0
    width = opened.source.shape[2] + sum(job.compute.step_widths(opened.model).values())
    step = 2 * opened.model.parameters() / FLOPS / (job.resources.threads or 1) + 4 * width / BYTES
    seconds, threads = int(lengths.sum()) * step, max(1, threads)
    count = max(threads, min(max(TASKS * threads, int(seconds / LONGEST)), int(seconds / SHORTEST)))
    inner = (row for row in split(lengths, count, opened.source.chunk[0]) if row > start)
    cuts = {row for row in inner if not any(first < row < stop for first, stop in ahead)}
    return list(pairwise(sorted(cuts.union((start,), *ahead))))


def places(fields: dict[str, Field], rows: tuple[int, int]) -> dict[str, Place]:
    """Returns where some rows of arrays lie, for the workers."""
    found: dict[str, Place] = {}
    for name, field in fields.items():
        assert isinstance(field.store, Partial)
        inode = os.fstat(field.store.fd).st_ino
        first, stop = rows
        size = math.prod(field.shape[1:]) * field.dtype.itemsize
        shape = (stop - first, *field.shape[1:])
        begins = None if field.begins is None else field.begins[first:stop].tolist()
        place = (str(field.store.path.absolute()), inode, field.offset + first * size, shape, field.dtype.str, begins)
        found[name] = place
    return found


class Tasks:
    """The sequences of a run as tasks of a Dask cluster. When a `with` of it ends, tasks that have not ended are cancelled."""

    def __init__(self, client: "Client", opened: OpenedJob, output: Path, stop: Stop, on_progress: Progress) -> None:
        self.client, self.opened, self.stop, self.on_progress = client, opened, stop, on_progress
        self.name = uuid.uuid4().hex[:8]  # of this client: no task of another client may be taken for its own
        self.total = int(opened.lengths.sum())
        job, self.run = opened.job.with_absolute_names(), opened.fingerprint()
        self.output = str(output.absolute())
        self.job = job._replace(resources=job.resources._replace(threads=job.resources.threads or 1)).content()
        self.threads = self._count_threads()
        self.count = self.ready = self.resumed = 0
        self.waiting: deque[tuple[int, int]] = deque()  # the rows of each task
        self.running: dict[Future, tuple[int, int]] = {}
        self.done: dict[int, list[StoredSpan]] = {}  # by their first sequence; those that are not in the journal's order yet

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.running and self.client.status == "running":
            with suppress(OSError):
                self.client.cancel(list(self.running))

    def fill(self, unpublished: UnpublishedResult) -> Nonfinite:
        """Lets the workers store what is missing. Returns which steps of the whole run are not finite.

        Raises ClusterError, StoppedError, and what a task has met.
        """
        result, lengths, seen, start = unpublished.result, self.opened.lengths, Nonfinite(), 0
        source = self.opened.source
        check_input = partial(self.opened.check_input, limit=max(1, READ // (8 * source.shape[2])))
        if before := unpublished.restored({}, check_input):
            seen, start = before.nonfinite, before.span.first + before.span.count
            self.ready = steps_until(before.span, lengths)
        self.done.update(unpublished.ahead)
        ahead = [(first, sequences_until(spans)) for first, spans in self.done.items()]
        self.ready = self.resumed = self.ready + sum(int(lengths[first:stop].sum()) for first, stop in ahead)
        self.on_progress(self.ready, self.total)
        for store in result.stores:
            assert isinstance(store, Partial)
            store.share()
        try:
            for noted in self._iterate(cut(self.opened, start, ahead, self.threads), result):
                for done in noted:
                    unpublished.record(done._replace(nonfinite=seen + done.nonfinite))
                seen += noted[-1].nonfinite
        except BaseException:
            unpublished.note_ahead([self.done[first] for first in sorted(self.done)])
            raise
        self.opened.finish()
        return seen

    def _iterate(self, parts: list[tuple[int, int]], result: Result) -> Iterator[list[StoredSpan]]:
        """Yields what was stored, in the order of the sequences. After a request to stop, no other task begins."""
        self.waiting.extend(rows for rows in parts if rows[0] not in self.done)
        self.count = len(self.waiting)
        until: float | None = None
        for first, _ in parts:
            while first not in self.done:
                if self.stop.reason() and until is None:
                    until = time.monotonic() + PATIENCE
                    self.waiting.clear()
                    with suppress(OSError):  # a worker that hangs does not answer
                        self.client.run(ask_to_stop, self.name, on_error="ignore", callback_timeout=ANSWER)
                if until and not (self.running and self._count_threads() and time.monotonic() < until):
                    raise StoppedError(f"stopped by {self.stop.reason()} after {self.ready:,} of {self.total:,} steps")
                self._submit(result)
                self._wait()
            yield self.done.pop(first)

    def _submit(self, result: Result) -> None:
        if not self.waiting:
            return
        self.threads = self._count_threads() or self.threads
        while self.waiting and len(self.running) < max(FEWEST, AHEAD * self.threads):
            rows = self.waiting.popleft()
            future = self.client.submit(
                run_rows, self.job, self.run, self.output, rows, places(result.fields, rows),
                places(result.checksums, rows), __version__, self.name,
                key=f"lstm-{self.run['model']}-{self.name}-{rows[0]}", pure=False, retries=RETRIES,
            )  # fmt: skip
            self.running[future] = rows

    def _wait(self) -> None:
        """Waits until a task has ended, but not for long, and takes what those that have ended have stored."""
        from distributed import CancelledError, wait

        # Not add_done_callback(): Dask calls back from another thread, and never where that has no memory to start.
        with suppress(TimeoutError, CancelledError), self.client.as_current():
            wait(list(self.running), timeout=WAIT, return_when="FIRST_COMPLETED")
        for future in [future for future in self.running if future.done()]:
            self._finish(future)

    def _finish(self, future: "Future") -> None:
        from distributed import CancelledError

        first, stop = self.running.pop(future)
        if future.status == "error":
            error = future.exception()
            raise error if isinstance(error, LstmcliError) else ClusterError(explain(error))
        try:
            found = future.result()
        except (CancelledError, OSError) as lost:
            raise self._gone() from lost
        if isinstance(found, LstmcliError):
            raise found
        if found is not None:
            self.done[first] = [behind(StoredSpan.decode(one), first) for one in found]
            steps = int(self.opened.lengths[first:stop].sum())
            self.ready += steps
            self.on_progress(steps, self.total)

    def _count_threads(self) -> int:
        """Returns the number of threads of all workers. Raises ClusterError."""
        try:
            return sum(self.client.nthreads().values())
        except OSError as error:
            raise self._gone() from error

    def _gone(self) -> ClusterError:
        where = self.client.scheduler.address
        return ClusterError(f"the Dask scheduler at {where} is gone, or cannot be reached any more; --resume goes on")


def behind(done: StoredSpan, first: int) -> StoredSpan:
    """Returns a span of a task as one of the whole run; first: the first sequence of the task."""
    found = done.nonfinite._replace(row=first + done.nonfinite.row) if done.nonfinite.steps else done.nonfinite
    return done._replace(span=replace(done.span, first=first + done.span.first), nonfinite=found)


def explain(error: BaseException) -> str:
    """Returns in a line what a worker failed with."""
    if type(error).__name__ == "KilledWorker":
        return "the workers died, one after the other; of too little memory? --max-memory is what each may take"
    return f"a worker failed: {type(error).__name__}: {error}; is the same lstmcli installed there?"
