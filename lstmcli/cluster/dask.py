"""A run whose parts are made by the workers of a Dask cluster, and joined here while others are being made.

Tasks carry a path, numbers and a checksum; arrays go through the file system that the client and the workers share. OUT.parts
holds a plan and its parts until OUT is complete: whatever ends a client, a worker or the scheduler, --resume goes on from there.
"""

import queue
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lstmcli import __version__
from lstmcli.cluster.connection import connect
from lstmcli.cluster.merge import Joined, Progress, Stored, join, stored
from lstmcli.cluster.plan import Plan, plan_of, read_plan, write_plan
from lstmcli.cluster.worker import ask_to_stop, make_part
from lstmcli.complete import open_journal
from lstmcli.errors import (
    ClusterError,
    DataError,
    LstmcliError,
    MissingInputError,
    OutputError,
    StoppedError,
    StorageError,
    UsageError,
    shown,
)
from lstmcli.job import Job, Work, describe, open_work, refuse_inputs, step_widths, targets_of
from lstmcli.journal import differing, journal_name
from lstmcli.partial import check_target
from lstmcli.stop import Stop

if TYPE_CHECKING:
    from distributed import Client, Future

RETRIES = 2  # of a part that could not be read or written
AHEAD = 3  # tasks in flight for each thread of the workers
FEWEST = 8  # in flight, so that a cluster that grows on demand sees some
PARTS = 8  # for each thread, so that all end at about the same time
SHORTEST, LONGEST = 0.25, 60  # seconds that a part should take: more than its start takes, and not much to lose
FLOPS, BYTES = 5e10, 5e8  # in a second, about
WAIT = 0.2  # seconds between two looks at what may end the run
PATIENCE = 60  # seconds for running tasks to stop in order, and for a network file system to show what a worker made


def run_on(scheduler: str, job: Job, on_progress: Progress, stop: Stop, note: Callable[[str], None]) -> dict[str, Any]:
    """Runs the job on a Dask cluster; the facts of run(), and which cluster it was.

    The same bytes, made as safely. note: is told in words what it waits for. LstmcliError.
    """
    targets = targets_of(job)
    if targets.main is None or job.input == "-":
        raise UsageError("--scheduler: the workers open the files themselves; expected files as input and output, got -")
    if not (job.resume and journal_name(targets.main).exists()):
        for path in targets.all():
            check_target(path, job.overwrite)
    refuse_inputs(targets, (job.input, job.lens, job.weights, job.initial_state))
    with open_work(job) as work, connect(scheduler) as client:
        began = time.perf_counter()
        journal = open_journal(targets, work.fingerprint() | {"scheduler": True}, job.overwrite, job.resume)
        try:
            plan = claim_plan(work, targets.main.with_name(f"{targets.main.name}.parts"), count_threads(client))
        except BaseException:
            journal.close()
            raise
        tasks = Tasks(client, plan, work, stop, on_progress, note)
        whole = Joined(plan, tasks, work.model, work.lengths, tasks.give_up)
        try:
            with stop.deferred(), tasks:
                found = join(whole, targets, job.overwrite, journal, stop, lambda steps, total: None)
        except LstmcliError as error:
            raise left(plan, error, tasks) from error
        clear(plan.path.parent)
        seconds = time.perf_counter() - began
        return describe(work, targets) | {
            "scheduler": client.scheduler.address,
            "parts": len(plan),
            "threads": count_threads(client) * (job.threads or 1),
            "resumed_steps": tasks.resumed,
            "nonfinite": found._asdict() if found and job.nonfinite != "pass" else None,
            "seconds": round(seconds, 6),
            "steps_per_second": round((tasks.total - tasks.resumed) / seconds),
        }


def claim_plan(work: Work, folder: Path, threads: int) -> Plan:
    """What an earlier client has left, or a new plan. DataError: it belongs to another run. OutputError: it is not wanted."""
    path, where = folder / "plan.json", shown(str(folder))
    if work.job.resume and path.exists():
        plan = read_plan(str(path))
        if differences := differing(plan.run, plan_of(work, 1, path).run):
            raise DataError(
                f"{where}: belongs to another run than this one; {'; '.join(differences)}; run as before, or start again "
                "with --overwrite"
            )
        return plan
    if folder.exists():
        if not (work.job.overwrite or work.job.resume):
            raise OutputError(f"{where}: is left from a run that was stopped; --resume goes on, --overwrite starts again")
        clear(folder)
    try:
        folder.mkdir()
    except OSError as error:
        raise OutputError(f"{where}: cannot be created: {error.strerror}") from error
    plan = plan_of(work, count_parts(work, threads), path)
    write_plan(plan, overwrite=False)
    return plan


def count_parts(work: Work, threads: int) -> int:
    job, steps = work.job, int(work.lengths.sum())
    width = work.source.shape[2] + sum(step_widths(work.model, job.save).values())
    step = 2 * work.model.parameters() / FLOPS / (job.threads or 1) + 4 * width / BYTES
    threads = max(1, threads)
    return max(threads, min(max(PARTS * threads, int(steps * step / LONGEST)), int(steps * step / SHORTEST)))


def count_threads(client: "Client") -> int:
    """Of all workers. ClusterError."""
    try:
        return sum(client.nthreads().values())
    except OSError as error:
        raise gone(client) from error


def gone(client: "Client") -> ClusterError:
    return ClusterError(f"the Dask scheduler at {client.scheduler.address} is gone, or cannot be reached any more")


def left(plan: Plan, error: LstmcliError, tasks: "Tasks") -> LstmcliError:
    """Removes what nobody can go on with; the error, with the way to go on where there is one."""
    if isinstance(error, DataError | UsageError) or not any(plan.folder().iterdir()):
        clear(plan.path.parent)
        return error
    if isinstance(error, StoppedError):
        return StoppedError(f"stopped by {tasks.stop.reason()} after {tasks.ready:,} of {tasks.total:,} steps")
    return error if "--resume" in str(error) else type(error)(f"{error}; --resume goes on from what was done")


def clear(folder: Path) -> None:
    """Removes a plan and its parts, and nothing else. OutputError: something else is there."""
    try:
        for path in (*folder.glob("plan.parts/part-*"), *folder.glob("plan.json*")):
            path.unlink()
        for empty in (folder / "plan.parts", folder):
            with suppress(FileNotFoundError):
                empty.rmdir()
    except OSError as error:
        raise OutputError(f"{shown(str(folder))}: cannot be removed: {error.strerror}; look at what is in it") from error


class Tasks:
    """The parts of a plan, as they are made. Iterated by one thread; left with an error, it stops the workers in order."""

    def __init__(
        self, client: "Client", plan: Plan, work: Work, stop: Stop, on_progress: Progress, note: Callable[[str], None]
    ) -> None:
        """Parts that are there already are taken, and others removed from their places."""
        self.client, self.plan, self.model, self.stop, self.on_progress = client, plan, work.model, stop, on_progress
        self.note: Callable[[str], None] | None = note
        self.settings = {"threads": work.job.threads or 1, "max_memory": work.job.max_memory, "resume": True}
        self.name = uuid.uuid4().hex[:8]  # of this client, so that no task of another one, stopped or not, is taken for its own
        self.ready, self.total = 0, int(work.lengths.sum())
        self.done: dict[int, Stored] = {}
        self.running: dict[Future, int] = {}
        self.ended: queue.SimpleQueue[Future] = queue.SimpleQueue()
        self.given_up = False
        for number in plan.numbers:
            with suppress(MissingInputError):
                try:
                    self._take(number)
                except DataError:
                    plan.part_path(number).unlink()
        self.resumed = self.ready
        self.waiting = deque(number for number in plan.numbers if number not in self.done)

    def __enter__(self) -> None:
        self.on_progress(self.ready, self.total)

    def __iter__(self) -> Iterator[Stored]:
        """ClusterError, StoppedError, and what a task has met."""
        for number in self.plan.numbers:
            while number not in self.done:
                if self.given_up or self.stop.reason():
                    raise StoppedError("stopped")
                self._submit()
                with suppress(queue.Empty):
                    self._finish(self.ended.get(timeout=WAIT))
            yield self.done[number]

    def give_up(self) -> None:
        """Ends the iteration, which may be waiting in another thread."""
        self.given_up = True

    def _submit(self) -> None:
        threads = count_threads(self.client)
        if not threads and self.note:
            self.note(f"no workers at {self.client.scheduler.address}; waits for some")
            self.note = None
        while self.waiting and len(self.running) < max(FEWEST, AHEAD * threads):
            number = self.waiting.popleft()
            checksum = self.plan.checksum
            future = self.client.submit(
                *(make_part, str(self.plan.path), checksum, number, self.settings, __version__, self.name),
                key=f"lstm-{checksum}-{self.name}-{number}",
                pure=False,
                retries=RETRIES,
            )
            self.running[future] = number
            future.add_done_callback(self.ended.put)

    def _finish(self, future: "Future") -> None:
        number = self.running.pop(future)
        if future.status == "finished":
            if error := future.result():
                raise error
            self._take_late(number)
        elif future.status == "error":
            error = future.exception()
            raise error if isinstance(error, LstmcliError) else ClusterError(f"part {number}: {explain(error)}")
        else:
            raise gone(self.client)

    def _take_late(self, number: int) -> None:
        until = time.monotonic() + PATIENCE
        while True:
            try:
                self._take(number)
                return
            except MissingInputError:
                if self.given_up or time.monotonic() > until:
                    raise
            time.sleep(WAIT)

    def _take(self, number: int) -> None:
        part, _ = stored(self.plan, number, self.model)
        self.done[number] = part
        steps = int(part.lengths.sum())
        self.ready += steps
        self.on_progress(steps, self.total)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Running tasks stop in order, as a run does; those that have not begun end at once."""
        if not self.running or self.client.status != "running":
            return
        with suppress(OSError):
            self.client.run(ask_to_stop, self.name, on_error="ignore")
        until = time.monotonic() + PATIENCE
        while self.running and time.monotonic() < until:
            with suppress(queue.Empty, LstmcliError):
                self._finish(self.ended.get(timeout=WAIT))
        with suppress(OSError):
            self.client.cancel(list(self.running))


def explain(error: BaseException) -> str:
    """What a worker failed with, in a line."""
    if type(error).__name__ == "KilledWorker":
        return "the workers that made it died, one after the other; of too little memory? --max-memory is what each may take"
    return f"failed in a worker: {type(error).__name__}: {error}; is the same lstmcli installed there?"
