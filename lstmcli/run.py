"""One run: open, plan blocks, read ahead, compute, write behind, publish."""

import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from lstmcli import __version__
from lstmcli.arrays import Lengths, Source
from lstmcli.blocks import Block, packed_starts
from lstmcli.errors import DataError, LstmcliError, StoppedError, StorageError, UsageError
from lstmcli.forward import Forward, kernels_are_cached
from lstmcli.job import (
    UNMARKED,
    Job,
    attributes,
    describe,
    read_model,
    refuse_inputs,
    step_widths,
    stored_arrays,
    targets_of,
)
from lstmcli.journal import Done, Journal, journal_name
from lstmcli.layer import MAX_LANES
from lstmcli.lengths import read_lengths
from lstmcli.model import Floats, Model, State
from lstmcli.nonfinite import Nonfinite, find_nonfinite
from lstmcli.partial import Partial, check_left_over, check_target, partial_name
from lstmcli.results import Facts, Paths, Result, create_result
from lstmcli.sources import open_source
from lstmcli.spans import Limits, Span, plan, steps_until
from lstmcli.states import States, open_states
from lstmcli.stop import Stop
from lstmcli.verify import verify

Progress = Callable[[int, int], None]  # called with the valid steps done since the last call, and those of the whole run

PROGRAM_BYTES = 100_000_000  # what the program takes before it has read a row: interpreter, libraries, kernel
BLOCK_BYTES = 64_000_000  # larger blocks gain nothing: lanes are full, and reading and writing already overlap the work
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
    targets = targets_of(job)
    if not (job.resume and targets.main and journal_name(targets.main).exists()):  # else it may be half named already
        for path in targets.all():
            check_target(path, job.overwrite)
    with ExitStack() as opened:
        source = opened.enter_context(closing(open_source(job.input, job.time_major, job.follow_links)))
        refuse_inputs(targets, job)
        lengths, origin = read_lengths(job.lens, source, job.follow_links)
        model, notes = read_model(job, source)
        initial = None
        if job.initial_state is not None:
            states = open_states(job.initial_state, model.state_widths(), source.shape[0], np.dtype(job.dtype))
            initial = opened.enter_context(closing(states))
        if job.rows:
            lengths = lengths[slice(*job.rows)]
            source.restrict(*job.rows)
        facts = describe(job, targets, source, lengths, origin, model, initial) | {"notes": list(notes)}
        journaled = is_journaled(job, targets, source, stop)
        if not job.dry_run:
            if not kernels_are_cached(model, np.dtype(job.dtype)):
                on_compile()
            forward = Forward(model, np.dtype(job.dtype), facts["threads"])
            began = time.perf_counter()
            work = Work(job, targets, source, lengths, initial, model, forward)
            journal = open_journal(work) if journaled else None
            with stop.deferred() if journal else nullcontext():
                facts |= complete(work, journal, stop, on_progress)
            facts["seconds"] = round(time.perf_counter() - began, 6)
            facts["steps_per_second"] = round((facts["valid_steps"] - facts["resumed_steps"]) / facts["seconds"])
        return facts


@dataclass(frozen=True)
class Work:
    """A job with all that it reads opened and checked."""

    job: Job
    targets: Paths
    source: Source
    lengths: Lengths  # (N,) of the sequences of this run
    initial: States | None
    model: Model
    forward: Forward


def complete(work: Work, journal: Journal | None, stop: Stop, on_progress: Progress) -> dict[str, Any]:
    """Makes the result, or what is missing of it. The facts that are known only then."""
    job, targets, source, lengths = work.job, work.targets, work.source, work.lengths
    if journal and journal.sealed:
        name_sealed(targets, job.overwrite)
        journal.remove()
        return {"resumed_steps": int(lengths.sum())}
    resumes = bool(journal and journal.done)
    arrays, about = stored_arrays(job, work.model, source), Facts(work.model, lengths, attributes(job, work.model, Nonfinite()))
    result: Result | None = None
    try:
        if journal:
            journal.begin()
        result = create_result(targets, arrays, about, job.overwrite, resumes)
        before = restore(journal, result, lengths, work.forward) if journal else None
        found, resumed = compute(work, result, journal, before, stop, on_progress)
        source.finish()
        if work.initial:
            work.initial.finish()
        result.seal(replace(about, attributes=attributes(job, work.model, found)))
        if journal:
            journal.seal()
        result.publish()
    except BaseException as error:
        if leave(result, journal, error) and isinstance(error, StorageError):
            raise StorageError(f"{error}; --resume goes on from what was done") from error
        raise
    if journal:
        journal.remove()
    result.close()
    return {"resumed_steps": resumed, "nonfinite": found._asdict() if job.nonfinite != "pass" else None}


def leave(result: Result | None, journal: Journal | None, error: BaseException) -> bool:
    """Whether what was done stays for --resume: if anything was, and if it can be of use."""
    useless = isinstance(error, DataError | UsageError)  # the input, or the options, will be others
    if journal and result and not useless and not journal.sealed:
        with suppress(LstmcliError):
            journal.flush(result)
    if journal and (journal.done or journal.sealed) and not useless:
        if result:
            result.close()
        journal.close()
        return True
    if result:
        result.discard()
    if journal:
        journal.remove()
    return False


def name_sealed(targets: Paths, overwrite: bool) -> None:
    """An earlier run was stopped while it gave its files, complete and on disk, their names."""
    for path in reversed(targets.all()):
        name = partial_name(path)
        if not name.exists():
            continue  # it has its name
        if path.exists() and path.samefile(name):
            name.unlink()
            continue
        verify(str(name))
        partial = Partial(path, overwrite, resume=True)
        partial.publish()
        partial.close()


def is_journaled(job: Job, targets: Paths, source: Source, stop: Stop) -> bool:
    """Whether the run can be resumed. UsageError: it cannot, and an option wants that. OutputError: something is in the way."""
    if targets.main is not None and not source.sequential:
        return True
    if not job.overwrite:
        for path in targets.all():
            check_left_over(path)
    if job.resume or stop.after is not None:
        option = "--resume" if job.resume else "--stop-after"
        raise UsageError(f"{option}: a run from or to a pipe cannot be resumed; give files as input and output")
    return False


def open_journal(work: Work) -> Journal:
    """Claims the output for this run. DataError: what is there belongs to another run. OutputError: it may not be resumed."""
    job, targets, source = work.job, work.targets, work.source
    assert targets.main
    marked = {name: value for name, value in asdict(job).items() if name not in UNMARKED}
    weights = hashlib.sha256(json.dumps(work.model.config()).encode())
    for _, cell in work.model.cells():
        for weight in cell.weights().values():
            weights.update(weight.tobytes())
    fingerprint = {
        "lstmcli": __version__,
        "input": {"shape": list(source.shape), "dtype": source.dtype.str} | source.identity(),
        "lengths": hashlib.sha256(work.lengths.tobytes()).hexdigest()[:16],
        "model": weights.hexdigest()[:16],
        "options": marked | {"save": sorted(job.save)},
    }
    if work.initial:
        fingerprint["initial_state"] = work.initial.data.identity()
    journal = Journal(targets.main, json.loads(json.dumps(fingerprint)), job.resume)
    try:
        for path in targets.all():
            if not journal.sealed:
                check_target(path, job.overwrite)
            if not (job.resume or job.overwrite):
                check_left_over(path)
    except BaseException:
        journal.close()
        raise
    return journal


def restore(journal: Journal, result: Result, lengths: Lengths, forward: Forward) -> Done | None:
    """The last span that an earlier run has stored, as far as its data are still what was stored."""
    for count, done in enumerate(journal.done):
        fits = done.span.first + done.span.count <= len(lengths) and done.fits(forward.widths, forward.dtype)
        if not fits or result.check(done.span, done.span.lengths(lengths)) != done.checksum:
            journal.keep(count)
            break
    return journal.done[-1] if journal.done else None


def compute(
    work: Work, result: Result, journal: Journal | None, before: Done | None, stop: Stop, on_progress: Progress
) -> tuple[Nonfinite, int]:
    """Reads span k + 1 and stores span k - 1 while span k is computed, each in a thread of its own, on two buffers in turn.

    before: the last span that is stored already. What is not finite, and the steps that were stored before. StoppedError.
    """
    job, source, lengths, forward = work.job, work.source, work.lengths, work.forward
    total = int(lengths.sum())
    widths = step_widths(work.model, job.save) | {"outputs": forward.output_size}
    limits = block_limits(job, source, lengths, forward, sum(widths.values()))
    inputs = [np.empty((limits.rows, forward.input_size), forward.dtype) for _ in range(2)]
    kept = [{name: np.empty((limits.rows, width), forward.dtype) for name, width in widths.items()} for _ in range(2)]
    seen = before.nonfinite if before else Nonfinite()
    resumed = steps_until(before.span, lengths) if before else 0
    ready = resumed
    on_progress(resumed, total)

    def read(span: Span, buffer: Floats) -> tuple[Block, Nonfinite]:
        steps = span.lengths(lengths)
        block = Block(buffer[: steps.sum()], packed_starts(steps), steps)
        source.read(span.first, span.start, steps, block.rows)
        found = find_nonfinite(block.rows, span.first, span.start, steps) if job.nonfinite != "pass" else Nonfinite()
        if found.steps and job.nonfinite == "error":
            raise DataError(
                f"{source.name}, sequence {found.row}, step {found.step}: expected finite values, got NaN or Inf; "
                "--nonfinite warn computes with them"
            )
        return block, found

    def store(span: Span, above: dict[str, Block], state: State, found: Nonfinite) -> None:
        nonlocal seen, ready
        seen += found
        lengths = above["outputs"].lengths
        rows = {name: block.rows for name, block in above.items()}
        checksum = result.put(span, lengths, rows | {f"state/{name}": values for name, values in state.items()})
        if journal:
            journal.record(Done(span, checksum, seen, None if span.last else state), result)
        count = int(lengths.sum())
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
                    state = {name: np.zeros((span.count, width), forward.dtype) for name, width in forward.widths.items()}
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
    return seen, resumed


def block_limits(job: Job, source: Source, lengths: Lengths, forward: Forward, kept: int) -> Limits:
    """Sizes that keep within --max-memory, and no larger than is of use. UsageError: an uncut sequence does not fit.

    kept: floats that are stored of each step
    """
    size, threads = forward.dtype.itemsize, forward.threads
    chunk_rows = 0 if source.chunk == (1, 1) else source.chunk[0] * source.chunk[1]
    taken = PROGRAM_BYTES + forward.weight_bytes + 2 * chunk_rows * source.shape[2] * source.dtype.itemsize
    budget = max(job.max_memory - taken, job.max_memory // 4)
    per_row = size * (2 * forward.input_size + 2 * kept + sum(forward.scratch_widths.values()))
    per_sequence = 3 * size * sum(forward.widths.values()) + SEQUENCE_BYTES
    total = int(lengths.sum())
    mean = -(-total // max(1, len(lengths)))
    useful = max(BLOCK_BYTES // per_row, 2 * threads * MAX_LANES * mean)
    useful = max(source.chunk[0] * mean, min(useful, BLOCK_FLOPS * threads // forward.flops))
    rows = max(1, min(total, useful, budget * 9 // 10 // per_row))
    whole = source.sequential or job.output == "-"  # sequences come and go one after the other
    if not forward.model.causal:
        whole, longest = True, int(lengths.max(initial=0))
        if longest > budget * 9 // 10 // per_row:
            raise UsageError(
                f"--max-memory {job.max_memory:,}: the longest sequence has {longest:,} steps, and a model that also runs "
                f"backward needs them all at once; expected {taken + longest * per_row * 10 // 9:,} bytes or more"
            )
        rows = max(rows, longest)
    return Limits(
        rows=rows,
        sequences=max(1, budget // 10 // per_sequence),
        fill=1 if whole else max(2 * forward.rows * threads, source.side_by_side),
    )
