"""One run: open, plan blocks, read ahead, compute, write behind, publish."""

import hashlib
import itertools
import json
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, nullcontext, suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli import __version__
from lstmcli.arrays import Lengths, Source
from lstmcli.blocks import Block, packed_starts
from lstmcli.cpus import available_threads
from lstmcli.errors import DataError, LstmcliError, OutputError, StoppedError, StorageError, UsageError, shown
from lstmcli.forward import Forward, kernels_are_cached
from lstmcli.initializers import CellOptions, count_parameters, init_model
from lstmcli.journal import Done, Journal, journal_name
from lstmcli.layer import MAX_LANES
from lstmcli.lengths import read_lengths
from lstmcli.model import Floats, Model, State
from lstmcli.nonfinite import Nonfinite, find_nonfinite
from lstmcli.partial import Partial, check_left_over, check_target, partial_name
from lstmcli.results import Arrays, Facts, Paths, Result, create_result
from lstmcli.sources import open_source, split_spec
from lstmcli.spans import Limits, Span, plan, steps_until
from lstmcli.states import States, open_states
from lstmcli.stop import Stop
from lstmcli.verify import verify

Progress = Callable[[int, int], None]  # called with the valid steps done since the last call, and those of the whole run

PROGRAM_BYTES = 100_000_000  # what the program takes before it has read a row: interpreter, libraries, kernel
BLOCK_BYTES = 64_000_000  # larger blocks gain nothing: lanes are full, and reading and writing already overlap the work
BLOCK_FLOPS = 50_000_000_000  # per thread: about a second, so that progress shows and an interrupt is soon heeded
SEQUENCE_BYTES = 256  # what is kept for each sequence of a block besides its states: where it lies, how long it is


@dataclass(frozen=True)
class Job:
    """What the options of `lstmcli run` say."""

    input: str
    time_major: bool = False
    lens: str | None = None
    units: tuple[int, ...] | None = None
    weights: str | None = None
    select: str | None = None
    forget_bias: tuple[float | None, ...] | None = None
    cell_clip: tuple[float | None, ...] | None = None
    projection_clip: tuple[float | None, ...] | None = None
    activation: str | None = None
    peepholes: bool = False
    projection: int | None = None
    bidirectional: bool = False
    residual: bool = False
    seed: int = 0
    initial_state: str | None = None
    output: str | None = None
    states: str | None = None
    save: frozenset[str] = frozenset({"outputs", "states"})
    dtype: str = "float32"
    threads: int | None = None
    max_memory: int = 1_000_000_000
    nonfinite: str = "warn"  # error | warn | pass
    follow_links: bool = False
    rows: tuple[int, int] | None = None  # first, stop: of the input only these sequences
    overwrite: bool = False
    resume: bool = False
    dry_run: bool = False


# Options that change no bit of a result, and those whose files or numbers are in the fingerprint themselves.
UNMARKED = {
    *("threads", "max_memory", "overwrite", "resume", "dry_run", "follow_links"),
    *("input", "lens", "units", "weights", "seed", "initial_state", "output"),
}


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


def step_widths(model: Model, save: frozenset[str]) -> dict[str, int]:
    """The width of each array (N, T, width) that is to be stored."""
    widths = {"outputs": model.output_size} if "outputs" in save else {}
    if "cells" in save:
        widths["cells"] = model.cells_width
    if "layers" in save:
        widths |= {f"layers/{name}": layer.output_size for name, layer in (model.layers_by_name() or {"0": model}).items()}
    return widths


def targets_of(job: Job) -> Paths:
    """The files that a job makes. UsageError for names and options that do not go together."""
    if "" in (job.output, job.states):
        raise UsageError("expected a name after --output and --states, got an empty one")
    output = job.output or f"{'stdin' if job.input == '-' else Path(split_spec(job.input)[0]).stem}.lstm.h5"
    suffix = "-" if output == "-" else Path(output).suffix
    if suffix in (".h5", ".hdf5"):
        if job.states:
            raise UsageError(
                f"--states {job.states}: an HDF5 result holds the states itself; leave it out, or use --output NAME.npy"
            )
        return Paths(Path(output))
    if suffix not in (".npy", "-"):
        raise UsageError(f"--output {output}: expected a name that ends in .h5, .hdf5 or .npy, or -")
    if "outputs" not in job.save or not job.save <= {"outputs", "states"}:
        raise UsageError(f"--save {','.join(sorted(job.save))}: {output} holds the outputs alone; use --output NAME.h5")
    if job.states and "states" not in job.save:
        raise UsageError(f"--states {job.states}: --save leaves the states out")
    if suffix == "-":
        return Paths(None, Path(job.states) if job.states else None)
    path = Path(output)
    states = Path(job.states) if job.states else path.with_suffix(".states.npz")
    targets = Paths(path, states if "states" in job.save else None, path.with_suffix(".model.h5"))
    if len(set(names := temporary_names(targets))) < len(names):
        raise UsageError(f"--states {job.states}: is also the name of another file of this result; choose another one")
    return targets


def temporary_names(targets: Paths) -> list[Path]:
    """Of all files that exist at any time."""
    names = [name for path in targets.all() for name in (path, partial_name(path))]
    return [*names, journal_name(targets.main)] if targets.main else names


def refuse_inputs(targets: Paths, job: Job) -> None:
    """OutputError where a file that would be replaced is also read, under whatever name."""
    for target in temporary_names(targets):
        for spec in (job.input, job.lens, job.weights, job.initial_state):
            path = Path(split_spec(spec)[0]) if spec else target
            if spec and path.exists() and target.exists() and path.samefile(target):
                raise OutputError(f"{shown(str(target))}: is also an input of this run; choose another --output")


def read_model(job: Job, source: Source) -> tuple[Model, tuple[str, ...]]:
    """The model, and what was assumed about its weights."""
    features = source.shape[2]
    if job.units is not None:
        options = CellOptions.chosen(**{field.name: getattr(job, field.name) for field in fields(CellOptions)})
        check_memory(job, count_parameters(features, job.units, options, job.bidirectional))
        return init_model(features, job.units, job.seed, options, job.bidirectional, job.residual), ()
    assert job.weights is not None
    from lstmcli.importers import Choices, load_weights

    choices = Choices(job.select, job.forget_bias, job.cell_clip, job.projection_clip, job.activation)
    imported = load_weights(job.weights, choices)
    model = imported.model
    check_memory(job, model.parameters())
    if model.input_size != features:
        raise DataError(
            f"{job.weights}: the model takes {model.input_size} features, {source.name} {source.stored_shape} has {features}"
        )
    return model, imported.notes


def check_memory(job: Job, parameters: int) -> None:
    size = parameters * np.dtype(job.dtype).itemsize
    if size > job.max_memory:
        raise UsageError(f"--max-memory {job.max_memory:,}: the weights alone take {size:,} bytes; raise it")


def attributes(job: Job, model: Model, found: Nonfinite) -> dict[str, Any]:
    """What a result says of its making besides its lengths."""
    known: dict[str, Any] = {
        "model_config": model.config(),
        "options": {"dtype": job.dtype, "save": sorted(job.save)},
        "versions": {"lstmcli": __version__},
    }
    if job.nonfinite != "pass":
        known |= {"nonfinite_steps": np.int64(found.steps), "nonfinite_first": np.array([found.row, found.step], np.int64)}
    return known


def stored_arrays(job: Job, model: Model, source: Source) -> Arrays:
    batch, time, _ = source.shape
    dtype = np.dtype(job.dtype)
    arrays: Arrays = {name: ((batch, time, width), dtype) for name, width in step_widths(model, job.save).items()}
    if "states" in job.save:
        arrays |= {f"state/{name}": ((batch, width), dtype) for name, width in model.state_widths().items()}
    return arrays


def describe(
    job: Job,
    targets: Paths,
    source: Source,
    lengths: Lengths,
    origin: str | None,
    model: Model,
    initial: States | None,
) -> dict[str, Any]:
    batch, time, _ = source.shape
    total, cells = int(lengths.sum()), [cell for _, cell in model.cells()]
    return {
        "input": {
            "path": source.name,
            "shape": list(source.stored_shape),
            "time_major": source.time_major,
            "dtype": source.dtype.name,
        },
        "lengths": {
            "from": origin,
            "min": int(lengths.min(initial=time)) if batch else 0,
            "mean": total / batch if batch else 0.0,
            "max": int(lengths.max(initial=0)),
            "total": total,
        },
        "padding_fraction": 1 - total / (batch * time) if batch * time else 0.0,
        "model": {
            "from": job.weights or f"seed {job.seed}",
            "layers": len(cells),
            "units": [cell.units for cell in cells],
            "parameters": model.parameters(),
        },
        "initial_state": initial.name if initial else None,
        "outputs": {"shape": [batch, time, model.output_size], "dtype": job.dtype, "stored": "outputs" in job.save},
        "state": [
            {"path": f"/state/{name}", "shape": [batch, width], "dtype": job.dtype}
            for name, width in model.state_widths().items()
        ],
        "output": str(targets.main or "-"),
        "states": str(targets.states) if targets.states else None,
        "model_file": str(targets.model) if targets.model else None,
        "threads": job.threads or available_threads(),
        "valid_steps": total,
        "seconds": 0.0,
        "steps_per_second": 0,
        "resumed_steps": 0,
        "nonfinite": None,
        "dry_run": job.dry_run,
    }
