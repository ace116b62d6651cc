"""What Python and machine code agree on: the numbers in the box of a thread."""

from enum import IntEnum

from lstmcli.kernel.layout import LINE_BYTES

RESTS, LOOKS, CALLED = range(3)  # values of Word.STATE: CALLED until the call has ended


class Word(IntEnum):
    """The int64 numbers in a box. Its thread writes those of the first cache line, the one that calls the others."""

    STATE = 0
    RESTING = 1  # until when the thread does not look out, in ns
    FIRST_KERNEL = 2  # address of the function to call first
    FIRST_TABLE = 3  # its argument
    TAKEN = LINE_BYTES // 8  # whether the last call was handed over
    KERNEL = TAKEN + 1
    TABLE = TAKEN + 2


WORDS = 2 * LINE_BYTES // 8
