"""A thread that looks out for its next call, in machine code; what it calls are functions of Python here."""

from __future__ import annotations

import ctypes
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from lstmcli.kernel.native.compiled import PROTOTYPE
from lstmcli.kernel.threads.box import Box
from lstmcli.kernel.threads.words import CALLED, RESTS, Word

TRIES = 2000  # on a busy machine a thread hardly ever looks out
Called = list[tuple[int, int]]


def machine_code(function: Callable[[int, int], None]) -> Any:
    kernel: Any = PROTOTYPE(function)
    kernel.address = ctypes.cast(kernel, ctypes.c_void_p).value
    return kernel


@pytest.fixture
def called() -> Called:
    """The (table, thread) of each call."""
    return []


@pytest.fixture
def kernel(called: Called) -> Any:
    """A call of a millisecond."""

    def run(table: int, thread: int) -> None:
        called.append((table, thread))
        time.sleep(0.001)

    return machine_code(run)


@contextmanager
def serving(box: Box, kernel: Any) -> Iterator[threading.Thread]:
    thread = threading.Thread(target=box.serve, args=(3, kernel, 10))
    thread.start()
    try:
        yield thread
    finally:
        thread.join()


def handed_over(box: Box, kernel: Any, memory: Any, thread: threading.Thread) -> bool:
    while thread.is_alive():
        if box.hand_over(kernel, 20, memory):
            return True
    return False


def test_a_call_is_handed_over(called: Called, kernel: Any) -> None:
    box = Box()
    for _ in range(TRIES):
        called.clear()
        box.words[Word.RESTING] = 0
        with serving(box, kernel) as thread:
            taken = handed_over(box, kernel, None, thread)
        assert called == [(10, 3), (20, 3)][: 1 + taken]
        assert box.words[Word.STATE] == RESTS
        if taken:
            return
    pytest.fail("no call was ever handed over")


def test_the_memory_of_a_call_is_kept_until_its_end(kernel: Any) -> None:
    box, memory, go_on = Box(), object(), threading.Event()
    waits = machine_code(lambda table, thread: (go_on.wait(60), None)[1])
    for _ in range(TRIES):
        box.words[Word.RESTING] = 0
        with serving(box, kernel) as thread:
            if taken := handed_over(box, waits, memory, thread):
                box.let_go()
                state, kept = box.words[Word.STATE], box.memory
                go_on.set()
        if taken:
            assert (state, kept) == (CALLED, memory)
            box.let_go()
            assert box.memory is None
            return
    pytest.fail("no call was ever handed over")


def test_nothing_is_handed_to_a_thread_that_rests(kernel: Any) -> None:
    assert not Box().hand_over(kernel, 20, None)


def test_a_thread_that_looked_out_in_vain_rests_for_a_while(called: Called, kernel: Any) -> None:
    box = Box()
    box.serve(3, kernel, 10)
    until = box.words[Word.RESTING]
    assert until > 0
    box.words[Word.RESTING] = until + 10**12  # that long, for a test
    with serving(box, kernel) as thread:
        assert not handed_over(box, kernel, None, thread)
    assert called == [(10, 3)] * 2
    assert box.words[Word.RESTING] == until + 10**12


def test_a_thread_that_came_too_late_does_not_look_out(kernel: Any) -> None:
    """A call that is over at once: its sequences were taken by others."""
    box = Box()
    nothing_left = ctypes.CDLL(None).labs  # a function that does nothing in less than 10 us
    nothing_left.address = ctypes.cast(nothing_left, ctypes.c_void_p).value
    for _ in range(TRIES):
        box.words[Word.RESTING] = 0
        box.serve(3, nothing_left, 10)
        if box.words[Word.RESTING] == 0:  # it has not looked out in vain
            return
    pytest.fail("it always looked out")
