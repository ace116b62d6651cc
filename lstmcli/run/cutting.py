"""A batch cut into the spans that a run reads, computes and stores one after the other."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from lstmcli.blocks import Lengths, Span


class Limits(NamedTuple):
    """How much a block may hold."""

    rows: int  # steps
    sequences: int
    fill: int  # sequences that keep all lanes busy: with fewer of them in a block, they are cut in time instead


def plan(lengths: Lengths, limits: Limits, chunk: tuple[int, int], after: Span | None = None) -> Iterator[Span]:
    """Cuts the batch into spans of whole sequences; where too few of them fit, into spans of steps of some sequences.

    Cuts lie on the edges of the input's chunks where possible, so that no chunk is decoded twice. after: what was done already,
    up to this span, in whatever spans.
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
    """Spans of steps of the sequences first .. first + count, from step `start` on."""
    width = max(1, limits.rows // count)
    if width > chunk[1]:
        width -= width % chunk[1]
    longest = int(lengths[first : first + count].max())
    for at in range(start, max(longest, start + 1), width):
        yield Span(first, count, at, min(at + width, longest), last=at + width >= longest)
