"""Masks: 1 where a step is valid and 0 where it is padding, so that lengths and the place of the padding are one array."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from lstmcli.blocks import Valid
from lstmcli.errors import DataError

PIECE = 1 << 20  # values looked at at a time


def read_mask(mask: NDArray[Any], name: str, first: int = 0) -> Valid:
    """Reads the valid steps off a mask (n, T) of bool, or of integers or floats 0 and 1, whose ones are one run in each row.

    name, first: for messages; the mask's row 0 is row `first` of the whole.
    Raises DataError, which names the first row and step where it is something else.
    """
    if mask.dtype.kind not in "biuf":
        raise DataError(f"{name}: expected a mask of bool, or of integers or floats 0 and 1, got {mask.dtype}")
    ones = mask.astype(bool)
    if mask.dtype.kind != "b" and (other := ones & (mask != 1)).any():
        row, step = np.unravel_index(other.argmax(), other.shape)
        raise DataError(f"{name}, row {first + row}, step {step}: expected a mask of 0 and 1, got {mask[row, step]}")
    lengths = ones.sum(axis=1, dtype=np.int64)
    starts = ones.argmax(axis=1).astype(np.int64) if ones.size else lengths.copy()
    steps = np.arange(mask.shape[1])
    ends = (starts + lengths)[:, None]
    if (holes := (steps >= starts[:, None]) & (steps < ends) & ~ones).any():
        row, step = np.unravel_index(holes.argmax(), holes.shape)
        raise DataError(
            f"{name}, row {first + row}, step {step}: expected the ones of a row in one run, got 0 with ones after it; "
            "take such steps out of the input and of the mask"
        )
    return Valid(starts, lengths)
