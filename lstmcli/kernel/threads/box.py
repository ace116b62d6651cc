"""Where a thread finds its next call, if that comes soon: no system call is made, and the thread need not wake up first."""

import functools
from collections.abc import Callable
from typing import Any

import numpy as np

from lstmcli.kernel.layout import lines
from lstmcli.kernel.native import compiled
from lstmcli.kernel.native.cache import Compiled
from lstmcli.kernel.native.target import Target
from lstmcli.kernel.threads.words import CALLED, LOOKS, WORDS, Word


class Box:
    """The box of one thread. One thread at a time may hand calls over."""

    def __init__(self) -> None:
        words: Any = lines((WORDS,), np.dtype(np.int64))
        words[:] = 0
        self.words, self.address, self.memory = memoryview(words), words.ctypes.data, None

    def serve(self, thread: int, kernel: Any, table: int) -> None:
        """Run kernel(table, thread), and then what is handed over, until nothing has come for a while or the CPU is wanted."""
        self.words[Word.FIRST_KERNEL], self.words[Word.FIRST_TABLE] = kernel.address, table
        load()(self.address, thread)

    def hand_over(self, kernel: Any, table: int, memory: Any) -> bool:
        """Have the thread run kernel(table, its number), if it looks out for a call. Return whether it did.

        kernel  as compiled.loaded() returns it
        memory  kept until the call has ended, see let_go()
        """
        words = self.words
        if words[Word.STATE] != LOOKS:
            return False
        self.memory = memory
        words[Word.KERNEL], words[Word.TABLE] = kernel.address, table
        load()(self.address, 0)
        return words[Word.TAKEN] == 1

    def let_go(self) -> None:
        """Forget the memory of the last call, if that has ended."""
        if self.words[Word.STATE] != CALLED:
            self.memory = None


def recipe() -> compiled.Recipe:
    """Say how the function is made that hands calls over and looks out for them."""

    def compile_function(here: Target) -> Compiled:
        from lstmcli.kernel.threads import next_call

        return compiled.compile_function(here, (), next_call.define())

    return compiled.Recipe("next-call", None, compile_function)


@functools.cache
def load() -> Callable[[int, int], None]:
    """Load that function, see next_call.define()."""
    return compiled.load(recipe()).call
