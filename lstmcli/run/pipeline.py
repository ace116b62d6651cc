"""The pipeline of a run: the next span is read and the last one is stored while one is computed."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Block, Floats, Span, State, packed_starts, steps_until
from lstmcli.errors import DataError, SequenceError, StoppedError
from lstmcli.inputs.nonfinite import Nonfinite, find_nonfinite
from lstmcli.inputs.source import Checksum
from lstmcli.results.journal import StoredSpan
from lstmcli.run.computation import Computation
from lstmcli.run.memory import Limits, cut_into_spans
from lstmcli.run.opened_job import OpenedJob
from lstmcli.run.stop import Stop

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

Progress = Callable[[int, int], None]  # called with the valid steps done since the last call, and those of the whole run


class Sink(Protocol):
    """Where spans go: an UnpublishedResult, or what a worker of a cluster has in its place."""

    def store(
        self, span: Span, arrays: dict[str, NDArray[Any]], nonfinite: Nonfinite, state: State | None, read: int
    ) -> None: ...
    def flush(self) -> None: ...


class Buffer(NamedTuple):
    """Memory for one span, used again and again."""

    rows: NDArray[Any]  # (R, features) what is read; token ids: (R, 1) int64 or uint64
    arrays: dict[str, Floats]  # (R, width) what is computed of it


class ReadSpan(NamedTuple):
    """What was read for a span."""

    block: Block
    nonfinite: Nonfinite  # steps of it
    checksum: Checksum


class ComingSpan(NamedTuple):
    """A span that is being read."""

    span: Span
    buffer: Buffer
    read: "Future[ReadSpan] | Done"


class Done(NamedTuple):
    """What a Future is for work that is done already."""

    value: Any

    def result(self) -> Any:
        return self.value


class InPlace:
    """What a ThreadPoolExecutor is, without a thread: work is done when it is submitted."""

    def submit(self, work: Callable[..., Any], *of: Any) -> Done:
        return Done(work(*of))


class Pipeline:
    """Reads span k + 1 and stores span k - 1 while span k is computed, each in a thread of its own.

    Spans take two buffers in turn. The rows of a buffer are the reader's until a span is read, then the computation's until it
    is computed; then the reader gets them for the next span but one. The arrays are the computation's, and from then on the
    writer's until the span is stored: the computation waits for that before it fills them again.
    """

    def __init__(
        self, opened: OpenedJob, computation: Computation, limits: Limits, sink: Sink, stop: Stop, on_progress: Progress
    ) -> None:
        self.opened, self.computation, self.limits, self.sink = opened, computation, limits, sink
        self.stop, self.on_progress = stop, on_progress
        self.total = int(opened.lengths.sum())
        self.done = 0  # steps that are stored
        self.nonfinite = Nonfinite()  # in the spans that are stored
        self.buffers: list[Buffer] = []
        self.spans: Iterator[Span] = iter(())
        self.reader: ThreadPoolExecutor | InPlace = InPlace()
        self.writer: ThreadPoolExecutor | InPlace = InPlace()
        self.storing: deque[Future[None] | Done] = deque()

    def new_buffer(self) -> Buffer:
        def empty(width: int) -> Floats:
            return np.empty((self.limits.rows, width), self.computation.dtype)

        arrays = {name: empty(width) for name, width in self.computation.step_widths.items()}
        source = self.opened.source
        dtype = source.exact_dtype if source.token_ids else self.computation.input_dtype
        rows = np.empty((self.limits.rows, self.computation.input_width), dtype)
        return Buffer(rows, arrays)

    def run(self, before: StoredSpan | None = None) -> Nonfinite:
        """Stores all spans after `before`. Returns which steps of the whole run are not finite.

        Raises StoppedError when it was asked to stop, DataError for bad input, and StorageError.
        """
        state: State = {}
        if before:
            self.nonfinite, state = before.nonfinite, before.state or {}
            self.done = steps_until(before.span, self.opened.lengths)
        self.on_progress(self.done, self.total)
        source = self.opened.source
        spans = cut_into_spans(self.opened.lengths, self.limits, source.chunk, before.span if before else None)
        begin = list(islice(spans, 2))
        self.spans = chain(begin, spans)
        with ExitStack() as threads:
            # A lone span has nothing beside it, and threads would cost it 4 ms. A pipe needs one: signals must end the waiting.
            if len(begin) == 2 or source.sequential:
                from concurrent.futures import ThreadPoolExecutor

                self.reader, self.writer = (threads.enter_context(ThreadPoolExecutor(1)) for _ in range(2))
                for thread in self.reader, self.writer:
                    thread.submit(int).result()  # starts it before the buffers: Python waits for ever for one without memory
            self.buffers = [self.new_buffer(), self.new_buffer()]
            try:
                coming = self.submit_next()
                while coming and not self.stop.reason():
                    current, read = coming, coming.read.result()
                    coming = self.submit_next()
                    if len(self.storing) == 2:
                        self.storing.popleft().result()
                    state = self.compute(current, read, state)
                while self.storing:
                    self.storing.popleft().result()
            except BaseException:
                source.stop()  # the reader may be waiting for a pipe in which nothing comes
                raise
        if coming:
            self.sink.flush()
            raise StoppedError(f"stopped by {self.stop.reason()} after {self.done:,} of {self.total:,} steps")
        return self.nonfinite

    def submit_next(self) -> ComingSpan | None:
        """Lets the reader begin with the next span, if there is one, in the buffer whose turn it is."""
        span = next(self.spans, None)
        if span is None:
            return None
        buffer = self.buffers[0]
        self.buffers.reverse()
        return ComingSpan(span, buffer, self.reader.submit(self.read, span, buffer.rows))

    def read(self, span: Span, rows: Floats) -> ReadSpan:
        """Reads a span."""
        opened = self.opened
        starts, steps = span.valid(opened.valid)
        block = Block(rows[: steps.sum()], packed_starts(steps), steps)
        opened.source.read(opened.first + span.first, starts, steps, block.rows)
        policy = "pass" if opened.source.token_ids else opened.job.compute.nonfinite
        found = find_nonfinite(block.rows, span.first, starts, steps) if policy != "pass" else Nonfinite()
        if found.steps and policy == "error":
            where = f"{opened.source.name}, {opened.source.sequence(opened.first + found.row)}, step {found.step}"
            raise DataError(f"{where}: expected finite values, got NaN or Inf; --nonfinite warn computes with them")
        checksum = Checksum()
        checksum.add(block.rows)
        return ReadSpan(block, found, checksum)

    def compute(self, current: ComingSpan, read: ReadSpan, state: State) -> State:
        """Computes a span and lets the writer store it. Returns the state after it."""
        span, block = current.span, read.block
        if span.start == 0:
            given = self.opened.initial_state(span)
            for rows in (given or {}).values():
                read.checksum.add(rows)
            state = self.computation.initial_state(span.count, given)
        arrays = {name: block.like(rows[: len(block.rows)]) for name, rows in current.buffer.arrays.items()}
        try:
            self.computation.run(block, arrays, state)
        except SequenceError as error:
            raise self.located(span, error) from error
        # The next span of these sequences goes on from the state, perhaps while this one is stored.
        kept = state if span.last else {name: rows.copy() for name, rows in state.items()}
        self.storing.append(self.writer.submit(self.store, span, read, arrays, kept))
        return state

    def store(self, span: Span, read: ReadSpan, arrays: dict[str, Block], state: State) -> None:
        """Stores a span."""
        self.nonfinite += read.nonfinite
        rows = {name: array.rows for name, array in arrays.items()} | self.computation.of_sequences(state)
        passes = self.opened.job.compute.nonfinite == "pass"
        try:
            with np.errstate(over="ignore" if passes else "raise"):  # where values are stored in fewer bits
                self.sink.store(span, rows, self.nonfinite, None if span.last else state, read.checksum.value())
        except SequenceError as error:
            raise self.located(span, error) from error
        steps = int(read.block.lengths.sum())
        self.done += steps
        self.on_progress(steps, self.total)

    def located(self, span: Span, error: SequenceError) -> DataError:
        """Returns the error with the sequence and the step of the input that it is about."""
        source, step = self.opened.source, ""
        if error.step is not None:
            step = f", step {self.opened.valid.starts[span.first + error.row] + error.step}"
        return DataError(f"{source.name}, {source.sequence(self.opened.first + span.first + error.row)}{step}: {error.text}")
