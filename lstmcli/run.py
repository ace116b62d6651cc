"""One run: open, plan blocks, read ahead, compute, write behind, publish."""

import itertools
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lstmcli import __version__
from lstmcli.arrays import Lengths, Source
from lstmcli.blocks import Block, packed_starts
from lstmcli.cpus import available_threads
from lstmcli.errors import DataError, OutputError, UsageError, shown
from lstmcli.forward import Forward
from lstmcli.layer import MAX_LANES
from lstmcli.lengths import read_lengths
from lstmcli.model import Floats, Model, State, count_parameters, init_model
from lstmcli.partial import check_target, partial_name
from lstmcli.results import Arrays, Facts, Result, create_result
from lstmcli.sources import open_source, split_spec
from lstmcli.spans import Limits, Span, plan
from lstmcli.states import States, open_states

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
    seed: int = 0
    initial_state: str | None = None
    output: str | None = None
    states: str | None = None
    save: frozenset[str] = frozenset({"outputs", "states"})
    dtype: str = "float32"
    threads: int | None = None
    max_memory: int = 1_000_000_000
    overwrite: bool = False
    dry_run: bool = False


def run(job: Job, on_progress: Progress) -> dict[str, Any]:
    """Runs the job and returns its facts, ready for JSON: input, lengths, model, outputs, state, output, seconds, ...

    The result gets its name only when it is complete and on disk; after a failure nothing is left of it, unless it is complete
    and somebody else took its name meanwhile: then OUT.partial stays. LstmcliError.
    """
    targets = Targets.of(job)
    for path in targets.all():
        check_target(path, job.overwrite)
    with ExitStack() as opened:
        source = opened.enter_context(closing(open_source(job.input, job.time_major)))
        refuse_inputs(targets, job)
        lengths, origin = read_lengths(job.lens, source)
        model, notes = read_model(job, source)
        initial = None
        if job.initial_state is not None:
            states = open_states(job.initial_state, model.state_widths(), source.shape[0], np.dtype(job.dtype))
            initial = opened.enter_context(closing(states))
        arrays = stored_arrays(job, model, source)
        facts = describe(job, targets, source, lengths, origin, model, initial) | {"notes": list(notes)}
        if not job.dry_run:
            attributes = {
                "model_config": model.config(),
                "options": {"dtype": job.dtype, "save": sorted(job.save)},
                "versions": {"lstmcli": __version__},
            }
            forward = Forward(model, np.dtype(job.dtype), facts["threads"])
            began = time.perf_counter()
            result = create_result(
                targets.main, targets.states, targets.model, arrays, Facts(model, lengths, attributes), job.overwrite
            )
            try:
                compute(job, source, lengths, initial, forward, result, on_progress)
                source.finish()
                if initial:
                    initial.finish()
                result.publish()
            except BaseException:
                result.discard()
                raise
            facts["seconds"] = round(time.perf_counter() - began, 6)
            facts["steps_per_second"] = round(facts["valid_steps"] / facts["seconds"])
        return facts


def compute(
    job: Job,
    source: Source,
    lengths: Lengths,
    initial: States | None,
    forward: Forward,
    result: Result,
    on_progress: Progress,
) -> None:
    """Reads span k + 1 and stores span k - 1 while span k is computed, each in a thread of its own, on two buffers in turn."""
    total = int(lengths.sum())
    limits = block_limits(job, source, lengths, forward)
    inputs, outputs = (
        [np.empty((limits.rows, width), forward.dtype) for _ in range(2)] for width in (forward.input_size, forward.output_size)
    )

    def read(span: Span, buffer: Floats) -> Block:
        steps = span.lengths(lengths)
        block = Block(buffer[: steps.sum()], packed_starts(steps), steps)
        source.read(span.first, span.start, steps, block.rows)
        return block

    def store(span: Span, block: Block, state: State) -> None:
        if field := result.fields.get("outputs"):
            field.put_steps(span.first, span.start, block.lengths, block.rows)
        for name, rows in state.items():
            if span.last and (field := result.fields.get(f"state/{name}")):
                field.put(span.first, rows)
        on_progress(int(block.lengths.sum()), total)

    state: State = {}
    storing: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        buffers = itertools.cycle(zip(inputs, outputs, strict=True))
        reading = (
            (span, *pair, reader.submit(read, span, pair[0]))
            for span, pair in zip(plan(lengths, limits, source.chunk), buffers, strict=False)
        )
        try:
            coming = next(reading, None)
            while coming:
                span, _, buffer, block_read = coming
                block = block_read.result()
                coming = next(reading, None)
                if len(storing) == 2:
                    storing.popleft().result()
                if span.start == 0 and initial:
                    state = initial.read(span.first, span.count)
                elif span.start == 0:
                    state = {name: np.zeros((span.count, width), forward.dtype) for name, width in forward.widths.items()}
                above = block.like(buffer[: len(block.rows)])
                forward(block, above, state)
                storing.append(writer.submit(store, span, above, state))
            for stored in storing:
                stored.result()
        except BaseException:
            source.stop()  # the reader may be waiting for a pipe in which nothing comes
            raise


def block_limits(job: Job, source: Source, lengths: Lengths, forward: Forward) -> Limits:
    """Sizes that keep within --max-memory, and no larger than is of use."""
    size, threads = forward.dtype.itemsize, forward.threads
    chunk_rows = 0 if source.chunk == (1, 1) else source.chunk[0] * source.chunk[1]
    taken = PROGRAM_BYTES + forward.weight_bytes + 2 * chunk_rows * source.shape[2] * source.dtype.itemsize
    budget = max(job.max_memory - taken, job.max_memory // 4)
    per_row = size * (2 * forward.input_size + 2 * forward.output_size + sum(forward.scratch_widths.values()))
    per_sequence = 3 * size * sum(forward.widths.values()) + SEQUENCE_BYTES
    total = int(lengths.sum())
    mean = -(-total // max(1, len(lengths)))
    useful = max(BLOCK_BYTES // per_row, 2 * threads * MAX_LANES * mean)
    useful = max(source.chunk[0] * mean, min(useful, BLOCK_FLOPS * threads // forward.flops))
    in_order = source.sequential or job.output == "-"
    return Limits(
        rows=max(1, min(total, useful, budget * 9 // 10 // per_row)),
        sequences=max(1, budget // 10 // per_sequence),
        fill=1 if in_order else max(2 * forward.rows * threads, source.side_by_side),
    )


@dataclass(frozen=True)
class Targets:
    """The files that a job makes; None: not this one. `main` is None for standard output."""

    main: Path | None
    states: Path | None = None
    model: Path | None = None

    @classmethod
    def of(cls, job: Job) -> "Targets":
        """UsageError for names and options that do not go together."""
        if "" in (job.output, job.states):
            raise UsageError("expected a name after --output and --states, got an empty one")
        output = job.output or f"{'stdin' if job.input == '-' else Path(split_spec(job.input)[0]).stem}.lstm.h5"
        suffix = "-" if output == "-" else Path(output).suffix
        if suffix in (".h5", ".hdf5"):
            if job.states:
                raise UsageError(
                    f"--states {job.states}: an HDF5 result holds the states itself; leave it out, or use --output NAME.npy"
                )
            return cls(Path(output))
        if suffix not in (".npy", "-"):
            raise UsageError(f"--output {output}: expected a name that ends in .h5, .hdf5 or .npy, or -")
        if "outputs" not in job.save:
            raise UsageError(f"--save {','.join(sorted(job.save))}: {output} holds the outputs alone; use --output NAME.h5")
        if job.states and "states" not in job.save:
            raise UsageError(f"--states {job.states}: --save leaves the states out")
        if suffix == "-":
            return cls(None, Path(job.states) if job.states else None)
        path = Path(output)
        states = Path(job.states) if job.states else path.with_suffix(".states.npz")
        targets = cls(path, states if "states" in job.save else None, path.with_suffix(".model.h5"))
        if len(set(targets.names())) < len(targets.names()):
            raise UsageError(f"--states {job.states}: is also the name of another file of this result; choose another one")
        return targets

    def all(self) -> list[Path]:
        return [path for path in (self.main, self.states, self.model) if path]

    def names(self) -> list[Path]:
        """Of all files that exist at any time."""
        return [name for path in self.all() for name in (path, partial_name(path))]


def refuse_inputs(targets: Targets, job: Job) -> None:
    """OutputError where a file that would be replaced is also read, under whatever name."""
    for target in targets.names():
        for spec in (job.input, job.lens, job.weights, job.initial_state):
            path = Path(split_spec(spec)[0]) if spec else target
            if spec and path.exists() and target.exists() and path.samefile(target):
                raise OutputError(f"{shown(str(target))}: is also an input of this run; choose another --output")


def read_model(job: Job, source: Source) -> tuple[Model, tuple[str, ...]]:
    """The model, and what was assumed about its weights."""
    features = source.shape[2]
    if job.units is not None:
        check_memory(job, count_parameters(features, job.units))
        return init_model(features, job.units, job.seed), ()
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


def stored_arrays(job: Job, model: Model, source: Source) -> Arrays:
    batch, time, _ = source.shape
    dtype = np.dtype(job.dtype)
    arrays: Arrays = {}
    if "outputs" in job.save:
        arrays["outputs"] = ((batch, time, model.output_size), dtype)
    if "states" in job.save:
        arrays |= {f"state/{name}": ((batch, width), dtype) for name, width in model.state_widths().items()}
    return arrays


def describe(
    job: Job,
    targets: Targets,
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
        "dry_run": job.dry_run,
    }
