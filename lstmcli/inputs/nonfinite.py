"""NaN and Inf among the valid steps of an input: counted, and the first one named."""

import math
from typing import NamedTuple

import numpy as np

from lstmcli.blocks import Floats, Lengths

PIECE = 8192  # values: few enough that BLAS does not start threads and that they stay in the nearest cache


class Nonfinite(NamedTuple):
    """How many steps hold a value that is not finite, and the sequence and step of the first; -1: none."""

    steps: int = 0
    row: int = -1
    step: int = -1

    def __add__(self, other: "Nonfinite") -> "Nonfinite":  # type: ignore[override]
        first = min((part[1:] for part in (self, other) if part.steps), default=(-1, -1))
        return Nonfinite(self.steps + other.steps, *first)


def find_nonfinite(rows: Floats, first: int, starts: Lengths, lengths: Lengths) -> Nonfinite:
    """Looks at steps starts[s] .. starts[s] + lengths[s] of the sequences first + s, which lie packed in rows (R, E)."""
    values = rows.reshape(-1)
    # One pass at the speed of memory: a sum of squares is finite, or something in it is not or is too large to tell.
    with np.errstate(over="ignore", invalid="ignore"):
        pieces = ((at, values[at : at + PIECE]) for at in range(0, len(values), PIECE))
        suspect = [at for at, piece in pieces if not math.isfinite(np.dot(piece, piece))]
    if not suspect or np.isfinite(values[suspect[0] :]).all():
        return Nonfinite()
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    ends = np.cumsum(lengths)
    sequence = int(np.searchsorted(ends, bad[0], side="right"))
    return Nonfinite(len(bad), first + sequence, int(starts[sequence] + bad[0] - (ends - lengths)[sequence]))
