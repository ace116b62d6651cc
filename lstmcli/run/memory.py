"""How large the blocks of a run are, as large as is of use and within --max-memory, and where that cuts a batch."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lstmcli.blocks import Lengths, Span
from lstmcli.engine.lanes_and_threads import MAX_LANES
from lstmcli.errors import UsageError
from lstmcli.inputs.source import Source
from lstmcli.run.computation import Computation

PROGRAM_BYTES = 100_000_000  # what the program takes before it has read a row: interpreter, libraries, kernel
ID_BYTES = 100  # of an id, on average, and what is kept of its sequence all the time
SEQUENCE_BYTES = 256  # what is kept of each sequence of a block besides its states: where it lies, how long it is
# Of what the program itself leaves, nine tenths are for rows and a tenth is for sequences.
TENTHS_FOR_ROWS, TENTHS_FOR_SEQUENCES = 9, 1
LEAST = 4  # one part in four of --max-memory is for blocks even where the program leaves less: see memory_note
BLOCK_BYTES = 32_000_000  # larger blocks gain nothing: lanes are full, and nothing overlaps the first read and the last store
BLOCK_FLOPS = 50_000_000_000  # per thread: about a second, so that progress shows and an interrupt is soon heeded


class Limits(NamedTuple):
    """What a block may hold at most."""

    rows: int  # steps
    sequences: int
    fill: int  # sequences that keep all lanes busy: where fewer of them fit as a whole, so many are cut in time instead


def program_bytes(computation: Computation, source: Source) -> int:
    """Returns what the run takes besides its blocks: the program, the weights, and a chunk of the input, decoded and raw."""
    chunks = 2 * source.decoded_at_once * source.dtype.itemsize
    return PROGRAM_BYTES + computation.weight_bytes + chunks + ID_BYTES * len(source.ids or ())


def memory_note(computation: Computation, source: Source, max_memory: int) -> str | None:
    """Returns what the user should know where --max-memory cannot be kept. The blocks are small then, and the run goes on."""
    program = program_bytes(computation, source)
    if max_memory - program >= max_memory // LEAST:
        return None
    return (
        f"--max-memory {max_memory:,} cannot be kept: program, weights and chunks alone take about {program:,} bytes, "
        f"and blocks {max_memory // LEAST:,}"
    )


def block_limits(computation: Computation, source: Source, lengths: Lengths, max_memory: int, streams: bool) -> Limits:
    """Returns the largest blocks that keep within `max_memory`, but no larger ones than are of use.

    streams: sequences come or go through a pipe, one after the other, so that they are never cut in time together. Raises
    UsageError where a sequence that cannot be cut in time does not fit.

    An example: 2,000 sequences of 50 steps on average, 128 features to 128 units in float32, two threads, 1 GB. A row takes
    2 * 4 * (128 + 128) bytes = 2 KB, as there are two buffers; a sequence 3 * 4 * (128 + 128) + 256 = 3.3 KB. The program
    leaves 0.9 GB: 0.81 GB for rows, which would be 395,000 of them, and 90 MB for sequences, 27,000 of them. But blocks of
    32 MB are large enough, which are 15,625 rows, if these fill the lanes of both threads twice.
    """
    size, threads = computation.dtype.itemsize, computation.threads
    program = program_bytes(computation, source)
    budget = max(max_memory - program, max_memory // LEAST)
    row_bytes = size * (2 * computation.input_width + 2 * sum(computation.step_widths.values()) + computation.scratch_width)
    # The state is computed on, copied for the writer, and one may still be waiting to be stored.
    sequence_bytes = 3 * sum(dtype.itemsize * width for dtype, width in computation.state_forms.values()) + SEQUENCE_BYTES
    fitting_rows = budget * TENTHS_FOR_ROWS // 10 // row_bytes
    fitting_sequences = budget * TENTHS_FOR_SEQUENCES // 10 // sequence_bytes

    total = int(lengths.sum())
    mean = -(-total // max(1, len(lengths)))  # rounded up
    full_lanes = 2 * threads * MAX_LANES * mean
    useful_rows = min(max(BLOCK_BYTES // row_bytes, full_lanes), BLOCK_FLOPS * threads // computation.step_flops)
    useful_rows = max(useful_rows, source.chunk[0] * mean)  # so that no chunk is decoded twice
    rows = max(1, min(total, useful_rows, fitting_rows))
    if computation.causal:
        fill = 1 if streams else max(computation.full, source.side_by_side)
        return Limits(rows, max(1, fitting_sequences), fill)
    longest = int(lengths.max(initial=0))
    if longest > fitting_rows:
        raise UsageError(
            f"--max-memory {max_memory:,}: the longest sequence has {longest:,} steps, and a model that also runs backward "
            f"needs them all at once; expected {program + longest * row_bytes * 10 // TENTHS_FOR_ROWS:,} bytes or more"
        )
    return Limits(max(rows, longest), max(1, fitting_sequences), fill=1)


def cut_into_spans(lengths: Lengths, limits: Limits, chunk: tuple[int, int], after: Span | None = None) -> Iterator[Span]:
    """Cuts the batch into spans of whole sequences, and where too few of them fit, of some steps of several sequences.

    Cuts lie on the edges of the input's chunks where possible, so that no chunk is decoded twice. chunk: (sequences, steps).
    after: the last span that was done already; those before it may have been cut in any other way.
    """
    ends = np.cumsum(lengths)
    first, batch = 0, len(lengths)
    if after:
        first = after.first + after.count
        if not after.last:
            yield from _pieces(lengths, limits, chunk, after.first, after.count, after.stop)
    while first < batch:
        before = int(ends[first] - lengths[first])
        fitting = int(np.searchsorted(ends, before + limits.rows, side="right")) - first
        count = min(fitting, limits.sequences)
        if count >= min(limits.fill, limits.sequences, batch - first):
            aligned = (first + count) // chunk[0] * chunk[0] - first
            if first + count < batch and aligned >= limits.fill:
                count = aligned
            yield Span(first, count, 0, int(lengths[first : first + count].max()), last=True)
        else:
            count = min(limits.fill, limits.rows, limits.sequences, batch - first)
            yield from _pieces(lengths, limits, chunk, first, count, 0)
        first += count


def _pieces(lengths: Lengths, limits: Limits, chunk: tuple[int, int], first: int, count: int, start: int) -> Iterator[Span]:
    """Cuts the sequences first .. first + count in time, from step `start` on."""
    width = max(1, limits.rows // count)
    if width > chunk[1]:
        width -= width % chunk[1]
    longest = int(lengths[first : first + count].max())
    for at in range(start, max(longest, start + 1), width):
        yield Span(first, count, at, min(at + width, longest), last=at + width >= longest)
