"""Who computes what: threads, lanes, and steps in advance, chosen by size. No choice changes a bit of a result.

The figures are those of one or two cores with AVX-512 (AMD Zen 4), float32, from `lstmcli bench`.
"""

from typing import NamedTuple

import numpy as np

from lstmcli.blocks import Lengths
from lstmcli.engine.cpus import second_cache_bytes

# Python adds up so few lengths faster than NumPy: 1 us instead of 5, of a call of 13.
FEW = 64
# So few sequences begin at once, in the lanes of one tile, whatever their order.
ONE_TILE = 6
IN_TURN: Lengths = np.arange(ONE_TILE, dtype=np.int64)

# More lanes than this gain nothing: a panel of weights is read once for all of them, and their rows must stay in the cache.
MAX_LANES = 48
# Four lanes compute a sequence almost as fast as a full tile of six. With fewer, most of the registers would be idle.
MIN_LANES = 4
# So with fewer lanes the input products of this many steps are computed at once, as full tiles.
AHEAD = 24
# No cache holds more weights than this from one step to the next. Input products in advance then read half of them only once.
STREAMED_BYTES = 16 << 20
# A lane takes at least this many sequences in turn: with fewer, the threads end at more different times.
SEQUENCES_PER_LANE = 5
# Less work than this, 50 us, is not worth waking another thread.
THREAD_FLOPS = 5e6
# A step of less work than this, 2 us, is not worth it that threads wait for each other at its end.
SHARED_FLOPS = 2e5


class Schedule(NamedTuple):
    """In which order sequences are run: those of length > 0, longest first, so that the lanes end together."""

    order: Lengths
    steps: int  # in all
    longest: int

    @classmethod
    def of(cls, lengths: Lengths) -> "Schedule":
        if len(lengths) <= FEW:
            values = lengths.tolist()
            if len(values) <= ONE_TILE and 0 not in values:
                return cls(IN_TURN[: len(values)], sum(values), max(values, default=0))
            steps, longest, count = sum(values), max(values, default=0), len(values) - values.count(0)
        else:
            steps, longest, count = int(lengths.sum()), int(lengths.max()), int(np.count_nonzero(lengths))
        return cls((-lengths).argsort(kind="stable")[:count], steps, longest)


class CellSize(NamedTuple):
    """What the split depends on, of a cell: the work of a step, its weights, and how they are cut."""

    flops: int  # of one step of one sequence
    weight_bytes: int
    panels: int
    tile_rows: int  # sequences that fill a tile


class WorkSplit(NamedTuple):
    """The sequences of a block over threads and lanes.

    threads      that compute
    share_steps  whether all threads compute each step together, each a part of the units; else each takes whole sequences
    lanes        sequences side by side in a thread, or in all that share steps
    ahead        steps whose input products are computed in advance; 0: none
    fetches      whether the tiles of a panel fetch the one that is next
    """

    threads: int
    share_steps: bool
    lanes: int
    ahead: int
    fetches: bool = False


def split_work(cell: CellSize, schedule: Schedule, max_threads: int) -> WorkSplit:
    """Choose the split for the sequences of `schedule`, of which there is at least one, and at most `max_threads` threads."""
    count, rows, flops = len(schedule.order), cell.tile_rows, cell.flops * schedule.steps
    enough = max(MIN_LANES, rows // 2)  # tiles of AMX have 16 rows: it takes 8 of them before products take longer than weights
    if count <= rows and flops < THREAD_FLOPS:  # one tile does it all
        return WorkSplit(1, False, count, AHEAD if count < enough else 0)
    streamed = cell.weight_bytes > STREAMED_BYTES
    # More weights leave a core's second-level cache between two steps, so they are read for as many lanes as possible, and
    # fetched a panel in advance if that cache holds two panels, and the lanes' rows beside them.
    cached = cell.weight_bytes <= second_cache_bytes()
    fetches = not cached and cell.weight_bytes / cell.panels <= 0.4 * second_cache_bytes()
    # So many sequences run side by side until the end, in full tiles, if the lanes end together.
    abreast = min(count, -(-schedule.steps // (schedule.longest * rows)) * rows)

    threads = min(max_threads, int(flops / THREAD_FLOPS) + 1)
    too_few = abreast < rows * threads or (streamed and abreast < MAX_LANES)  # for each thread to fill lanes of its own
    share_steps = threads > 1 and too_few and cell.flops * abreast > SHARED_FLOPS and cell.panels >= threads
    if share_steps:
        lanes = abreast
    else:
        threads = min(threads, count)
        full_tiles = (count // SEQUENCES_PER_LANE if cached else abreast) // threads // rows * rows
        lanes = min(max(enough, full_tiles), -(-count // threads))
    lanes = min(lanes, MAX_LANES)
    ahead = AHEAD if lanes < enough or streamed else 0
    return WorkSplit(threads, share_steps, lanes, ahead, fetches)
