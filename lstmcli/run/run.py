"""One run: open, plan blocks, read ahead, compute, write behind, publish."""

import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any

import numpy as np

from lstmcli.blocks import Block, Floats, Lengths, Span, State, packed_starts, steps_until
from lstmcli.engine.prepared_model import Forward, kernels_are_cached
from lstmcli.engine.work_split import MAX_LANES
from lstmcli.errors import DataError, StoppedError, UsageError
from lstmcli.files.partial_file import check_left_over, check_target
from lstmcli.inputs.nonfinite import Nonfinite, find_nonfinite
from lstmcli.inputs.source import Source
from lstmcli.results.journal import Done, Journal, Recorder, journal_name
from lstmcli.results.paths import Paths, refuse_inputs, result_paths
from lstmcli.results.publish import complete, open_journal, restore
from lstmcli.results.result import Facts, Result
from lstmcli.run.cutting import Limits, plan
from lstmcli.run.job import Job
from lstmcli.run.opened_job import OpenedJob, open_job
from lstmcli.run.stop import Stop
from lstmcli.run.summary import attributes, describe, step_widths, stored_arrays

Progress = Callable[[int, int], None]  # called with the valid steps done since the last call, and those of the whole run

PROGRAM_BYTES = 100_000_000  # what the program takes before it has read a row: interpreter, libraries, kernel
BLOCK_BYTES = 32_000_000  # larger ones gain nothing: lanes are full, and nothing overlaps the first read and the last store
BLOCK_FLOPS = 50_000_000_000  # per thread: about a second, so that progress shows and an interrupt is soon heeded
SEQUENCE_BYTES = 256  # what is kept for each sequence of a block besides its states: where it lies, how long it is


def run(
    job: Job, on_progress: Progress, stop: Stop | None = None, on_compile: Callable[[], None] = lambda: None
) -> dict[str, Any]:
    """Runs the job and returns its facts, ready for JSON: input, lengths, model, outputs, state, output, seconds, ...

    The result gets its name only when it is complete and on disk. What a run that was stopped or failed has done stays in
    OUT.partial and OUT.journal for another one with `resume`; nothing stays where nothing was done, or the input is bad.
    LstmcliError.
    """
    stop = stop or Stop()
    options = job.resources
    targets = result_paths(*job.output, job.compute.save, job.inputs.input)
    if not (options.resume and targets.main and journal_name(targets.main).exists()):  # else it may be half named already
        for path in targets.all():
            check_target(path, options.overwrite)
    refuse_inputs(targets, job.files())
    with open_job(job) as work:
        facts = describe(work, targets)
        journaled = is_journaled(job, targets, work.source, stop)
        if not options.dry_run:
            dtype = np.dtype(job.compute.dtype)
            if not kernels_are_cached(work.model, dtype):
                on_compile()
            forward = Forward(work.model, dtype, facts["threads"])
            began = time.perf_counter()
            journal = open_journal(targets, work.fingerprint(), options.overwrite, options.resume) if journaled else None
            with stop.deferred() if journal else nullcontext():
                facts |= make(work, targets, forward, journal, stop, on_progress)
            facts["seconds"] = round(time.perf_counter() - began, 6)
            facts["steps_per_second"] = round((facts["valid_steps"] - facts["resumed_steps"]) / facts["seconds"])
        return facts


def make(
    work: OpenedJob, targets: Paths, forward: Forward, journal: Journal | None, stop: Stop, on_progress: Progress
) -> dict[str, Any]:
    """Makes the result, or what is missing of it. The facts that are known only then."""
    job, valid = work.job, work.valid
    resumed = int(valid.lengths.sum())

    def about(found: Nonfinite) -> Facts:
        return Facts(work.model, valid, attributes(job.compute, job.part, work.model, work.about_weights.assumed, found))

    def fill(result: Result) -> Nonfinite:
        nonlocal resumed
        before = restore(journal, result, valid, forward.widths, forward.dtype)
        resumed = steps_until(before.span, valid.lengths) if before else 0
        found = compute(work, forward, result, journal, before, stop, on_progress)
        work.source.finish()
        if work.initial:
            work.initial.finish()
        return found

    arrays = stored_arrays(job.compute, work.model, *work.source.shape[:2])
    found = complete(targets, job.resources.overwrite, journal, arrays, about, fill)
    if found and found.steps:
        found = found._replace(row=work.source.first + found.row)
    return {"resumed_steps": resumed, "nonfinite": found._asdict() if found and job.compute.nonfinite != "pass" else None}


def is_journaled(job: Job, targets: Paths, source: Source, stop: Stop) -> bool:
    """Whether the run can be resumed. UsageError: it cannot, and an option wants that. OutputError: something is in the way."""
    if targets.main is not None and not source.sequential:
        return True
    if not job.resources.overwrite:
        for path in targets.all():
            check_left_over(path)
    if job.resources.resume or stop.after is not None:
        option = "--resume" if job.resources.resume else "--stop-after"
        raise UsageError(f"{option}: a run from or to a pipe cannot be resumed; give files as input and output")
    return False


def compute(
    work: OpenedJob,
    forward: Forward,
    result: Result,
    journal: Recorder | None,
    before: Done | None,
    stop: Stop,
    on_progress: Progress,
) -> Nonfinite:
    """Reads span k + 1 and stores span k - 1 while span k is computed, each in a thread of its own, on two buffers in turn.

    before: the last span that is stored already. What is not finite. StoppedError.
    """
    job, source, lengths = work.job, work.source, work.lengths
    total = int(lengths.sum())
    widths = step_widths(work.model, job.compute.save) | {"outputs": forward.output_size}
    limits = block_limits(job, source, lengths, forward, sum(widths.values()))
    inputs = [np.empty((limits.rows, forward.input_size), forward.dtype) for _ in range(2)]
    kept = [{name: np.empty((limits.rows, width), forward.dtype) for name, width in widths.items()} for _ in range(2)]
    seen = before.nonfinite if before else Nonfinite()
    ready = steps_until(before.span, lengths) if before else 0
    on_progress(ready, total)

    def read(span: Span, buffer: Floats) -> tuple[Block, Nonfinite]:
        starts, steps = span.valid(work.valid)
        block = Block(buffer[: steps.sum()], packed_starts(steps), steps)
        source.read(span.first, starts, steps, block.rows)
        found = find_nonfinite(block.rows, span.first, starts, steps) if job.compute.nonfinite != "pass" else Nonfinite()
        if found.steps and job.compute.nonfinite == "error":
            raise DataError(
                f"{source.name}, sequence {source.first + found.row}, step {found.step}: expected finite values, got NaN or "
                "Inf; --nonfinite warn computes with them"
            )
        return block, found

    def store(span: Span, above: dict[str, Block], state: State, found: Nonfinite) -> None:
        nonlocal seen, ready
        seen += found
        rows = {name: block.rows for name, block in above.items()}
        checksum = result.put(span, work.valid, rows | {f"state/{name}": values for name, values in state.items()})
        if journal:
            journal.record(Done(span, checksum, seen, None if span.last else state), result)
        count = len(rows["outputs"])
        ready += count
        on_progress(count, total)

    state: State = before.state if before and before.state else {}
    storing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        buffers = itertools.cycle(zip(inputs, kept, strict=True))
        spans = plan(lengths, limits, source.chunk, before.span if before else None)
        reading = ((span, *pair, reader.submit(read, span, pair[0])) for span, pair in zip(spans, buffers, strict=False))
        try:
            coming = next(reading, None)
            while coming and not stop.reason():
                span, _, buffer, block_read = coming
                block, found = block_read.result()
                coming = next(reading, None)
                if len(storing) == 2:
                    storing.popleft().result()
                if span.start == 0 and work.initial:
                    state = work.initial.read(source.first + span.first, span.count)
                elif span.start == 0:
                    state = forward.initial_state(span.count)
                above = {name: block.like(rows[: len(block.rows)]) for name, rows in buffer.items()}
                forward(block, above["outputs"], state, above)
                after = state if span.last else {name: rows.copy() for name, rows in state.items()}
                storing.append(writer.submit(store, span, above, after, found))
            for stored in storing:
                stored.result()
        except BaseException:
            source.stop()  # the reader may be waiting for a pipe in which nothing comes
            raise
    if coming:
        if journal:
            journal.flush(result)
        raise StoppedError(f"stopped by {stop.reason()} after {ready:,} of {total:,} steps")
    return seen


def block_limits(job: Job, source: Source, lengths: Lengths, forward: Forward, kept: int) -> Limits:
    """Sizes that keep within --max-memory, and no larger than is of use. UsageError: an uncut sequence does not fit.

    kept: floats that are stored of each step
    """
    size, threads = forward.dtype.itemsize, forward.threads
    chunk_rows = 0 if source.chunk == (1, 1) else source.chunk[0] * source.chunk[1]
    taken = PROGRAM_BYTES + forward.weight_bytes + 2 * chunk_rows * source.shape[2] * source.dtype.itemsize
    limit = job.resources.max_memory
    budget = max(limit - taken, limit // 4)
    per_row = size * (2 * forward.input_size + 2 * kept + sum(forward.scratch_widths.values()))
    per_sequence = 3 * size * sum(forward.widths.values()) + SEQUENCE_BYTES
    total = int(lengths.sum())
    mean = -(-total // max(1, len(lengths)))
    useful = max(BLOCK_BYTES // per_row, 2 * threads * MAX_LANES * mean)
    useful = max(source.chunk[0] * mean, min(useful, BLOCK_FLOPS * threads // forward.flops))
    rows = max(1, min(total, useful, budget * 9 // 10 // per_row))
    whole = source.sequential or job.output.output == "-"  # sequences come and go one after the other
    if not forward.model.causal:
        whole, longest = True, int(lengths.max(initial=0))
        if longest > budget * 9 // 10 // per_row:
            raise UsageError(
                f"--max-memory {limit:,}: the longest sequence has {longest:,} steps, and a model that also runs "
                f"backward needs them all at once; expected {taken + longest * per_row * 10 // 9:,} bytes or more"
            )
        rows = max(rows, longest)
    return Limits(
        rows=rows,
        sequences=max(1, budget // 10 // per_sequence),
        fill=1 if whole else max(2 * forward.rows * threads, source.side_by_side),
    )
