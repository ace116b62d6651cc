"""Threads that run the kernel together.

Plain threads on locks, since a thread pool takes 0.1 ms to pass on a call and its result, which is as long as a small batch.
The kernel's thread 0 ends only when all have done their part, so nothing is passed back.
"""

import os
import threading
from collections.abc import Callable
from typing import Any

_kept: list[Any] = []  # what threads of a given-up team may still use


class Team:
    """Runs one call at a time: the threads of a call wait for each other, so two calls must not each hold half of them."""

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.starts: list[threading.Lock] = []
        self.call: Callable[[int], None] = lambda number: None

    def run(self, call: Callable[[int], None], threads: int, keep: Any) -> None:
        """call(0) here and call(1) .. call(threads - 1) in other threads; call(0) must end last. `keep` holds what they use."""
        with self.turn:
            while len(self.starts) < threads - 1:
                self._add()
            self.call = call
            try:
                for start in self.starts[: threads - 1]:
                    start.release()
                call(0)
            except BaseException:
                # An interrupt between the starts and the call: the others wait for a part that nobody does.
                _kept.append(keep)
                _teams.clear()
                raise

    def _add(self) -> None:
        start, number = threading.Lock(), len(self.starts) + 1
        start.acquire()

        def work() -> None:
            while True:
                start.acquire()
                self.call(number)

        threading.Thread(target=work, name=f"lstmcli-{number}", daemon=True).start()
        self.starts.append(start)


_teams: list[Team] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_teams.clear)  # a forked child has none of the threads


def team() -> Team:
    """The team of this process."""
    if not _teams:
        _teams.append(Team())
    return _teams[0]
