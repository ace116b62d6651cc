"""How a batch is cut into the spans that a run reads, computes and stores one after the other."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lstmcli.blocks import Lengths, Span


class Limits(NamedTuple):
    """What a block may hold at most."""

    rows: int  # steps
    sequences: int
    fill: int  # sequences that keep all lanes busy: where fewer of them fit as a whole, so many are cut in time instead


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
